"""From a noise number to the input of a slot row: a front end that makes features, and a head that embeds them."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.errors import BenchError
from bench.sampling import NOISE_BITS

NONE = -1  # stands for "no noise": greedy texts, and the control that must do without
FRONTS = ("scalar", "thresholds", "digits")
HEADS = ("linear", "mlp")


@dataclass(frozen=True)
class NoiseDesign:
    """Front end: the raw scalar, `thresholds` comparisons u <= i / n, or binary digits of u. Head: linear or MLP."""

    front: str = "digits"
    head: str = "linear"
    thresholds: int = 64
    width: int = 256  # of the MLP

    def __post_init__(self):
        if self.front not in FRONTS or self.head not in HEADS:
            raise BenchError(f"noise embedding: front must be one of {', '.join(FRONTS)} and head one of "
                             f"{', '.join(HEADS)}, got {self.front!r} and {self.head!r}")

    @property
    def features(self) -> int:
        """How many numbers the front end makes of one u."""
        return {"scalar": 1, "thresholds": self.thresholds, "digits": NOISE_BITS}[self.front]


class NoiseEmbedding(nn.Module):
    """u [..] int64 below 2^30, or NONE -> [.., hidden] in the dtype of the weights."""

    def __init__(self, design: NoiseDesign, hidden: int, scale: float = 1.0):
        """`scale`: root mean square of what comes out at first; the target's token embeddings give the measure."""
        super().__init__()
        self.design = design
        inner = design.width if design.head == "mlp" else design.features
        self.widen = nn.Linear(design.features, inner) if design.head == "mlp" else None
        self.embed = nn.Linear(inner, hidden)
        self.none = nn.Parameter(torch.randn(hidden) * scale)
        nn.init.normal_(self.embed.weight, std=scale / inner**0.5)
        nn.init.zeros_(self.embed.bias)

    def forward(self, noise: Tensor) -> Tensor:
        """One embedding for every number."""
        x = self.features(noise.clamp(min=0)).to(self.none.dtype)
        if self.widen is not None:
            x = F.silu(self.widen(x)) * 2  # a SiLU of unit inputs has a root mean square of about a half
        return torch.where((noise == NONE)[..., None], self.none, self.embed(x))

    def features(self, noise: Tensor) -> Tensor:
        """[..] int64 -> [.., features] float32, each between -1 and 1."""
        if self.design.front == "scalar":
            return (noise.double() * 2.0 ** (1 - NOISE_BITS) - 1).float()[..., None]
        steps = torch.arange(self.design.features, device=noise.device)
        if self.design.front == "digits":
            return ((noise[..., None] >> steps) & 1).float() * 2 - 1
        below = noise[..., None] * len(steps) <= (steps + 1) << NOISE_BITS
        return below.float() * 2 - 1
