"""Training of students for a real target (arXiv 2512.21323): an adapter and a noise embedding, by distillation."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import drafters
from bench.errors import BenchError
from bench.losses import distil, of_law, of_tokens
from bench.packing import Batch
from bench.sampling import Law
from bench.zoo import Target
from ptp import losses
from ptp.calibration import attempt, calibrate
from ptp.completions import Completions, Pack, complete, explain, random_starts, read, under
from ptp.losses import average
from ptp.noise_embedding import NoiseDesign
from ptp.student import Design, Student

HELD_OUT_GROUPS = 32  # groups of slots on every held-out row


@dataclass(frozen=True)
class Options:
    """The student's design; `groups` of slots on every row, and how much its noise favours the edges of bins."""

    kind: str = "o"
    slots: int = 16
    rank: int = 64
    front: str = "digits"
    head: str = "mlp"
    width: int = 256
    groups: int = 128
    beta: float = 1.0

    def __post_init__(self):
        if min(self.slots, self.rank, self.groups) < 1 or self.beta <= 0:
            raise BenchError("ptp: slots, rank, groups and beta must be positive")

    def design(self, informed: bool) -> Design:
        """What the student is made of."""
        noise = NoiseDesign(front=self.front, head=self.head, width=self.width)
        return Design(self.kind, self.slots, self.rank, informed, noise)


class Lesson:
    """A student that hears the noise. Implements `bench.trainer.Trainable`."""

    Options = Options
    informed = True
    rate = 1e-3

    def __init__(self, target: Target, law: Law, options: Any):
        """`law`: of the texts, and of decoding."""
        self.model, self.law, self.shape = target.model, law, options
        design = options.design(self.informed)
        self.options: dict[str, Any] = {"design": asdict(design)}
        scale = float(target.model.embedding.float().square().mean().sqrt())
        self.module = Student(design, target.config, scale).to(target.model.norm.device)

    def loss(self, batch: Batch) -> Tensor:
        """O-PTP: cross-entropy of the tokens; C-PTP: KL divergence from the target's law."""
        pack, student, o = Pack(batch.tokens, batch.texts), self.module, self.shape
        with torch.no_grad():
            context = read(self.model, pack)
            drawn, starts = explain(self.model, context, self.law, o.beta), random_starts(pack, o.groups)
        slots = Completions.of(pack, student.kind, starts, under(drawn, starts, o.slots))
        embedded = student.embed(slots.noise).to(context.hidden.dtype)
        hidden = complete(self.model, student.adapter, context, slots, embedded).flatten(0, 2)
        goals, temperature = of_tokens(slots.tokens(pack).flatten()), 1.0
        if not student.kind.known:
            taught = losses.Lesson.of(self.model, context, slots, self.law).hidden
            goals, temperature = of_law(self.model, taught.flatten(0, 2), self.law), self.law.temperature or 1.0
        return average(distil(hidden, self.model, goals, temperature), slots.valid.flatten())

    def acceptance(self, batch: Batch) -> Tensor:
        """One plus the leading run of right drafts at random places; of several ways to draw, the best."""
        pack, results = Pack(batch.tokens, batch.texts), []
        for way in self.module.ways(self.law):
            right = attempt(self.module, self.model, pack, self.law, way, HELD_OUT_GROUPS).right
            run = right.cumprod(1).sum(1)
            results.append(torch.stack([(1 + run).sum(), torch.ones_like(run).sum()]).double())
        return max(results, key=lambda total: float(total[0] / total[1].clamp(min=1)))

    def measure(self, batches: list[Batch]) -> None:
        """Confidence, and the runs to expect."""
        packs = [Pack(batch.tokens, batch.texts) for batch in batches]
        calibrate(self.module, self.model, packs, self.law, HELD_OUT_GROUPS)


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
