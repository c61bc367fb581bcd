"""Medusa: the choice tree against brute force, candidates against the heads, and the lossy verifier."""

from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import tiny
import torch

from baselines.medusa import ChoiceTree, Heads, Medusa, Settings, candidates, choose
from bench import zoo
from bench.errors import BenchError
from bench.sampling import Law
from bench.shortlist import Head
from bench.verify import TYPICAL_DELTA, TYPICAL_EPSILON

TARGET = tiny.transformer(seed=1)
WORK = tiny.groups(3, 8, 3)


def paths(tree: ChoiceTree) -> set[tuple[int, ...]]:
    """The ranks from depth 1 down to every row but the root."""
    return {tuple(tree.ranks[r] for r in tiny.path(tree.parents, row)[1:]) for row in range(1, len(tree.parents))}


@pytest.mark.parametrize("rows", [2, 3, 7, 12, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_tree_is_the_best_of_its_size(rows, seed):
    accuracy = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)).div(2).tolist()
    tree = choose(accuracy, rows)
    every = [path for depth in (1, 2, 3) for path in product(range(3), repeat=depth)]
    chance = {path: torch.tensor([accuracy[d][r] for d, r in enumerate(path)]).prod().item() for path in every}
    best = sorted(chance.values(), reverse=True)[: rows - 1]
    assert len(tree.parents) == min(rows, 1 + len(every)) == 1 + len(paths(tree))
    assert sorted((chance[path] for path in paths(tree)), reverse=True) == pytest.approx(best)
    assert all(path[:-1] in paths(tree) for path in paths(tree) if len(path) > 1)
    assert all(parent < row for row, parent in enumerate(tree.parents) if row)
    assert [len(tiny.path(tree.parents, row)) - 1 for row in range(len(tree.parents))] == tree.depths


def test_candidates_are_the_heads_best():
    heads, hidden = tiny.random_heads(TARGET), torch.randn(5, 16, dtype=torch.float64)
    best = candidates(Head(TARGET.head), heads, hidden)
    assert best.shape == (5, 3, 4)
    for head in range(3):
        logits = TARGET.score(heads(hidden, head))
        assert torch.equal(best[:, head], logits.argsort(-1, descending=True)[:, :4])


def test_untrained_heads_change_nothing():
    hidden = torch.randn(5, 16)
    assert torch.equal(Heads(16, 2)(hidden, 1), hidden)


def test_the_first_step_has_no_drafts_and_later_ones_do():
    make = tiny.registered("medusa", TARGET)
    for text in tiny.decode(make, TARGET, Law(1.0), WORK):
        assert text.drafted[0] == 0
        assert all(text.drafted[1:])


@pytest.mark.parametrize("rows", [2, 5, 24])
def test_any_size_of_tree_keeps_the_text(rows):
    plain = tiny.decode(tiny.registered("autoregressive", TARGET), TARGET, Law(1.0), WORK)
    make = partial(Medusa, settings=Settings(rows=rows), drafter=tiny.random_heads(TARGET))
    texts = tiny.decode(make, TARGET, Law(1.0), WORK)
    assert [text.tokens for text in texts] == [text.tokens for text in plain]
    assert any(text.tells for text in texts)


def test_typical_accepts_what_is_likely_enough():
    """Every accepted draft passes the rule, by a slow forward; and it accepts more than `match`."""
    law, heads = Law(1.0), tiny.random_heads(TARGET)
    made = {accept: tiny.decode(partial(Medusa, settings=Settings(rows=12, accept=accept), drafter=heads), TARGET, law,
                                WORK) for accept in ("match", "typical")}
    total = {accept: sum(sum(text.accepted) for text in texts) for accept, texts in made.items()}
    assert total["typical"] > total["match"] > 0
    prompts = [prompt for group in WORK for prompt in group.prompts]
    for prompt, text in zip(prompts, made["typical"], strict=True):
        ids = [*prompt.ids, *text.tokens]
        p = TARGET.logits(torch.tensor([ids]))[0].double().softmax(-1)
        at = len(prompt.ids)
        for accepted in text.accepted:
            for i in range(at, min(at + accepted, len(ids))):
                bar = min(TYPICAL_EPSILON, TYPICAL_DELTA * torch.xlogy(p[i - 1], p[i - 1]).sum().exp().item())
                assert p[i - 1, ids[i]] > bar - 1e-6
            at += accepted + 1


def test_typical_at_temperature_0_is_greedy_decoding():
    greedy = tiny.decode(tiny.registered("autoregressive", TARGET), TARGET, Law(), WORK)
    make = partial(Medusa, settings=Settings(rows=12, accept="typical"), drafter=tiny.random_heads(TARGET))
    assert [t.tokens for t in tiny.decode(make, TARGET, Law(), WORK)] == [t.tokens for t in greedy]


@pytest.mark.parametrize("options, message", [({"rows": 1}, "rows >= 2"), ({"accept": "all"}, "match or typical")])
def test_bad_settings(options, message):
    with pytest.raises(BenchError, match=message):
        Settings(**options)


def test_a_real_target_needs_trained_heads():
    target = zoo.load("tiny")
    assert Medusa.load(Settings(), target).accuracy.shape == (4, 16)
    with pytest.raises(BenchError, match="not a drafter that can be read"):
        Medusa.load(Settings(weights="nowhere"), target)
    with pytest.raises(BenchError, match=r"no drafter for tiny: train one .* medusa:weights=FILE"):
        Medusa.load(Settings(), replace(target, random=False))
