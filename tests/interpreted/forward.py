"""FusedForward equals PlainForward: random trees, slots behind an adapter, ragged roots, GQA, QK norm, split keys."""

from dataclasses import replace
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from bench import fused
from bench.cache import Cache
from bench.config import Config
from bench.forward import PlainForward
from bench.fused import FusedForward
from bench.model import Transformer
from bench.tree import Tree

BATCH, CAPACITY, NAMES = 2, 400, ("qkv", "out", "gate_up", "down")
fused.ATTENDED = 1 << 12  # small parts, so that short sequences have several


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


def compare(config: Config, n: int, m: int, roots: list[int]) -> float:
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    model.prepare()
    caches = Cache(config, BATCH, CAPACITY, model.norm), Cache(config, BATCH, CAPACITY, model.norm)
    for name in ("keys", "values"):
        getattr(caches[1], name).copy_(getattr(caches[0], name).normal_(0, 0.5))
    adapter, tree, root = Adapter(model) if m else None, random_tree(n, m, config.hidden), torch.tensor(roots)
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
with torch.inference_mode():
    worst = max(compare(LLAMA, 1, 0, [0, 130]), compare(LLAMA, 5, 9, [63, 64]), compare(QWEN, 7, 0, [127, 300]),
                *(compare_products(rows, columns) for rows, columns in ((257, 90), (300, 900), (300, 1100))))
assert worst < 1e-5, worst
print("checked: largest difference", worst)
