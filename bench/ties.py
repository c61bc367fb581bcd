"""Near-ties: whether arithmetic alone explains that two programs drew different tokens at one row.

The row is computed again in a wider dtype. A token passes if `pick` can give it once every logit is moved by no more
than the run's own dtype was seen to deviate there.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.model import Transformer, causal
from bench.sampling import NOISE_BITS, Law

WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32}  # everything else is rechecked in float64
ROUNDING = 2.0**-32  # of one id's mass in fixed point, as a share of the law


@dataclass(frozen=True)
class Row:
    """Logits after one prefix, each [vocab] float64."""

    exact: Tensor  # in the wider dtype
    seen: Tensor  # in the run's dtype

    @property
    def deviation(self) -> float:
        """How far the run's dtype is from the wider one, at the worst id."""
        return float((self.exact - self.seen).abs().max())


class Recheck:
    """A model beside one copy of itself in a wider dtype, for as long as this object lives."""

    def __init__(self, model: Transformer):
        self.model, self.wide = model, widened(model, WIDER.get(model.norm.dtype, torch.float64))

    @torch.inference_mode()
    def rows(self, ids: Sequence[int], places: Iterable[int]) -> dict[int, Row]:
        """Logits that decide the token at each of `places` (indices of `ids`), from the ids before it."""
        places = sorted(set(places))
        tokens = torch.tensor([ids[: places[-1]]], device=self.model.norm.device)
        before = torch.tensor(places, device=tokens.device) - 1
        seen = self.model.score(hidden(self.model, tokens)[:, before])[0]
        exact = F.linear(hidden(self.wide, tokens)[:, before], self.wide.head)[0]
        pairs = zip(exact.double().cpu(), seen.double().cpu(), strict=True)
        return {place: Row(*pair) for place, pair in zip(places, pairs, strict=True)}


def hidden(model: Transformer, tokens: Tensor) -> Tensor:
    """The head's input for a whole sequence: [B, T] int64 -> [B, T, hidden]."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    return model(model.embed(tokens), positions, causal).last


def widened(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The very weights of `model`, not those of its checkpoint, in `dtype`; `model` itself if it has that already."""
    if model.norm.dtype == dtype:
        return model
    with torch.device("meta"):
        copy = Transformer(model.config)
    weights = {name: p.to(dtype) for name, p in model.named_parameters()}
    copy.load_state_dict({"head": weights["embedding"], **weights}, assign=True)
    return copy.prepare()


def obtainable(logits: Tensor, law: Law, noise: int, token: int, move: float) -> bool:
    """Whether moving each logit by at most `move` could let `pick` give `token`: necessary, so never too strict.

    Greedy, two logits that move towards each other close a gap of twice the move. Sampled, `pick` gives the token if
    the ids below it hold at most u, and those up to it more than u. Below it, only ids that are in the law whatever
    moves are counted, at their lightest, against all ids that may be in it, at their heaviest; up to it, the reverse.
    Without truncation both extremes are reached, and the condition is sufficient as well: the moves form a connected
    set, and where the upper sum just exceeds u the lower one does not.
    """
    if law.temperature == 0:
        return bool(logits.max() - logits[token] <= 2 * move)
    ids, u, error = torch.arange(len(logits)), noise / 2**NOISE_BITS, len(logits) * ROUNDING
    certain, possible = kept(logits, law, move)
    light, heavy = weights(logits, law, move)
    below, upto = ids < token, ids <= token
    first = share(light[certain & below], heavy[possible & ~below])
    last = 1 - share(light[certain & ~upto], heavy[possible & upto])
    return bool(possible[token]) and first <= u + error and u < last + error


def movement(logits: Tensor, law: Law, noise: int, token: int, most: float = 64.0) -> float:
    """The least move by which `token` is obtainable, to a thousandth of it; infinity beyond `most`."""
    if obtainable(logits, law, noise, token, 0.0):
        return 0.0
    if not obtainable(logits, law, noise, token, most):
        return math.inf
    low, high = 0.0, most
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if obtainable(logits, law, noise, token, middle) else (middle, high)
    return high


def kept(logits: Tensor, law: Law, move: float) -> tuple[Tensor, Tensor]:
    """Ids that top-k and top-p keep whatever moves, and ids that they may keep: [vocab] bool each."""
    ranked, order = logits.sort(descending=True)
    vocab, k = len(logits), law.top_k or len(logits)
    following = ranked[k] if k < vocab else -math.inf  # the best logit that top-k drops
    certain, possible = ranked - 2 * move > following, ranked + 2 * move >= ranked[min(k, vocab) - 1]
    if law.top_p < 1:
        least, most = mass_before(ranked, law, move, certain, possible)
        error = vocab * ROUNDING
        certain, possible = certain & (most < law.top_p - error), possible & (least < law.top_p + error)
    back = order.argsort()
    return certain[back], possible[back]


def mass_before(ranked: Tensor, law: Law, move: float, certain: Tensor, possible: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of the share that top-p finds ranked before each id, logits in descending order: [vocab] each.

    At least: ids that are before it whatever moves, at their lightest. At most: all that may come before it.
    """
    light, heavy = weights(ranked, law, move)
    light, heavy = torch.where(certain, light, 0), torch.where(possible, heavy, 0)
    lights, heavies = F.pad(light.cumsum(0), (1, 0)), F.pad(heavy.cumsum(0), (1, 0))
    surely = torch.searchsorted(-ranked, -ranked - 2 * move)  # how many are above by more than two moves
    maybe = torch.searchsorted(-ranked, -ranked + 2 * move, right=True)  # how many are not below by more, itself too
    least, others = lights[surely], heavies[-1] - heavies[surely]
    most, rest = heavies[maybe] - heavy, lights[-1] - lights[maybe] + light
    return least / (least + others), most / (most + rest).clamp(min=1e-300)


def weights(logits: Tensor, law: Law, move: float) -> tuple[Tensor, Tensor]:
    """Probabilities before normalisation with every logit moved down, and up: [vocab] each, the best up being 1."""
    scores = (logits - logits.max()) / law.temperature
    return (scores - 2 * move / law.temperature).exp(), scores.exp()


def share(part: Tensor, rest: Tensor) -> float:
    """Sum of `part` in the sum of both; 0 where nothing is left of either."""
    total = float(part.sum() + rest.sum())
    return float(part.sum()) / total if total else 0.0
