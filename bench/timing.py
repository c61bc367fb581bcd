"""Clocks: a mark at every border between phases, read only when the device is past it."""

import time
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

PHASES = ("propose", "forward", "verify", "commit", "observe")


@dataclass
class HostClock:
    """Monotonic host time. For the CPU, where a phase has ended when its function returns."""

    name: str = "host"
    marks: list[int] = field(default_factory=list)

    def reset(self) -> None:
        """Forget all marks."""
        self.marks.clear()

    def mark(self) -> None:
        """Note the time of a border."""
        self.marks.append(time.perf_counter_ns())

    def repeat(self) -> None:
        """One more border where the last one was: between them, nothing is to be done."""
        self.marks.append(self.marks[-1])

    def wait(self) -> None:
        """Until the last mark has passed: it has."""

    def intervals(self) -> list[float]:
        """Milliseconds between neighbouring marks."""
        return [(b - a) / 1e6 for a, b in pairwise(self.marks)]

    def since(self, earlier: Any) -> float:
        """Milliseconds from the last mark of another clock of this kind to the first of this one."""
        return (self.marks[0] - earlier.marks[-1]) / 1e6


@dataclass
class CudaClock:
    """CUDA events in the order of the stream: marking does not wait for the device, reading does.

    External ones: a captured mark is part of the graph, and every replay records it anew.
    """

    name: str = "cuda events"
    events: list[torch.cuda.Event] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # indices of events

    def reset(self) -> None:
        """Forget all marks; the events are kept for the next ones."""
        self.marks.clear()

    def mark(self) -> None:
        """Record an event at a border."""
        fresh = self.marks[-1] + 1 if self.marks else 0
        if fresh == len(self.events):
            self.events.append(torch.cuda.Event(enable_timing=True, external=True))
        self.events[fresh].record()
        self.marks.append(fresh)

    def repeat(self) -> None:
        """One more border where the last one was: between them, nothing is to be done, and no event recorded."""
        self.marks.append(self.marks[-1])

    def wait(self) -> None:
        """Until the last mark has passed."""
        self.events[self.marks[-1]].synchronize()

    def intervals(self) -> list[float]:
        """Milliseconds between neighbouring marks. Waits for the last one."""
        self.wait()
        return [self.events[a].elapsed_time(self.events[b]) for a, b in pairwise(self.marks)]

    def since(self, earlier: Any) -> float:
        """Milliseconds from the last mark of another clock of this kind to the first of this one, both long passed."""
        return earlier.events[earlier.marks[-1]].elapsed_time(self.events[0])


Clock = HostClock | CudaClock


def clock_for(device: torch.device) -> Clock:
    """The clock that measures this device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def synchronize(device: torch.device) -> None:
    """Wait until the device has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
