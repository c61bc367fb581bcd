"""How a table is laid out: text cells under short heads, with the numbers behind them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

NOTHING = "–"
BROKEN = " (BROKEN)"  # behind a method's name where no verdict stands beside its speedup
NAME = 22  # characters of a method's label that fit anywhere
Spec = dict[str, Callable[[Any], str]]  # by head: what a column prints of a row


@dataclass(frozen=True)
class Table:
    """Cells as text. `frame` holds the numbers behind them, all digits and often more columns."""

    name: str
    title: str
    note: str
    heads: list[str]
    rows: list[list[str]]
    frame: pd.DataFrame
    measured: bool = True  # by this run

    @property
    def numeric(self) -> list[bool]:
        """Per column, whether to set it flush right: not the first, and all cells start like a number or are empty."""
        columns = list(zip(*self.rows, strict=True)) or [()] * len(self.heads)
        found = [all(re.match(r"[-−≈]?\d|–|$", cell) for cell in cells) for cells in columns]
        return [False, *found[1:]]

    @property
    def csv(self) -> str:
        """The numbers behind it, to six digits."""
        return self.frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")


def build(name: str, title: str, note: str, frame: pd.DataFrame, spec: Spec) -> Table:
    """A table with a row per row of `frame` and a column per head of `spec`, without those that stay empty."""
    columns = {head: [form(row) for _, row in frame.iterrows()] for head, form in spec.items()}
    columns = {head: cells for head, cells in columns.items() if any(cells)}
    return Table(name, title, note, list(columns), [list(row) for row in zip(*columns.values(), strict=True)], frame)


def of(key: Any, form: Callable[[Any], str] = str) -> Callable[[Any], str]:
    """A column that prints one entry of the row."""
    return lambda row: form(row[key])


def missing(value: Any) -> bool:
    """None, NaN or infinite: printed as a dash."""
    return value is None or not math.isfinite(value)


def fixed(value: float | None, digits: int = 2) -> str:
    """A number with so many decimals."""
    return NOTHING if value is None or missing(value) else f"{value:.{digits}f}"


def significant(value: float | None) -> str:
    """A number with three significant digits, without exponent; at most six decimals."""
    if value is None or missing(value):
        return NOTHING
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{min(max(digits, 0), 6)}f}"


def limits(row: Any) -> str:
    """The interval of a row in brackets."""
    return NOTHING if missing(row.low) or missing(row.high) else f"[{row.low:.2f}, {row.high:.2f}]"


def percent(share: float, digits: int = 1) -> str:
    """A share in percent, without the sign."""
    return NOTHING if missing(share) else f"{100 * share:.{digits}f}"


def broken(label: str, width: int = NAME) -> str:
    """A method's label in lines of at most `width` characters where its colons and commas allow it."""
    lines = [""]
    for part in re.findall(r"[^:,]+[:,]*|[:,]+", label):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def in_words(temperature: float, top_k: int, top_p: float) -> str:
    """A law in words."""
    cuts = [f"top-k {top_k}"] * bool(top_k) + [f"top-p {top_p:g}"] * (top_p < 1)
    return ", ".join([f"T={temperature:g}", *cuts]) if temperature else "greedy"


tenths, whole = partial(fixed, digits=1), partial(fixed, digits=0)


def plain(frame: pd.DataFrame) -> Table:
    """A frame as it is, its floats to three significant digits."""

    def form(value: Any) -> str:
        return significant(value) if isinstance(value, float) else str(value)

    return build("", "", "", frame, {str(name): of(name, form) for name in frame.columns})
