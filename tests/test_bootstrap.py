"""Intervals: hand-computed ratios, and coverage by simulation with heavy-tailed, drifting times."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.bootstrap import Interval, ratio_intervals, ratio_of_sums

RUNS = 4000  # binomial error of a coverage near 95 %: 0.34 %
PROMPTS, REPEATS = 48, 3


def test_interval():
    interval = Interval(0.9, 1.1, 1.3, 19)
    assert interval.few
    assert not Interval(0.9, 1.1, 1.3, 20).few
    assert interval.covers(1.0)
    assert interval.covers(0.9)
    assert not interval.covers(1.31)
    assert str(interval) == "1.100 [0.900, 1.300] (few)"
    assert interval.inverse == Interval(1 / 1.3, 1 / 1.1, 1 / 0.9, 19)
    assert Interval(0, 1, 2, 1).inverse.high == np.inf


def test_ratio_of_sums_is_no_mean_of_ratios():
    sums = np.array([[10.0, 10, 5, 10], [90.0, 30, 10, 40]])  # ms, tokens, ms, tokens: speedups 2 and 12
    assert ratio_of_sums(sums).tolist() == [2, 12]
    assert ratio_of_sums(sums.sum(axis=0)) == pytest.approx((100 / 40) / (15 / 50))


def test_two_prompts_by_hand():
    """Two prompts have three resamples: both, or one of them twice; with t at one degree of freedom all count."""
    sums = np.array([[[10.0, 10, 5, 10]], [[30.0, 10, 10, 10]]])
    (interval,) = ratio_intervals(sums, resamples=500)
    assert (interval.low, interval.high, interval.prompts) == (2.0, 3.0, 2)
    assert interval.estimate == pytest.approx(40 / 15)


def test_one_prompt_says_nothing():
    (interval,) = ratio_intervals(np.array([[[10.0, 10, 5, 10]]]))
    assert (interval.low, interval.estimate, interval.high, interval.prompts) == (0, 2, np.inf, 1)


def test_unmeasured_prompts_do_not_count():
    rng = np.random.default_rng(0)
    sums = rng.uniform(1, 2, (30, 2, 4))
    alone = ratio_intervals(sums[:20, :1])[0]
    sums[20:, 0] = 0
    masked, whole = ratio_intervals(sums)
    assert masked == alone
    assert (masked.prompts, whole.prompts) == (20, 30)


@given(st.integers(2, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_scale_inverse_and_order(prompts, seed):
    sums = np.random.default_rng(seed).lognormal(0, 0.5, (prompts, 1, 4))
    (one,) = ratio_intervals(sums, 200)
    (scaled,) = ratio_intervals(sums * [3, 1, 1, 1], 200)
    (flipped,) = ratio_intervals(sums[:, :, [2, 3, 0, 1]], 200)
    assert one.low <= one.high
    np.testing.assert_allclose(
        [scaled.low, scaled.estimate, scaled.high], [3 * one.low, 3 * one.estimate, 3 * one.high]
    )
    assert flipped.estimate == pytest.approx(1 / one.estimate)
    assert ratio_intervals(sums, 200) == [one]  # the same seed, the same interval


def test_levels_tend_to_the_plain_percentiles():
    rng = np.random.default_rng(0)
    sums = rng.lognormal(0, 0.3, (3000, 1, 4))
    (interval,) = ratio_intervals(sums, 2000)
    weights = np.random.default_rng(0).multinomial(3000, np.full(3000, 1 / 3000), size=2000)
    plain = np.quantile(ratio_of_sums(weights @ sums[:, 0]), [0.025, 0.975])
    np.testing.assert_allclose([interval.low, interval.high], plain, rtol=2e-3)


def heavy_tails(rng, shape):
    return np.exp(0.03 * rng.standard_t(3, shape).clip(-20, 20))


def stalls(rng, shape):
    """Two in a hundred measurements are held up, by half their time times a Pareto variable."""
    return np.exp(0.02 * rng.standard_normal(shape)) * (1 + 0.5 * (rng.random(shape) < 0.02) * rng.pareto(2.5, shape))


def simulate(noise, gain: float | None, prompts: int = PROMPTS, runs: int = RUNS) -> np.ndarray:
    """Sums [prompts, runs, 4] of whole runs: interleaved in shuffled order under a drift of 15 % and a slow wave.

    Texts are of log-normal length. The second side is `gain` times as fast, or (None) as fast as a varying acceptance
    length makes it: then the ratio of the expectations is 1 / E[1 / acceptance].
    """
    rng = np.random.default_rng(7)
    length = np.clip(np.exp(rng.normal(4.2, 0.6, (runs, prompts, 1))), 8, 256).round()
    speed = acceptance(rng, (runs, prompts, 1)) if gain is None else gain
    cells = (runs, REPEATS, prompts * 2)
    order = rng.permuted(np.broadcast_to(np.arange(prompts * 2), cells), axis=2).reshape(runs, REPEATS, prompts, 2)
    when = (order + prompts * 2 * np.arange(REPEATS)[:, None, None]) / (REPEATS * prompts * 2)
    drift = 1 + 0.15 * when + 0.05 * np.sin(12 * when + rng.uniform(0, 6.3, (runs, 1, 1, 1)))
    slow = (drift * noise(rng, drift.shape)).sum(axis=1)  # [runs, prompts, 2]: over the repeats
    sums = np.concatenate([slow[..., :1], slow[..., 1:] / speed], axis=2) * length
    tokens = np.broadcast_to(length * REPEATS, sums[..., :1].shape)
    return np.concatenate([sums[..., :1], tokens, sums[..., 1:], tokens], axis=2).transpose(1, 0, 2)


def acceptance(rng, shape):
    return 1 + rng.gamma(2, 0.6, shape)


def intervals(sums: np.ndarray) -> list[Interval]:
    blocks = np.array_split(sums, 8, axis=1)  # bounds the memory
    return [interval for block in blocks for interval in ratio_intervals(block, resamples=1000)]


def share(sums: np.ndarray, truth: float) -> float:
    return float(np.mean([interval.covers(truth) for interval in intervals(sums)]))


@pytest.mark.parametrize("noise", [heavy_tails, stalls])
def test_coverage_of_varying_speedups(noise):
    truth = 1 / np.mean(1 / acceptance(np.random.default_rng(0), 4_000_000))
    assert 0.93 <= share(simulate(noise, gain=None), truth) <= 0.97


@pytest.mark.parametrize("noise", [heavy_tails, stalls])
def test_nothing_is_found_where_nothing_is(noise):
    """A/A: the interval excludes 1 in about 5 % of the runs."""
    assert 0.03 <= 1 - share(simulate(noise, gain=1.0), 1.0) <= 0.07


@pytest.mark.parametrize("noise", [heavy_tails, stalls])
def test_three_percent_slower_is_found(noise):
    found = intervals(simulate(noise, gain=0.97, runs=1000))
    assert np.mean([interval.high < 1 for interval in found]) >= {heavy_tails: 0.9, stalls: 0.8}[noise]
    assert np.mean([interval.low > 1 for interval in found]) <= 0.001


def test_eight_prompts_cover_less_and_say_so():
    sums = simulate(heavy_tails, gain=1.0, prompts=8, runs=2000)
    assert all(interval.few for interval in intervals(sums))
    assert 0.90 <= share(sums, 1.0) <= 0.95
