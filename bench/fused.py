"""The forward over a step's tree through the Triton kernels: five launches a layer, for bf16 and fp16 on CUDA."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from bench.cache import Cache
from bench.errors import BenchError
from bench.forward import Result
from bench.kernels import attention_kernel, embed_kernel, linear_kernel
from bench.model import Adapter, Block, Transformer
from bench.tree import Structure, Tree

MAX_GROUPS = 1 << 16  # attention groups of one launch


SMALL = 1 << 23  # weights below this size are bound by latency, larger ones by bandwidth
ATTENDED = 1 << 14  # elements of the keys of one attention program
WALKED = 1 << 12  # of those that it holds at a time, if heads are wide
QUERIES = 16  # of an attention program; 16 and 32 are summed in the same order, more are not


@dataclass
class Stream:
    """The residual stream between two blocks, with what the next norm needs."""

    x: Tensor  # [rows, hidden]
    scaled: Tensor  # x times the gain of the norm that comes next
    squares: Tensor  # [rows, parts] float64: sums of squares of parts of x

    def first(self, rows: int) -> "Stream":
        """Of the first rows alone."""
        return Stream(self.x[:rows], self.scaled[:rows], self.squares[:rows])


class FusedForward:
    """Same call as `PlainForward`. Inside, rows lie flat: all token rows of the batch, then all slot rows."""

    def __init__(self, model: Transformer, cache: Cache):
        self.model, self.cache = model, cache
        blocks = [block for block in model.blocks if isinstance(block, Block)]
        self.gains = [gain for b in blocks for gain in (b.attention_norm, b.ffn_norm)] + [model.norm]
        # programs that have finished their part, per group; every launch leaves it at zero
        self.arrived = torch.zeros(MAX_GROUPS, dtype=torch.int32, device=cache.keys.device)

    @torch.compiler.disable
    def __call__(self, tree: Tree, root: Tensor, adapter: Adapter | None = None, taps: tuple[int, ...] = ()) -> Result:
        """See `PlainForward`; an adapter must offer `merged(layer)`, the block that slot rows go through."""
        c, batch, n = self.model.config, *tree.tokens.shape
        tokens = batch * n
        stream = self.embed(tree)
        attend, tapped = Attention(self.model, self.cache, tree, root, self.arrived), []
        products = self.products(tokens, adapter)
        for layer in range(c.layers):
            qkv, out, gate_up, down = products[4 * layer : 4 * layer + 4]
            ffn_gain, next_gain = self.gains[2 * layer + 1 : 2 * layer + 3]
            attended = attend(layer, qkv.normed(stream, c.norm_eps))
            stream = out.added(attended, stream, ffn_gain)
            stream = down.added(gate_up.normed(stream, c.norm_eps), stream, next_gain)
            if layer in taps:
                tapped.append(stream.x[:tokens].unflatten(0, (batch, n)))
        if c.layers in taps:
            tapped.append(self.model.rms(stream.x[:tokens], self.model.norm).unflatten(0, (batch, n)))
        return self.result(tree, stream, tuple(tapped))

    def result(self, tree: Tree, stream: Stream, tapped: tuple[Tensor, ...]) -> Result:
        """The head, over the token rows and, where they are to be scored, the slots."""
        (batch, n), head, slot_logits, slot_hidden = tree.tokens.shape, self.model.head, None, None
        tokens = batch * n
        scored = stream if tree.score_slots else stream.first(tokens)
        logits = Product(len(scored.x), head, head).normed(scored, self.model.config.norm_eps, torch.float32)
        if tree.slots is not None and tree.score_slots:
            slot_logits = logits[tokens:].unflatten(0, (batch, -1))
        elif tree.slots is not None:
            slot_hidden = self.model.rms(stream.x[tokens:], self.model.norm).unflatten(0, (batch, -1))
        return Result(logits[:tokens].unflatten(0, (batch, n)), slot_logits, slot_hidden, tapped)

    def products(self, tokens: int, adapter: Adapter | None) -> list["Product"]:
        """qkv, out, gate_up and down of all layers, in order; each knows the next but one."""
        products = []
        for layer, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            slot: Any = block if adapter is None else adapter.merged(layer)  # type: ignore[attr-defined]
            products += [Product(tokens, block.qkv, slot.qkv, block.qkv_bias),
                         Product(tokens, block.out, slot.out, patient=True),
                         Product(tokens, block.gate_up, slot.gate_up, swiglu=True),
                         Product(tokens, block.down, slot.down, patient=True)]
        for product, ahead in zip(products, products[2:], strict=False):
            product.ahead = ahead
        return products

    def embed(self, tree: Tree) -> Stream:
        """Token and slot rows -> the stream before the first layer."""
        width, tokens = self.model.config.hidden, tree.tokens.numel()
        rows = tokens + (0 if tree.slots is None else tree.slots.shape[0] * tree.slots.shape[1])
        stream = empty_stream(rows, width, 1, self.model.embedding)
        slots = None if tree.slots is None else tree.slots.to(stream.x.dtype).contiguous()
        embed_kernel[(rows,)](tree.tokens.contiguous(), slots, self.model.embedding, self.gains[0], stream.x,
                              stream.scaled, stream.squares, tokens, K=width, BLOCK=triton.next_power_of_2(width),
                              SLOTS=slots is not None)
        return stream


def empty_stream(rows: int, width: int, parts: int, like: Tensor) -> Stream:
    """Room for a stream."""
    x, scaled = like.new_empty(2, rows, width)
    return Stream(x, scaled, torch.empty(rows, parts, dtype=torch.float64, device=like.device))


@dataclass(frozen=True)
class Tile:
    """Sizes of one program of `linear_kernel`."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def tile_for(rows: int, weight: Tensor, columns: int, two_sets: bool = False) -> Tile:
    """The best of about 15 tilings each, measured on an H200 at the shapes of SmolLM2-135M and Llama-7B.

    `two_sets`: other rows, at most as many, are multiplied with another weight. Those of more than 256 rows: the best
    of three each, at SmolLM2-135M's.
    """
    few, deep = rows <= 16, weight.shape[1] > 1024
    if rows > 256 and deep and weight.numel() < SMALL:
        return Tile(64, 32, 128, 4, 4)
    if rows > 256 and not deep and columns > 8192:
        return Tile(128, 128, 64, 8, 3)
    if weight.numel() < SMALL:
        return small_tile(rows, columns, deep, two_sets)
    if not deep:
        return Tile(16 if few else 64, 64 if few else 128, 128 if few else 64, 4 if few else 8, 4)
    plain = columns == len(weight)  # otherwise, with swiglu, a program holds blocks of two weights
    if columns <= 8192:
        return Tile(16 if few else 64, 32, 256, 4, 4 if few or plain else 3)
    many = Tile(64, 128, 64, 8, 6 if plain and columns <= 1 << 14 else 4)  # with 6, a multiprocessor holds one program
    return Tile(16, 32, 128, 4, 6 if plain else 4) if few else many


def small_tile(rows: int, columns: int, deep: bool, two_sets: bool) -> Tile:
    """Of a matrix that is bound by latency."""
    few, narrow = rows <= 16, columns <= 1024
    if two_sets and 16 < rows <= 32:  # tiles of 64 rows would be mostly empty: 9 and 24 rows 0.36 ms of 1.02 slower
        return Tile(32 if narrow else 16, 16 if narrow else 32, 128 if deep else 64, 4, 4 if deep else 5)
    return Tile(16 if few else 64, 16 if narrow else 32, 256 if deep and few else 128 if deep or few else 64, 4, 4)


@dataclass
class Product:
    """x @ weight^T, with another weight for slot rows."""

    tokens: int  # token rows; the others are slot rows
    weight: Tensor  # [out, in]; with swiglu [2 out, in], gate above up
    slot_weight: Tensor
    bias: Tensor | None = None
    swiglu: bool = False
    patient: bool = False  # what follows is let in only once the input is there
    ahead: "Product | None" = None  # whose weights are fetched meanwhile

    def normed(self, stream: Stream, eps: float, dtype: torch.dtype | None = None) -> Tensor:
        """Of the normed stream: [rows, hidden] -> [rows, out]."""
        out = stream.x.new_empty(len(stream.x), len(self.weight) // (2 if self.swiglu else 1), dtype=dtype)
        self.launch(stream.scaled, out, stream.squares, eps)
        return out

    def added(self, x: Tensor, stream: Stream, gain: Tensor) -> Stream:
        """Of x [rows, in], added to the stream; `gain` is that of the next norm."""
        rows, columns = stream.x.shape
        parts = triton.cdiv(columns, self.tile(rows, columns).columns)
        following = empty_stream(rows, columns, parts, stream.x)
        self.launch(x, following.x, None, 0.0, (stream.x, gain, following.scaled, following.squares))
        return following

    def tile(self, rows: int, columns: int) -> Tile:
        """Of the larger set of rows."""
        return tile_for(max(self.tokens, rows - self.tokens), self.weight, columns, rows > self.tokens)

    def launch(self, x: Tensor, out: Tensor, squares: Tensor | None, eps: float, added: tuple = (None,) * 4) -> None:
        """`added`: residual, gain, and where the scaled sum and its squares go."""
        residual, gain, scaled, out_squares = added
        rows, columns = out.shape
        inner, parts = x.shape[1], 0 if squares is None else squares.shape[1]
        tile = self.tile(rows, columns)
        tiles = triton.cdiv(self.tokens, tile.rows) + triton.cdiv(rows - self.tokens, tile.rows)
        ahead = self.ahead if self.ahead is not None and self.ahead.weight.numel() < SMALL else None
        linear_kernel[(triton.cdiv(columns, tile.columns), tiles)](
            x, squares, self.weight, self.slot_weight, ahead and ahead.weight, ahead and ahead.slot_weight,
            self.bias, residual, gain, out, scaled, out_squares, self.tokens, rows, eps, N=columns, K=inner,
            PARTS=parts, PART_BLOCK=triton.next_power_of_2(max(parts, 1)), AHEAD=ahead.weight.numel() if ahead else 0,
            BM=tile.rows, BN=tile.columns, BK=tile.inner, BIAS=self.bias is not None, RESIDUAL=residual is not None,
            SWIGLU=self.swiglu, WHOLE=self.is_whole(rows, columns, tile), num_warps=tile.warps,
            num_stages=tile.stages, **overlap(rows, self.weight, self.patient))

    def is_whole(self, rows: int, columns: int, tile: Tile) -> bool:
        """Whether blocks of the weight need no mask, and that pays: Llama-7B's 64 rows 0.05 ms, one row nothing."""
        large = self.weight.numel() >= SMALL and rows > 16
        return large and not columns % tile.columns and not self.weight.shape[1] % tile.inner


def overlap(rows: int, weight: Tensor, patient: bool = False) -> dict[str, int | bool]:
    """Options of a kernel that is launched before its predecessor has ended; `patient`: its follower comes later.

    What has come keeps its place on a multiprocessor while it waits. With `out` and `down` patient, those behind them
    find the device empty: on an H100 SmolLM2-135M takes 0.63 ms a row in place of 0.67, 4 tokens and 10 slots 0.72 in
    place of 0.85, 16 and 48 at 900 tokens 0.98 in place of 1.13. Of all 32 choices of patient kernels this is the best.
    On an H200, before that: SmolLM2-135M 0.69 ms a row, 0.86 without overlap; Llama-7B, which is bound by bandwidth,
    4.90 ms with overlap and 4.23 without; late, it is 0.04 ms slower at one row and 0.2 of 5.5 ms faster at 64.
    """
    early = weight.numel() < SMALL
    late = not early and weight.shape[1] > 1024 and rows > 16  # shallow ones: not measured
    if not (early or late) or not overlaps(weight.device):
        return {"PDL": 0}
    return {"PDL": 2 if late else 3 if patient else 1, "launch_pdl": True}


@cache
def overlaps(device: torch.device) -> bool:
    """Whether the device can do that (Hopper and later)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


class Attention:
    """Tree attention of one step, layer after layer."""

    def __init__(self, model: Transformer, cache: Cache, tree: Tree, root: Tensor, arrived: Tensor):
        c, structure = model.config, tree.resolve()
        self.model, self.cache, self.root = model, cache, root
        self.batch, self.n = tree.tokens.shape
        self.rows = structure.depths.shape[1]
        self.positions = structure.positions(tree, root)
        self.ancestors = structure.ancestors.contiguous().view(torch.uint8)
        self.paths = None if tree.is_chain else paths(structure)
        group = c.heads // c.kv_heads
        self.sizes = head_sizes(model)
        self.full = self.sizes["FULL"]
        # Twice as many queries: SmolLM2-135M's 64 rows at 900 tokens 0.08 ms of 0.92 faster; wider heads lack registers
        wide = tree.is_chain and self.full <= 64 and self.rows * group > 64
        self.queries = max(2 * QUERIES if wide else QUERIES, triton.next_power_of_2(group))
        self.tiles = triton.cdiv(self.rows, self.queries // group)
        self.walk = walk(self.full)
        self.split = self.walk["SPLIT"]
        self.splits = triton.cdiv(cache.capacity, self.split)
        groups = self.batch * c.kv_heads * self.tiles
        if groups > len(arrived):
            raise BenchError(f"batch of {self.batch} with {self.rows} rows is too large for one forward; lower --batch")
        parts = groups * self.splits * self.queries
        self.partial = torch.empty(parts, self.full, device=root.device)
        self.stats = torch.empty(parts, 2, device=root.device)  # running maximum and sum of each part
        self.arrived = arrived

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """qkv [rows, (heads + 2 kv_heads) head_dim] -> attended [rows, heads head_dim]; writes the cache."""
        c, block = self.model.config, self.model.blocks[layer]
        assert isinstance(block, Block)
        out = qkv.new_empty(len(qkv), c.heads * c.head_dim)
        tree, grid = self.paths is not None, (self.splits, self.tiles)
        launch = {"PDL": 0} if tree else overlap(len(qkv), block.qkv)
        if tree:  # programs of tiles, and of rows in all splits that the step's keys may touch: too many to come early
            grid = self.splits * self.tiles + (triton.cdiv(self.rows - 1, self.split) + 1) * self.rows, 1
        attention_kernel[(*grid, self.batch * c.kv_heads)](
            qkv, self.cache.keys[layer], self.cache.values[layer], self.model.rope, self.positions, self.ancestors,
            self.paths, self.root, block.q_norm, block.k_norm, out, self.partial, self.stats, self.arrived,
            self.batch, self.n, self.rows - self.n, self.cache.capacity, c.norm_eps, c.head_dim**-0.5,
            **self.sizes, BQ=self.queries, **self.walk, SPLITS=self.splits, TREE=tree, enable_fp_fusion=False,
            **launch)
        return out


def walk(full: int) -> dict[str, int]:
    """Keys of an attention program, those that it holds at a time, and its size, for heads of so many numbers.

    All keys of a wide head would fill the registers. The keys decide the order of sums, so they do not depend on the
    number of rows.
    """
    split = ATTENDED // full
    if full <= 64:
        return {"SPLIT": split, "BLOCK": split, "num_warps": 8, "num_stages": 2}
    return {"SPLIT": split, "BLOCK": max(16, WALKED // full), "num_warps": 4, "num_stages": 3}


def head_sizes(model: Transformer) -> dict[str, int | bool]:
    """Of heads, as all kernels that attend want them."""
    c = model.config
    return {"HEADS": c.heads, "KV_HEADS": c.kv_heads, "D": c.head_dim, "QK_NORM": c.qk_norm,
            "HALF": max(16, triton.next_power_of_2(c.head_dim // 2)), "FULL": triton.next_power_of_2(c.head_dim)}


def paths(structure: Structure) -> Tensor:
    """[B, rows, rows + 1] int32: the ancestor of each row at each depth, or the row itself; -1 where there is none.

    The last column is meant for nobody.
    """
    rows = structure.depths.shape[1]
    at = torch.where(structure.ancestors, structure.depths[:, None], rows)
    row = torch.arange(rows, dtype=torch.int32, device=at.device)
    return row.new_full((*at.shape[:2], rows + 1), -1).scatter(2, at, row.expand_as(at))
