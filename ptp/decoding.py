"""Decoding by Parallel Token Prediction (arXiv 2512.21323): slots draft while the same forward verifies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import BenchError
from bench.loop import Method, Seen
from bench.tree import Tree
from ptp.adapter import BoundAdapter
from ptp.budget import Groups, allot, gains, hypotheses
from ptp.draft import Draft, draw
from ptp.kinds import KINDS
from ptp.lesson import trained
from ptp.noise_embedding import NONE
from ptp.student import Design, Student

DRAFT, VERIFY = 0, 1  # kinds of step without partial quadratic decoding


@dataclass(frozen=True)
class Settings:
    """`k` draft rows; `slots` of all hypotheses together; `kind` o (one-hot) or c (categorical); `weights`: a file.

    `pqd` false: drafting and verifying alternate, and a drafting step has one group of full length. `shuffled`: the
    student hears another noise than the target's, a control that shows whether it listens.
    """

    kind: str = "o"
    k: int = 8
    slots: int = 24
    pqd: bool = True
    weights: str = ""
    shuffled: bool = False

    def __post_init__(self):
        if self.kind not in KINDS:
            raise BenchError(f"ptp: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.k < 1:
            raise BenchError(f"ptp needs k >= 1, got {self.k}")
        if self.slots < 1:
            raise BenchError(f"ptp needs slots >= 1, got {self.slots}")

    @property
    def longest(self) -> int:
        """Slots of the longest group of any use."""
        return self.k + KINDS[self.kind].known

    @property
    def budget(self) -> int:
        """Slots of a step: no more than all hypotheses together can use."""
        return min(self.slots, (self.k + 1) * self.longest)


class PTP(Method):
    """Root, a chain of drafts, and groups of slots under several of them, dealt out by a budget."""

    Settings: type = Settings
    name = "ptp"  # what the student's card must say

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings or self.Settings(), drafter)
        s, o = sequences, self.settings
        self.kind = KINDS[o.kind]
        require_fit(drafter, o)
        self.rows = (1 + o.k + o.budget,) if o.pqd else (1 + o.longest, 1 + o.k)
        self.adapter: BoundAdapter = BoundAdapter(drafter.adapter, s.target)
        self.confidence = drafter.confidence[self.way]
        self.gain = torch.tensor(gains(self.confidence.runs[: o.longest + 1].tolist()), device=s.device)
        self.drafts = torch.zeros(s.batch, o.k, dtype=torch.int64, device=s.device)
        self.chance = torch.zeros(s.batch, o.k, device=s.device)  # of each draft, given those before it
        self.length = torch.zeros(s.batch, dtype=torch.int64, device=s.device)  # drafts in use

    @classmethod
    def load(cls, settings: Any, target: Any) -> Student:
        """The student of a zoo target. Random targets get a random one: good for costs alone."""
        device, dtype = target.model.norm.device, target.model.norm.dtype
        if settings.weights:
            student = trained(Path(settings.weights), cls.name, target)
        elif target.random:
            design = Design(settings.kind, settings.longest, informed=cls.name == "ptp")
            student = Student(design, target.config).requires_grad_(False)
        else:
            raise BenchError(f"{cls.name} needs a student of {target.name}: add weights=FILE (train one first)")
        student.to(device).adapter.to(dtype)
        return student

    @property
    def way(self) -> str:
        """How drafts are drawn from the student's law."""
        return self.drafter.ways(self.law)[0]

    @property
    def extra_bytes(self) -> int:
        """The student's weights, and the merged matrices where the forward uses them."""
        return sum(p.numel() * p.element_size() for p in self.drafter.parameters()) + self.adapter.bytes

    def start(self) -> None:
        """Nothing is drafted before the first step."""
        self.length.zero_()

    def propose(self, kind: int) -> Tree:
        """The draft that the last step left, and slots for what may follow it."""
        o, batch = self.settings, self.sequences.batch
        if o.pqd:
            chance = hypotheses(self.chance, self.length)
            return self.tree(o.k + 1, allot(chance, self.gain, o.budget), o.budget)
        if kind == DRAFT:
            return self.tree(1, self.length.new_full((batch, 1), o.longest), o.longest)
        return self.tree(o.k + 1, None, 0)

    def tree(self, rows: int, count: Tensor | None, slots: int) -> Tree:
        """`rows` token rows, those past the draft being padding, and `count` [B, rows] slots under each."""
        s, row = self.sequences, torch.arange(rows, device=self.sequences.device)
        tokens = torch.cat([s.root_tokens(), self.drafts[:, : rows - 1]], 1)
        parents = torch.where(row <= self.length[:, None], (row - 1).clamp(min=0), row)
        if count is None:
            return Tree(tokens, parents, depth=rows - 1, is_chain=True)
        self.groups = groups = Groups.of(count, slots)
        embedded = self.drafter.embed(self.heard(s.root[:, None] + groups.row + 1 + groups.place))
        return Tree(tokens, torch.cat([parents, groups.parents()], 1), depth=rows - 1, is_chain=True,
                    slots=embedded.to(s.target.norm.dtype), slot_shift=self.kind.known)

    def heard(self, positions: Tensor) -> Tensor:
        """The noise given to slots for absolute `positions` [B, m]: none at temperature 0, where it says nothing."""
        if self.law.temperature == 0:
            return torch.full_like(positions, NONE)
        return self.sequences.noise.at("draft" if self.settings.shuffled else "target", positions)

    def observe(self, seen: Seen) -> None:
        """The group under the last kept row becomes the next draft."""
        if seen.result.slot_logits is None:
            self.length.zero_()
            return
        logits, last, k = seen.result.slot_logits, seen.outcome.last, self.settings.k
        slot = self.groups.under(last, self.settings.longest)[:, self.kind.known :]  # [B, k]
        logits = logits.gather(1, slot[..., None].expand(-1, -1, logits.shape[2]))
        root = seen.root + last + 1
        guess = self.guess(logits, root[:, None] + torch.arange(1, k + 1, device=root.device))
        self.drafts.copy_(guess.tokens)
        self.chance.copy_(self.confidence(guess.score))
        offered = self.groups.count.gather(1, last[:, None]).squeeze(1) - self.kind.known
        self.length.copy_(offered.clamp(min=0))

    def guess(self, logits: Tensor, positions: Tensor) -> Draft:
        """Draft tokens for absolute `positions` [B, k] from their slots' logits [B, k, vocab]."""
        return draw(self.way, logits, self.sequences.noise.at("target", positions), self.law)


def require_fit(student: Student, settings: Settings) -> None:
    """BenchError when the student cannot do what the settings ask for."""
    design = student.design
    if design.kind != settings.kind:
        raise BenchError(f"ptp: the student is of kind {design.kind}, not {settings.kind}; set kind={design.kind}")
    if settings.longest > design.slots:
        raise BenchError(f"ptp: the student was trained for {design.slots} slots, k={settings.k} needs "
                         f"{settings.longest}; lower k")
