"""Measuring a student on held-out texts: its confidence, the runs to expect, and so its budget and its quality."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.model import Transformer
from bench.sampling import Law
from ptp.completions import Completions, Pack, at, complete, explain, random_starts, read, under
from ptp.draft import Draft, draw
from ptp.student import Student


@dataclass
class Trials:
    """Groups of slots whose every label exists."""

    draft: Draft  # [S, slots - known]
    right: Tensor  # [S, slots - known] bool


@torch.no_grad()
def calibrate(student: Student, target: Transformer, packs: Iterable[Pack], law: Law, groups: int = 32) -> None:
    """Fill `student.confidence` for every way of drawing drafts under `law`, from `groups` groups on every row."""
    packs = list(packs)
    for way in student.ways(law):
        found = [attempt(student, target, pack, law, way, groups) for pack in packs]
        draft = Draft(torch.cat([f.draft.tokens for f in found]), torch.cat([f.draft.score for f in found]))
        student.confidence[way].measure(draft, torch.cat([f.right for f in found]))  # type: ignore[operator]


def attempt(student: Student, target: Transformer, pack: Pack, law: Law, way: str, groups: int) -> Trials:
    """Draft at random places of one pack, noise uniform inside the bins: what decoding would have drafted there."""
    kind, context = student.kind, read(target, pack)
    drawn, starts = explain(target, context, law), random_starts(pack, groups)
    completions = Completions.of(pack, kind, starts, under(drawn, starts, student.design.slots))
    whole = completions.valid.all(-1) & at(drawn.explained, completions.labels).all(-1)  # [B, N]
    embedded = student.embed(completions.noise).to(context.hidden.dtype)
    hidden = complete(target, student.adapter, context, completions, embedded)[whole][:, kind.known :]
    own, tokens = at(drawn.noise, completions.labels), completions.tokens(pack)
    draft = draw(way, target.score(hidden), own[whole][:, kind.known :], law)
    return Trials(draft, draft.tokens == tokens[whole][:, kind.known :])
