"""A blurred `Pick`, for drafters: the edges of their laws are not quite the target's.

`Pick` gives the id whose bin has u in it; near an edge the target may have the neighbour there. A blurred pick gives
the id whose bin holds most of a bump around u: what `Pick` gives for a bump of no width, and the likeliest id for one
far wider than the law. Only drafts are drawn so: which of them stay, the target's `Pick` decides.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench import sampling
from bench.sampling import NOISE_BITS, Choices, Law, kernels_for

WIDTHS = (0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)  # of bumps, as shares of the law: what measuring chooses from


@dataclass
class Held:
    """What the bins of a law hold of a bump around u."""

    ids: Tensor  # [..] int64: whose bin holds most; of equals the smallest
    share: Tensor  # [..] float64: how much of what all bins hold

    @staticmethod
    def of(noise: Tensor, choices: Choices, width: float) -> "Held":
        """By the laws `choices` [.., k] for `noise` [..] int64. The bump is logistic, of scale `width` > 0.

        An edge at u is before it, by half a unit of what is compared: as `pick` has it.
        """
        ends = choices.mass.cumsum(-1)
        total = ends[..., -1:]
        bar, scale = noise[..., None] * total, (total << NOISE_BITS).double() * width
        upper, lower = (((edge << NOISE_BITS) - bar).double() - 0.5 for edge in (ends, ends - choices.mass))
        held = torch.sigmoid(upper / scale) - torch.sigmoid(lower / scale)
        most = held.max(-1, keepdim=True)  # the first of equals
        share = most.values / held.sum(-1, keepdim=True)
        return Held(choices.ids.gather(-1, most.indices).squeeze(-1), share.squeeze(-1))


@torch.compiler.disable
def hold(noise: Tensor, logits: Tensor, law: Law, width: float) -> Held:
    """`noise` [..] int64 under the law of `logits` [.., vocab]; fused where kernels serve it."""
    if kernels := kernels_for(law, logits):
        return kernels.hold(noise, logits, law, width)  # type: ignore[no-any-return]
    return Held.of(noise, law(logits), width)


def draw(noise: Tensor, logits: Tensor, law: Law, width: float) -> Tensor:
    """As `bench.sampling.draw`; blurred unless `width` is 0 -> [..] int64."""
    return hold(noise, logits, law, width).ids if width else sampling.draw(noise, logits, law)
