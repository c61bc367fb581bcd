"""The blurred pick against sums written out, at both ends of its widths, and in a world where it must win."""

import math

import pytest
import torch

from bench.blur import WIDTHS, Held, draw, hold
from bench.sampling import NOISE_BITS, Choices, Law, pick
from ptp.bins import Bins
from ptp.confidence import logistic
from ptp.draft import by_arg_max, by_blurred_pick, by_pick

LAWS = (Law(1.0), Law(0.7, top_k=5), Law(1.3, top_p=0.8), Law(0.7, top_k=4, top_p=0.9), Law())
NONE = 2.0**-40  # a width far below the numbers that u can tell apart


def by_hand(u, ids, mass, width):
    """One law: the id of the largest part of the bump, and that part of what all bins hold."""
    def below(share):
        return 1 / (1 + math.exp(min(u / 2**NOISE_BITS - share, 700 * width) / width))

    ends = [sum(mass[: i + 1]) / sum(mass) for i in range(len(mass))]
    parts = [below(end) - below(start) for start, end in zip([0.0, *ends], ends, strict=False)]
    return ids[parts.index(max(parts))], max(parts) / sum(parts)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("width", [0.01, *WIDTHS])
def test_the_bin_that_holds_most(law, width):
    torch.manual_seed(0)
    logits, u = 2 * torch.randn(3, 40, 12), torch.randint(1 << NOISE_BITS, (3, 40))
    held, choices = hold(u, logits, law, width), law(logits)
    assert torch.equal(draw(u, logits, law, width), held.ids)
    rows = zip(*(x.flatten(0, 1).tolist() for x in (u, choices.ids, choices.mass, held.ids, held.share)), strict=True)
    for number, ids, mass, found, share in rows:
        expected = by_hand(number, ids, mass, width)
        assert (found, share) == (expected[0], pytest.approx(expected[1], rel=1e-9))


@pytest.mark.parametrize("law", LAWS)
def test_no_width_is_pick(law):
    """At both ends of bins too."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(500, 12)
    choices = law(logits)
    bins = Bins.of(pick(torch.randint(1 << NOISE_BITS, (500,)), choices), choices)
    for u in (torch.randint(1 << NOISE_BITS, (500,)), *(bins.draw(torch.full((500,), end)).noise for end in (0, 1))):
        held = hold(u, logits, law, NONE)
        assert torch.equal(held.ids, pick(u, choices))
        assert torch.equal(draw(u, logits, law, 0.0), held.ids)


def test_a_width_beyond_the_law_is_the_arg_max():
    torch.manual_seed(0)
    logits, u = 2 * torch.randn(500, 12), torch.randint(1 << NOISE_BITS, (500,))
    assert torch.equal(hold(u, logits, Law(1.0), 1e4).ids, logits.argmax(-1))


def test_ids_without_mass_hold_nothing_and_of_equals_the_first_is_drawn():
    mass = torch.tensor([0, 1 << 20, 0, 1 << 20, 0])
    choices = Choices(torch.arange(5).expand(4, 5), mass.expand(4, 5))
    held = Held.of(torch.tensor([0, (1 << 29) - 1, 1 << 29, (1 << 30) - 1]), choices, 0.1)
    assert held.ids.tolist() == [1, 1, 3, 3]
    even = Held.of(torch.tensor(1 << 29), Choices(torch.arange(5), mass), 1e9)  # too wide to tell the two apart
    assert (int(even.ids), float(even.share)) == (1, 0.5)


@pytest.fixture(scope="module")
def world():
    """A target and a student that is not quite it: laws of 30 ids, the tokens, and the student's logits."""
    torch.manual_seed(0)
    truth = 2 * torch.randn(20000, 30)
    logits, u = 0.7 * (truth + 1.5 * torch.randn_like(truth)), torch.randint(1 << NOISE_BITS, (20000,))
    return logits, u, pick(u, Law(1.0)(truth))


def test_where_laws_differ_a_blurred_pick_is_right_more_often(world):
    logits, u, tokens = world
    right = {width: float((by_blurred_pick(logits, u, Law(1.0), width).tokens == tokens).float().mean())
             for width in WIDTHS}
    plain = float((by_pick(logits, u, Law(1.0)).tokens == tokens).float().mean())
    likeliest = float((by_arg_max(logits).tokens == tokens).float().mean())
    assert max(right.values()) > max(plain, likeliest) + 0.01
    assert WIDTHS[0] < max(right, key=right.get) < WIDTHS[-1]


def test_the_score_says_how_often_it_is_right(world):
    """In tenths by score each is right more often than the last, and as often as a logistic curve through all says."""
    logits, u, tokens = world
    draft = by_blurred_pick(logits, u, Law(1.0), 0.1)
    right = draft.tokens == tokens
    slope, intercept = logistic(draft.score, right)
    tenths = draft.score.argsort().view(10, -1)
    found, chance = (x[tenths].mean(1) for x in (right.float(), torch.sigmoid(slope * draft.score + intercept)))
    assert (found.diff() > 0).all()
    assert torch.allclose(found, chance, atol=0.05)
