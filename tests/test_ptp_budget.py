"""The budget of partial quadratic decoding against brute force."""

import itertools

import pytest
import torch

from bench.tree import Structure
from ptp.budget import Groups, allot, gains, hypotheses, majorant


def random_case(seed):
    random = torch.Generator().manual_seed(seed)
    k, longest = (int(torch.randint(1, 5, (1,), generator=random)) for _ in range(2))
    chance = torch.rand(1, k, generator=random, dtype=torch.float64)
    drafts = torch.randint(0, k + 1, (1,), generator=random)
    slots = int(torch.randint(1, (k + 1) * longest + 1, (1,), generator=random))
    rates = torch.rand(longest, generator=random, dtype=torch.float64)
    return chance, drafts, slots, rates


def best_by_force(chance, runs, slots):
    """The most that any way of dealing out the slots is worth."""
    ways = itertools.product(range(len(runs)), repeat=len(chance))
    return max(sum(p * runs[j] for p, j in zip(chance, way, strict=True)) for way in ways if sum(way) == slots)


def worth_of(count, chance, runs):
    return sum(p * runs[j] for p, j in zip(chance, count, strict=True))


def test_hypotheses_are_what_happens():
    """Against counting: draft row i + 1 is right with chance c, and acceptance stops at the first wrong one."""
    for seed in range(20):
        chance, drafts, _, _ = random_case(seed)
        c, n = chance[0].tolist(), int(drafts)
        expected = [0.0] * (len(c) + 1)
        for outcome in itertools.product([True, False], repeat=n):
            p = torch.tensor([x if right else 1 - x for x, right in zip(c, outcome, strict=False)]).double().prod()
            expected[next((i for i, right in enumerate(outcome) if not right), n)] += float(p)
        assert hypotheses(chance, drafts)[0].tolist() == pytest.approx(expected)


def test_every_sequence_of_a_batch_gets_its_own_budget():
    """Ragged drafts: against one sequence at a time. Budgets are uneven, and many are zero."""
    random = torch.Generator().manual_seed(0)
    chance, drafts = torch.rand(40, 4, generator=random), torch.randint(0, 5, (40,), generator=random)
    gain = torch.tensor(gains([0.0, 0.0, 0.7, 1.2, 1.5, 1.6]))
    p = hypotheses(chance, drafts)
    together = allot(p, gain, 9)
    for b in range(40):
        assert torch.equal(hypotheses(chance[b : b + 1], drafts[b : b + 1])[0], p[b])
        assert torch.equal(allot(p[b : b + 1], gain, 9)[0], together[b])
    assert (together.sum(1) == 9).all()
    assert {0, 1, 5} <= set(together.flatten().tolist())
    assert (together == 0).sum() > 40


def test_of_equal_slots_the_first_are_chosen():
    """So that a group's slots are its first ones, whatever a device does with ties."""
    assert allot(torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([0.4, 0.4, 0.4]), 4).tolist() == [[3, 1, 0]]
    assert allot(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0.4, 0.0]), 4).tolist() == [[2, 2, 0]]


@pytest.mark.parametrize("seed", range(60))
def test_the_largest_products_are_optimal_when_runs_are_concave(seed):
    chance, drafts, slots, rates = random_case(seed)
    runs = [0.0, *rates.sort(descending=True).values.cumsum(0).tolist()]
    p = hypotheses(chance, drafts)
    count = allot(p, torch.tensor(gains(runs)).double(), slots)[0].tolist()
    assert sum(count) == slots
    assert max(count) < len(runs)
    assert worth_of(count, p[0].tolist(), runs) == pytest.approx(best_by_force(p[0].tolist(), runs, slots))


def test_the_majorant_is_nearly_optimal_when_they_are_not():
    """One-hot students: the first slot drafts nothing."""
    shares = []
    for seed in range(200):
        chance, drafts, slots, rates = random_case(seed)
        runs = [0.0, 0.0, *(1 - 0.5 * rates[1:]).cumprod(0).cumsum(0).tolist()]
        p = hypotheses(chance, drafts)
        count = allot(p, torch.tensor(gains(runs)).double(), slots)[0].tolist()
        best = best_by_force(p[0].tolist(), runs, slots)
        if best > 0:
            shares.append(worth_of(count, p[0].tolist(), runs) / best)
    assert len(shares) > 100
    assert sum(shares) / len(shares) > 0.95


def test_the_majorant_is_the_least_concave_function_above():
    for seed in range(50):
        runs = [0.0, *torch.rand(6, generator=torch.Generator().manual_seed(seed)).double().sort().values.tolist()]
        best, rises = majorant(runs), gains(runs)
        assert all(b >= r - 1e-12 for b, r in zip(best, runs, strict=True))
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(rises))
        for j, value in enumerate(best):  # it is the highest chord over j: nothing concave can be lower
            chords = [runs[i] + (j - i) * (runs[m] - runs[i]) / (m - i)
                      for i in range(j + 1) for m in range(j, 7) if i < m]
            assert value == pytest.approx(max([runs[j], *chords]))


def test_certainty_puts_everything_under_the_last_draft():
    count = allot(hypotheses(torch.ones(1, 3), torch.tensor([3])), torch.tensor([0.9, 0.8, 0.7]), 3)
    assert count.tolist() == [[0, 0, 0, 3]]
    nothing_known = allot(hypotheses(torch.ones(1, 3), torch.tensor([0])), torch.tensor([0.9, 0.8, 0.7]), 3)
    assert nothing_known.tolist() == [[3, 0, 0, 0]]


def test_groups_are_laid_out_as_written_by_hand():
    """Rows 0, 1, 2 with 2, 0 and 3 slots; then with 0, 5 and 0."""
    groups = Groups.of(torch.tensor([[2, 0, 3], [0, 5, 0]]), 5)
    assert groups.row.tolist() == [[0, 0, 2, 2, 2], [1] * 5]
    assert groups.place.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert groups.parents().tolist() == [[0, 3, 2, 5, 6], [1, 3, 4, 5, 6]]
    assert groups.under(torch.tensor([2, 1]), 3).tolist() == [[2, 3, 4], [0, 1, 2]]


def test_the_structure_is_that_of_the_parents():
    """Ragged drafts, uneven and empty groups, some under padding: against the general way from parents."""
    random = torch.Generator().manual_seed(0)
    for _ in range(30):
        rows, batch, slots = (int(torch.randint(low, 6, (1,), generator=random)) for low in (1, 1, 2))
        drafts = torch.randint(rows, (batch,), generator=random)
        dealt = torch.randint(rows, (batch, slots), generator=random)
        groups = Groups.of(torch.nn.functional.one_hot(dealt, rows).sum(1), slots)
        row = torch.arange(rows)
        parents = torch.where(row <= drafts[:, None], (row - 1).clamp(min=0), row)
        made, general = groups.structure(drafts), Structure.of(torch.cat([parents, groups.parents()], 1))
        for name in ("ancestors", "depths", "live"):
            assert torch.equal(getattr(made, name), getattr(general, name)), name
