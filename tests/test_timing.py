"""Clocks: intervals between marks, borders without a mark, and that events are used again."""

from functools import partial
from itertools import count

import pytest
import torch

from bench.graphs import nothing
from bench.loop import marked
from bench.timing import PHASES, CudaClock, HostClock


class Event:
    """A CUDA event that is reached at once."""

    made = 0
    now = count(1)

    def __init__(self, **_):
        Event.made += 1

    def record(self):
        self.time = next(Event.now)

    def synchronize(self):
        assert self.time

    def elapsed_time(self, end):
        return float(end.time - self.time)


@pytest.fixture(params=[HostClock, CudaClock])
def make(request, monkeypatch):
    """A kind of clock, for which every mark is a millisecond after the one before."""
    monkeypatch.setattr(Event, "made", 0)
    monkeypatch.setattr(Event, "now", count(1))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    ticks = count(10**6, 10**6)
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(ticks))
    return request.param


def test_intervals_and_gaps(make):
    first, second = make(), make()
    for clock in (first, second):
        for _ in range(3):
            clock.mark()
    second.wait()
    assert first.intervals() == second.intervals() == [1.0, 1.0]
    assert second.since(first) == 1.0


def test_a_repeated_border_takes_no_time_and_the_next_gap_begins_there(make):
    first, second = make(), make()
    first.mark()
    first.repeat()
    first.mark()
    first.repeat()
    second.mark()
    assert first.intervals() == [0.0, 1.0, 0.0]
    assert second.since(first) == 1.0


@pytest.mark.parametrize("idle", [{"observe"}, {"propose", "commit"}])
def test_a_phase_that_is_nothing_has_no_mark(make, idle):
    """Five intervals in any case; on CUDA as many events as there are phases with work, and one."""
    clock = make()
    ran: list[str] = []
    phases = [nothing if name in idle else partial(ran.append, name) for name in PHASES]
    for _ in range(2):  # as before a capture and in it
        marked(phases, clock)
        assert clock.intervals() == [float(name not in idle) for name in PHASES]
    assert ran == [name for name in PHASES if name not in idle] * 2
    assert Event.made == (0 if make is HostClock else 6 - len(idle))
