"""Measuring a student on held-out texts: its confidence, the runs to expect, and so its budget and its quality."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.blur import WIDTHS
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

    @staticmethod
    def joined(trials: Sequence["Trials"]) -> "Trials":
        """Those of several batches."""
        return Trials(Draft.joined([one.draft for one in trials], 0), torch.cat([one.right for one in trials]),
                      torch.cat([one.silent for one in trials]))

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
    A blurred pick takes the width that has the longest runs.
    """
    found = [attempt(student, target, batch, law, groups, WIDTHS) for batch in batches]
    for way in ways(student, law):
        tried = [Trials.joined(trials) for trials in zip(*(one[way] for one in found), strict=True)]
        best = max(range(len(tried)), key=lambda one: int(tried[one].runs().sum()))
        if not len(tried[best].right):
            continue
        student.confidence[way].measure(tried[best].draft, tried[best].right)  # type: ignore[operator]
        if way == "blurred":
            student.width.fill_(WIDTHS[best])  # type: ignore[union-attr]


@torch.no_grad()
def attempt(student: Student, target: Transformer, batch: Batch, law: Law, groups: int, widths: Sequence[float],
            ) -> dict[str, list[Trials]]:
    """Draft at random places, noise uniform inside the bins: what decoding would have drafted there. By way of drawing.

    Of a blurred pick there are trials for each of the `widths`; of every other way one alone.
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
    head, found = student.shortlist.head(target), {}
    for way in ways(student, law):
        here = whole & (completions.silent == (way in student.ways(GREEDY)))  # [B, N]
        noise, tokens = at(drawn.noise, completions.labels)[here], completions.tokens(batch)[here]
        logits = head.score(hidden[here][:, kind.known :])
        drafts = [draw(way, logits, noise[:, kind.known :], law, width).named(head) for width in
                  (widths if way == "blurred" else (0.0,))]
        found[way] = [Trials(draft, draft.tokens == tokens[:, kind.known :], completions.silent[here])
                      for draft in drafts]
    return found
