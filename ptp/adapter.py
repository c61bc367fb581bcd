"""The gated adapter: low-rank weights beside every matrix of the target, applied to slot rows only."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.config import Config
from bench.model import Transformer
from bench.reading import Matrices


def matrix_shapes(config: Config) -> dict[str, tuple[int, int]]:
    """The four matrices of a layer -> (out, in)."""
    c, attended = config, config.heads * config.head_dim
    return {
        "qkv": (attended + 2 * c.kv_heads * c.head_dim, c.hidden),
        "out": (c.hidden, attended),
        "gate_up": (2 * c.ffn, c.hidden),
        "down": (c.hidden, c.ffn),
    }


class LowRank(nn.Module):
    """One correction B A of rank r (LoRA: Hu et al., 2021). B starts at zero: an untrained adapter changes nothing."""

    def __init__(self, out: int, size: int, rank: int):
        super().__init__()
        self.narrow = nn.Parameter(torch.randn(rank, size) / size**0.5)  # A
        self.widen = nn.Parameter(torch.zeros(out, rank))  # B

    def forward(self, x: Tensor) -> Tensor:
        """[.., in] -> [.., out] in the dtype of x; training keeps the weights in float32."""
        return F.linear(F.linear(x, self.narrow.to(x.dtype)), self.widen.to(x.dtype))

    def onto(self, weight: Tensor) -> Tensor:
        """weight + B A, [out, in] in the dtype of the weight."""
        return weight + self.widen.to(weight.dtype) @ self.narrow.to(weight.dtype)


class GatedAdapter(nn.Module):
    """Corrections for all matrices of all layers. Implements `bench.model.Adapter`."""

    def __init__(self, config: Config, rank: int):
        super().__init__()
        shapes = matrix_shapes(config)
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: LowRank(*shape, rank) for name, shape in shapes.items()})
            for _ in range(config.layers)
        )

    def delta(self, layer: int, name: str, x: Tensor) -> Tensor:
        """What projection `name` of `layer` adds for the slot rows x [B, m, in] -> [B, m, out]."""
        return self.correction(layer, name)(x)

    def merged(self, layer: int, name: str, weight: Tensor) -> Tensor:
        """The matrix that slot rows see: weight + B A, [out, in], summed in float32 or wider."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        return self.correction(layer, name).onto(weight.to(wide)).to(weight.dtype)

    def onto(self, model: Transformer) -> list[Matrices]:
        """What slot rows see of each layer of `model`: weight + B A, in the dtype of its weights.

        For training: a product serves one matrix of all layers, there and back, where a GPU would wait for hundreds
        of small ones.
        """
        made = []
        for name in matrix_shapes(model.config):
            weights = torch.stack([getattr(block, name) for block in model.blocks])
            pairs = [self.correction(layer, name) for layer in range(len(self.layers))]
            widen = torch.stack([pair.widen for pair in pairs]).to(weights.dtype)
            narrow = torch.stack([pair.narrow for pair in pairs]).to(weights.dtype)
            made.append(torch.baddbmm(weights, widen, narrow).unbind(0))
        return [Matrices(*matrices) for matrices in zip(*made, strict=True)]

    def correction(self, layer: int, name: str) -> LowRank:
        """One of the pairs."""
        pair = self.layers[layer][name]  # type: ignore[index]
        assert isinstance(pair, LowRank)
        return pair


class BoundAdapter:
    """The adapter on its target, for forwards that want whole matrices for slot rows as well as for those that add."""

    def __init__(self, adapter: GatedAdapter, model: Transformer):
        self.adapter, self.model = adapter, model
        self.made: dict[int, Matrices] = {}

    def delta(self, layer: int, name: str, x: Tensor) -> Tensor:
        """See `GatedAdapter.delta`."""
        return self.adapter.delta(layer, name, x)

    def merged(self, layer: int) -> Matrices:
        """All four matrices of a layer, summed when they are first asked for."""
        if layer not in self.made:
            block = self.model.blocks[layer]
            names = matrix_shapes(self.model.config)
            self.made[layer] = Matrices(*(self.adapter.merged(layer, name, getattr(block, name)) for name in names))
        return self.made[layer]

    @property
    def bytes(self) -> int:
        """Memory of the matrices made so far."""
        tensors = [tensor for made in self.made.values() for tensor in vars(made).values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
