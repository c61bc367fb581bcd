"""Intervals of ratios by a paired bootstrap over prompts.

The unit that is resampled is a prompt with everything that was measured on it, for both sides of the ratio: so what
makes a prompt slow or easy for both cancels, and its repeats are not mistaken for independent evidence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
FEW = 20
CHUNK = 1 << 22  # resampling weights held at once


@dataclass(frozen=True)
class Interval:
    """A ratio with its 95 % interval and the number of prompts it rests on."""

    low: float
    estimate: float
    high: float
    prompts: int

    @property
    def few(self) -> bool:
        """Too few prompts for the interval to cover what it claims."""
        return self.prompts < FEW

    def covers(self, value: float) -> bool:
        """Whether the interval cannot tell the ratio from `value`."""
        return self.low <= value <= self.high

    @property
    def inverse(self) -> Interval:
        """The interval of the ratio turned upside down."""
        return Interval(1 / self.high, 1 / self.estimate, 1 / self.low if self.low else np.inf, self.prompts)

    @property
    def both_ways(self) -> Interval:
        """The smallest interval around it that reaches as far above 1 as below, as a ratio of like to like must."""
        reach = max(self.high, 1 / self.low if self.low else np.inf)
        return Interval(1 / reach, self.estimate, reach, self.prompts)

    def __str__(self) -> str:
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]" + (" (few)" if self.few else "")


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    """Time per token of one side over that of the other.

    `sums` is [..., 4]: time and tokens of the slow side (the denominator of a speedup), time and tokens of the fast
    side. Never a mean of ratios: a prompt counts by what it costs.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return sums[..., 0] * sums[..., 3] / (sums[..., 1] * sums[..., 2])


def ratio_intervals(sums: np.ndarray, resamples: int = 10_000, seed: int = 0) -> list[Interval]:
    """One interval per pair from `sums` [prompts, pairs, 4]; prompts whose four sums are all zero do not count.

    Pairs that rest on the same prompts share their resamples. The limits are percentiles of the resampled ratios,
    taken a little further out (`_levels`). In simulations of 48 prompts with heavy-tailed, drifting times this
    covered 93.3 to 94.5 %, plain percentiles 92.3 to 94.1 %, BCa 88.1 to 92.4 % and the bootstrap-t 91.3 to 94.4 %.
    """
    used = sums.any(axis=2)  # [prompts, pairs]
    intervals: dict[int, Interval] = {}
    for mask in np.unique(used, axis=1).T:
        pairs = np.flatnonzero((used == mask[:, None]).all(axis=0))
        part = sums[np.ix_(mask, pairs)]  # [prompts of these pairs, pairs, 4]
        estimates = ratio_of_sums(part.sum(axis=0))
        lows, highs = _limits(part, resamples, seed)
        for pair, low, estimate, high in zip(pairs, lows, estimates, highs, strict=True):
            intervals[int(pair)] = Interval(float(low), float(estimate), float(high), len(part))
    return [intervals[pair] for pair in range(sums.shape[1])]


def _limits(sums: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper limits [pairs]; a single prompt (or none) says nothing, so its limits are 0 and infinity."""
    prompts, pairs, _ = sums.shape
    if prompts < 2:
        return np.zeros(pairs), np.full(pairs, np.inf)
    rng = np.random.default_rng(seed)
    flat = sums.reshape(prompts, pairs * 4)
    ratios = np.empty((resamples, pairs))
    block = max(1, CHUNK // prompts)
    for start in range(0, resamples, block):
        count = min(block, resamples - start)
        weights = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=count)  # [count, prompts]
        ratios[start : start + count] = ratio_of_sums((weights.astype(float) @ flat).reshape(count, pairs, 4))
    low, high = np.quantile(ratios, _levels(prompts), axis=0)
    return low, high


def _levels(prompts: int) -> tuple[float, float]:
    """Percentile levels for `prompts` resampled units: wider than 2.5 and 97.5 %, to which they tend.

    Resampling shrinks a spread by sqrt((n - 1) / n) and percentiles use a normal where Student's t is due; the levels
    undo both (the "expanded percentile" interval, T. Hesterberg, What teachers should know about the bootstrap, 2015).
    """
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, prompts - 1) * np.sqrt(prompts / (prompts - 1))
    upper = float(stats.norm.cdf(reach))
    return 1 - upper, upper
