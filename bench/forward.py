"""The forward pass over a step's tree, for any model with a cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.cache import Cache
from bench.model import Adapter, Transformer, attend_tree
from bench.tree import Tree, chain

PREFILL_CHUNK = 512


@dataclass
class Result:
    """What the target said about a tree."""

    logits: Tensor  # [B, rows, vocab] float32
    hidden: Tensor  # [B, rows, hidden]
    taps: tuple[Tensor, ...] = ()  # [B, rows, hidden] each


class Forward:
    """Rows of a tree through a model, their keys and values into its cache behind the prefix."""

    def __init__(self, model: Transformer, cache: Cache):
        self.model, self.cache = model, cache

    def __call__(self, tree: Tree, root: Tensor, adapter: Adapter | None = None, taps: tuple[int, ...] = ()) -> Result:
        """`root` [B] int64: position of the root, equal to the number of rows already in the cache."""
        structure = tree.resolve()
        x = self.model.embed(tree.tokens)
        slots = 0
        if tree.slots is not None:
            x, slots = torch.cat([x, tree.slots], 1), tree.slots.shape[1]
        attend = attend_tree(self.cache, root, structure)
        hidden = self.model(x, structure.positions(tree, root), attend, adapter, slots, taps)
        return Result(self.model.score(hidden.last), hidden.last, hidden.taps)


def prefill(model: Transformer, cache: Cache, tokens: Tensor) -> None:
    """Fill the cache with `tokens` [B, T], chunk by chunk. What lies past a short prompt is overwritten."""
    for start in range(0, tokens.shape[1], PREFILL_CHUNK):
        chunk = tokens[:, start : start + PREFILL_CHUNK]
        root = torch.full((len(chunk),), start, device=chunk.device)
        structure = chain(chunk.shape[1], len(chunk), chunk.device)
        model(model.embed(chunk), root[:, None] + structure.depths, attend_tree(cache, root, structure))
