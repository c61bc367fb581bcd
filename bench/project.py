"""`python -m bench project RUN --rows DIR`: what a run's acceptance would be worth at other shapes. No measurement.

A step of the method is taken to cost what a step of as many rows costs at the other shape, and to keep as many tokens
as it did in the run: speedup = acceptance length * t(1 row) / t(step). Nothing here imports torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from bench import curves, destination, report, stats
from bench.canvas import FAINT, INK, PAPER, Picture, canvas, legend, wrapped
from bench.contents import Run, load
from bench.curves import Curve, processor
from bench.errors import BenchError
from bench.figures import family, listed
from bench.layout import NOTHING, Spec, Table, build, fixed, missing, of, tenths
from bench.record import BASELINE
from bench.sections import Report, Section, facts, find

NAME = "projection"
MARK = "projection, not a measurement"
NOTE = (
    "Speedups, projected: tokens per step as measured in the run, times a step of 1 row over a step of the method's "
    "rows on the curve of the shape @ context. Before the dots: with drafting as slow as in the run (propose and "
    "observe, less the baseline's); after them: with drafting for nothing. Slots count as plain rows. "
    "–: the curve has too few rows, or is from other hardware than the run."
)
SUPPOSED = (
    "This supposes that drafts are accepted as often there as in the run, and that drafting gets no slower with the "
    "target: true of prompt lookup and of a draft model that stays the same, too kind to heads and adapters."
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `project`."""
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run with --batch 1")
    parser.add_argument("--rows", type=Path, nargs="+", required=True, metavar="DIR", help="directories of `rows`")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: into RUN)")


def command(args: argparse.Namespace) -> int:
    """Write projection.md, .tex and .html, their table and figure."""
    directory = args.out or args.run
    destination.check(directory)
    found = [curve for rows in args.rows for curve in curves.load(rows).curves]
    paths = report.publish(compose(load(args.run), found), directory, NAME)
    print(f"{MARK}: wrote {paths.markdown}, {paths.tables[0].name} and {paths.figures[0].name}")
    return 0


def project(run: Run, found: Sequence[Curve]) -> pd.DataFrame:
    """One row per drafting method, best first in the run, and curve.

    accepted     tokens per step, measured
    drafting_ms  propose and observe of a step, beyond the baseline's; NaN where the curve is from other hardware
    one_ms       a step of one row, on the curve
    step_ms      the mean of the method's steps, on the curve; NaN where it has too few rows
    free         accepted * one_ms / step_ms
    speedup      accepted * one_ms / (step_ms + drafting_ms)
    """
    if run.records.batch.max() > 1:
        raise BenchError("curves are for one sequence at a time: project a run with --batch 1")
    phases, lengths = stats.phase_table(run.records), stats.acceptance(run.records)
    drafting = (phases.propose + phases.observe - phases.propose[BASELINE] - phases.observe[BASELINE]).clip(lower=0)
    here = processor(run.provenance, run.settings["device"])
    out = []
    for method in find(run).drafting:
        rows = np.concatenate(run.records.rows[run.records.method == method].to_numpy())
        for curve in found:
            same = bool(here) and curve.processor == here
            out.append({
                "method": method, "accepted": lengths.micro[method], "rows_per_step": lengths.rows_per_step[method],
                "drafting_ms": drafting[method] if same else np.nan, "curve": curve.name, "weights": curve.mark,
                "one_ms": curve.step_ms[0], "step_ms": curve.at(rows).mean(),
            })  # fmt: skip
    if not out:
        raise BenchError("the run holds no method that drafts: nothing can be projected")
    table = pd.DataFrame(out)
    table["free"] = table.accepted * table.one_ms / table.step_ms
    table["speedup"] = table.accepted * table.one_ms / (table.step_ms + table.drafting_ms)
    return table


def compose(run: Run, found: Sequence[Curve]) -> Report:
    """The projection as a report."""
    table = project(run, found)
    weights = [mark for mark in dict.fromkeys(curve.mark for curve in found) if mark]
    mark = ";\n".join([MARK, *weights, *(["acceptance of random weights means nothing"] if run.mark else [])])
    where = " · ".join(dict.fromkeys(curve.processor for curve in found))
    text = [SUPPOSED, f"The curves: {where}."]
    section = Section(NAME, "Projected speedups", text, [tabled(table)], [replace(picture(table), mark=mark)])
    return Report(f"Projection from {run.settings['target']} to other shapes", mark, facts(run), [section])


def tabled(table: pd.DataFrame) -> Table:
    """Methods down, curves across."""
    wide = table.drop_duplicates("method")[["method", "accepted", "rows_per_step"]].set_index("method")
    spec: Spec = {"Method": of("method"), "Accepted": of("accepted", fixed), "Rows": of("rows_per_step", tenths)}
    for name, part in table.groupby("curve", sort=False):
        cells = part.set_index("method")
        wide[name] = [span(*cells.loc[method, ["speedup", "free"]]) for method in wide.index]
        spec[str(name)] = of(name)
    return replace(build(NAME, "Projected speedups", NOTE, wide.reset_index(), spec), frame=table)


def span(speedup: float, free: float) -> str:
    """Both projections in one cell."""
    return NOTHING if missing(free) else f"{fixed(speedup)} … {fixed(free)}"


def picture(table: pd.DataFrame) -> Picture:
    """A band of rows per curve, a row in it per method."""
    names, methods = list(dict.fromkeys(table.curve)), list(dict.fromkeys(table.method))
    figure, axes = canvas(1.4 + len(names) * (0.25 + 0.13 * len(methods)) + 0.12 * len(methods))
    axes.axvline(1, color=INK, lw=0.8)
    axes.grid(axis="x", color=FAINT, alpha=0.3, lw=0.6)
    for number, method in enumerate(methods):
        colour, marker = family(number)
        part = table[table.method == method].set_index("curve").loc[names]
        height = np.arange(len(names)) + 0.8 * ((number + 0.5) / len(methods) - 0.5)
        axes.hlines(height, part.speedup, part.free, color=colour, lw=1)
        axes.plot(part.free, height, marker, color=colour, mfc=PAPER, ms=5)
        axes.plot(part.speedup, height, marker, color=colour, ms=5, label=wrapped(method, 28))
    axes.set_yticks(range(len(names)), [wrapped(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("projected speedup (×)")
    legend(figure, axes, columns=2)
    best = table.loc[table.groupby("curve", sort=False).free.idxmax().dropna()].set_index("curve")
    alt = "Highest projection, drafting for nothing: " + listed(best.method + " " + best.free.map("{:.2f}".format))
    caption = "Filled: with drafting as slow as in the run. Hollow: with drafting for nothing. Not measured."
    return Picture(figure, NAME, "Speedup at other shapes", alt, caption, table)
