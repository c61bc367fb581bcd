"""Attention of packed training rows: who sees whom is index arithmetic, block-sparse on CUDA and dense on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from bench.programs import fast

# Sequence, head, row and column, int tensors that broadcast -> bool: whether the row sees the column.
Sees = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Mask = Tensor | BlockMask
BLOCK = 64  # rows and columns that CUDA looks at together
# Tiles that live in an H200's registers: those that inductor picks by itself spill, and cost several times as much.
TILES: Any = {"fwd_BLOCK_M": BLOCK, "fwd_BLOCK_N": BLOCK, "fwd_num_warps": 4, "fwd_num_stages": 2,
              "bwd_BLOCK_M1": BLOCK // 2, "bwd_BLOCK_N1": BLOCK, "bwd_BLOCK_M2": BLOCK, "bwd_BLOCK_N2": BLOCK // 2,
              "bwd_num_warps": 4, "bwd_num_stages": 2, "SPARSE_Q_BLOCK_SIZE": BLOCK, "SPARSE_KV_BLOCK_SIZE": BLOCK}
CLAIMED = 128  # what a mask says of its blocks: inductor holds that, not TILES, against the tiles that it would pick


def mask_of(sees: Sees, shape: tuple[int, int, int], like: Tensor, frozen: int = 0) -> Mask:
    """The mask of a batch, for all layers; shape: batch, rows, columns. Blocks that nobody sees cost CUDA nothing.

    Neither do, on the way back, the keys and values of the first `frozen` columns: nobody wants their gradients.
    """
    mask = dense(sees, shape, like.device)
    return sparse(mask, sees, frozen) if fast(like) else mask


def dense(sees: Sees, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Every pair: [batch, 1, rows, columns] bool."""
    batch, row, column = (torch.arange(size, device=device) for size in shape)
    head = torch.zeros((), dtype=torch.int64, device=device)
    return sees(batch[:, None, None], head, row[:, None], column)[:, None]


def sparse(mask: Tensor, sees: Sees, frozen: int) -> BlockMask:
    """A dense mask in blocks. (`create_block_mask` makes the same, but takes a host several times as long.)"""
    rows, columns = mask.shape[2:]
    padded = F.pad(mask, (0, -columns % BLOCK, 0, -rows % BLOCK))
    seen = padded.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum((3, 5))  # pairs in every block
    part, whole = (seen > 0) & (seen < BLOCK**2), seen == BLOCK**2
    wanted = torch.arange(seen.shape[3], device=mask.device) >= frozen // BLOCK
    forth = (*listed(part), *listed(whole))
    back = (*listed((part & wanted).mT), *listed((whole & wanted).mT))
    return BlockMask((rows, columns), *forth, *back, (CLAIMED, CLAIMED), sees)


def listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[.., n] bool -> how many are set, [..], and all indices, those first, [.., n]; int32 each."""
    blocks = blocks.int().contiguous()
    return blocks.sum(-1, dtype=torch.int32), blocks.argsort(dim=-1, descending=True, stable=True).int()


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """q [B, heads, rows, head_dim], k and v [B, kv_heads, columns, head_dim] -> the shape of q.

    Flex attention: Dong et al., 2024 (arXiv 2412.05496). It must be called from a compiled program.
    """
    if isinstance(mask, BlockMask):
        # torch 2.13 was seen to hand what a rotation had made to the kernel in a layout that the kernel did not expect
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        even = q.shape[2] % BLOCK == k.shape[2] % BLOCK == 0  # then no tile looks beyond the end, which costs a seventh
        return flex_attention(q, k, v, block_mask=mask, enable_gqa=True,  # type: ignore[return-value]
                              kernel_options=TILES | {"IS_DIVISIBLE": even})
    return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
