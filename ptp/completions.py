"""Training rows: one pass over packed texts serves many completions, groups of slots that hang from random tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model import Adapter, Attend, Transformer
from bench.sampling import Law
from ptp.bins import Bins, Drawn, fractions
from ptp.kinds import Kind
from ptp.noise_embedding import NONE

CHUNK = 4096  # tokens whose logits exist at the same time


@dataclass
class Pack:
    """Texts laid one after another into rows of equal length."""

    tokens: Tensor  # [B, T] int64
    texts: Tensor  # [B, T] int64: which text a token belongs to; -1: padding

    @staticmethod
    def whole(tokens: Tensor) -> "Pack":
        """Every row is one text."""
        return Pack(tokens, torch.zeros_like(tokens))

    def positions(self) -> Tensor:
        """Places inside the texts, [B, T] int64."""
        index = torch.arange(self.tokens.shape[1], device=self.tokens.device).expand_as(self.tokens)
        first = torch.ones_like(self.texts, dtype=torch.bool)
        first[:, 1:] = self.texts[:, 1:] != self.texts[:, :-1]
        return index - torch.where(first, index, 0).cummax(1).values

    def follows(self) -> Tensor:
        """[B, T] bool: the token has one before it in its own text, so some law gave it."""
        return (self.positions() > 0) & (self.texts >= 0)


@dataclass
class Context:
    """What a pass over a pack leaves for its completions."""

    pack: Pack
    keys: list[Tensor]  # per layer [B, kv_heads, T, head_dim], rotated
    values: list[Tensor]
    hidden: Tensor  # [B, T, hidden]: the head's input


def read(model: Transformer, pack: Pack) -> Context:
    """A plain pass over the pack. With a frozen target call it under `torch.no_grad`."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    index = torch.arange(pack.tokens.shape[1], device=pack.tokens.device)
    visible = (pack.texts[:, :, None] == pack.texts[:, None]) & (index[:, None] >= index)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k)
        values.append(v)
        return F.scaled_dot_product_attention(q, k, v, visible[:, None], enable_gqa=True)

    hidden = model(model.embed(pack.tokens), pack.positions(), attend).last
    return Context(pack, keys, values, hidden)


@torch.no_grad()
def explain(model: Transformer, context: Context, law: Law, beta: float = 1.0) -> Drawn:
    """Noise for every token of the pack, drawn inside its bin under `law` of the model -> [B, T] each.

    A greedy law leaves nothing to draw: the noise is NONE and a token is explained when it is the arg max.
    """
    pack, shape = context.pack, context.pack.tokens.shape
    tokens, before = pack.tokens[:, 1:].flatten(), context.hidden[:, :-1].flatten(0, 1)
    parts = []
    for part, hidden in zip(tokens.split(CHUNK), before.split(CHUNK), strict=True):
        bins = Bins.of(part, law(model.score(hidden)))
        parts.append(bins.draw(fractions(part, beta)))
    noise = torch.cat([p.noise for p in parts]).view(shape[0], -1)
    explained = torch.cat([p.explained for p in parts]).view(shape[0], -1)
    noise, explained = F.pad(noise, (1, 0), value=NONE), F.pad(explained, (1, 0), value=False)
    return Drawn(torch.full_like(noise, NONE) if law.temperature == 0 else noise, explained & pack.follows())


@dataclass
class Completions:
    """Groups of slots and what they are to predict; index arithmetic of `ptp.kinds`."""

    kind: Kind
    starts: Tensor  # [B, N] int64: index of the token that each group hangs from
    noise: Tensor  # [B, N, L] int64: input of every slot
    labels: Tensor  # [B, N, L] int64: index of the token that every slot predicts
    valid: Tensor  # [B, N, L] bool: the label exists, and noise explains all that comes before it

    @staticmethod
    def of(pack: Pack, kind: Kind, starts: Tensor, drawn: Drawn) -> "Completions":
        """Groups under the tokens `starts` [B, N]; `drawn` [B, N, L]: the noise of the tokens that follow each."""
        index = following(starts, drawn.noise.shape[2])
        texts, labels = at(pack.texts, starts)[..., None], index + kind.ahead - 1
        explained = (drawn.explained & within(pack, index, texts)).cumprod(-1).bool()
        return Completions(kind, starts, drawn.noise, labels.clamp(max=pack.tokens.shape[1] - 1),
                           explained & within(pack, labels, texts))

    def positions(self, pack: Pack) -> Tensor:
        """Absolute position of every slot, [B, N, L]."""
        return following(at(pack.positions(), self.starts), self.noise.shape[2]) - self.kind.known

    def tokens(self, pack: Pack) -> Tensor:
        """The token that every slot predicts, [B, N, L]."""
        return at(pack.tokens, self.labels)


def following(starts: Tensor, slots: int) -> Tensor:
    """Indices of the `slots` tokens after each of `starts` [B, N] -> [B, N, slots]."""
    return starts[..., None] + torch.arange(1, slots + 1, device=starts.device)


def under(drawn: Drawn, starts: Tensor, slots: int) -> Drawn:
    """A text's noise [B, T] at the tokens after each of `starts` [B, N] -> [B, N, slots]."""
    index = following(starts, slots)
    return Drawn(at(drawn.noise, index), at(drawn.explained, index))


def at(values: Tensor, index: Tensor) -> Tensor:
    """Look up [B, T] at [B, ..]; an index past the end reads the last entry."""
    flat = index.clamp(max=values.shape[1] - 1).flatten(1)
    return values.gather(1, flat).view(index.shape)


def within(pack: Pack, index: Tensor, texts: Tensor) -> Tensor:
    """Whether `index` still lies in the text `texts`."""
    return (index < pack.tokens.shape[1]) & (at(pack.texts, index) == texts)


def random_starts(pack: Pack, count: int) -> Tensor:
    """`count` tokens of every row that another token of their text follows -> [B, count] int64."""
    followed = F.pad(pack.follows()[:, 1:], (0, 1), value=False)
    return torch.multinomial(followed.double(), count, replacement=True)


def complete(model: Transformer, adapter: Adapter | None, context: Context, completions: Completions,
             embedded: Tensor) -> Tensor:
    """Run the slots, `embedded` [B, N, L, hidden] -> the head's input at every slot, in the same shape."""
    positions = completions.positions(context.pack).flatten(1)
    attend, x = dense(context, completions), embedded.flatten(1, 2)
    model.extend_rope(context.pack.tokens.shape[1] + embedded.shape[2])  # slots may hang from the last token
    return model(x, positions, attend, adapter, slots=x.shape[1]).last.view(embedded.shape)


def dense(context: Context, completions: Completions) -> Attend:
    """Attention of slots with a mask of every pair: [B, N L, T + N L] bool, the simple way.

    A block-sparse kernel can take its place: which rows see which columns is `sees`, in index arithmetic alone.
    """
    _, N, L = completions.noise.shape
    columns = torch.arange(context.pack.tokens.shape[1] + N * L, device=completions.noise.device)
    visible = sees(context.pack, completions, columns[: N * L], columns)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k = torch.cat([context.keys[layer], k], 2)
        v = torch.cat([context.values[layer], v], 2)
        return F.scaled_dot_product_attention(q, k, v, visible[:, None], enable_gqa=True)

    return attend


def growing(context: Context, starts: Tensor) -> Attend:
    """Attention of one slot per group and call: to the group's prefix, its earlier slots and itself."""
    pack, N = context.pack, starts.shape[1]
    index = torch.arange(pack.tokens.shape[1], device=starts.device)
    prefix = (at(pack.texts, starts)[..., None] == pack.texts[:, None]) & (index <= starts[..., None])  # [B, N, T]
    own = torch.eye(N, dtype=torch.bool, device=starts.device).expand(len(starts), -1, -1)
    keys, values = list(context.keys), list(context.values)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys[layer], values[layer] = torch.cat([keys[layer], k], 2), torch.cat([values[layer], v], 2)
        calls = (keys[layer].shape[2] - len(index)) // N
        visible = torch.cat([prefix] + [own] * calls, 2)
        return F.scaled_dot_product_attention(q, keys[layer], values[layer], visible[:, None], enable_gqa=True)

    return attend


def sees(pack: Pack, completions: Completions, row: Tensor, column: Tensor) -> Tensor:
    """A slot sees its text up to the token its group hangs from, and its group up to itself.

    row [R], column [C] int64; columns 0 .. T - 1 are the pack's, then come the slots -> [B, R, C] bool.
    """
    L, T = completions.noise.shape[2], pack.tokens.shape[1]
    start = completions.starts[:, row // L]  # [B, R]
    same_text = at(pack.texts, start)[..., None] == pack.texts[:, column.clamp(max=T - 1)][:, None]
    prefix = same_text & (column <= start[..., None])
    slot, row = column - T, row[:, None]
    group = (slot // L == row // L) & (slot <= row)
    return torch.where(column < T, prefix, group)
