"""How far a run is: a bar on a terminal, now and then a plain line elsewhere."""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from bench.record import Record

EVERY = 10.0  # seconds between plain lines


class Progress(Protocol):
    """A context manager that is told of every batch."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def advance(self, records: Sequence[Record]) -> None:
        """One more batch was decoded; empty if it had been before the run was resumed."""


class Bar:
    """Method, tokens per second and time left, on one line that renews itself."""

    def __init__(self, total: int, console: Console):
        columns = (TextColumn("{task.description:<24.24}"), BarColumn(), MofNCompleteColumn(),
                   TextColumn("{task.fields[speed]:>7.1f} tokens/s"), TimeRemainingColumn(elapsed_when_finished=True))
        self.bar = RichProgress(*columns, console=console)
        self.task = self.bar.add_task("warming up", total=total, speed=0.0)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def advance(self, records: Sequence[Record]) -> None:
        """Show the batch that was just decoded."""
        if records:
            self.bar.update(self.task, description=records[0].method, speed=speed(records))
        self.bar.advance(self.task)


class Lines:
    """The same as plain lines, one every ten seconds, for logs."""

    def __init__(self, total: int, console: Console):
        self.total, self.console = total, console
        self.begin = self.last = time.monotonic()
        self.done = self.fresh = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def advance(self, records: Sequence[Record]) -> None:
        """Print a line if the last one is old, or if this was the last batch."""
        self.done, self.fresh, now = self.done + 1, self.fresh + bool(records), time.monotonic()
        if records and (now - self.last >= EVERY or self.done == self.total):
            left = timedelta(seconds=round((now - self.begin) / self.fresh * (self.total - self.done)))
            print(f"{self.done}/{self.total}  {records[0].method}  {speed(records):.1f} tokens/s  {left} left",
                  file=self.console.file, flush=True)
            self.last = now


def progress(total: int, console: Console) -> Progress:
    """What suits the place where the output goes."""
    return Bar(total, console) if console.is_terminal else Lines(total, console)


def speed(records: Sequence[Record]) -> float:
    """Tokens per second of one batch, all its sequences together."""
    return 1000 * sum(len(record.tokens) for record in records) / records[0].wall_ms
