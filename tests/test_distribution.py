"""`reject` keeps the target's distribution: exact enumeration, chi-square with its power, and its own evidence."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import tiny
import torch
from scipy import stats

from baselines.draft_model import DraftModel, Settings
from bench.noise import Noise, NoiseKey
from bench.sampling import MASS_BITS, NOISE_BITS, Law, nucleus, pick
from bench.sequences import Prompt
from bench.tree import Tree, chain, chain_parents
from bench.verify import Trial, reject

# Exact enumeration. Row i of a table is the law after token i, in 1/16. The draft's numbers are powers of two, and so
# is what the target's law has left over: then every threshold lies on a grid of 16, and 16 numbers are all there are.
DRAFTS = [[8, 4, 2, 2], [4, 4, 8, 0], [16, 0, 0, 0], [0, 8, 4, 4]]
TARGETS = {
    "another law": [[4, 4, 4, 4], [6, 4, 4, 2], [8, 5, 2, 1], [4, 4, 8, 0]],
    "the same law": DRAFTS,
    "a law without overlap": [[8, 4, 2, 2], [0, 0, 0, 16], [0, 1, 10, 5], [16, 0, 0, 0]],
}
GRID = 1 << (NOISE_BITS - 4)
ROOT, VOCAB = 0, 4


def every_number(k):
    """All numbers on the grid for k drafts, k tests and one residual or bonus, [16^(2k + 1), 2k + 1], in pieces."""
    return (torch.cartesian_prod(*[torch.arange(16)] * (2 * k + 1)) * GRID).split(1 << 17)


def one_step(target, numbers):
    """A step of drafting and `reject` under the given numbers, from token `ROOT` at position 0 -> its outcome."""
    batch, k, noise = len(numbers), numbers.shape[1] // 2, Noise(0, 0, "cpu")
    at_root = torch.zeros_like(numbers[:, :1])
    streams = numbers[:, :k], numbers[:, k : 2 * k], numbers[:, 2 * k :].expand(-1, k + 1)  # one of the last is read
    names = ("draft", "test", "residual")
    noise.streams |= {name: torch.cat([at_root, u], 1) for name, u in zip(names, streams, strict=True)}
    tokens, laws = [torch.full((batch,), ROOT)], []
    for i in range(1, k + 1):
        laws.append(2 * torch.tensor(DRAFTS)[tokens[-1]])
        tokens.append(pick(noise.at("draft", at_root + i)[:, 0], tiny.exact(laws[-1])))
    tree = Tree(torch.stack(tokens, 1), chain_parents(k + 1, batch, "cpu"), k, is_chain=True,
                structure=chain(k + 1, batch, "cpu"), draft_mass=torch.stack(laws, 1) << (MASS_BITS - 5))
    logits = 2.0 * torch.tensor(target)[tree.tokens]
    return reject(Trial(tree, logits, at_root[:, 0], tiny.exact, noise))


def joint_law(target, k, step=one_step):
    """Counts of three tokens, what a step keeps continued by the target's own law, and sums of the evidence."""
    table, counts, evidence = np.array(target), np.zeros((VOCAB,) * 3, dtype=np.int64), np.zeros(3)
    for numbers in every_number(k):
        outcome = step(target, numbers)
        kept, tokens = outcome.accepted.numpy() + 1, outcome.tokens.numpy()
        for length in range(1, k + 2):
            seen = np.zeros((VOCAB,) * length, dtype=np.int64)
            np.add.at(seen, tuple(tokens[kept == length][:, :length].T), 1)
            seen = seen.reshape(seen.shape + (1,) * (3 - length))
            counts += seen * extended(table if length < 2 else 16, 0) * extended(table if length < 3 else 16, 1)
        excess = outcome.evidence.excess
        evidence += [float(sums.sum()) for sums in (excess, excess**2, outcome.evidence.variance)]
    return counts, evidence


def extended(factor, axis):
    """A table [VOCAB, VOCAB] along two neighbouring axes of three, or a plain number."""
    return factor if isinstance(factor, int) else factor[(None,) * axis + (...,) + (None,) * (1 - axis)]


def product_law(target, k):
    """The target's own law of three tokens, in the same units."""
    table = np.array(target, dtype=np.int64)
    return 16 ** (2 * k) * table[ROOT][:, None, None] * extended(table, 0) * extended(table, 1)


@pytest.mark.parametrize(("name", "k"), [*product(TARGETS, [1]), ("another law", 2)])
def test_over_all_noise_the_kept_tokens_follow_the_target_exactly(name, k):
    counts, (excess, square, variance) = joint_law(TARGETS[name], k)
    assert counts.sum() == 16 ** (2 * k + 3)
    assert (counts == product_law(TARGETS[name], k)).all()
    assert excess == 0  # acceptance exceeds what the laws allow by nothing, and scatters as much as it says
    assert square == variance
    assert (variance > 0) == (name == "another law")


def test_enumeration_sees_a_wrong_residual(monkeypatch):
    monkeypatch.setattr("bench.verify.residual", residual_is_p)
    counts, _ = joint_law(TARGETS["another law"], 1)
    assert (counts != product_law(TARGETS["another law"], 1)).any()


def test_one_number_for_draft_test_and_residual_would_be_wrong():
    """Why there are three streams: with one, the first token's law is another."""
    numbers = torch.arange(16)[:, None].expand(-1, 3) * GRID
    first = one_step(TARGETS["another law"], numbers).tokens[:, 0].bincount(minlength=VOCAB)
    assert first.tolist() != TARGETS["another law"][ROOT]


def residual_is_p(p, q, last):
    """The planted mistake: a refused token is replaced by a draw from the target's whole law."""
    return p.after(last[:, None])


# Chi-square through the whole decoder.
ALPHA, SIZE, BATCH = 1e-3, 3000, 1000
TABLE = torch.randn(5, 5, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
DRAFT_TABLE = TABLE + torch.randn(5, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
LAWS = {"plain": Law(1.0), "top-k": Law(0.7, top_k=3), "top-p": Law(1.3, top_p=0.7)}


class Boastful(DraftModel):
    """Says that its drafts came from a sharper law than they did."""

    def propose(self, kind):
        tree = super().propose(kind)
        sharper = tree.draft_mass.double().square()
        tree.draft_mass = (sharper / sharper.sum(-1, keepdim=True) * 2.0**MASS_BITS).long().clamp(min=1)
        return tree


def decode(law, length, method=DraftModel, size=SIZE):
    """Texts of `length` tokens after token 0, by rejection, and sum and variance of the evidence in them."""
    make = partial(method, settings=Settings(draft="-", k=2, verify="reject"), drafter=tiny.bigram(DRAFT_TABLE))
    decoder = tiny.decoder_of(make, tiny.bigram(TABLE), law, BATCH, context=length + 2)
    texts, evidence = [], np.zeros(2)
    for start in range(0, size, BATCH):
        raw = decoder.decode([Prompt([0], NoiseKey(start, i)) for i in range(BATCH)], length, frozenset())
        final = tiny.clipped(raw, length, frozenset())
        texts += [text.tokens for text in final]
        counted = torch.arange(len(raw.rows))[:, None] < torch.tensor([text.steps for text in final])
        evidence += torch.where(counted[:, None], raw.evidence, 0).sum((0, 2))[:2].numpy()
    return np.array(texts), evidence


def probabilities(table, law):
    return law(table.float()).dense(len(table)).numpy() / 2.0**MASS_BITS


def pairs(step):
    """[5, 5] laws of the next token -> law of the two tokens after token 0."""
    return step[0][:, None] * step


def chi_square(texts, expected):
    """p-value of the pairs; 0 when an impossible pair occurs."""
    counts = np.zeros_like(expected)
    np.add.at(counts, tuple(texts.T), 1)
    possible = expected > 0
    scaled = expected[possible] / expected.sum() * len(texts)
    return 0.0 if counts[~possible].any() else stats.chisquare(counts[possible], scaled).pvalue


def power(expected, alternative):
    """Chance that the test refuses at ALPHA when the alternative is true."""
    possible = expected > 0
    shift = SIZE * ((alternative - expected)[possible] ** 2 / expected[possible]).sum()
    return stats.ncx2.sf(stats.chi2.isf(ALPHA, possible.sum() - 1), possible.sum() - 1, shift)


@pytest.mark.parametrize("name", LAWS)
def test_two_tokens_through_the_decoder_follow_the_target(name, monkeypatch):
    """At 3000 texts a residual replaced by p would be refused with a power above 0.999: here it is planted, and is."""
    law = LAWS[name]
    p, q = probabilities(TABLE, law), probabilities(DRAFT_TABLE, law)
    overlap = np.minimum(p, q)
    mistaken = overlap + (1 - overlap.sum(1, keepdims=True)) * p
    assert power(pairs(p), pairs(mistaken)) > 0.999
    texts, (excess, variance) = decode(law, 2)
    assert chi_square(texts, pairs(p)) > ALPHA
    assert abs(excess) < 3 * variance**0.5
    monkeypatch.setattr("bench.verify.residual", residual_is_p)
    planted, _ = decode(law, 2)
    assert chi_square(planted, pairs(p)) < ALPHA
    assert chi_square(planted, pairs(mistaken)) > ALPHA  # the alternative was worked out rightly


def test_two_nuclei_of_unequal_mass_would_show(monkeypatch):
    """`reject` compares masses, so both laws must have the same total: without scaling the text's law is another."""
    law, truth = LAWS["top-p"], pairs(probabilities(TABLE, LAWS["top-p"]))
    whole = Law(law.temperature)

    def unscaled(mass, top_p):
        return torch.where(nucleus(mass, top_p) > 0, mass, 0)

    monkeypatch.setattr("bench.sampling.nucleus", unscaled)
    assert law(TABLE.float()).mass.sum(-1).max() < whole(TABLE.float()).mass.sum(-1).min()
    texts, _ = decode(law, 2)
    assert chi_square(texts, truth) < ALPHA


def test_the_excess_shows_a_draft_that_is_not_what_it_says():
    for method, wrong in ((DraftModel, False), (Boastful, True)):
        _, (excess, variance) = decode(Law(1.0), 12, method, size=BATCH)
        assert variance > 500
        assert (abs(excess) > 4 * variance**0.5) == wrong
