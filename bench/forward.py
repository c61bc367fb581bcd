"""The forward pass over a step's tree, for any model with a cache."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.cache import Cache
from bench.model import Adapter, Transformer, attend_tree, causal
from bench.tree import Tree, chain

PREFILL_CHUNK = 256
MANY = 128  # sequences that keep a device busy without splitting any
# For prompts, whose shapes are many: cuDNN, which torch prefers on Hopper, would make a plan for each.
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass
class Result:
    """What the target said about a tree of n token rows and m slot rows."""

    logits: Tensor  # [B, n, vocab] float32: after each token row
    slot_logits: Tensor | None = None  # [B, m, vocab] float32; None unless `Tree.score_slots`
    slot_hidden: Tensor | None = None  # [B, m, hidden]: the head's inputs, where they are not scored
    taps: tuple[Tensor, ...] = ()  # [B, n, hidden] each: token rows, as `Transformer.forward` taps them


Forward = Callable[[Tree, Tensor, Adapter | None, tuple[int, ...]], Result]


class PlainForward:
    """Rows of a tree through a model, their keys and values into its cache behind the prefix."""

    def __init__(self, model: Transformer, cache: Cache):
        self.model, self.cache = model, cache

    @torch.compiler.disable
    def __call__(self, tree: Tree, root: Tensor, adapter: Adapter | None = None, taps: tuple[int, ...] = ()) -> Result:
        """`root` [B] int64: position of the root, equal to the number of rows already in the cache."""
        structure, n = tree.resolve(), tree.tokens.shape[1]
        x = self.model.embed(tree.tokens)
        if tree.slots is not None:
            x = torch.cat([x, tree.slots], 1)
        attend = attend_tree(self.cache, root, structure)
        hidden = self.model(x, structure.positions(tree, root), attend, adapter, x.shape[1] - n, taps)
        tapped = tuple(t[:, :n] for t in hidden.taps)
        if not tree.score_slots:
            return Result(self.model.score(hidden.last[:, :n]), None, hidden.last[:, n:], tapped)
        logits = self.model.score(hidden.last)  # of all rows at once: the head is a fifth of what a step reads
        return Result(logits[:, :n], None if tree.slots is None else logits[:, n:], None, tapped)


def forward_for(model: Transformer, cache: Cache, widest: int = 0) -> Forward:
    """The fastest forward for the model's device and dtype; `widest`: most rows of any step, 0 if nobody knows."""
    if not has_kernels(model):
        return PlainForward(model, cache)
    if widest == 1 and cache.batch >= MANY:
        from bench.many import ManyForward

        return ManyForward(model, cache)
    from bench.fused import FusedForward

    return FusedForward(model, cache)


def has_kernels(model: Transformer) -> bool:
    """Whether Triton's serve it; where they do not, there may be no Triton to import."""
    return model.norm.is_cuda and model.norm.dtype in (torch.bfloat16, torch.float16)


@sdpa_kernel(BACKENDS)
def prefill(model: Transformer, cache: Cache, tokens: Tensor) -> None:
    """Fill the cache with `tokens` [B, T], chunk by chunk. What lies past a short prompt is overwritten."""
    for start in range(0, tokens.shape[1], PREFILL_CHUNK):
        chunk = tokens[:, start : start + PREFILL_CHUNK]
        root = torch.full((len(chunk),), start, device=chunk.device)
        structure = chain(chunk.shape[1], len(chunk), chunk.device)
        model(model.embed(chunk), root[:, None] + structure.depths, attend_tree(cache, root, structure))


@sdpa_kernel(BACKENDS)
def read(model: Transformer, prompts: Tensor) -> Cache:
    """Keys and values of prompts [B, T] int64, each from its first token on, in a cache of just that size.

    No mask is needed: what follows a short prompt is not seen by it, and is overwritten.
    """
    batch, length = prompts.shape
    cache = Cache(model.config, batch, length, model.norm)
    if has_kernels(model):
        from bench.many import fill

        fill(model, cache, prompts)
        return cache

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.keys[layer], cache.values[layer] = k, v
        return causal(layer, q, k, v)

    model(model.embed(prompts), torch.arange(length, device=prompts.device).expand(batch, -1), attend)
    return cache
