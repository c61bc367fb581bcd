"""From logits to tokens: the law, and `Pick`, which makes a token a function of its law and one number."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.errors import BenchError

NOISE_BITS = 30  # u is an integer below 2^30
MASS_BITS = 32  # the masses of a law sum to about 2^32; mass * 2^30 still fits int64
MAX_VOCAB = 1 << 20
CROWD = 32  # ids that are ruled out together when few are wanted


@dataclass
class Choices:
    """A law in int64 fixed point, over the ids it may give.

    Integers make the sums independent of their order and monotone, whatever device adds them.
    """

    ids: Tensor  # [.., k] int64, ascending
    mass: Tensor  # [.., k] int64, 0 for excluded ids

    def of(self, tokens: Tensor) -> Tensor:
        """Mass of `tokens` [..], 0 for those that are not among the ids -> [..] int64."""
        return torch.where(self.ids == tokens[..., None], self.mass, 0).sum(-1)

    def after(self, rows: Tensor) -> "Choices":
        """Of laws [B, n, k] those after some `rows` [B, m] -> [B, m, k]."""
        where = rows[..., None].expand(-1, -1, self.ids.shape[-1])
        return Choices(self.ids.gather(1, where), self.mass.gather(1, where))

    def dense(self, vocab: int) -> Tensor:
        """Mass of every id of the vocabulary -> [.., vocab] int64."""
        zeros = self.mass.new_zeros(*self.mass.shape[:-1], vocab)
        return zeros.scatter(-1, self.ids, self.mass)


@dataclass
class Landing:
    """Where `u` falls in a law."""

    ids: Tensor  # [..] int64: what `pick` gives
    margin: Tensor  # [..] float64: from u to the nearer edge of the id's bin, as a share of the law; 0 to 1/2

    @staticmethod
    def of(noise: Tensor, choices: Choices) -> "Landing":
        """The landing of `noise` [..] int64. Integers up to the last division, so devices agree bit for bit."""
        ends = choices.mass.cumsum(-1)
        index, total = passed(noise, ends), ends[..., -1:]
        upper, bar = ends.gather(-1, index), noise[..., None] * total
        lower = upper - choices.mass.gather(-1, index)
        near = torch.minimum(bar - (lower << NOISE_BITS), (upper << NOISE_BITS) - bar)
        margin = near.double() / (total << NOISE_BITS).double()
        return Landing(choices.ids.gather(-1, index).squeeze(-1), margin.squeeze(-1))


@dataclass(frozen=True)
class Law:
    """Temperature, then top-k, then top-p, on float32 logits. Temperature 0 is greedy.

    Ties at top-k and at arg max go to the smaller id; the token that crosses `top_p` stays in.
    `top_k` 0 and `top_p` 1 switch the truncations off.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float("inf"):
            raise BenchError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k < 0:
            raise BenchError(f"top-k must be 0 (off) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise BenchError(f"top-p must be above 0 and at most 1 (off), got {self.top_p}")

    @torch.compiler.disable  # a compiler may round otherwise, and one ulp can change a token
    def __call__(self, logits: Tensor) -> Choices:
        """[.., vocab] float32 -> the law of the next token."""
        if self.temperature == 0:
            best = logits.argmax(-1, keepdim=True)
            return Choices(best, torch.full_like(best, 1 << MASS_BITS))
        ids = largest(logits, self.top_k)
        mass = fixed_point(logits.gather(-1, ids).double(), self.temperature)
        return Choices(ids, nucleus(mass, self.top_p) if self.top_p < 1 else mass)


def largest(logits: Tensor, k: int) -> Tensor:
    """Ids of the k largest logits, ties to the smaller id; all ids for k = 0. -> [.., k] int64, ascending.

    Of a large vocabulary only the k crowds with the largest maxima are looked at, of equals the first: an id of any
    other crowd has k ids before it.
    """
    vocab = logits.shape[-1]
    every = torch.arange(vocab, device=logits.device)
    if not 0 < k < vocab:
        return every.expand(logits.shape)
    if kernels := kernels_for(Law(1.0, k), logits):
        return kernels.largest(logits, k)  # type: ignore[no-any-return]
    if 2 * k * CROWD >= vocab:
        return best(logits, k)
    whole = F.pad(logits, (0, -vocab % CROWD), value=-torch.inf) if vocab % CROWD else logits
    crowds = whole.unflatten(-1, (-1, CROWD))
    chosen = best(crowds.amax(-1), k)  # [.., k]
    few = crowds.gather(-2, chosen[..., None].expand(*chosen.shape, CROWD)).flatten(-2)
    index = best(few, k)
    return chosen.gather(-1, index // CROWD) * CROWD + index % CROWD


def best(scores: Tensor, k: int) -> Tensor:
    """Indices of the k largest of [.., n] float32, ties to the smaller -> [.., k] int64, ascending."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # integers in the order of the floats
    keys = ordered.long() * MAX_VOCAB - torch.arange(scores.shape[-1], device=scores.device)
    return keys.topk(k, sorted=False).indices.sort(-1).values  # no two keys are equal, so the largest are unique


def fixed_point(scores: Tensor, temperature: float) -> Tensor:
    """Softmax in int64 fixed point: [.., k] float64 -> [.., k] int64 that sum to about 2^32."""
    below = scores - scores.amax(-1, keepdim=True)  # subtracted first: no temperature is too small to divide by
    return normalized(((below / temperature).exp() * 2.0**40).long())


def normalized(weights: Tensor) -> Tensor:
    """Scale to a sum of about 2^32: [.., k] int64 -> [.., k] int64."""
    share = weights.double() / weights.sum(-1, keepdim=True).double()
    return (share * 2.0**MASS_BITS).round().long()


def nucleus(mass: Tensor, top_p: float) -> Tensor:
    """Drop the ids outside the smallest set that holds `top_p`; the id that crosses it stays in.

    What stays is scaled up again, because `reject` compares the masses of two laws.
    """
    ranked, order = mass.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(-1) - ranked
    bar = max(round(top_p * 2**NOISE_BITS), 1) * mass.sum(-1, keepdim=True)  # 0 would drop even the best id
    return normalized(torch.where((before << NOISE_BITS) < bar, ranked, 0).gather(-1, order.argsort(-1)))


@torch.compiler.disable
def pick(noise: Tensor, choices: Choices) -> Tensor:
    """The smallest id whose cumulative probability exceeds u. `noise` [..] int64 -> [..] int64 ids."""
    return choices.ids.gather(-1, passed(noise, choices.mass.cumsum(-1))).squeeze(-1)


def passed(noise: Tensor, ends: Tensor) -> Tensor:
    """How many bins end at or before u. `noise` [..], `ends` [.., k]: the cumulative law -> [.., 1] int64."""
    return ((ends << NOISE_BITS) <= noise[..., None] * ends[..., -1:]).sum(-1, keepdim=True)


@torch.compiler.disable
def draw(noise: Tensor, logits: Tensor, law: Law) -> Tensor:
    """The token of `noise` [..] under the law of `logits` [.., vocab] -> [..] int64; fused where kernels serve it."""
    if kernels := kernels_for(law, logits):
        return kernels.draw(noise, logits, law)
    return pick(noise, law(logits))


@torch.compiler.disable
def land(noise: Tensor, logits: Tensor, law: Law) -> Landing:
    """As `draw`, with the margin."""
    if kernels := kernels_for(law, logits):
        return kernels.land(noise, logits, law)
    return Landing.of(noise, law(logits))


def kernels_for(law: Law, logits: Tensor) -> Any:
    """The module of kernels that draw, or None where they do not serve this law."""
    if not logits.is_cuda:
        return None
    from bench import law_kernels  # Triton exists on CUDA machines only

    return law_kernels if law_kernels.serves(law, logits) else None
