"""How far a long job is: a bar with the time left on a terminal, now and then a plain line elsewhere."""

import time
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

EVERY = 10.0  # seconds between plain lines


class Meter:
    """A context manager that is told of the share done and of what there is to say."""

    def __init__(self, console: Console):
        self.console, self.begin, self.last = console, time.monotonic(), 0.0
        columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=1.0)
        self.first: float | None = None  # share that was done before we began

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def show(self, share: float, note: str) -> None:
        """`share` of the whole job, 0 to 1."""
        self.first = share if self.first is None else self.first
        self.bar.update(self.task, completed=share, description=note)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.last >= EVERY or share >= 1):
            pace = (share - self.first) / max(now - self.begin, 1e-9)
            left = f"{timedelta(seconds=round((1 - share) / pace))} left" if pace > 0 else ""
            print(f"{share:6.1%}  {note}  {left}".rstrip(), file=self.console.file, flush=True)
            self.last = now
