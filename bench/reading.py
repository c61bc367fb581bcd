"""Passes of a model over training rows, layer by layer: on CUDA one compiled layer serves all of them.

A program for a whole model would take minutes to compile, and every training needs several.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.attention import Mask, attend, mask_of
from bench.model import Block, Projection, Transformer
from bench.packing import Batch
from bench.product import product
from bench.programs import fused

Past = tuple[Tensor, Tensor]  # keys and values of a layer, [B, kv_heads, T, head_dim], keys rotated


@dataclass
class Reading:
    """What a pass over a batch leaves."""

    batch: Batch
    hidden: Tensor  # [B, T, hidden]: the head's input after every token
    layers: list[Past]


def read(model: Transformer, batch: Batch) -> Reading:
    """A plain pass over a batch. With a frozen target call it under `torch.no_grad`."""
    rows, length = batch.tokens.shape
    model.extend_rope(length)
    mask = mask_of(batch.sees(), (rows, length, length), model.norm)
    x, rotation, layers = model.embed(batch.tokens).to(model.norm.dtype), model.rope[batch.positions()], []
    for block in model.blocks:
        assert isinstance(block, Block)
        x, keys, values = token_layer(x, model, block, rotation, mask)
        layers.append((keys, values))
    return Reading(batch, model.rms(x, model.norm), layers)


@dataclass
class Place:
    """Where slots sit: what is the same in all layers."""

    positions: Tensor  # [B, m] int64
    mask: Mask  # m rows; as columns first the tokens that were read, then the slots


@dataclass
class Matrices:
    """What slot rows see of a layer: [out, in] each."""

    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Corrected(Projection):
    """The four matrix products of a layer where every row is a slot.

    Its matrices are corrected before, as decoding has them: slots are many, and a product apart for the correction
    would have to be written and read as often as the one that it is added to.
    """

    def __init__(self, block: Block, matrices: Matrices):
        super().__init__(block, 0, None, 0)
        self.matrices = matrices

    def __call__(self, name: str, x: Tensor) -> Tensor:
        """x [B, m, in] -> [B, m, out]."""
        return product(x, getattr(self.matrices, name), self.block.qkv_bias if name == "qkv" else None)


def follow(model: Transformer, reading: Reading, place: Place, x: Tensor,
           matrices: Sequence[Matrices] | None) -> Tensor:
    """Slots x [B, m, hidden] through the model, behind what was read -> the head's input at each, [B, m, hidden].

    `matrices`: of each layer, where slots see others than tokens.
    """
    rotation = model.rope[place.positions]
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        project = Corrected(block, matrices[number]) if matrices else Projection(block, 0, None, 0)
        x = slot_layer(x, model, project, rotation, place.mask, reading.layers[number])
    return model.rms(x, model.norm)


# No layer's number goes into these two: a compiler would make a program of each.

@fused
def token_layer(x: Tensor, model: Transformer, block: Block, rotation: Tensor, mask: Mask) -> tuple[Tensor, ...]:
    """One layer -> its output, its keys and its values."""
    seen: list[Tensor] = []

    def look(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.extend((k, v))
        return attend(q, k, v, mask)

    return model.layer(x, Projection(block, 0, None, 0), rotation, look), *seen


@fused
def slot_layer(x: Tensor, model: Transformer, project: Projection, rotation: Tensor, mask: Mask, seen: Past) -> Tensor:
    """One layer, behind the keys and values that were `seen` there -> its output."""
    def look(_: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, torch.cat([seen[0], k], 2), torch.cat([seen[1], v], 2), mask)

    return model.layer(x, project, rotation, look)
