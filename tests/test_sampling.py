"""The law and `pick`: properties that must hold for every input, and slow references in Python integers and float64."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.errors import BenchError
from bench.noise import NoiseKey
from bench.sampling import (
    CROWD,
    MASS_BITS,
    NOISE_BITS,
    Choices,
    Landing,
    Law,
    best,
    draw,
    land,
    largest,
    normalized,
    nucleus,
    pick,
)

MANY = settings(max_examples=150, deadline=None, derandomize=True)
LAST = 2**NOISE_BITS - 1
masses = st.lists(st.one_of(st.just(0), st.integers(0, 2**26), st.integers(0, 3)), min_size=1, max_size=40).filter(any)
noise = st.one_of(st.sampled_from([0, 1, LAST - 1, LAST]), st.integers(0, LAST))
# Few distinct values, so that ties are common; zeros of both signs.
coarse = st.lists(st.sampled_from([-3.0, -1.0, -0.25, -0.0, 0.0, 0.25, 1.0, 1.5, 4.0]), min_size=1, max_size=24)
fine = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60)
laws = st.builds(Law, st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.3, 5.0]), st.integers(0, 30),
                 st.sampled_from([1e-12, 0.05, 0.5, 0.8, 0.95, 1 - 1e-12, 1.0]))


def choices(mass, ids=None):
    ids = range(len(mass)) if ids is None else ids
    return Choices(torch.tensor(list(ids)), torch.tensor(mass))


def picked(u, law):
    return int(pick(torch.tensor(u), law))


def slow_pick(u, mass):
    """The smallest index whose cumulative probability exceeds u / 2^30, in exact fractions."""
    total, cumulative = sum(mass), 0
    for index, own in enumerate(mass):
        cumulative += own
        if Fraction(cumulative, total) > Fraction(u, 2**NOISE_BITS):
            return index
    raise AssertionError("no index found")


@MANY
@given(masses, noise)
def test_pick_is_its_definition_and_never_gives_an_excluded_id(mass, u):
    found = picked(u, choices(mass))
    assert found == slow_pick(u, mass)
    assert mass[found] > 0


@MANY
@given(masses, noise)
def test_the_margin_is_the_way_to_the_nearer_edge_of_the_bin(mass, u):
    index, total, at = slow_pick(u, mass), sum(mass), Fraction(u, 2**NOISE_BITS)
    lower, upper = (Fraction(sum(mass[:end]), total) for end in (index, index + 1))
    landing = Landing.of(torch.tensor(u), choices(mass))
    assert landing.ids == index
    assert landing.margin.item() == pytest.approx(float(min(at - lower, upper - at)), rel=1e-15)


@MANY
@given(st.one_of(coarse, fine), laws, st.lists(noise, min_size=3, max_size=3))
def test_to_land_is_to_draw_and_to_know_the_margin(logits, law, u):
    rows, u = torch.tensor([logits, logits, [-x for x in logits]]), torch.tensor(u)
    landing = land(u, rows, law)
    assert torch.equal(landing.ids, draw(u, rows, law))
    for row in range(3):
        assert landing.margin[row] == Landing.of(u[row], law(rows[row])).margin


@MANY
@given(masses, noise, noise)
def test_pick_is_monotone_in_u(mass, a, b):
    assert picked(min(a, b), choices(mass)) <= picked(max(a, b), choices(mass))


@MANY
@given(masses)
def test_the_smallest_and_the_largest_u_find_the_outermost_ids(mass):
    inside = [i for i, own in enumerate(mass) if own]
    assert picked(0, choices(mass)) == inside[0]
    share = Fraction(mass[inside[-1]], sum(mass))
    if share > Fraction(1, 2**NOISE_BITS):
        assert picked(LAST, choices(mass)) == inside[-1]


@MANY
@given(masses, noise, st.randoms(use_true_random=False))
def test_how_the_sums_are_formed_does_not_matter(mass, u, random):
    """Cumulative sums formed in pieces of any size and added in any order find the same id."""
    found, total = None, 0
    for own in random.sample(mass, len(mass)):
        total += own
    for index in random.sample(range(len(mass)), len(mass)):
        cut = random.randint(0, index + 1)
        cumulative = sum(mass[cut : index + 1]) + sum(reversed(mass[:cut]))
        if (cumulative << NOISE_BITS) > u * total:
            found = index if found is None else min(found, index)
    assert found == picked(u, choices(mass))


@MANY
@given(fine, st.sampled_from([0.7, 1.0]), st.randoms(use_true_random=False))
def test_masses_do_not_depend_on_the_order_of_the_ids(logits, temperature, random):
    order = random.sample(range(len(logits)), len(logits))
    found = Law(temperature)(torch.tensor(logits)).mass[order]
    assert found.tolist() == Law(temperature)(torch.tensor(logits)[order]).mass.tolist()


@MANY
@given(st.lists(masses, min_size=2, max_size=4), noise)
def test_a_batch_and_ids_with_gaps(rows, u):
    width = max(map(len, rows))
    table = torch.tensor([row + [0] * (width - len(row)) for row in rows])  # what is excluded at the end owns nothing
    ids = (3 * torch.arange(width) + 1).expand_as(table)
    found = pick(torch.full((len(rows),), u), Choices(ids, table))
    assert found.tolist() == [3 * slow_pick(u, row) + 1 for row in rows]


@MANY
@given(st.one_of(coarse, fine), laws, noise)
def test_every_law_has_a_token_for_every_u(logits, law, u):
    law_of = law(torch.tensor(logits))
    dense = law_of.dense(len(logits))
    assert dense.min() >= 0
    assert abs(int(dense.sum()) - 2**MASS_BITS) <= len(logits)
    assert dense[picked(u, law_of)] > 0
    assert law_of.ids.tolist() == sorted(set(law_of.ids.tolist()))


def slow_law(logits, law):
    """Temperature, top-k, top-p in float64 by sorting -> (probabilities [V], how near top-p came to the next id)."""
    values = np.array(logits, dtype=np.float32).astype(np.float64)
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    if law.temperature == 0:
        return np.eye(len(values))[order[0]], 1.0
    kept = order[: law.top_k or None]
    weights = np.exp((values[kept] - values[order[0]]) / law.temperature)
    before = (np.cumsum(weights) - weights) / weights.sum()  # what the better ids hold
    inside = before < law.top_p if law.top_p < 1 else before < 2
    p = np.zeros(len(values))
    p[np.array(kept)[inside]] = weights[inside] / weights[inside].sum()
    return p, np.abs(before - law.top_p)[before > 0].min(initial=1.0)


@MANY
@given(st.one_of(coarse, fine), laws)
def test_the_law_is_temperature_then_top_k_then_top_p(logits, law):
    expected, margin = slow_law(logits, law)
    assume(margin > 2e-9)  # nearer than this, 2^-30 steps of top-p decide, not float64
    found = law(torch.tensor(logits)).dense(len(logits)).numpy() / 2**MASS_BITS
    assert np.abs(found - expected).max() < len(logits) * 2**-MASS_BITS


@MANY
@given(coarse, st.integers(1, 24))
def test_top_k_ties_go_to_the_smaller_id(logits, k):
    best = sorted(sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:k])
    assert largest(torch.tensor(logits), k).tolist() == best


@pytest.mark.parametrize("vocab", [20 * CROWD, 20 * CROWD + 7])
@pytest.mark.parametrize("values", [2, 9, 10**6])  # distinct ones, zeros of both signs and infinities among them
@pytest.mark.parametrize("k", [1, 3, 9])
def test_top_k_of_a_large_vocabulary_is_the_same(vocab, values, k):
    random = torch.Generator().manual_seed(values)
    logits = torch.randint(-values, values, (50, vocab), generator=random) / 2.0
    logits = torch.where(torch.rand(logits.shape, generator=random) < 0.1, -0.0, logits)
    logits[:10, CROWD:] = -torch.inf
    assert 2 * k * CROWD < vocab
    assert torch.equal(largest(logits, k), best(logits, k))
    slow = sorted(sorted(range(vocab), key=lambda i: (-logits[0, i], i))[:k])
    assert largest(logits[0], k).tolist() == slow


@MANY
@given(coarse)
def test_arg_max_ties_go_to_the_smaller_id_and_greedy_is_top_1(logits):
    best = min(range(len(logits)), key=lambda i: (-logits[i], i))
    for law in (Law(), Law(1.0, top_k=1), Law(1.0, top_p=1e-30), Law(1e-320, top_k=1)):
        assert picked(LAST, law(torch.tensor(logits))) == best


def test_zeros_of_either_sign_are_equal():
    signed, plain = torch.tensor([-0.0, 0.0, -0.0, 1.0]), torch.tensor([0.0, 0.0, 0.0, 1.0])
    for law in (Law(), Law(1.0, top_k=2), Law(0.7, top_k=3, top_p=0.9)):
        assert law(signed).dense(4).tolist() == law(plain).dense(4).tolist()
    assert largest(signed, 2).tolist() == [0, 3]


def test_top_k_on_extreme_floats():
    values = [float("-inf"), -3.4e38, -1e-45, 0.0, 1e-45, 1e-38, 3.4e38, -1e-38]
    for k in range(1, len(values)):
        best = sorted(sorted(range(len(values)), key=lambda i: -values[i])[:k])
        assert largest(torch.tensor(values), k).tolist() == best
    assert Law(1.0)(torch.tensor([float("-inf"), 0.0])).mass.tolist() == [0, 2**MASS_BITS]


def test_the_id_that_crosses_top_p_stays_in():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    kept = {p: (Law(1.0, top_p=p)(logits).mass > 0).sum().item() for p in (0.4, 0.51, 0.74, 0.76, 0.87, 0.88)}
    assert kept == {0.4: 1, 0.51: 2, 0.74: 2, 0.76: 3, 0.87: 3, 0.88: 4}


@MANY
@given(masses, st.sampled_from([1e-12, 0.1, 0.5, 0.75, 0.9]))
def test_the_nucleus_is_the_smallest_set_in_exact_arithmetic(mass, top_p):
    bar, before, kept = Fraction(max(round(top_p * 2**NOISE_BITS), 1), 2**NOISE_BITS) * sum(mass), 0, []
    for index in sorted(range(len(mass)), key=lambda i: (-mass[i], i)):
        if mass[index] and before < bar:
            kept.append(index)
        before += mass[index]
    found = nucleus(torch.tensor(mass), top_p)
    assert found.nonzero().flatten().tolist() == sorted(kept)
    shares = [Fraction(mass[i], sum(mass[j] for j in kept)) for i in sorted(kept)]
    scaled = torch.tensor([round(share * 2**MASS_BITS) for share in shares])
    assert (found[sorted(kept)] - scaled).abs().max() <= 1  # float64 division, then rounding


@MANY
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=40).filter(any))
def test_normalized_masses_keep_their_order(weights):
    found = normalized(torch.tensor(weights)).tolist()
    assert all((a <= b) == (found[i] <= found[j]) or found[i] == found[j]
               for i, a in enumerate(weights) for j, b in enumerate(weights))


@pytest.mark.parametrize("law", [Law(1.0), Law(0.7, top_k=6), Law(1.3, top_p=0.8)])
def test_frequencies_are_those_of_the_law(law):
    logits = torch.randn(10, generator=torch.Generator().manual_seed(3)) * 1.5
    u = torch.from_numpy(NoiseKey(1, 2).numbers("target", 100_000))
    found = pick(u, Choices(*(t.expand(len(u), -1) for t in vars(law(logits)).values())))
    p, _ = slow_law(logits.tolist(), law)
    counts = np.bincount(found.numpy(), minlength=10)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], p[p > 0] * len(u)).pvalue > 1e-3
    wrong = 0.95 * p[p > 0] + 0.05 / (p > 0).sum()  # the test can fail: one token in twenty is drawn evenly
    assert stats.chisquare(counts[p > 0], wrong * len(u)).pvalue < 1e-4


def test_a_large_vocabulary_stays_within_int64():
    logits = torch.zeros(1 << 18)
    law = Law(1.0)(logits)
    assert law.mass.unique().tolist() == [1 << 14]
    assert [picked(u, law) for u in (0, 1 << 29, LAST)] == [0, 1 << 17, (1 << 18) - 1]
    assert (Law(1.0, top_p=0.5)(logits).mass > 0).sum() == 1 << 17


@pytest.mark.parametrize(("option", "value"), [
    ("temperature", -1.0), ("temperature", float("nan")), ("temperature", float("inf")),
    ("top_k", -1), ("top_p", 0.0), ("top_p", 1.5), ("top_p", float("nan")),
])
def test_impossible_laws_are_refused(option, value):
    with pytest.raises(BenchError, match=f"{option.replace('_', '-')}.*{value}"):
        Law(**{option: value})
