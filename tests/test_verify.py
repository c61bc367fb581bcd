"""`match` and `reject` against slow walks in Python integers, on random trees with padding."""

from fractions import Fraction
from itertools import pairwise

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.noise import Noise, NoiseKey
from bench.sampling import MASS_BITS, NOISE_BITS, Choices, Law, pick
from bench.tree import Tree, chain, chain_parents
from bench.verify import Trial, match, reject, typical

VOCAB = 3  # so few that guesses are often right
MANY = settings(max_examples=120, deadline=None, derandomize=True)


def noise_of(seed, batch, capacity=40):
    noise = Noise(batch, capacity, "cpu")
    noise.fill([NoiseKey(seed, i) for i in range(batch)])
    return noise


@st.composite
def steps(draw):
    """A batch of token forests, some slot rows behind them, and the seed of everything else."""
    n, m, batch = draw(st.integers(1, 14)), draw(st.integers(0, 3)), draw(st.integers(1, 3))
    parents = [[draw(st.integers(0, i)) for i in range(n)] + [draw(st.integers(0, n - 1)) for _ in range(m)]
               for _ in range(batch)]
    return n, parents, draw(st.integers(0, 10**6))


def slow_match(tokens, parents, own):
    """`own`: what the target picks after each row -> (kept path, drafted)."""
    live = [p for p in (tiny.path(parents, row) for row in range(len(tokens))) if p[0] == 0]
    right = [p for p in live if all(tokens[b] == own[a] for a, b in pairwise(p))]
    longest = max(len(p) for p in right)
    return min((p for p in right if len(p) == longest), key=lambda p: p[-1]), max(len(p) for p in live) - 1


@MANY
@given(steps(), st.sampled_from([Law(), Law(1.0), Law(0.7, top_k=2)]))
def test_match_is_the_walk(step, law):
    n, parents, seed = step
    batch, random = len(parents), torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCAB, (batch, n), generator=random)
    logits = torch.randn(batch, n, VOCAB, generator=random) * 2
    root, noise = torch.randint(0, 20, (batch,), generator=random), noise_of(seed, batch)
    live = (len(path) for forest in parents for row in range(n) if (path := tiny.path(forest, row))[0] == 0)
    depth = max(live) - 1 + seed % 2  # that of the deepest draft, 0 where there is none, or more than that
    outcome = match(Trial(Tree(tokens, torch.tensor(parents), depth), logits, root, law, noise))
    for b in range(batch):
        numbers = noise.streams["target"][b]
        position = [int(root[b]) + len(tiny.path(parents[b], row)) - 1 for row in range(n)]
        own = [int(pick(numbers[position[row] + 1], law(logits[b, row]))) for row in range(n)]
        kept, drafted = slow_match(tokens[b].tolist(), parents[b][:n], own)
        a = len(kept) - 1
        assert (outcome.last[b], outcome.accepted[b], outcome.drafted[b]) == (kept[-1], a, drafted)
        assert outcome.path[b, : a + 1].tolist() == kept
        assert outcome.tokens[b, : a + 1].tolist() == [*tokens[b, kept[1:]].tolist(), own[kept[-1]]]
        assert outcome.path.shape == outcome.tokens.shape == (batch, depth + 1)


LAWS = st.lists(st.integers(0, 32), min_size=2, max_size=2).map(sorted).map(lambda c: [c[0], c[1] - c[0], 32 - c[1]])


def slow_reject(drafts, p, q, test, residual):
    """Lists per depth, masses in 1/32 -> (accepted, own token, rows tested as (accepted, overlap))."""
    tested = []
    for i, draft in enumerate(drafts):
        right = Fraction(int(test[i]), 2**NOISE_BITS) < Fraction(p[i][draft], q[i][draft])
        tested.append((right, Fraction(sum(map(min, p[i], q[i])), 32)))
        if not right:
            left = [max(a - b, 0) for a, b in zip(p[i], q[i], strict=True)]
            return i, slow_pick(residual[i], left), tested
    return len(drafts), slow_pick(residual[len(drafts)], p[len(drafts)]), tested


def slow_pick(u, mass):
    return next(x for x in range(len(mass)) if sum(mass[: x + 1]) * 2**NOISE_BITS > int(u) * sum(mass))


@MANY
@given(st.data(), st.integers(1, 4), st.integers(1, 3), st.integers(0, 10**6))
def test_reject_is_the_ratio_test(data, k, batch, seed):
    counts = data.draw(st.lists(st.integers(0, k), min_size=batch, max_size=batch))  # rows past them are padding
    p = [[data.draw(LAWS) for _ in range(k + 1)] for _ in range(batch)]
    q = [[data.draw(LAWS) if i < count else [0] * VOCAB for i in range(k)] for count in counts]
    drafts = [[data.draw(st.sampled_from([x for x in range(VOCAB) if row[x]] or [0])) for row in rows] for rows in q]
    noise, root = noise_of(seed, batch), torch.arange(batch) * 3
    structure = chain(k + 1, batch, "cpu", torch.tensor(counts))
    tree = Tree(torch.tensor([[0, *row] for row in drafts]), chain_parents(k + 1, batch, "cpu"), depth=k,
                draft_mass=torch.tensor(q) << (MASS_BITS - 5), structure=structure)
    outcome = reject(Trial(tree, torch.tensor(p).float(), root, tiny.exact, noise))
    evidence = outcome.evidence
    assert evidence is not None
    for b, count in enumerate(counts):
        test, rest = (noise.streams[s][b, int(root[b]) + 1 :].tolist() for s in ("test", "residual"))
        accepted, own, tested = slow_reject(drafts[b][:count], p[b], q[b], test, rest)
        assert (outcome.accepted[b], outcome.drafted[b]) == (accepted, count)
        assert outcome.tokens[b, : accepted + 1].tolist() == [*drafts[b][:accepted], own]
        assert outcome.path[b, : accepted + 1].tolist() == list(range(accepted + 1))
        assert evidence.tested[b] == len(tested)
        assert evidence.excess[b].item() == pytest.approx(float(sum(a - o for a, o in tested)), abs=1e-12)
        assert evidence.variance[b].item() == pytest.approx(float(sum(o * (1 - o) for _, o in tested)), abs=1e-12)


class Whole(Law):
    """The same law, with an entry for every id."""

    def __call__(self, logits):
        mass = super().__call__(logits).dense(logits.shape[-1])
        return Choices(torch.arange(logits.shape[-1]).expand_as(mass), mass)


@pytest.mark.parametrize("options", [(0.0,), (0.7, 5), (1.3, 12, 0.9)])
def test_ids_that_a_law_excludes_decide_nothing(options):
    batch, k, vocab, random = 200, 4, 30, torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(batch, k + 1, vocab, generator=random)
    drafted = Law(*options)(logits[:, :k] + torch.randn(batch, k, vocab, generator=random) / 2)
    noise, root = noise_of(4, batch), torch.zeros(batch, dtype=torch.int64)
    drafts = pick(noise.at("draft", torch.arange(1, k + 1).expand(batch, -1)), drafted)
    tree = Tree(torch.cat([root[:, None], drafts], 1), chain_parents(k + 1, batch, "cpu"), depth=k,
                draft_mass=drafted.dense(vocab))
    for verify in (reject, typical):
        few, whole = (verify(Trial(tree, logits, root, law(*options), noise)) for law in (Law, Whole))
        assert 0 < few.accepted.sum() < batch * k
        assert all(torch.equal(getattr(few, name), getattr(whole, name)) for name in ("accepted", "tokens"))
        if few.evidence and whole.evidence:
            assert torch.equal(few.evidence.excess, whole.evidence.excess)
            assert torch.equal(few.evidence.variance, whole.evidence.variance)


def test_reject_without_the_law_of_the_draft_is_an_error():
    tree = Tree(torch.zeros(1, 2, dtype=torch.int64), chain_parents(2, 1, "cpu"), depth=1)
    with pytest.raises(AssertionError, match="draft's law"):
        reject(Trial(tree, torch.ones(1, 2, VOCAB), torch.zeros(1, dtype=torch.int64), tiny.exact, noise_of(0, 1)))


def test_of_two_equal_paths_the_first_is_kept():
    """Twins: rows 1 and 2 are the same token, row 3 hangs from row 2; the deeper path wins, then the smaller row."""
    logits = torch.full((1, 4, VOCAB), -9.0)
    logits[..., 1] = 9.0
    root, noise = torch.zeros(1, dtype=torch.int64), noise_of(0, 1)
    for child, last in ((1, 3), (0, 1)):
        tree = Tree(torch.tensor([[0, 1, 1, child]]), torch.tensor([[0, 0, 0, 2]]), depth=2)
        assert match(Trial(tree, logits, root, Law(), noise)).last.tolist() == [last]
