"""Measuring a student on held-out texts: its confidence, the runs to expect, and so its budget and its quality."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.model import Transformer
from bench.packing import Batch
from bench.reading import read
from bench.sampling import Law
from ptp.completions import Completions, at, complete, explain, random_starts, under
from ptp.draft import Draft, draw
from ptp.noise_embedding import NONE
from ptp.student import Student

GREEDY = Law()


@dataclass
class Trials:
    """Groups of slots whose every label exists."""

    draft: Draft  # [S, slots - known]
    right: Tensor  # [S, slots - known] bool
    silent: Tensor  # [S] bool: at temperature 0

    def runs(self) -> Tensor:
        """Leading right drafts of every group, [S] int64."""
        return self.right.cumprod(1).sum(1)


def ways(student: Student, law: Law) -> list[str]:
    """All ways of drawing drafts: under the law, and at temperature 0."""
    return list(dict.fromkeys([*student.ways(law), *student.ways(GREEDY)]))


@torch.no_grad()
def calibrate(student: Student, target: Transformer, batches: Iterable[Batch], law: Law, groups: int = 32) -> None:
    """Fill `student.confidence` for every way of drawing drafts, from `groups` groups on every row.

    Temperature 0 is measured on greedy texts alone, the law on all others; a way without any texts stays unmeasured.
    """
    found = [attempt(student, target, batch, law, groups) for batch in batches]
    for way in ways(student, law):
        trials = [one[way] for one in found]
        right = torch.cat([t.right for t in trials])
        draft = Draft.joined([t.draft for t in trials], 0)
        if len(right):
            student.confidence[way].measure(draft, right)  # type: ignore[operator]


@torch.no_grad()
def attempt(student: Student, target: Transformer, batch: Batch, law: Law, groups: int) -> dict[str, Trials]:
    """Draft at random places, noise uniform inside the bins: what decoding would have drafted there. By way of drawing.

    A group has the law of its place, and only the ways that belong to it are tried there. A sequential student hears
    the text's token before each of its own where decoding gives it the draft's: up to the first wrong draft they are
    the same, and neither a run nor a confidence, which is conditional on all drafts before, asks for more.
    """
    kind, reading = student.kind, read(target, batch)
    drawn, starts = explain(target, reading, law), random_starts(batch, groups)
    completions = Completions.of(batch, kind, starts, under(drawn, starts, student.design.slots))
    same = at(drawn.noise == NONE, completions.labels) == completions.silent[..., None]
    whole = (completions.valid & at(drawn.explained, completions.labels) & same).all(-1)  # [B, N]
    embedded = student.embed(completions.noise).to(reading.hidden.dtype)
    hidden = complete(target, student.adapter, reading, completions, embedded)
    hidden = student.corrected(target, hidden, completions.before(batch))
    found = {}
    for way in ways(student, law):
        here = whole & (completions.silent == (way in student.ways(GREEDY)))  # [B, N]
        noise, tokens = at(drawn.noise, completions.labels)[here], completions.tokens(batch)[here]
        draft = draw(way, target.score(hidden[here][:, kind.known :]), noise[:, kind.known :], law)
        found[way] = Trials(draft, draft.tokens == tokens[:, kind.known :], completions.silent[here])
    return found
