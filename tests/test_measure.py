"""What a decoded batch leaves on disk: times to the microsecond, of which no sum drifts."""

from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.loop import Raw
from bench.measure import rounded
from bench.timing import PHASES

TIMES = st.integers(0, 60).flatmap(lambda steps: st.lists(
    st.lists(st.floats(0, 50), min_size=steps, max_size=steps), min_size=1 + len(PHASES), max_size=1 + len(PHASES)))


def timed(gaps: list[float], phases: dict) -> Raw:
    """A decoded batch of which only times matter."""
    return Raw([], [], [], torch.zeros(0), [], phases, gaps, 0.0, 0.0)


def borders(gaps: list[float], phases: dict) -> list[float]:
    """When each gap and each phase of each step ended."""
    return list(accumulate(time for step in zip(gaps, *phases.values(), strict=True) for time in step))


@given(TIMES)
def test_every_border_stays_where_it_was_to_half_a_microsecond(times):
    raw = timed(times[0], dict(zip(PHASES, times[1:], strict=True)))
    gaps, phases = rounded(raw)
    assert list(phases) == list(PHASES)
    assert all(time >= 0 and time == round(time, 3) for values in [gaps, *phases.values()] for time in values)
    assert borders(gaps, phases) == pytest.approx(borders(raw.gaps, raw.phases), abs=0.0005 + 1e-9)


def test_steps_that_are_all_alike_lose_nothing():
    """Of 2.4 us each, times that were rounded one by one would lose a sixth."""
    gaps, phases = rounded(timed([0.0024] * 1000, {name: [0.0024] * 1000 for name in PHASES}))
    assert sum(map(sum, [gaps, *phases.values()])) == pytest.approx(14.4)
