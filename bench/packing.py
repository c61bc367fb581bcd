"""Texts laid one after another into rows of equal length: what a training step sees."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attention import Sees
from bench.sampling import Law
from bench.texts import Text

PADDING = -1


@dataclass
class Batch:
    """Rows of texts."""

    tokens: Tensor  # [B, T] int64
    texts: Tensor  # [B, T] int64: which text of its row a token belongs to; PADDING behind the last
    said: Tensor  # [B, T] bool: part of an answer; all else is what decoding is given, not what it decodes
    greedy: Tensor  # [B, T] bool: the token was chosen at temperature 0, whatever the law of the other texts

    @staticmethod
    def whole(tokens: Tensor) -> "Batch":
        """Every row is one answer that was sampled."""
        no = torch.zeros_like(tokens, dtype=torch.bool)
        return Batch(tokens, torch.zeros_like(tokens), ~no, no)

    def to(self, device: str | torch.device) -> "Batch":
        """On another device; from pinned memory without waiting for it."""
        return Batch(*(part.to(device, non_blocking=True) for part in vars(self).values()))

    def pinned(self) -> "Batch":
        """Where a CUDA device can fetch it by itself."""
        return Batch(*(part.pin_memory() for part in vars(self).values()))

    def firsts(self) -> Tensor:
        """Index of the first token of every token's text, [B, T] int64."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        first = torch.ones_like(self.texts, dtype=torch.bool)
        first[:, 1:] = self.texts[:, 1:] != self.texts[:, :-1]
        return torch.where(first, index, 0).cummax(1).values

    def positions(self) -> Tensor:
        """Places inside the texts, [B, T] int64."""
        return torch.arange(self.tokens.shape[1], device=self.tokens.device) - self.firsts()

    def follows(self) -> Tensor:
        """[B, T] bool: the token has one before it in its own text, so some law gave it."""
        return (self.positions() > 0) & (self.texts != PADDING)

    def followed(self, distance: int) -> Tensor:
        """[B, T] bool: the next `distance` tokens are of the same text and of an answer in it."""
        later = F.pad(self.texts[:, distance:], (0, distance), value=PADDING)
        said = F.pad(self.said.long().cumsum(1), (1, distance))  # how many before each token
        all_said = said[:, 1 + distance :] - said[:, 1 : -distance or None] == distance
        return (later == self.texts) & (self.texts != PADDING) & all_said

    def later(self, distance: int) -> Tensor:
        """The token `distance` later, [B, T] int64; any id where there is none."""
        return F.pad(self.tokens[:, distance:], (0, distance))

    def silent(self, law: Law, distance: int = 0) -> Tensor:
        """[B, T] bool: no noise decided the token `distance` later. `law`: of the texts that are not greedy."""
        return F.pad(self.greedy[:, distance:], (0, distance)) | (law.temperature == 0)

    def sees(self) -> Sees:
        """Causal attention inside each text."""
        first = self.firsts()
        return lambda sequence, head, row, column: (column >= first[sequence, row]) & (column <= row)


def packed(rows: Sequence[Sequence[Text]], count: int, length: int) -> Batch:
    """`count` rows of `length` tokens, each of its texts in a row, cut where the row ends; padding for the rest."""
    shape = (count, length)
    tokens, owner = np.zeros(shape, np.int64), np.full(shape, PADDING)
    said, greedy = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for row, texts in enumerate(rows):
        used = 0
        for number, text in enumerate(texts):
            part = text.ids[: length - used]
            here = (row, slice(used, used + len(part)))
            tokens[here], owner[here] = part, number
            for begin, end in text.answers:
                said[here][begin:end], greedy[here][begin:end] = True, text.greedy
            used += len(part)
    return Batch(*map(torch.from_numpy, (tokens, owner, said, greedy)))


def shelved(texts: Sequence[Text], length: int) -> Iterator[list[Text]]:
    """Texts in rows of at most `length` tokens, none of them cut that could be whole."""
    row: list[Text] = []
    for text in texts:
        if row and sum(len(t.ids) for t in (*row, text)) > length:
            yield row
            row = []
        row.append(text)
    yield row


@dataclass(frozen=True)
class Reader:
    """Endless batches, a pure function of seed and step: any step can be the first one of a resumed run."""

    texts: Sequence[Text]
    rows: int
    length: int
    seed: int

    def at(self, step: int) -> Batch:
        """The batch of a step: texts drawn at random until every row is full. The last of a row is cut.

        No text begins in its middle: what went before decides what follows, and decoding always has seen it.
        """
        random = np.random.default_rng((self.seed, step))
        return packed([self.row(random) for _ in range(self.rows)], self.rows, self.length)

    def row(self, random: np.random.Generator) -> list[Text]:
        """Texts that fill a row."""
        drawn: list[Text] = []
        while sum(len(text.ids) for text in drawn) < self.length:
            drawn.append(self.texts[int(random.integers(len(self.texts)))])
        return drawn

    def whole(self, rows: int) -> Iterator[Batch]:
        """All texts once, whole, from the first on, `rows` rows at a time; all batches have one shape."""
        shelves = list(shelved(self.texts, self.length))
        for start in range(0, len(shelves), rows):
            yield packed(shelves[start : start + rows], rows, self.length)


class Supply:
    """A reader's batches on a device. The next one is packed while the device works."""

    def __init__(self, reader: Reader, device: torch.device):
        self.reader, self.device = reader, device
        self.worker = ThreadPoolExecutor(1)
        self.coming: dict[int, Future[Batch]] = {}

    def at(self, step: int) -> Batch:
        """The batch of a step; steps in a row come quickest."""
        batch = self.coming.get(step) or self.worker.submit(self.made, step)
        self.coming = {step + 1: self.worker.submit(self.made, step + 1)}
        return batch.result().to(self.device)

    def made(self, step: int) -> Batch:
        """A batch on the host."""
        batch = self.reader.at(step)
        return batch.pinned() if self.device.type == "cuda" else batch
