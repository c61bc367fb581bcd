"""Training rows: one pass over packed texts serves many completions, groups of slots that hang from random tokens."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.attention import Sees, mask_of
from bench.model import Attend, Transformer
from bench.packing import Batch
from bench.reading import Place, Reading, follow
from bench.sampling import Law
from ptp.adapter import GatedAdapter
from ptp.bins import Bins, Drawn, fractions
from ptp.kinds import Kind
from ptp.noise_embedding import NONE

CHUNK = 4096  # tokens whose logits exist at the same time


@torch.no_grad()
def explain(model: Transformer, reading: Reading, law: Law, beta: float = 1.0) -> Drawn:
    """Noise for every token of the batch, drawn inside its bin under `law` of the model -> [B, T] each.

    At temperature 0 there is nothing to draw: the noise is NONE. A token of a greedy text needs no other explanation;
    where the law itself is greedy, a token is explained when it is the arg max.
    """
    batch = reading.batch
    before = F.pad(reading.hidden[:, :-1], (0, 0, 1, 0))  # what gave each token; nothing gave the first
    drawn = inside_bins(model, before, batch.tokens, law, beta)
    silent = batch.silent(law)
    return Drawn(torch.where(silent, NONE, drawn.noise), (drawn.explained | batch.greedy) & batch.follows())


def inside_bins(model: Transformer, hidden: Tensor, tokens: Tensor, law: Law, beta: float = 1.0) -> Drawn:
    """Noise inside the bins of `tokens` [..] under the laws that the head makes of `hidden` [.., H] -> [..] each."""
    parts = [Bins.of(some, law(model.score(inputs))).draw(fractions(some, beta))
             for some, inputs in zip(tokens.flatten().split(CHUNK), hidden.flatten(0, -2).split(CHUNK), strict=True)]
    return Drawn(torch.cat([p.noise for p in parts]).view(tokens.shape),
                 torch.cat([p.explained for p in parts]).view(tokens.shape))


@dataclass
class Completions:
    """Groups of slots and what they are to predict; index arithmetic of `ptp.kinds`."""

    kind: Kind
    starts: Tensor  # [B, N] int64: index of the token that each group hangs from
    noise: Tensor  # [B, N, L] int64: input of every slot
    labels: Tensor  # [B, N, L] int64: index of the token that every slot predicts
    valid: Tensor  # [B, N, L] bool: the label exists, and noise explains all that comes before it

    @staticmethod
    def of(batch: Batch, kind: Kind, starts: Tensor, drawn: Drawn) -> "Completions":
        """Groups under the tokens `starts` [B, N]; `drawn` [B, N, L]: the noise of the tokens that follow each.

        Decoding has one law: no slot of a group is valid behind one that hears noise where the first hears none, or
        the other way round.
        """
        index = following(starts, drawn.noise.shape[2])
        texts, labels = at(batch.texts, starts)[..., None], index + kind.ahead - 1
        silent = drawn.noise == NONE
        explained = drawn.explained & within(batch, index, texts) & (silent == silent[..., :1])
        return Completions(kind, starts, drawn.noise, labels.clamp(max=batch.tokens.shape[1] - 1),
                           explained.cumprod(-1).bool() & within(batch, labels, texts))

    @property
    def silent(self) -> Tensor:
        """Groups at temperature 0, which hear no noise, [B, N] bool."""
        return self.noise[..., 0] == NONE

    def positions(self, batch: Batch) -> Tensor:
        """Absolute position of every slot, [B, N, L]."""
        return following(at(batch.positions(), self.starts), self.noise.shape[2]) - self.kind.known

    def tokens(self, batch: Batch) -> Tensor:
        """The token that every slot predicts, [B, N, L]."""
        return at(batch.tokens, self.labels)

    def before(self, batch: Batch) -> Tensor:
        """The token before the one that every slot predicts, [B, N, L]."""
        return at(batch.tokens, self.labels - 1)

    def taught(self, reading: Reading) -> Tensor:
        """What the head makes the law of every slot's token of, [B, N, L, hidden]."""
        return rows_at(reading.hidden, (self.labels - 1).flatten(1)).unflatten(1, self.labels.shape[1:])

    def sees(self, batch: Batch) -> Sees:
        """A slot sees its text up to the token its group hangs from, and its group up to itself.

        Columns 0 .. T - 1 are the batch's tokens, then come the slots.
        """
        starts, first = self.starts.int(), at(batch.firsts(), self.starts).int()  # of half the width, for every pair
        slots, tokens = self.noise.shape[2], batch.tokens.shape[1]

        def sees(sequence: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
            group, slot = row // slots, column - tokens
            prefix = (column >= first[sequence, group]) & (column <= starts[sequence, group])
            return prefix | ((slot >= group * slots) & (slot <= row))

        return sees


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


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Look up [B, T, H] at [B, m] -> [B, m, H]."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def within(batch: Batch, index: Tensor, texts: Tensor) -> Tensor:
    """Whether `index` still lies in the text `texts`, and in an answer."""
    return (index < batch.tokens.shape[1]) & (at(batch.texts, index) == texts) & at(batch.said, index)


def random_starts(batch: Batch, count: int) -> Tensor:
    """`count` tokens of every row that a token of an answer follows -> [B, count] int64.

    Ascending: groups that lie side by side see much the same, and a block-sparse mask has few blocks. (Multinomial
    draws would wait for the device.)
    """
    followed = batch.followed(1).long().cumsum(1)  # how many up to here
    chosen = torch.rand(len(followed), count, dtype=torch.float64, device=followed.device) * followed[:, -1:]
    starts = torch.searchsorted(followed, chosen.long().sort(1).values, right=True)
    return starts.clamp(max=followed.shape[1] - 1)  # a row without any: no slot there is valid


def complete(model: Transformer, adapter: GatedAdapter | None, reading: Reading, completions: Completions,
             embedded: Tensor) -> Tensor:
    """Run the slots, `embedded` [B, N, L, hidden] -> the head's input at every slot, in the same shape."""
    batch, x = reading.batch, embedded.flatten(1, 2)
    (rows, tokens), slots = batch.tokens.shape, x.shape[1]
    model.extend_rope(tokens + embedded.shape[2])  # slots may hang from the last token
    frozen = 0 if reading.layers[0][0].requires_grad else tokens
    place = Place(completions.positions(batch).flatten(1),
                  mask_of(completions.sees(batch), (rows, slots, tokens + slots), x, frozen))
    return follow(model, reading, place, x, adapter.onto(model) if adapter else None).view(embedded.shape)


def growing(reading: Reading, starts: Tensor) -> Attend:
    """Attention of one slot per group and call: to the group's prefix, its earlier slots and itself."""
    batch, N = reading.batch, starts.shape[1]
    index = torch.arange(batch.tokens.shape[1], device=starts.device)
    prefix = (at(batch.firsts(), starts)[..., None] <= index) & (index <= starts[..., None])  # [B, N, T]
    own = torch.eye(N, dtype=torch.bool, device=starts.device).expand(len(starts), -1, -1)
    layers = list(reading.layers)

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = (torch.cat(pair, 2) for pair in zip(layers[layer], (k, v), strict=True))
        layers[layer] = keys, values
        calls = (keys.shape[2] - len(index)) // N
        visible = torch.cat([prefix] + [own] * calls, 2)
        return F.scaled_dot_product_attention(q, keys, values, visible[:, None], enable_gqa=True)

    return attend
