"""Bins: whatever is drawn inside a token's bin, `Pick` gives that token back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.sampling import NOISE_BITS, Choices, Law, pick
from ptp.bins import Bins, fractions
from ptp.draft import by_pick

LAWS = [Law(1.0), Law(0.7, top_k=5), Law(1.3, top_p=0.8), Law(0.2, top_k=9, top_p=0.95), Law()]
EDGES = torch.tensor([0.0, 1e-12, 0.5, 1 - 1e-12, 1.0], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(LAWS), st.sampled_from([1, 2, 30, 500]), st.floats(0.1, 20))
def test_pick_returns_the_token_whose_bin_was_drawn_from(seed, law, vocab, spread):
    random = torch.Generator().manual_seed(seed)
    logits = (torch.randn(40, vocab, generator=random) * spread).requires_grad_(False)
    tokens = torch.randint(vocab, (40,), generator=random)
    choices = law(logits)
    bins = Bins.of(tokens, choices)
    allowed = choices.dense(vocab).gather(1, tokens[:, None]).squeeze(1)
    assert torch.equal(bins.mass, allowed)
    for fraction in [*EDGES, *torch.rand(5, generator=random, dtype=torch.float64)]:
        drawn = bins.draw(fraction.expand(40))
        assert ((drawn.noise >= 0) & (drawn.noise < 1 << NOISE_BITS)).all()
        assert torch.equal(pick(drawn.noise, choices)[drawn.explained], tokens[drawn.explained])
        assert not drawn.explained[allowed == 0].any()
        assert drawn.explained[allowed >= 8].all()  # a bin of 8 units of 2^-32 holds a u of 2^-30


@pytest.mark.parametrize("law", LAWS[:4])
def test_every_u_lies_in_the_bin_of_the_token_it_picks(law):
    torch.manual_seed(0)
    choices = law(torch.randn(2000, 12) * 2)
    u = torch.randint(1 << NOISE_BITS, (2000,))
    bins = Bins.of(pick(u, choices), choices)
    assert (bins.draw(torch.zeros(2000)).noise <= u).all()
    assert (u <= bins.draw(torch.ones(2000)).noise).all()


@pytest.mark.parametrize("law", LAWS)
def test_a_draft_drawn_by_pick_is_as_sure_as_u_is_far_from_the_edges_of_its_bin(law):
    """Of the law without top-p, which the student has learned already."""
    torch.manual_seed(0)
    logits, u = torch.randn(300, 4, 12) * 2, torch.randint(1 << NOISE_BITS, (300, 4))
    u[0] = 0
    draft, choices = by_pick(logits, u, law), Law(law.temperature, law.top_k)(logits)
    assert torch.equal(draft.tokens, pick(u, choices))
    bins = Bins.of(draft.tokens, choices)
    at, total = u.double() / 2**NOISE_BITS, bins.total.double()
    inside = torch.minimum(at - bins.lower / total, (bins.lower + bins.mass) / total - at)
    assert torch.allclose(draft.score, inside.clamp(min=2.0**-NOISE_BITS).log().float(), rtol=1e-6)


def test_bins_meet_without_gap_or_overlap():
    choices = Choices(torch.arange(4).expand(4, 4), torch.tensor([5, 1 << 31, 0, (1 << 31) - 3]).expand(4, 4))
    bins = Bins.of(torch.arange(4), choices)
    first, last = bins.draw(torch.zeros(4)), bins.draw(torch.ones(4))
    assert first.explained.tolist() == [True, True, False, True]
    assert first.noise[[0, 1, 3]].tolist() == [0, last.noise[0] + 1, last.noise[1] + 1]
    assert last.noise[3] == (1 << NOISE_BITS) - 1


def test_a_bin_too_narrow_for_any_u_explains_nothing():
    mass = torch.tensor([[1 << 31, 1, (1 << 31) - 1]])
    drawn = Bins.of(torch.tensor([1]), Choices(torch.arange(3)[None], mass)).draw(torch.rand(1))
    units = [u for u in ((1 << 29) - 1, 1 << 29, (1 << 29) + 1) if pick(torch.tensor([u]), Choices(
        torch.arange(3)[None], mass)).item() == 1]
    assert drawn.explained.item() == bool(units)


@pytest.mark.parametrize(("beta", "variance"), [(1.0, 1 / 12), (0.5, 1 / 8), (0.3, 1 / 6.4)])
def test_fractions_are_beta(beta, variance):
    torch.manual_seed(1)
    x = fractions(torch.empty(40000), beta)
    assert x.dtype == torch.float64
    assert abs(x.mean() - 0.5) < 0.01
    assert abs(x.var() - variance) < 0.004
