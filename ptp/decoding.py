"""Decoding by Parallel Token Prediction (arXiv 2512.21323): slots draft while the same forward verifies."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import drafters
from bench.errors import BenchError
from bench.loop import Method, Seen
from bench.tree import Tree, chain, chain_parents
from ptp.adapter import BoundAdapter
from ptp.budget import Groups, allot, gains, hypotheses
from ptp.draft import CHOICE, Draft, drafted, draw
from ptp.kinds import KINDS, ONE_HOT
from ptp.lesson import trained
from ptp.noise_embedding import NONE
from ptp.student import Design, Student

DRAFT, VERIFY = 0, 1  # kinds of step without partial quadratic decoding


@dataclass(frozen=True)
class Settings:
    """`k` draft rows; `slots` of all hypotheses together; `kind` o (one-hot) or c (categorical); `weights`: a file.

    Without `kind` it is the student's own; without `weights` the student is the one that comes with the target. `pqd`
    false: drafting and verifying alternate, and a drafting step has one group of full length. `shuffled`: the student
    hears another noise than the target's, a control that shows whether it listens. `draw`: drafts are the `argmax` of
    each slot, or a `pick` with the true `u`, or a `blurred` one; by default the cheapest that accepts nearly the most.
    """

    kind: str = ""
    k: int = 8
    slots: int = 24
    pqd: bool = True
    shuffled: bool = False
    weights: str = ""
    draw: str = ""

    def __post_init__(self):
        if self.draw not in ("", *CHOICE):
            raise BenchError(f"ptp: draw must be one of {', '.join(CHOICE)}, got {self.draw!r}")
        if self.kind not in ("", *KINDS):
            raise BenchError(f"ptp: kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.k < 1:
            raise BenchError(f"ptp needs k >= 1, got {self.k}")
        if self.slots < 1:
            raise BenchError(f"ptp needs slots >= 1, got {self.slots}")


class PTP(Method):
    """Root, a chain of drafts, and groups of slots under several of them, dealt out by a budget."""

    Settings: type = Settings
    name = "ptp"  # what the student's card must say

    def __init__(self, sequences, law, settings=None, drafter=None):
        super().__init__(sequences, law, settings or self.Settings(), drafter)
        s, o, self.kind = sequences, self.settings, drafter.kind
        self.longest = o.k + self.kind.known  # slots of the longest group of any use
        self.require_fit()
        self.way, self.blur = self.best_way(), drafter.blur  # once: asking what was measured waits for the device
        self.settings = self.settled()
        self.budget = min(o.slots, (o.k + 1) * self.longest)
        self.rows = (1 + o.k + self.budget,) if o.pqd else (1 + self.longest, 1 + o.k)
        self.adapter: BoundAdapter = BoundAdapter(drafter.adapter, s.target)
        self.head = drafter.shortlist.head(s.target)
        self.confidence = drafter.confidence[self.way]
        self.gain = torch.tensor(gains(self.confidence.runs[: self.longest + 1].tolist()), device=s.device)
        self.inputs = s.target.norm.new_zeros(s.batch, s.cache.capacity, s.target.config.hidden)  # of every position
        self.line = chain_parents(o.k + 1, s.batch, s.device)
        self.drafts = torch.zeros(s.batch, o.k, dtype=torch.int64, device=s.device)
        self.chance = torch.zeros(s.batch, o.k, device=s.device)  # of each draft, given those before it
        self.length = torch.zeros(s.batch, dtype=torch.int64, device=s.device)  # drafts in use

    @classmethod
    def file(cls, settings: Any, target: Any) -> Path | None:
        """The student's file; None for a random target."""
        return drafters.source(settings.weights, cls.name, target)

    @classmethod
    def load(cls, settings: Any, target: Any) -> Student:
        """The student of a zoo target. Random targets get a random one: good for costs alone."""
        device, dtype = target.model.norm.device, target.model.norm.dtype
        if file := cls.file(settings, target):
            student = trained(file, cls.name, target)
        else:
            kind = settings.kind or ONE_HOT.name
            design = Design(kind, settings.k + KINDS[kind].known, informed=cls.name == "ptp")
            student = Student(design, target.config).requires_grad_(False)
        student.to(device).adapter.to(dtype)
        if student.readout is not None:
            student.readout.to(dtype)
        return student

    def require_fit(self) -> None:
        """BenchError when the student cannot do what the settings ask for."""
        design, o = self.drafter.design, self.settings
        if o.shuffled and (self.law.temperature == 0 or not design.informed):
            raise BenchError(f"{self.name}: shuffled=true changes nothing where no noise is heard; leave it out")
        if o.kind not in ("", design.kind):
            raise BenchError(f"{self.name}: the student is of kind {design.kind}, not {o.kind}; leave kind out")
        if o.draw and self.law.temperature and o.draw not in (ways := self.drafter.ways(self.law)):
            raise BenchError(f"{self.name}: this student was not measured with draw={o.draw}, but with "
                             f"{', '.join(ways)}; leave draw out")
        if self.longest > design.slots:
            raise BenchError(f"{self.name}: the student was trained for {design.slots} slots, k={o.k} needs "
                             f"{self.longest}; lower k")

    def settled(self) -> Any:
        """The settings with the student's own in place of what was left out: what records show."""
        settled = replace(self.settings, kind=self.kind.name)
        return replace(settled, draw=self.way) if self.law.temperature else settled

    def best_way(self) -> str:
        """How drafts are drawn from the student's law; temperature 0 leaves no choice."""
        return self.settings.draw if self.settings.draw and self.law.temperature else self.drafter.best_way(self.law)

    @property
    def extra_bytes(self) -> int:
        """The student's weights, its inputs and its head, and the merged matrices where the forward uses them."""
        tensors = [*self.drafter.parameters(), self.inputs]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors) + self.adapter.bytes + self.head.bytes

    def start(self) -> None:
        """Nothing is drafted before the first step. What slots will hear is known from here on: it is embedded once."""
        s = self.sequences
        first, end = int(s.lengths.min()), int(s.limits.max()) + 2 * s.widest  # no slot lies farther behind a text
        positions = torch.arange(first, end, device=s.device).expand(s.batch, -1)
        self.inputs[:, first:end] = self.drafter.embed(self.heard(positions))
        self.length.zero_()

    def heard(self, positions: Tensor) -> Tensor:
        """The noise given to slots for absolute `positions` [B, m]: none at temperature 0, where it says nothing."""
        if self.law.temperature == 0:
            return torch.full_like(positions, NONE)
        return self.sequences.noise.at("draft" if self.settings.shuffled else "target", positions)

    def propose(self, kind: int) -> Tree:
        """The draft that the last step left, and slots for what may follow it."""
        k, batch = self.settings.k, self.sequences.batch
        if self.settings.pqd:
            chance = hypotheses(self.chance, self.length)
            return self.tree(k + 1, allot(chance, self.gain, self.budget), self.budget)
        if kind == DRAFT:
            return self.tree(1, self.length.new_full((batch, 1), self.longest), self.longest)
        return self.tree(k + 1, None, 0)

    def tree(self, rows: int, count: Tensor | None, slots: int) -> Tree:
        """`rows` token rows, those past the draft being padding, and `count` [B, rows] slots under each."""
        s, row = self.sequences, torch.arange(rows, device=self.sequences.device)
        tokens = torch.cat([s.root_tokens(), self.drafts[:, : rows - 1]], 1)
        parents = torch.where(row <= self.length[:, None], self.line[:, :rows], row)
        if count is None:
            structure = chain(rows, s.batch, s.device, self.length)
            return Tree(tokens, parents, depth=rows - 1, is_chain=True, structure=structure)
        self.groups = groups = Groups.of(count, slots)
        whose = s.root[:, None] + groups.row + 1 + groups.place  # the position whose `u` each slot takes
        whose = whose.clamp(max=self.inputs.shape[1] - 1)[..., None].expand(-1, -1, self.inputs.shape[2])
        return Tree(tokens, torch.cat([parents, groups.parents()], 1), depth=rows - 1, is_chain=True,
                    slots=self.inputs.gather(1, whose), slot_shift=self.kind.known,
                    score_slots=self.drafter.readout is None, structure=groups.structure(self.length))

    def observe(self, seen: Seen) -> None:
        """The group under the last kept row becomes the next draft."""
        said = seen.result.slot_logits if self.drafter.readout is None else seen.result.slot_hidden
        if said is None:
            self.length.zero_()
            return
        last, k = seen.outcome.last, self.settings.k
        slot = self.groups.under(last, self.longest)[:, self.kind.known :]  # [B, k]
        said = said.gather(1, slot[..., None].expand(-1, -1, said.shape[2]))
        root = seen.root + last + 1
        guess = self.guess(said, root[:, None] + torch.arange(1, k + 1, device=root.device))
        self.drafts.copy_(guess.tokens)
        self.chance.copy_(self.confidence(guess.score))
        offered = self.groups.count.gather(1, last[:, None]).squeeze(1) - self.kind.known
        self.length.copy_(offered.clamp(min=0))

    def guess(self, said: Tensor, positions: Tensor) -> Draft:
        """Draft tokens for absolute `positions` [B, k] from what their slots said.

        Their logits [B, k, vocab]; of a sequential student their head inputs [B, k, hidden].
        """
        noise = self.sequences.noise.at("target", positions)
        if self.drafter.readout is None:
            return draw(self.way, said, noise, self.law, self.blur)
        target, before, drafts = self.sequences.target, self.sequences.root_tokens(), []
        for hidden, u in zip(said.split(1, 1), noise.split(1, 1), strict=True):
            corrected = self.drafter.corrected(target, hidden, before)
            drafts.append(drafted(self.way, corrected, self.head, u, self.law, self.blur))
            before = drafts[-1].tokens
        return Draft.joined(drafts, 1)
