"""The forward of many rows: products by cuBLAS, one kernel between two of them. For bf16 and fp16 on CUDA.

It serves prompts that are read at once and sequences of one row each. How a product of cuBLAS rounds depends on the
number of its rows; the kernels of `bench.fused`, which give a row the same bits in any company, take twice as long.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from bench.cache import Cache
from bench.forward import Result
from bench.fused import head_sizes
from bench.many_kernels import norm_kernel, rotate_kernel, single_kernel, swiglu_kernel
from bench.model import Adapter, Block, Hidden, Transformer, causal
from bench.tree import Tree

Attend = Callable[[int, Tensor], Tensor]  # layer, qkv [rows, (heads + 2 kv_heads) head_dim] -> [rows, heads head_dim]
KEYS = 64  # that a program of `single_kernel` looks at together
QUERIES = 16  # fewest that tensor cores multiply
ELEMENTS = 512  # per program of `swiglu_kernel`


class ManyForward:
    """Same call as `PlainForward`, for trees of the root alone."""

    def __init__(self, model: Transformer, cache: Cache):
        self.model, self.cache = model, cache

    @torch.compiler.disable
    def __call__(self, tree: Tree, root: Tensor, adapter: Adapter | None = None, taps: tuple[int, ...] = ()) -> Result:
        """See `PlainForward`. No slots, nothing for an adapter to act on."""
        hidden = through(self.model, tree.tokens[:, 0], partial(self.attend, root), taps)
        return Result(self.model.score(hidden.last)[:, None], taps=tuple(tap[:, None] for tap in hidden.taps))

    def attend(self, root: Tensor, layer: int, qkv: Tensor) -> Tensor:
        """One row of each sequence, behind what the cache holds of it; writes the cache at `root` [B]."""
        c, block = self.model.config, self.model.blocks[layer]
        out = qkv.new_empty(len(qkv), c.heads * c.head_dim)
        single_kernel[(len(qkv) * c.kv_heads,)](
            qkv, self.cache.keys[layer], self.cache.values[layer], self.model.rope, root, block.q_norm, block.k_norm,
            out, self.cache.capacity, c.norm_eps, c.head_dim**-0.5, BLOCK=KEYS,
            BQ=max(QUERIES, triton.next_power_of_2(c.heads // c.kv_heads)), **head_sizes(self.model), num_warps=4,
            num_stages=3)
        return out


def fill(model: Transformer, cache: Cache, prompts: Tensor) -> None:
    """Keys and values of prompts [B, T] int64, each from its first token on, into a cache of just that size."""
    c, (batch, length) = model.config, prompts.shape

    def attend(layer: int, qkv: Tensor) -> Tensor:
        keys, values, block = cache.keys[layer], cache.values[layer], model.blocks[layer]
        rotate_kernel[(len(qkv),)](
            qkv, keys, values, model.rope, block.q_norm, block.k_norm, length, c.norm_eps,
            Q_BLOCK=triton.next_power_of_2(c.heads), KV_BLOCK=triton.next_power_of_2(c.kv_heads), **head_sizes(model),
            num_warps=2)
        queries = qkv.view(batch, length, -1, c.head_dim)[:, :, : c.heads].transpose(1, 2)
        return causal(layer, queries, keys, values).transpose(1, 2).reshape(batch * length, -1)

    through(model, prompts.flatten(), attend)


def through(model: Transformer, tokens: Tensor, attend: Attend, taps: tuple[int, ...] = ()) -> Hidden:
    """Token rows [rows] int64 through all layers -> [rows, hidden] each, as `Transformer.forward` returns them."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    gains = [block.attention_norm for block in blocks] + [model.norm]
    eps, x, tapped = model.config.norm_eps, model.embed(tokens), []
    normed = norm(x, None, gains[0], eps)
    for layer, block in enumerate(blocks):
        attended = attend(layer, F.linear(normed, block.qkv, block.qkv_bias))
        normed = norm(x, F.linear(attended, block.out), block.ffn_norm, eps)
        fed = swiglu(F.linear(normed, block.gate_up))
        normed = norm(x, F.linear(fed, block.down), gains[layer + 1], eps)
        if layer in taps:
            tapped.append(x.clone())
    return Hidden(normed, (*tapped, normed) if len(blocks) in taps else tuple(tapped))


def norm(x: Tensor, added: Tensor | None, gain: Tensor, eps: float) -> Tensor:
    """The normed sum of two streams [rows, hidden]; x becomes their sum."""
    out, width = torch.empty_like(x), x.shape[1]
    norm_kernel[(len(x),)](x, added, gain, out, eps, N=width, BLOCK=triton.next_power_of_2(width))
    return out


def swiglu(x: Tensor) -> Tensor:
    """[rows, 2 ffn] -> [rows, ffn]."""
    rows, width = len(x), x.shape[1] // 2
    out = x.new_empty(rows, width)
    swiglu_kernel[(rows, triton.cdiv(width, ELEMENTS))](x, out, N=width, BLOCK=ELEMENTS, num_warps=2)
    return out
