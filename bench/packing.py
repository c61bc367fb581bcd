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
    """Rows of texts. One that does not fit into the rest of a row goes on in the next as another."""

    tokens: Tensor  # [B, T] int64
    texts: Tensor  # [B, T] int64: which text of its row a token belongs to; PADDING behind the last
    greedy: Tensor  # [B, T] bool: the token was chosen at temperature 0, whatever the law of the other texts

    @staticmethod
    def whole(tokens: Tensor) -> "Batch":
        """Every row is one text that was sampled."""
        return Batch(tokens, torch.zeros_like(tokens), torch.zeros_like(tokens, dtype=torch.bool))

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
        """[B, T] bool: `distance` tokens later there is a token of the same text."""
        later = F.pad(self.texts[:, distance:], (0, distance), value=PADDING)
        return (later == self.texts) & (self.texts != PADDING)

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


def packed(texts: Sequence[Text], rows: int, length: int) -> Batch:
    """`rows` rows of `length` tokens from the beginning of `texts`; padding where they do not suffice."""
    room = rows * length
    tokens, owner, greedy = np.zeros(room, np.int64), np.full(room, PADDING), np.zeros(room, np.bool_)
    used = 0
    for number, text in enumerate(texts):
        part = text.ids[: room - used]
        here = slice(used, used + len(part))
        tokens[here], owner[here] = part, number
        for begin, end in text.answers:
            greedy[here][begin:end] = text.greedy
        used += len(part)
    return Batch(*(torch.from_numpy(flat).view(rows, length) for flat in (tokens, owner, greedy)))


@dataclass(frozen=True)
class Reader:
    """Endless batches, a pure function of seed and step: any step can be the first one of a resumed run."""

    texts: Sequence[Text]
    rows: int
    length: int
    seed: int

    def at(self, step: int) -> Batch:
        """The batch of a step: texts drawn at random, as many as its rows hold."""
        random, drawn, room = np.random.default_rng((self.seed, step)), [], self.rows * self.length
        while room > 0:
            drawn.append(self.texts[int(random.integers(len(self.texts)))])
            room -= len(drawn[-1].ids)
        return packed(drawn, self.rows, self.length)

    def whole(self, rows: int) -> Iterator[Batch]:
        """All texts once, from the first on, `rows` rows at a time; all batches have one shape."""
        start = 0
        while start < len(self.texts):
            end, room = start, rows * self.length
            while end < len(self.texts) and (end == start or len(self.texts[end].ids) <= room):
                room -= len(self.texts[end].ids)
                end += 1
            yield packed(self.texts[start:end], rows, self.length)
            start = end


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
