"""What a decoded batch leaves on disk: times to the microsecond, of which no sum drifts."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import rounded
from bench.timing import PHASES

TIMES = st.integers(0, 60).flatmap(lambda steps: st.lists(
    st.lists(st.floats(0, 50), min_size=steps, max_size=steps), min_size=len(PHASES), max_size=len(PHASES)))


def borders(phases: dict) -> list[float]:
    """When each phase of each step ended."""
    return list(accumulate(time for step in zip(*phases.values(), strict=True) for time in step))


@given(TIMES)
def test_every_border_stays_where_it_was_to_half_a_microsecond(times):
    phases = dict(zip(PHASES, times, strict=True))
    found = rounded(phases)
    assert list(found) == list(PHASES)
    assert all(time >= 0 and time == round(time, 3) for values in found.values() for time in values)
    assert borders(found) == pytest.approx(borders(phases), abs=0.0005 + 1e-9)


def test_steps_that_are_all_alike_lose_nothing():
    """Of 2.4 us each, times that were rounded one by one would lose a sixth."""
    found = rounded({name: [0.0024] * 1000 for name in PHASES})
    assert sum(map(sum, found.values())) == pytest.approx(12.0)
