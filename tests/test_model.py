"""The forward over a tree in a cache against whole forwards without one, in float64; weights in and out.

(That the forward is the published architectures' is shown against transformers in test_architectures.)
"""

from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cache import Cache
from bench.config import RopeScaling
from bench.errors import BenchError
from bench.forward import forward_for, prefill
from bench.model import Transformer, causal, hugging_face_names, shallow
from bench.product import SERVED
from bench.tree import Tree, chain_parents

MANY = settings(max_examples=10, deadline=None, derandomize=True)
RICH = replace(tiny.CONFIG, qkv_bias=True, qk_norm=True, head_dim=6, kv_heads=1)
WIDE = replace(tiny.CONFIG, hidden=192, heads=6, kv_heads=2, head_dim=32, ffn=320, context=600)
MODELS = [tiny.transformer(seed=4), tiny.transformer(seed=5, config=RICH)]
TAPS = (0, 2)  # the first layer, and the final norm (the model has two layers)


class LowRank:
    """A random adapter: what it adds is as large as what it adds to."""

    def __init__(self, seed=0, rank=2):
        self.random, self.rank, self.made = torch.Generator().manual_seed(seed), rank, {}

    def delta(self, layer, name, x):
        if (layer, name) not in self.made:
            wide = {"qkv": (4 + 2 * 2) * 4, "gate_up": 48}.get(name, 16)
            shapes = (x.shape[-1], self.rank), (self.rank, wide)
            self.made[layer, name] = [torch.randn(s, generator=self.random, dtype=torch.float64) for s in shapes]
        a, b = self.made[layer, name]
        return x @ a @ b / x.shape[-1] ** 0.5


class World:
    """A ragged batch in a cache, beside the plain lists of its tokens."""

    def __init__(self, model, lengths, seed):
        self.model, self.random = model, torch.Generator().manual_seed(seed)
        self.texts = [self.draw(length).tolist() for length in lengths]
        self.cache = Cache(model.config, len(lengths), 80, model.norm)
        self.forward = forward_for(model, self.cache)
        padded = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
        for row, text in zip(padded, self.texts, strict=True):
            row[: len(text)] = torch.tensor(text)
        prefill(model, self.cache, padded[:, :-1])

    def draw(self, *shape):
        return torch.randint(self.model.config.vocab, shape, generator=self.random)

    @property
    def root(self):
        return torch.tensor([len(text) - 1 for text in self.texts])

    def tree(self, parents, n=None, **more):
        """A tree with random drafts under the last token of every text."""
        tokens = self.draw(len(parents), n or len(parents[0]))
        tokens[:, 0] = torch.tensor([text[-1] for text in self.texts])
        return Tree(tokens, torch.tensor(parents), depth=len(parents[0]), **more)

    def keep(self, tree, rows):
        """Commit the path to row `rows[b]` of every tree, and a token of the target's."""
        paths = [tiny.path(p, row) for p, row in zip(tree.parents.tolist(), rows, strict=True)]
        padded = torch.tensor([p + [0] * (tree.depth + 1 - len(p)) for p in paths])
        self.cache.commit(self.root, padded)
        for text, own, tokens in zip(self.texts, paths, tree.tokens.tolist(), strict=True):
            text += [tokens[row] for row in own[1:]] + self.draw(1).tolist()


def whole(model, tokens, start=0):
    """Taps of a whole forward without a cache, at the last position; `start`: position of the first token."""
    ids, positions = torch.tensor([tokens]), torch.arange(start, start + len(tokens))
    return [tap[0, -1] for tap in model(model.embed(ids), positions[None], causal, taps=TAPS).taps]


def assert_tree_is_whole(world, tree, result):
    """Every row says what a whole forward over its path says; padding sees nothing of the text."""
    for b, parents in enumerate(tree.parents.tolist()):
        for row in range(tree.tokens.shape[1]):
            rows, text = tiny.path(parents, row), world.texts[b][:-1]
            before, start = (text, 0) if rows[0] == 0 else ([], len(text))
            expected = whole(world.model, before + tree.tokens[b, rows].tolist(), start)
            for ours, theirs in zip(result.taps, expected, strict=True):
                torch.testing.assert_close(ours[b, row], theirs, atol=1e-10, rtol=0)
            torch.testing.assert_close(result.logits[b, row], world.model.score(expected[-1]))


@st.composite
def forests(draw, batch=3, largest=9):
    rows = draw(st.integers(1, largest))
    return [[draw(st.integers(0, i)) for i in range(rows)] for _ in range(batch)]


@pytest.mark.parametrize("model", MODELS, ids=["plain", "biased, one key head, head norms"])
@MANY
@given(trees=st.lists(forests(), min_size=3, max_size=3), seed=st.integers(0, 10**6), data=st.data())
def test_a_tree_in_the_cache_is_a_whole_forward_step_after_step(model, trees, seed, data):
    world = World(model, data.draw(st.sampled_from([[1, 6, 3], [4, 1, 1], [5, 5, 5]])), seed)
    for parents in trees:
        tree = world.tree(parents)
        assert_tree_is_whole(world, tree, world.forward(tree, world.root, None, TAPS))
        reachable = [[row for row in range(len(p)) if tiny.path(p, row)[0] == 0] for p in parents]
        world.keep(tree, [data.draw(st.sampled_from(rows)) for rows in reachable])


def test_the_comparison_can_fail():
    """Committing another row than the kept one shows."""
    world = World(MODELS[0], [4, 2], seed=0)
    tree = world.tree([[0, 0, 0], [0, 0, 0]])
    world.forward(tree, world.root, None, TAPS)
    world.keep(tree, [2, 1])
    world.cache.keys[:, 0, :, 4] = 0.0
    tree = world.tree([[0], [0]])
    with pytest.raises(AssertionError):
        assert_tree_is_whole(world, tree, world.forward(tree, world.root, None, TAPS))


@MANY
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1), st.integers(0, 10**6), st.data())
def test_slots_do_not_disturb_tokens_and_are_whole_forwards_too(n, m, shift, seed, data):
    world, adapter = World(MODELS[0], [1, 7], seed), LowRank()
    parents = [[data.draw(st.integers(0, i)) for i in range(n)] for _ in range(2)]
    rows = [row for row in range(n) if all(tiny.path(p, row)[0] == 0 for p in parents)]
    for _ in range(m):  # a group begins under a token row; later slots hang from the slot before
        begins = len(parents[0]) == n or data.draw(st.booleans())
        parent = data.draw(st.sampled_from(rows)) if begins else len(parents[0]) - 1
        parents = [[*p, parent] for p in parents]
    slots = torch.randn(2, m, 16, generator=world.random, dtype=torch.float64)
    tree = world.tree(parents, n, slots=slots, slot_shift=shift)
    result = world.forward(tree, world.root, adapter, TAPS)
    plain = Tree(tree.tokens, tree.parents[:, :n], tree.depth)
    assert_tree_is_whole(world, plain, result)
    assert result.slot_logits is not None
    assert result.slot_logits.shape == (2, m, 12)
    for b in range(2):
        for slot in range(m):
            expected = slot_logits(world, tree, (b, n + slot), adapter)
            torch.testing.assert_close(result.slot_logits[b, slot], expected, atol=1e-5, rtol=1e-6)


def slot_logits(world, tree, at, adapter):
    """A whole forward over prefix, drafts and slots of the path to a slot row."""
    b, n = at[0], tree.tokens.shape[1]
    rows, prefix = tiny.path(tree.parents[b].tolist(), at[1]), world.texts[b][:-1]
    tokens = torch.tensor([prefix + [int(tree.tokens[b, row]) for row in rows if row < n]])
    noise = tree.slots[b : b + 1, [row - n for row in rows if row >= n]]
    positions = torch.arange(len(prefix) + len(rows))
    positions[tokens.shape[1] :] -= tree.slot_shift
    x = torch.cat([world.model.embed(tokens), noise], 1)
    return world.model.score(world.model(x, positions[None], causal, adapter, noise.shape[1]).last[0, -1])


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="seen with AVX-512 only")
@pytest.mark.parametrize("dtype", sorted(SERVED, key=str))
@torch.inference_mode()
def test_a_row_keeps_its_bits_whatever_is_beside_it(dtype):
    """So methods whose steps have other numbers of rows write the same text: the last 40 tokens of one, in chains."""
    model = tiny.transformer(seed=6, config=replace(WIDE, qk_norm=True)).to(dtype).prepare()
    ids = torch.randint(model.config.vocab, (1, 530), generator=torch.Generator().manual_seed(0))
    seen = {}
    for rows in (1, 2, 3, 8, 11):
        cache = Cache(model.config, 1, 600, model.norm)
        prefill(model, cache, ids[:, :490])
        forward, logits = forward_for(model, cache), []
        for root in range(490, 530, rows):
            tokens = ids[:, root : root + rows]
            parents = chain_parents(tokens.shape[1], 1, "cpu")
            logits.append(forward(Tree(tokens, parents, depth=rows), torch.tensor([root]), None, ()).logits)
        seen[rows] = torch.cat(logits, 1)
    for rows, logits in seen.items():
        assert torch.equal(logits, seen[1]), rows


def test_the_adapter_is_what_merged_weights_would_be():
    """With every row a slot, the forward is that of a model whose four matrices have the adapter added."""
    model, merged, adapter = MODELS[0], tiny.transformer(seed=4), LowRank()
    x, positions = torch.randn(1, 5, 16, dtype=torch.float64), torch.arange(5)[None]
    ours = model(x, positions, causal, adapter, slots=5).last
    for layer, block in enumerate(merged.blocks):
        for name in ("qkv", "out", "gate_up", "down"):
            weight = block.get_parameter(name)
            weight.data += adapter.delta(layer, name, torch.eye(weight.shape[1], dtype=torch.float64)).T
    torch.testing.assert_close(ours, merged(x, positions, causal).last, atol=1e-10, rtol=0)
    assert (ours - model(x, positions, causal).last).abs().max() > 0.1


def weights_of(config, seed=0):
    """Random weights under their Hugging Face names."""
    model = tiny.transformer(seed, config)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Transformer(config).named_parameters()}
    parts: dict[str, torch.Tensor] = {}
    c = config
    for name, theirs in hugging_face_names(config):
        if name not in shapes:
            continue
        sizes = {3: [c.heads * c.head_dim, *[c.kv_heads * c.head_dim] * 2], 2: [c.ffn] * 2}.get(len(theirs), [-1])
        whole_weight = model.get_parameter(name)
        pieces = whole_weight.split(sizes) if len(sizes) > 1 else [whole_weight]
        parts |= dict(zip(theirs, pieces, strict=True))
    return model, parts


@pytest.mark.parametrize("config", [tiny.CONFIG, RICH, replace(tiny.CONFIG, tied=True)], ids=["plain", "rich", "tied"])
def test_weights_are_found_under_their_hugging_face_names(config):
    model, weights = weights_of(config)
    again = Transformer.from_weights(config, weights, dtype=torch.float64)
    ids = torch.randint(12, (2, 9))
    assert torch.equal(again.logits(ids), model.logits(ids))
    assert again.weight_bytes == model.weight_bytes > 0
    assert ("lm_head.weight" in weights) == (not config.tied)


def test_loading_is_strict():
    _, weights = weights_of(tiny.CONFIG)
    spoilt = {
        "lm_head.weight is missing": {k: v for k, v in weights.items() if k != "lm_head.weight"},
        "model.layers.2.q is unexpected": weights | {"model.layers.2.q": torch.ones(1)},
        "model.norm.weight.*the config asks for": weights | {"model.norm.weight": torch.ones(3)},
    }
    for message, wrong in spoilt.items():
        with pytest.raises(BenchError, match=message):
            Transformer.from_weights(tiny.CONFIG, wrong)


def test_the_rotation_table_grows_and_keeps_its_start():
    model = tiny.transformer()
    start = model.rope.clone()
    model.extend_rope(500)
    assert len(model.rope) == 500
    assert torch.equal(model.rope[: len(start)], start)
    model.extend_rope(10)
    assert len(model.rope) == 500


def test_scaled_rotations_are_what_they_say():
    """Linear: position 4 turns as far as position 1 did. Llama 3: fast pairs are kept, slow ones stretched."""
    plain = tiny.transformer().rope
    linear = tiny.transformer(config=replace(tiny.CONFIG, rope_scaling=RopeScaling("linear", 4.0))).rope
    torch.testing.assert_close(linear[4:80:4], plain[1:20])
    wide = replace(tiny.CONFIG, head_dim=64)
    llama = replace(wide, rope_scaling=RopeScaling("llama3", 4.0, 1.0, 4.0, original_context=64))
    a, b = tiny.transformer(config=wide).rope, tiny.transformer(config=llama).rope
    torch.testing.assert_close(b[:, :, 0], a[:, :, 0])
    torch.testing.assert_close(b[4:80:4, :, -1], a[1:20, :, -1])


def test_a_shallow_copy_of_a_shape():
    assert shallow(tiny.CONFIG, 1) == replace(tiny.CONFIG, layers=1)
