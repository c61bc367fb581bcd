"""Small students on a small world: whole models instead of adapters, trained from nothing on a CPU."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config import Config
from bench.losses import Goals, distil, of_law, of_tokens
from bench.model import Transformer
from bench.packing import Batch
from bench.reading import Reading, read
from bench.sampling import Law
from ptp.completions import Completions, complete, explain, under
from ptp.kinds import KINDS
from ptp.losses import Voice, own_noise
from ptp.noise_embedding import NONE, NoiseDesign, NoiseEmbedding
from ptp.trips import City

M = TypeVar("M", bound=nn.Module)
LAW = Law(temperature=1.0)
PREFIX = 8  # places before the longest group of slots
SPREAD = 0.1  # root mean square of embeddings at first
HEAD_DIM = 16
NOISE = NoiseDesign("thresholds", thresholds=1024)
MATRIX_RATE = 0.02  # of Muon
RECENT = 9  # how fast the average of weights forgets: step s has the share 9 / (s + 9) of it (Shamir & Zhang, 2013)


@dataclass(frozen=True)
class Course:
    """What is trained, and how much."""

    city: City = field(default_factory=City)
    slots: int = 16
    width: int = 64
    layers: int = 3
    steps: int = 2500  # of every student; the teacher, which has no noise to understand, makes a quarter of them
    batch: int = 64  # trips of a step, with one group of slots each: groups of one trip would have the same labels
    rate: float = 3e-3
    seed: int = 0

    @property
    def length(self) -> int:
        """Stops of a trip: the longest group of slots may follow any of the first `PREFIX`, and so may its labels."""
        return PREFIX + self.slots + 1

    @property
    def config(self) -> Config:
        """Shape of all models."""
        heads = self.width // HEAD_DIM
        return Config(self.city.places, self.width, self.layers, heads, heads, HEAD_DIM, self.width * 8 // 3,
                      context=self.length, tied=True)

    def trips(self, count: int) -> Batch:
        """Fresh trips, one a row."""
        return Batch.whole(self.city.trips(count, self.length))

    def starts(self, trips: int) -> Tensor:
        """A random token of each trip for a group of slots to hang from, [trips, 1]: every group has all labels."""
        return torch.randint(PREFIX, (trips, 1))


def model_of(config: Config) -> Transformer:
    """A model with random weights that can be trained."""
    model = Transformer(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=SPREAD if name == "embedding" else 0.5 * weight.shape[1] ** -0.5)
    model.extend_rope(config.context)
    return model


class Pupil(nn.Module):
    """A model that takes noise in place of tokens, in rows of its own.

    A C-PTP slot has a second head, for training only: it names the token that the slot's own noise makes. The law of
    the token after it hardly tells one noise from another, and by itself would teach slowly what noise means.
    """

    def __init__(self, config: Config, kind: str, informed: bool = True):
        super().__init__()
        self.kind, self.informed = KINDS[kind], informed
        self.model = model_of(config)
        self.embedding = NoiseEmbedding(NOISE, config.hidden, SPREAD)
        self.echo = None if self.kind.known else nn.Linear(config.hidden, config.vocab, bias=False)

    def run(self, reading: Reading, slots: Completions) -> Tensor:
        """The head's inputs at all slots behind what the pupil has read: [B, N, L, hidden]."""
        noise = slots.noise if self.informed else torch.full_like(slots.noise, NONE)
        return complete(self.model, None, reading, slots, self.embedding(noise))


def next_token_losses(model: Transformer, reading: Reading) -> Tensor:
    """Cross-entropy of every token but the first, in nats: [B, T - 1]."""
    logits = model.score(reading.hidden)[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), reading.batch.tokens[:, 1:], reduction="none")


def distillation_loss(pupil: Pupil, teacher: Transformer, course: Course) -> Tensor:
    """O-PTP, C-PTP or the uninformed control on one batch of trips, with the teacher's bins."""
    batch = course.trips(course.batch)
    starts = course.starts(course.batch)
    with torch.no_grad():
        reading = read(teacher, batch)
        drawn = under(explain(teacher, reading, LAW), starts, course.slots)
    slots = Completions.of(batch, pupil.kind, starts, drawn)
    goals = of_law(teacher, slots.taught(reading).flatten(0, 2), LAW)
    if pupil.kind.known:
        goals = of_tokens(slots.tokens(batch).flatten())
    return slot_loss(pupil, read(pupil.model, batch), slots, goals)


def slot_loss(pupil: Pupil, reading: Reading, slots: Completions, goals: Goals) -> Tensor:
    """How far the slots are from their goals, and C-PTP slots from naming the tokens that they have heard."""
    hidden, valid = pupil.run(reading, slots), slots.valid
    loss = distil(hidden.flatten(0, 2), pupil.model, goals, valid.flatten())
    if pupil.echo is None:
        return loss
    return loss + F.cross_entropy(pupil.echo(hidden[valid]), slots.before(reading.batch)[valid])


def inverse_slots(pupil: Pupil, reading: Reading, starts: Tensor, slots: int) -> Completions:
    """Slots that hear the noise that the pupil's own laws explain the tokens before them with."""
    drawn = own_noise(Voice(pupil.model, pupil.embedding), reading, starts, slots, LAW)
    return Completions.of(reading.batch, pupil.kind, starts, drawn)


def inverse_loss(pupil: Pupil, steady: Pupil, course: Course) -> Tensor:
    """No teacher: the tokens given the noise that the pupil's own laws explain them with, and given the tokens.

    The laws are those of its weights' average, `steady`: what moves an edge of a bin changes what the noise means, and
    single steps move all of them.
    """
    batch = course.trips(course.batch)
    with torch.no_grad():
        slots = inverse_slots(steady, read(steady.model, batch), course.starts(course.batch), course.slots)
    reading, tokens = read(pupil.model, batch), of_tokens(slots.tokens(batch).flatten())
    return slot_loss(pupil, reading, slots, tokens) + next_token_losses(pupil.model, reading).mean()


def train(module: M, loss: Callable[[M], Tensor], steps: int, rate: float) -> M:
    """The average of the weights over some last tenth of the steps, frozen; `loss` is told what it is so far.

    Muon for the matrices inside, AdamW for the rest; a short warm-up, then down to nothing in a line.
    """
    warm_up = min(50, steps // 10 + 1)

    def pace(step: int) -> float:
        return min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1))

    average = deepcopy(module).requires_grad_(False)
    optimizers = optimizers_of(module, rate)
    schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, pace) for optimizer in optimizers]
    for step in range(steps):
        module.zero_grad()
        loss(average).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        for mean, weight in zip(average.parameters(), module.parameters(), strict=True):
            mean.lerp_(weight.detach(), RECENT / (step + RECENT))
    return average


def optimizers_of(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) is for matrices between hidden states: not for what is looked up or read as logits."""
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, weight in module.named_parameters():
        (inner if weight.dim() == 2 and not name.endswith(("embedding", "echo.weight")) else outer).append(weight)
    return [torch.optim.Muon(inner, MATRIX_RATE, weight_decay=0.01),
            torch.optim.AdamW(outer, rate, betas=(0.9, 0.98), weight_decay=0.01)]


def train_teacher(course: Course) -> Transformer:
    """An autoregressive model of the trips, by plain next-token cross-entropy."""
    torch.manual_seed(course.seed)
    teacher = model_of(course.config)
    return train(teacher, lambda _: next_token_losses(teacher, read(teacher, course.trips(course.batch))).mean(),
                 course.steps // 4, course.rate)


def train_pupil(course: Course, kind: str, informed: bool, teacher: Transformer | None) -> Pupil:
    """A student of a teacher, or of the trips alone."""
    torch.manual_seed(course.seed)
    pupil = Pupil(course.config, kind, informed)
    if teacher is None:
        return train(pupil, lambda steady: inverse_loss(pupil, steady, course), course.steps, course.rate)
    return train(pupil, lambda _: distillation_loss(pupil, teacher, course), course.steps, course.rate)
