"""What the user sees on the terminal."""

import sys

import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from bench.layout import Table
from bench.record import TWIN

WIDTH = 140  # where the output is no terminal


def console() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def show(table: Table, to: Console) -> None:
    """A table of the report."""
    grid = rich.table.Table(title=escape(table.title), title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for head, is_number in zip(table.heads, table.numeric, strict=True):
        width = len(TWIN) if head == "Method" else None
        grid.add_column(escape(head), justify="right" if is_number else "left", overflow="fold", min_width=width)
    for row in table.rows:
        grid.add_row(*map(escape, row))
    to.print(grid)
