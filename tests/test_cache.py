"""The cache against copies made one by one, and against a fresh prefill of what was kept."""

import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.cache import Cache
from bench.config import Config
from bench.forward import PREFILL_CHUNK, prefill
from bench.model import Transformer

CONFIG = Config(vocab=4, hidden=4, layers=2, heads=4, kv_heads=2, head_dim=3, ffn=4, context=32)
MANY = settings(max_examples=100, deadline=None, derandomize=True)


def numbered(batch, capacity):
    """A cache in which every number is another."""
    cache = Cache(CONFIG, batch, capacity, torch.empty(0, dtype=torch.float64))
    cache.keys.copy_(torch.arange(cache.keys.numel()).view_as(cache.keys))
    cache.values.copy_(-cache.keys)
    return cache


@st.composite
def commits(draw):
    """Roots, and the kept row at each depth: any row at or past its depth, as in a tree."""
    batch, depth = draw(st.integers(1, 3)), draw(st.integers(0, 5))
    roots = draw(st.lists(st.integers(0, 9), min_size=batch, max_size=batch))
    return roots, [[0] + [draw(st.integers(0, 9)) for _ in range(depth)] for _ in range(batch)]


@MANY
@given(commits())
def test_commit_moves_the_kept_rows_and_nothing_else(step):
    roots, path = step
    cache, before = numbered(len(roots), 24), numbered(len(roots), 24)
    cache.commit(torch.tensor(roots), torch.tensor(path))
    for now, then in ((cache.keys, before.keys), (cache.values, before.values)):
        expected = then.clone()
        for b, root in enumerate(roots):
            for depth, row in enumerate(path[b]):
                expected[:, b, :, root + depth] = then[:, b, :, root + row]  # from `then`: no move sees another
        assert torch.equal(now, expected)


def test_write_puts_every_row_in_its_place():
    cache, before = numbered(2, 12), numbered(2, 12)
    index = torch.tensor([[0, 1, 2], [5, 7, 6]])
    keys = torch.rand(2, 2, 3, 3, dtype=torch.float64)
    cache.write(1, index, keys, -keys)
    expected = before.keys.clone()
    for b in range(2):
        for row in range(3):
            expected[1, b, :, index[b, row]] = keys[b, :, row]
    assert torch.equal(cache.keys, expected)
    assert torch.equal(cache.values[1], torch.where(expected[1] == before.keys[1], before.values[1], -expected[1]))


def test_it_says_how_much_memory_it_takes():
    assert numbered(3, 10).bytes == 2 * 8 * (CONFIG.layers * 3 * CONFIG.kv_heads * 10 * CONFIG.head_dim)


def test_prefill_in_chunks_is_prefill_at_once(monkeypatch):
    model = tiny.transformer(seed=3)
    tokens = torch.randint(12, (2, 23), generator=torch.Generator().manual_seed(0))
    whole, pieces = (Cache(model.config, 2, 40, model.norm) for _ in range(2))
    prefill(model, whole, tokens)
    monkeypatch.setattr("bench.forward.PREFILL_CHUNK", 5)
    prefill(model, pieces, tokens)
    assert PREFILL_CHUNK > 23
    for a, b in ((whole.keys, pieces.keys), (whole.values, pieces.values)):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        assert b[..., :23, :].abs().amin(-1).min() > 0
        assert not b[..., 23:, :].any()


def test_prefill_keeps_what_a_whole_forward_computes():
    model = tiny.transformer(seed=3)
    tokens = torch.randint(12, (2, 9), generator=torch.Generator().manual_seed(1))
    cache = Cache(model.config, 2, 16, model.norm)
    prefill(model, cache, tokens)
    for layer, (keys, values) in enumerate(keys_and_values(model, tokens)):
        torch.testing.assert_close(cache.keys[layer, :, :, :9], keys, atol=1e-12, rtol=0)
        torch.testing.assert_close(cache.values[layer, :, :, :9], values, atol=1e-12, rtol=0)


def keys_and_values(model: Transformer, tokens):
    """What every layer attends to in a whole forward without a cache."""
    seen = []

    def attend(layer, q, k, v):
        seen.append((k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    model(model.embed(tokens), torch.arange(tokens.shape[1]).expand_as(tokens), attend)
    return seen


def test_an_empty_prefill_is_nothing():
    model = tiny.transformer(seed=3)
    cache = Cache(model.config, 2, 16, model.norm)
    prefill(model, cache, torch.zeros(2, 0, dtype=torch.int64))
    assert not cache.keys.any()
