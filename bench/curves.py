"""Row-cost curves: what a step takes by the number of its rows, from the replays that `rows` left. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.canvas import FAINT, INK, Picture, canvas, legend
from bench.contents import COST_ONLY, read_object
from bench.errors import BenchError
from bench.figures import doubling, family, listed
from bench.layout import Table, build, fixed, of, percent, significant
from bench.sections import Report, Section
from bench.tables import environment

NAME = "rows"  # of the report
FILE = "replays.csv"
COLUMNS = {"context": int, "rows": int, "forward_ms": float, "step_ms": float}
POINT = ["context", "rows"]
NOTE = (
    "Medians over replays in the loop, in shuffled order; quartiles in brackets. Step: all phases. Limit: time to read "
    "all weights and the keys and values of the context once, at the copy bandwidth measured on the same device."
)


@dataclass(frozen=True)
class Bench:
    """A directory of `rows` in memory."""

    replays: pd.DataFrame  # one row per step: COLUMNS
    provenance: Mapping[str, Any]

    @property
    def mark(self) -> str:
        """What must stand beside every number of made-up weights."""
        return COST_ONLY if self.provenance["settings"]["random"] else ""

    @property
    def processor(self) -> str:
        """The card, or the CPU, that did the work."""
        return processor(self.provenance, self.provenance["settings"]["device"])

    @property
    def curves(self) -> list[Curve]:
        """One per context."""
        name = self.provenance["settings"]["target"]
        return [Curve(name, context, self.processor, self.mark, part.rows.to_numpy(), part.step_ms.to_numpy())
                for context, part in summary(self).groupby("context")]  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """Milliseconds of a step by its rows, at one context."""

    target: str
    context: int  # committed tokens
    processor: str
    mark: str
    rows: np.ndarray  # ascending, the first is 1
    step_ms: np.ndarray  # medians

    @property
    def name(self) -> str:
        """As tables head it."""
        return f"{self.target} @ {self.context}"

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Milliseconds of steps of so many rows, straight lines between the measured ones; NaN beyond the last."""
        return np.interp(rows, self.rows, self.step_ms, right=np.nan)


def processor(provenance: Mapping[str, Any], device: str) -> str:
    """Name of the hardware that a provenance tells of; empty where it does not."""
    found = provenance.get("cpu" if device == "cpu" else "card") or {}
    return found.get("model" if device == "cpu" else "name", "")


def load(directory: str | Path) -> Bench:
    """Read a directory that `rows` wrote. BenchError where there is none, or what is there is damaged."""
    path = Path(directory) / FILE
    try:
        replays = pd.read_csv(path, usecols=list(COLUMNS), dtype=COLUMNS)
    except FileNotFoundError:
        raise BenchError(f"{directory} holds no row-cost curves ({FILE} is missing): make some with `rows`") from None
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is damaged ({error}): measure again") from error
    provenance = read_object(path.with_name("provenance.json"))
    if replays.empty or not {"settings", "limit"} <= provenance.keys():
        raise BenchError(f"{directory} is not complete: measure again")
    return Bench(replays, provenance)


def summary(bench: Bench) -> pd.DataFrame:
    """Per context and rows: medians, quartiles of the step, the step over that of one row, the limit and its share."""
    groups, limit = bench.replays.groupby(POINT), bench.provenance["limit"]
    steps = groups.step_ms.quantile([0.25, 0.5, 0.75]).unstack()
    table = pd.DataFrame({
        "step_ms": steps[0.5], "step_low": steps[0.25], "step_high": steps[0.75],
        "forward_ms": groups.forward_ms.median(), "replays": groups.size(),
    }).reset_index()  # fmt: skip
    one = table[table.rows == 1].set_index("context").step_ms
    table["over_one"] = table.step_ms / table.context.map(one)
    read = limit["weight_bytes"] + table.context * limit["cache_row_bytes"]
    table["limit_ms"] = 1000 * read / limit["copy_bytes_per_s"]
    table["limit_share"] = table.limit_ms / table.step_ms
    return table


def compose(bench: Bench) -> Report:
    """The report of the curves."""
    settings, found = bench.provenance["settings"], summary(bench)
    speed = bench.provenance["limit"]["copy_bytes_per_s"] / 1e9
    facts = " · ".join([settings["target"], settings["dtype"], bench.processor, "batch 1",
                        f"copy bandwidth {significant(speed)} GB/s"])  # fmt: skip
    title = f"What rows cost: {settings['target']}"
    rows = Section("rows", title, [], [table(found)], [replace(picture(found, title), mark=bench.mark)])
    origin = Section("environment", "Environment", [], [environment(bench.provenance)], [])
    return Report(title, bench.mark, facts, [rows, origin])


def table(found: pd.DataFrame) -> Table:
    """A line per context and number of rows."""
    return build("rows", "Step by rows", NOTE, found, {
        "Context": of("context", lambda value: f"{value:.0f}"),
        "Rows": of("rows", lambda value: f"{value:.0f}"),
        "Step (ms)": of("step_ms", significant),
        "Quartiles": lambda row: f"[{significant(row.step_low)}, {significant(row.step_high)}]",
        "× 1 row": of("over_one", fixed),
        "Forward (ms)": of("forward_ms", significant),
        "Limit (ms)": of("limit_ms", significant),
        "Limit / step (%)": of("limit_share", percent),
    })  # fmt: skip


def picture(found: pd.DataFrame, title: str) -> Picture:
    """Milliseconds by rows, a line per context with its limit."""
    figure, axes = canvas(3.6)
    for number, (context, part) in enumerate(found.groupby("context")):
        colour, marker = family(number)
        whiskers = [part.step_ms - part.step_low, part.step_high - part.step_ms]
        axes.errorbar(part.rows, part.step_ms, yerr=whiskers, fmt=marker + "-", ms=4.5, lw=1, capsize=2.5,
                      color=colour, label=f"context {context}")  # fmt: skip
        axes.plot(part.rows, part.limit_ms, ":", lw=1.4, color=colour)
    axes.plot([], [], ":", lw=1.4, color=INK, label="limit by bandwidth")
    doubling(axes)
    axes.set_xlim(0.9, found.rows.max() * 1.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("rows that the target evaluates per step")
    axes.set_ylabel("step (ms)")
    axes.grid(color=FAINT, alpha=0.3, lw=0.6)
    legend(figure, axes)
    widest = found[found.rows == found.rows.max()].set_index("context").over_one
    alt = f"A step of {found.rows.max()} rows over one of 1 row, by context: " + listed(widest.map("{:.2f}".format))
    caption = "Medians, whiskers: quartiles. Dotted: the limit by memory bandwidth (weights once, cache once)."
    return Picture(figure, "rows", title, alt, caption, found)
