"""A drafter's shortlist: it drafts the ids that answers say most often, and no others.

Frequency-ranked drafting (FR-Spec, Zhao et al., 2025, arXiv 2502.14856). Much of what a draft costs is the head, which
then has fewer rows. The target's own head stays whole, so a text stays what it is: a rare token is never drafted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import BenchError
from bench.model import Transformer, scores
from bench.texts import Text

SIZE = 16384  # ids of a new drafter


@dataclass(frozen=True)
class Head:
    """What drafts are drawn from: rows of the target's head, and whose they are."""

    weight: Tensor  # [V', hidden]
    ids: Tensor | None = None  # [V'] int64, ascending: what `pick` passes keeps its order; None: all there are

    def score(self, hidden: Tensor) -> Tensor:
        """[.., hidden] -> logits [.., V'] float32."""
        return scores(hidden, self.weight)

    def named(self, rows: Tensor) -> Tensor:
        """Rows of the head -> the ids that they stand for, int64 both."""
        return rows if self.ids is None else self.ids[rows]

    @property
    def bytes(self) -> int:
        """Of a copy; 0 where it is the target's own."""
        return 0 if self.ids is None else self.weight.numel() * self.weight.element_size()


class Shortlist(nn.Module):
    """The ids that may be drafted, ascending; without any, all may. A buffer: stored and resumed with the drafter."""

    ids: Tensor | None  # [size] int64

    def __init__(self, size: int = 0):
        """The smallest ids, until `enlist` is told better."""
        super().__init__()
        self.register_buffer("ids", torch.arange(size) if size else None)

    def head(self, model: Transformer) -> Head:
        """Their rows of a model's head, side by side."""
        return Head(model.head) if self.ids is None else Head(model.head.detach()[self.ids], self.ids)


def option(size: int, vocab: int) -> dict[str, int]:
    """What a card says of a shortlist: nothing where all ids may be drafted, so that older cards stay equal.

    BenchError for a size that is none.
    """
    if size < 0:
        raise BenchError(f"shortlist must be 0 (all ids) or more, got {size}")
    return {"shortlist": size} if 0 < size < vocab else {}


def enlist(module: nn.Module, texts: Sequence[Text]) -> None:
    """Fill the shortlists in a module with the ids that answers of the texts say most often; of equals the smaller."""
    for ids in listed(module):
        count = np.bincount(said(texts), minlength=len(ids))
        ids.copy_(torch.from_numpy(np.sort(np.argsort(-count, kind="stable")[: len(ids)])))


def coverage(module: nn.Module, texts: Sequence[Text]) -> dict[str, float]:
    """Share of the tokens in answers of the texts that a module's shortlist holds; nothing where it has none."""
    shares = [float(np.isin(said(texts), ids.cpu().numpy()).mean()) for ids in listed(module)]
    return {"covered": round(shares[0], 5)} if shares else {}


def listed(module: nn.Module) -> list[Tensor]:
    """The ids of all shortlists in a module."""
    return [part.ids for part in module.modules() if isinstance(part, Shortlist) and part.ids is not None]


def said(texts: Sequence[Text]) -> np.ndarray:
    """Every token of the answers, int32."""
    return np.concatenate([text.ids[begin:end] for text in texts for begin, end in text.answers])
