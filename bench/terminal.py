"""What the user sees on the terminal."""

import sys

import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from bench.layout import Table

WIDTH = 140  # where the output is no terminal
GAP = 2  # between columns
SPARED = ("#", "Rows", "Tokens/s")  # left to the report where the terminal is narrow
WRAPPED = ("95 %", "Verdict", "Notes")


def console() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def show(table: Table, to: Console) -> None:
    """A table of the report."""
    columns = list(zip(table.heads, table.numeric, zip(*table.rows, strict=True), strict=True))
    if sum(max(map(len, (head, *cells))) + GAP for head, _, cells in columns) > to.width:
        columns = [column for column in columns if column[0] not in SPARED]
    grid = rich.table.Table(title=escape(table.title), title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head, is_number, _ in columns:
        grid.add_column(escape(head), justify="right" if is_number else "left", overflow="fold",
                        no_wrap=head not in WRAPPED)
    for row in zip(*(cells for *_, cells in columns), strict=True):
        grid.add_row(*map(escape, row))
    to.print(grid)
