"""Training of students for a real target (arXiv 2512.21323): an adapter and a noise embedding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import drafters
from bench.errors import BenchError
from bench.losses import Divergence, Goals, distil, either, of_law, of_tokens
from bench.packing import Batch
from bench.reading import Reading, read
from bench.sampling import Law
from bench.shortlist import SIZE, option
from bench.trainer import tally
from bench.zoo import Target
from ptp.bins import Drawn
from ptp.calibration import GREEDY, attempt, calibrate
from ptp.completions import Completions, complete, explain, random_starts, under
from ptp.losses import Voice, own_noise
from ptp.noise_embedding import NoiseDesign
from ptp.student import Design, Student

HELD_OUT_GROUPS = 32  # groups of slots on every held-out row


@dataclass(frozen=True)
class Options:
    """The student's design; `groups` of slots on every row, and how much its noise favours the edges of bins (`beta`).

    `thresholds`: of front=thresholds; in the small world 1024 of them, with head=linear, taught more than digits did.
    `teacher` false: the texts are all there is to learn from, and noise is read off the student's own laws (C-PTP).
    `reverse`: C-PTP minimises KL(student || teacher). `sequential`: drafts are drawn one after the other, by a readout
    with a hidden layer of `sequential_width`, and only the `shortlist` most frequent ids; 0: all.
    """

    kind: str = "o"
    slots: int = 16
    rank: int = 48
    front: str = "digits"
    head: str = "mlp"
    thresholds: int = 64
    width: int = 256
    groups: int = 128
    beta: float = 1.0
    teacher: bool = True
    reverse: bool = False
    sequential: bool = False
    sequential_width: int = 512
    shortlist: int = SIZE

    def __post_init__(self):
        if min(self.slots, self.rank, self.thresholds, self.groups, self.sequential_width) < 1 or self.beta <= 0:
            raise BenchError("ptp: slots, rank, thresholds, groups, sequential_width and beta must be positive")
        if self.kind == "o" and (self.reverse or not self.teacher):
            raise BenchError("ptp: teacher=false and reverse=true are ways to train kind=c")
        if self.reverse and not self.teacher:
            raise BenchError("ptp: reverse=true needs a teacher's law; leave teacher=false out")

    def design(self, informed: bool, vocab: int) -> Design:
        """What the student is made of."""
        noise = NoiseDesign(self.front, self.head, self.thresholds, self.width)
        return Design(self.kind, self.slots, self.rank, informed, noise, self.sequential, self.sequential_width,
                      blurred=True, **option(self.shortlist if self.sequential else 0, vocab))


class Lesson:
    """A student that hears the noise. Implements `bench.trainer.Trainable`.

    One student serves the law of decoding and temperature 0: groups in greedy texts hear no noise and predict the
    token itself. Softmaxes have the temperature of decoding, so that `Pick` finds in the logits what was learned.
    """

    Options = Options
    informed = True
    rate = 1e-3

    def __init__(self, target: Target, law: Law, options: Any):
        """`law`: of the texts that are not greedy, and of decoding."""
        self.model, self.law, self.shape = target.model, law, options
        self.divergence = Divergence(law.temperature or 1.0, options.reverse)
        design = options.design(self.informed, target.config.vocab)
        self.options: dict[str, Any] = {"design": design.stored()}
        scale = float(target.model.embedding.float().square().mean().sqrt())
        self.module = Student(design, target.config, scale).to(target.model.norm.device)

    def loss(self, batch: Batch) -> Tensor:
        """O-PTP: cross-entropy of the tokens. C-PTP: KL divergence from the target's law, or without a teacher as O."""
        student = self.module
        with torch.no_grad():
            reading, starts = read(self.model, batch), random_starts(batch, self.shape.groups)
        slots = Completions.of(batch, student.kind, starts, self.noise(reading, starts))
        embedded = student.embed(slots.noise).to(reading.hidden.dtype)
        hidden = complete(self.model, student.adapter, reading, slots, embedded)
        hidden = student.corrected(self.model, hidden, slots.before(batch))
        return distil(hidden.flatten(0, 2), self.model, self.goals(reading, slots), slots.valid.flatten(),
                      self.divergence)

    def noise(self, reading: Reading, starts: Tensor) -> Drawn:
        """What the slots hear: from the bins of the target's laws, or of the student's own."""
        student, slots = self.module, self.shape.slots
        if self.shape.teacher:
            return under(explain(self.model, reading, self.law, self.shape.beta), starts, slots)
        voice = Voice(self.model, student.embed, student.adapter, student.corrected)
        return own_noise(voice, reading, starts, slots, self.law)

    def goals(self, reading: Reading, slots: Completions) -> Goals:
        """What every slot is to predict."""
        tokens = of_tokens(slots.tokens(reading.batch).flatten())
        if self.module.kind.known or not self.shape.teacher:
            return tokens
        law = of_law(self.model, slots.taught(reading).flatten(0, 2), self.law)
        return either(tokens, law, slots.silent[..., None].expand_as(slots.labels).flatten())

    def acceptance(self, batch: Batch) -> Tensor:
        """The leading run of right drafts at random places, drawn in the way that was measured as the best."""
        found = attempt(self.module, self.model, batch, self.law, HELD_OUT_GROUPS, (self.module.blur,))
        best = [found[way][0] for way in dict.fromkeys(self.module.best_way(law) for law in (self.law, GREEDY))]
        return tally(torch.cat([trials.runs() for trials in best]), torch.cat([trials.silent for trials in best]))

    def measure(self, batches: list[Batch]) -> None:
        """Confidence, and the runs to expect."""
        calibrate(self.module, self.model, batches, self.law, HELD_OUT_GROUPS)


class Control(Lesson):
    """The same without noise."""

    informed = False


def trained(path: Path, method: str, target: Target) -> Student:
    """The student in a file that `train` wrote."""
    found = drafters.load(path, method, target)
    design = found.card.options["design"]
    student = Student(Design(**{**design, "noise": NoiseDesign(**design["noise"])}), target.config)
    found.into(student)
    return student
