"""Texts laid one after another into rows of equal length, and one pass of a model over them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model import Attend, Transformer
from bench.texts import Text

PADDING = -1


@dataclass
class Batch:
    """What a training step sees. A text that does not fit into the rest of a row goes on in the next as another."""

    tokens: Tensor  # [B, T] int64
    texts: Tensor  # [B, T] int64: which text of its row a token belongs to; PADDING behind the last

    def to(self, device: str | torch.device) -> "Batch":
        """On another device."""
        return Batch(self.tokens.to(device), self.texts.to(device))

    def positions(self) -> Tensor:
        """Places inside the texts, [B, T] int64."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        first = torch.ones_like(self.texts, dtype=torch.bool)
        first[:, 1:] = self.texts[:, 1:] != self.texts[:, :-1]
        return index - torch.where(first, index, 0).cummax(1).values

    def followed(self, distance: int) -> Tensor:
        """[B, T] bool: `distance` tokens later there is a token of the same text."""
        later = F.pad(self.texts[:, distance:], (0, distance), value=PADDING)
        return (later == self.texts) & (self.texts != PADDING)

    def later(self, distance: int) -> Tensor:
        """The token `distance` later, [B, T] int64; any id where there is none."""
        return F.pad(self.tokens[:, distance:], (0, distance))

    def attend(self) -> Attend:
        """Causal attention inside each text, [B, heads, T, head_dim]."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        visible = ((self.texts[:, :, None] == self.texts[:, None]) & (index[:, None] >= index))[:, None]

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            group = q.shape[1] // k.shape[1]  # the kernels that take a mask want as many keys' heads as queries'
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
            return F.scaled_dot_product_attention(q, k, v, visible)

        return attend

    def read(self, model: Transformer) -> Tensor:
        """A pass of a model: the head's input after every token, [B, T, hidden]."""
        model.extend_rope(self.tokens.shape[1])
        return model(model.embed(self.tokens).to(model.norm.dtype), self.positions(), self.attend()).last


def packed(texts: Sequence[Text], rows: int, length: int) -> Batch:
    """`rows` rows of `length` tokens from the beginning of `texts`; padding where they do not suffice."""
    room = rows * length
    tokens, owner = np.zeros(room, np.int64), np.full(room, PADDING)
    used = 0
    for number, text in enumerate(texts):
        part = text.ids[: room - used]
        tokens[used : used + len(part)], owner[used : used + len(part)] = part, number
        used += len(part)
    return Batch(torch.from_numpy(tokens).view(rows, length), torch.from_numpy(owner).view(rows, length))


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
        """All texts once, from the first on, `rows` rows at a time."""
        start = 0
        while start < len(self.texts):
            end, room = start, rows * self.length
            while end < len(self.texts) and room > 0:
                room -= len(self.texts[end].ids)
                end += 1
            batch = packed(self.texts[start:end], rows, self.length)
            full = batch.followed(1).any(1)  # rows of padding teach nothing
            yield Batch(batch.tokens[full], batch.texts[full])
            start = end
