"""What the user sees on the terminal."""

import sys
from collections.abc import Callable, Iterable

import rich.table
from rich import box
from rich.console import Console
from rich.markup import escape

from bench.layout import NOTHING, Table, broken

WIDTH = 140  # where the output is no terminal
GAP = 2  # between columns; behind the last one it is 1
SPARED = ("#", "Rows", "Tokens/s", "Items")  # left to the report where the terminal is narrow
WRAPPED = "Notes"

Column = tuple[str, bool, tuple[str, ...]]  # head, whether it holds numbers, cells


def console() -> Console:
    """Standard output."""
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def show(table: Table, to: Console) -> None:
    """A table of the report. Nothing is cut off: what has no room at all runs over the edge."""
    columns = fitted(table, to.width)
    grid = rich.table.Table(title=escape(table.title), title_style="bold", title_justify="left", box=box.SIMPLE_HEAD,
                            padding=(0, 1, 0, 0), show_edge=False)  # fmt: skip
    for head, is_number, _ in columns:
        grid.add_column(escape(head), justify="right" if is_number else "left", no_wrap=head != WRAPPED)
    for row in zip(*(cells for *_, cells in columns), strict=True):
        grid.add_row(*map(escape, row))
    if (least := wide(columns, str.split)) > to.width:
        grid.width = least
    to.print()
    to.print(grid, crop=False, soft_wrap=True)
    to.print()


def fitted(table: Table, width: int) -> list[Column]:
    """As many columns as there is room for: empty and spared ones are left out one by one, then long names broken."""
    columns = list(zip(table.heads, table.numeric, zip(*table.rows, strict=True), strict=True))
    empty = [head for head, _, cells in columns if set(cells) <= {"", NOTHING}]
    for head in (*empty, *SPARED):
        if wide(columns) > width:
            columns = [column for column in columns if column[0] != head]
    if wide(columns) > width:
        head, is_number, names = columns[0]
        columns[0] = head, is_number, tuple(map(broken, names))
    return columns


def wide(columns: list[Column], parts: Callable[[str], list[str]] = str.splitlines) -> int:
    """Characters that a row takes, if a cell that may be wrapped is cut into `parts`."""
    cut = {WRAPPED: parts}
    return sum(longest(cut.get(head, str.splitlines)(cell) for cell in (head, *cells)) + GAP
               for head, _, cells in columns) - 1  # fmt: skip


def longest(cells: Iterable[list[str]]) -> int:
    """Characters of the longest part of any cell."""
    return max((len(part) for parts in cells for part in parts), default=0)
