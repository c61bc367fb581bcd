"""Bins: the numbers u for which `Pick` gives a certain token. Training text gets its noise drawn from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.sampling import NOISE_BITS, Choices


@dataclass
class Bins:
    """Where a token lies in the cumulative law, in units of the law's fixed point. [..] int64 each."""

    lower: Tensor  # mass of the ids before it
    mass: Tensor  # its own; 0 when the law excludes it
    total: Tensor

    @staticmethod
    def of(tokens: Tensor, choices: Choices) -> "Bins":
        """The bins of `tokens` [..] under the laws of `choices` [.., k]."""
        here = choices.ids == tokens[..., None]
        cumulative = choices.mass.cumsum(-1)
        mass = torch.where(here, choices.mass, 0).sum(-1)
        return Bins(torch.where(here, cumulative, 0).sum(-1) - mass, mass, cumulative[..., -1])

    def draw(self, fraction: Tensor) -> "Drawn":
        """A `u` at `fraction` [..] (0 to 1) of each bin.

        `pick(u)` keeps the token where lower <= u total / 2^30 < lower + mass, so the bin is [first, end) in integers.
        """
        first = divide_up(self.lower << NOISE_BITS, self.total)
        end = divide_up((self.lower + self.mass) << NOISE_BITS, self.total)
        offset = (fraction.double() * (end - first)).long()
        noise = torch.minimum(first + offset, end - 1).clamp(0, (1 << NOISE_BITS) - 1)
        return Drawn(noise, end > first)


@dataclass
class Drawn:
    """Noise that explains a text."""

    noise: Tensor  # [..] int64; any number where there is none
    explained: Tensor  # [..] bool: the bin holds a u at all


def divide_up(a: Tensor, b: Tensor) -> Tensor:
    """The ceiling of a / b, for integers that are not negative."""
    return torch.div(a + b - 1, b, rounding_mode="floor")


def fractions(like: Tensor, beta: float = 1.0) -> Tensor:
    """Places inside bins, float64 in the shape of `like`: Beta(beta, beta). 1 is uniform; less favours the edges."""
    if beta == 1:
        return torch.rand(like.shape, dtype=torch.float64, device=like.device)
    shape = torch.full(like.shape, beta, dtype=torch.float64, device=like.device)
    return torch.distributions.Beta(shape, shape, validate_args=False).sample()  # to look at them is to wait for them
