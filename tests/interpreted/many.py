"""ManyForward equals PlainForward, and prompts are read as `read` reads them on a CPU: ragged roots, GQA, QK norm."""

import torch

from bench.cache import Cache
from bench.config import Config
from bench.forward import PlainForward, read
from bench.many import ManyForward, fill
from bench.model import Transformer
from bench.tree import Tree, chain_parents

BATCH, CAPACITY = 3, 200
SHAPE = {"vocab": 50, "hidden": 96, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 48, "context": CAPACITY}
CONFIGS = (Config(**SHAPE, ffn=80, tied=True), Config(**SHAPE, ffn=600, qkv_bias=True, qk_norm=True))


def random_model(config: Config) -> Transformer:
    model = Transformer(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.2)
    return model.prepare()


def apart(pairs) -> float:
    return max(float((a - b).abs().max()) for a, b in pairs)


def compare(config: Config, roots: list[int]) -> float:
    model, root = random_model(config), torch.tensor(roots)
    tree = Tree(torch.randint(0, 50, (BATCH, 1)), chain_parents(1, BATCH, "cpu"), depth=0, is_chain=True)
    plain, ours = (Cache(config, BATCH, CAPACITY, model.norm) for _ in range(2))
    for name in ("keys", "values"):
        getattr(ours, name).copy_(getattr(plain, name).normal_(0, 0.5))
    taps = (0, config.layers)
    expected = PlainForward(model, plain)(tree, root, None, taps)
    result = ManyForward(model, ours)(tree, root, None, taps)
    return apart([(expected.logits, result.logits), *zip(expected.taps, result.taps, strict=True),
                  (plain.keys, ours.keys), (plain.values, ours.values)])


def compare_prompts(config: Config, length: int) -> float:
    model, prompts = random_model(config), torch.randint(0, 50, (BATCH, length))
    expected, cache = read(model, prompts), Cache(config, BATCH, length, model.norm)
    fill(model, cache, prompts)
    return apart([(expected.keys, cache.keys), (expected.values, cache.values)])


torch.manual_seed(0)
with torch.inference_mode():
    worst = max(*(compare(config, roots) for config in CONFIGS for roots in ([0, 130, 7], [64, 65, 63])),
                *(compare_prompts(config, length) for config in CONFIGS for length in (1, 70)))
assert worst < 1e-5, worst
print("checked: largest difference", worst)
