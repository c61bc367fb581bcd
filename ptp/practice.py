"""Small students on a small world: whole models instead of adapters, trained from nothing on a CPU."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config import Config
from bench.losses import distil, of_law, of_tokens
from bench.model import Transformer
from bench.packing import Batch
from bench.reading import read
from bench.sampling import Law
from ptp.completions import Completions, complete, explain, under
from ptp.kinds import KINDS
from ptp.losses import Voice, own_noise
from ptp.noise_embedding import NONE, NoiseDesign, NoiseEmbedding
from ptp.trips import City

LAW = Law(temperature=1.0)
PREFIX = 8  # places before the longest group of slots
SPREAD = 0.1  # root mean square of embeddings at first
HEAD_DIM = 16


@dataclass(frozen=True)
class Course:
    """What is trained, and how much."""

    city: City = field(default_factory=City)
    slots: int = 16
    width: int = 64
    layers: int = 3
    steps: int = 1500  # of every student; the teacher, which has no noise to understand, makes a quarter of them
    batch: int = 16  # trips of a step
    groups: int = 4  # of slots, on every trip
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

    def starts(self, trips: int, groups: int) -> Tensor:
        """Random tokens of each trip for groups of slots to hang from, [trips, groups]: every group has all labels."""
        return torch.randint(PREFIX, (trips, groups))


def model_of(config: Config) -> Transformer:
    """A model with random weights that can be trained."""
    model = Transformer(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=SPREAD if name == "embedding" else 0.5 * weight.shape[1] ** -0.5)
    model.extend_rope(config.context)
    return model


class Pupil(nn.Module):
    """A model that takes noise in place of tokens, in rows of its own."""

    def __init__(self, config: Config, kind: str, informed: bool = True):
        super().__init__()
        self.kind, self.informed = KINDS[kind], informed
        self.model = model_of(config)
        self.embedding = NoiseEmbedding(NoiseDesign("digits", "mlp"), config.hidden, SPREAD)

    def run(self, batch: Batch, slots: Completions) -> Tensor:
        """The head's inputs at all slots: [B, N, L, hidden]."""
        noise = slots.noise if self.informed else torch.full_like(slots.noise, NONE)
        return complete(self.model, None, read(self.model, batch), slots, self.embedding(noise))


def next_token_losses(model: Transformer, tokens: Tensor) -> Tensor:
    """Cross-entropy of every token but the first, in nats: [B, T] -> [B, T - 1]."""
    return F.cross_entropy(model.logits(tokens)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")


def distillation_loss(pupil: Pupil, teacher: Transformer, course: Course) -> Tensor:
    """O-PTP, C-PTP or the uninformed control on one batch of trips, with the teacher's bins."""
    batch = course.trips(course.batch)
    starts = course.starts(course.batch, course.groups)
    with torch.no_grad():
        reading = read(teacher, batch)
        drawn = under(explain(teacher, reading, LAW), starts, course.slots)
    slots = Completions.of(batch, pupil.kind, starts, drawn)
    goals = of_law(teacher, slots.taught(reading).flatten(0, 2), LAW)
    if pupil.kind.known:
        goals = of_tokens(slots.tokens(batch).flatten())
    return distil(pupil.run(batch, slots).flatten(0, 2), pupil.model, goals, slots.valid.flatten())


def inverse_slots(pupil: Pupil, batch: Batch, starts: Tensor, slots: int) -> Completions:
    """Slots that hear the noise that the pupil's own laws explain the tokens before them with."""
    with torch.no_grad():
        reading = read(pupil.model, batch)
    drawn = own_noise(Voice(pupil.model, pupil.embedding), reading, starts, slots, LAW)
    return Completions.of(batch, pupil.kind, starts, drawn)


def inverse_loss(pupil: Pupil, course: Course) -> Tensor:
    """No teacher: the tokens given the noise that the pupil's own laws explain them with, and given the tokens."""
    batch = course.trips(course.batch)
    slots = inverse_slots(pupil, batch, course.starts(course.batch, course.groups), course.slots)
    tokens = of_tokens(slots.tokens(batch).flatten())
    heard = distil(pupil.run(batch, slots).flatten(0, 2), pupil.model, tokens, slots.valid.flatten())
    return heard + next_token_losses(pupil.model, batch.tokens).mean()


def train(parameters: Iterable[nn.Parameter], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    """AdamW, a short warm-up, then down to nothing in a line."""
    optimizer = torch.optim.AdamW(parameters, rate, betas=(0.9, 0.98), weight_decay=0.01)
    warm_up = min(50, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm_up, (steps - step) / max(steps - warm_up, 1)))
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        schedule.step()


def train_teacher(course: Course) -> Transformer:
    """An autoregressive model of the trips, by plain next-token cross-entropy; frozen when it comes back."""
    torch.manual_seed(course.seed)
    teacher = model_of(course.config)
    train(teacher.parameters(), lambda: next_token_losses(teacher, course.trips(2 * course.batch).tokens).mean(),
          course.steps // 4, course.rate)
    return teacher.requires_grad_(False)


def train_pupil(course: Course, kind: str, informed: bool, teacher: Transformer | None) -> Pupil:
    """A student of a teacher, or of the trips alone."""
    torch.manual_seed(course.seed)
    pupil = Pupil(course.config, kind, informed)
    loss = partial(inverse_loss, pupil, course)
    if teacher is not None:
        loss = partial(distillation_loss, pupil, teacher, course)
    train(pupil.parameters(), loss, course.steps, course.rate)
    return pupil.requires_grad_(False)
