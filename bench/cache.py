"""Keys and values of everything committed, and of the step's rows just behind it."""

import torch
from torch import Tensor

from bench.config import Config


class Cache:
    """Static cache. Row i of a step lies at `root + i`; what is kept moves to `root + depth`, the rest is overwritten.

    A chain's accepted rows already lie in their place, so committing a chain moves nothing.
    """

    def __init__(self, config: Config, batch: int, capacity: int, like: Tensor):
        shape = (config.layers, batch, config.kv_heads, capacity, config.head_dim)
        self.keys = like.new_zeros(shape)  # [layers, B, kv_heads, capacity, head_dim]
        self.values = like.new_zeros(shape)
        self.batch, self.capacity, self.group = batch, capacity, config.heads // config.kv_heads

    @property
    def bytes(self) -> int:
        """Memory it occupies."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def write(self, layer: int, index: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store rows at absolute cache positions. `index` [B, rows]; keys and values [B, kv_heads, rows, head_dim]."""
        batch = torch.arange(len(index), device=index.device)[:, None]
        self.keys[layer][batch, :, index] = keys.transpose(1, 2)
        self.values[layer][batch, :, index] = values.transpose(1, 2)

    def commit(self, root: Tensor, path: Tensor) -> None:
        """Move the kept rows behind the prefix. `root` [B]; `path` [B, depth + 1]: the kept row at each depth.

        Entries past the accepted depth may name any row: what they move is overwritten by the next step.
        """
        batch = torch.arange(len(root), device=root.device)[:, None]
        source, target = root[:, None] + path, root[:, None] + torch.arange(path.shape[1], device=root.device)
        for rows in (self.keys, self.values):
            rows[:, batch, :, target] = rows[:, batch, :, source]
