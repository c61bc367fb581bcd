"""Where a text ends: one function for every method, the baseline and the references alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Clipped:
    """The final text of a sequence, and which steps it came from."""

    tokens: list[int]
    kept: list[int]  # tokens that each contributing step gave; the last is never 0


def clip(tokens: Sequence[int], accepted: Sequence[int], limit: int, end_ids: Collection[int] = ()) -> Clipped:
    """Cut at `limit` tokens, and after the first end id, which counts as a token.

    `tokens` are all new ids of a sequence; step i gave the next `accepted[i] + 1` of them. Steps after the cut are
    dropped from `kept`. Without `end_ids` only the limit counts.
    """
    length = next((i + 1 for i, token in enumerate(tokens[:limit]) if token in end_ids), min(limit, len(tokens)))
    ends = [min(end, length) for end in accumulate(count + 1 for count in accepted)]
    kept = [end - start for start, end in zip([0, *ends], ends, strict=False) if end > start]
    return Clipped(list(tokens[:length]), kept)
