"""FusedForward equals PlainForward: random trees, slots behind an adapter, ragged roots, GQA, QK norm, split keys."""

from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from bench import fused, kernels
from bench.cache import Cache
from bench.config import Config
from bench.forward import PlainForward
from bench.fused import FusedForward
from bench.model import Transformer
from bench.tree import Tree, chain_parents

BATCH, CAPACITY, NAMES = 2, 400, ("qkv", "out", "gate_up", "down")
fused.ATTENDED, fused.WALKED = 1 << 12, 1 << 11  # small parts, so that short sequences have several
kernels.prefetch = lambda pointers: None  # the interpreter knows no assembly


class Adapter:
    """A full-rank change of every matrix, in both shapes that the two forwards ask for."""

    def __init__(self, model: Transformer):
        self.changes = [{n: torch.randn_like(getattr(b, n)) * 0.1 for n in NAMES} for b in model.blocks]
        self.blocks = [SimpleNamespace(**{n: getattr(b, n) + change[n] for n in NAMES})
                       for b, change in zip(model.blocks, self.changes, strict=True)]

    def delta(self, layer, name, x):
        return F.linear(x, self.changes[layer][name])

    def merged(self, layer):
        return self.blocks[layer]


def random_tree(n: int, m: int, hidden: int) -> Tree:
    parents = torch.stack([torch.tensor([0, *(int(torch.randint(0, i, ())) for i in range(1, n + m))])
                           for _ in range(BATCH)])
    slots = torch.randn(BATCH, m, hidden) if m else None
    return Tree(torch.randint(0, 50, (BATCH, n)), parents, depth=n - 1, slots=slots, slot_shift=min(m, 1))


def line(tokens: torch.Tensor) -> Tree:
    batch, rows = tokens.shape
    return Tree(tokens, chain_parents(rows, batch, "cpu"), depth=rows - 1, is_chain=True)


def prepared(config: Config) -> tuple[Transformer, tuple[Cache, Cache]]:
    """A random model, and twice the same full cache."""
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.prepare()
    caches = Cache(config, BATCH, CAPACITY, model.norm), Cache(config, BATCH, CAPACITY, model.norm)
    for name in ("keys", "values"):
        getattr(caches[1], name).copy_(getattr(caches[0], name).normal_(0, 0.5))
    return model, caches


def compare(config: Config, tree: Tree, roots: list[int]) -> float:
    model, caches = prepared(config)
    m = 0 if tree.slots is None else tree.slots.shape[1]
    adapter, root = Adapter(model) if m else None, torch.tensor(roots)
    taps = (0, config.layers)
    plain = PlainForward(model, caches[0])(tree, root, adapter, taps)
    ours = FusedForward(model, caches[1])
    fast = ours(tree, root, adapter, taps)
    pairs = [(plain.logits, fast.logits), *zip(plain.taps, fast.taps, strict=True),
             (caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values)]
    if m:
        bare = [forward(replace(tree, score_slots=False), root, adapter)
                for forward in (PlainForward(model, caches[0]), ours)]
        assert bare[0].slot_logits is bare[1].slot_logits is fast.slot_hidden is None
        pairs += [(plain.slot_logits, fast.slot_logits), (bare[0].slot_hidden, bare[1].slot_hidden),
                  (plain.logits, bare[0].logits), (plain.logits, bare[1].logits)]
    assert not ours.arrived.any(), "a launch left its counters behind"
    return max(float((a - b).abs().max()) for a, b in pairs)


def compare_paths(config: Config, n: int, roots: list[int]) -> None:
    """A tree's row finds, and writes to the cache, the very bits that it does at the end of its path laid out alone."""
    model, caches = prepared(config)
    tree, root, batch = random_tree(n, 0, config.hidden), torch.tensor(roots), torch.arange(BATCH)
    tree.parents[:, n - 2 :] = n - 2  # padding, and what hangs from it
    qkv, structure = torch.randn(BATCH, n, len(model.blocks[0].qkv)), tree.resolve()
    found = attend(model, caches[0], tree, root, qkv)
    assert found.isfinite().all()
    for row in range(n - 2):
        depth = structure.depths[:, row]
        path = torch.zeros(BATCH, int(depth.max()) + 1, dtype=torch.int64)  # rows behind its end are not looked at
        for b in range(BATCH):
            path[b, : int(depth[b]) + 1] = structure.ancestors[b, row].nonzero()[:, 0]
        alone = attend(model, caches[1], line(path), root, qkv[batch[:, None], path])
        assert torch.equal(found[:, row], alone[batch, depth]), f"row {row}"
        for name in ("keys", "values"):
            tree_cache, line_cache = (getattr(cache, name)[0] for cache in caches)
            written = tree_cache[batch, :, root + row], line_cache[batch, :, root + depth]
            assert torch.equal(*written), f"{name} of row {row}"


def compare_counts(config: Config, roots: list[int]) -> None:
    """A chain's rows find the same bits whether more rows follow them or not."""
    model, caches = prepared(config)
    root, tokens = torch.tensor(roots), torch.zeros(BATCH, 64, dtype=torch.int64)
    qkv = torch.randn(BATCH, 64, len(model.blocks[0].qkv))
    many = attend(model, caches[0], line(tokens), root, qkv)
    for count in (1, 16, 33):
        few = attend(model, caches[1], line(tokens[:, :count]), root, qkv[:, :count].contiguous())
        assert torch.equal(few, many[:, :count]), f"{count} rows"


def attend(model: Transformer, cache: Cache, tree: Tree, root: torch.Tensor, qkv: torch.Tensor) -> torch.Tensor:
    attention = fused.Attention(model, cache, tree, root, torch.zeros(100, dtype=torch.int32))
    found = attention(0, qkv.flatten(0, 1)).unflatten(0, qkv.shape[:2])
    assert not attention.arrived.any(), "a launch left its counters behind"
    return found


def compare_products(rows: int, columns: int) -> float:
    """Of so many rows that tiles are large."""
    x, weight = torch.randn(rows, 48), torch.randn(columns, 48) * 0.2
    stream = fused.Stream(x, x, (x.double() ** 2).sum(1, keepdim=True))
    ours = fused.Product(rows, weight, weight).normed(stream, 1e-5)
    return float((ours - F.linear(F.rms_norm(x, (48,), eps=1e-5), weight)).abs().max())


torch.manual_seed(0)
LLAMA = Config(vocab=50, hidden=96, layers=2, heads=6, kv_heads=2, head_dim=48, ffn=80, context=CAPACITY, tied=True)
QWEN = Config(vocab=50, hidden=64, layers=1, heads=4, kv_heads=2, head_dim=32, ffn=80, context=CAPACITY, qkv_bias=True,
              qk_norm=True)
MANY_HEADS = Config(vocab=50, hidden=64, layers=2, heads=17, kv_heads=1, head_dim=32, ffn=80, context=CAPACITY)
WIDE = Config(vocab=50, hidden=64, layers=1, heads=4, kv_heads=2, head_dim=100, ffn=80, context=CAPACITY, qk_norm=True)
with torch.inference_mode():
    lines = [line(torch.randint(0, 50, (BATCH, rows))) for rows in (1, 1, 9, 70)]
    worst = max(compare(LLAMA, random_tree(1, 0, 96), [0, 130]), compare(LLAMA, random_tree(5, 9, 96), [63, 64]),
                compare(QWEN, random_tree(7, 0, 64), [127, 300]), compare(MANY_HEADS, random_tree(6, 0, 64), [60, 200]),
                compare(WIDE, random_tree(7, 9, 64), [27, 300]),
                *(compare(config, tree, roots) for config, tree, roots in zip(
                    (LLAMA, QWEN, LLAMA, QWEN, WIDE), (*lines, lines[2]),
                    ([0, 130], [127, 300], [60, 126], [0, 100], [28, 300]), strict=True)),
                *(compare_products(rows, columns) for rows, columns in ((257, 90), (300, 900), (300, 1100))))
    for config, roots in ((LLAMA, [0, 60]), (QWEN, [127, 189]), (MANY_HEADS, [62, 64]), (WIDE, [25, 64])):
        compare_paths(config, 12, roots)
    compare_counts(WIDE, [20, 96])
assert worst < 1e-5, worst
print("checked: largest difference", worst)
