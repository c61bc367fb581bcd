"""`python -m bench batches RUN RUN ...`: what each method is worth in batches of 1, 4, 16, ...; one run per batch size.

Every speedup is against autoregressive decoding in batches of the same size. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from bench import destination, report
from bench.canvas import FAINT, INK, PAPER, Picture, canvas, legend, wrapped
from bench.compare import circumstances, unlike
from bench.contents import Run, load
from bench.errors import BenchError
from bench.figures import doubling, family, listed, whiskers
from bench.layout import NOTHING, Spec, Table, build, fixed, limits, of, significant
from bench.record import BASELINE, TWIN
from bench.sections import Report, Section, facts, find

NAME = "batches"
SPEEDUP_NOTE = (
    "Speedup over autoregressive decoding in batches of the same size, 95 % interval. Stops paying: the first batch "
    "measured at which the method is not faster. –: not measured."
)
THROUGHPUT_NOTE = "Tokens per second of all sequences together."


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `batches`."""
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directories of runs that differ in --batch")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")


def command(args: argparse.Namespace) -> int:
    """Write batches.md, .tex and .html, tables and figures."""
    destination.check(args.out)
    paths = report.publish(compose([load(run) for run in args.runs]), args.out, NAME)
    print(f"wrote {paths.markdown}, {len(paths.tables)} tables and {len(paths.figures)} figures")
    return 0


def by_batch(runs: Sequence[Run]) -> dict[int, Run]:
    """The runs by their batch size, ascending. BenchError unless they differ in nothing else."""
    found = {int(run.records.batch.max()): run for run in runs}
    if len(found) < 2 or len(found) < len(runs):
        raise BenchError("give one run per batch size, and at least two: run with --batch 1, --batch 4, ...")
    first, *others = runs
    for other in others:
        if differences := unlike([alike(first), alike(other)]):
            raise BenchError(f"the runs differ in more than their batch: {'; '.join(differences)}")
        if set(first.records.question_id) != set(other.records.question_id):
            raise BenchError("the runs have different questions: give all of them the same --prompts and --limit")
    return dict(sorted(found.items()))


def alike(run: Run) -> dict[str, str]:
    """What must not differ: the circumstances that `compare` asks for, but for the batch."""
    return circumstances(run.records, dict(run.provenance)) | {"batch": ""}


def study(runs: Mapping[int, Run]) -> pd.DataFrame:
    """One row per method and batch: the columns of `stats.main_table`, with batch and lossy."""
    parts = [find(run).both.drop(index=TWIN, errors="ignore").reset_index().assign(batch=batch)
             for batch, run in runs.items()]  # fmt: skip
    found = pd.concat(parts, ignore_index=True)
    return found[["method", "batch", "speedup", "low", "high", "prompts", "accepted", "rows_per_step", "tokens_per_s",
                  "decision", "verdict", "lossy"]]  # fmt: skip


def stops(part: pd.DataFrame) -> str:
    """The first batch at which a method is not faster, in words. `part`: its rows of `study`."""
    idle = part[part.decision != "faster"].batch
    return f"not by {part.batch.max()}" if idle.empty else f"at {idle.min()}"


def compose(runs: Sequence[Run]) -> Report:
    """The study as a report."""
    ordered = by_batch(runs)
    found, smallest = study(ordered), next(iter(ordered.values()))
    drawn = [replace(picture, mark=smallest.mark) for picture in (speedups(found), throughput(found))]
    section = Section(NAME, "By batch", filled(ordered), [speedup_table(found), throughput_table(found)], drawn)
    sizes = f"batches of {', '.join(map(str, ordered))}"
    about = facts(smallest).replace(f"batch {min(ordered)}", sizes)
    return Report(f"PTP-Bench in {sizes}: {smallest.settings['target']}", smallest.mark, about, [section])


def filled(runs: Mapping[int, Run]) -> list[str]:
    """What to say where questions did not fill their batches."""
    shares = {size: (run.records.batch == size).mean() for size, run in runs.items()}
    partly = [f"{share:.0%} in batches of {size}" for size, share in shares.items() if share < 1]
    return [f"Of the sequences, {', '.join(partly)}; the others of that run in smaller ones."] if partly else []


def speedup_table(found: pd.DataFrame) -> Table:
    """Methods down, batches across, and where each stops paying."""
    drafting = found[found.method != BASELINE]
    wide = across(drafting, lambda row: f"{fixed(row.speedup)} {limits(row)}" + " BROKEN" * (row.verdict == "BROKEN"))
    wide["stops"] = [stops(drafting[drafting.method == method]) for method in wide.index]
    return tabled(NAME, "Speedup by batch", SPEEDUP_NOTE, wide, found)


def throughput_table(found: pd.DataFrame) -> Table:
    """Methods down, batches across."""
    wide = across(found, lambda row: significant(row.tokens_per_s))
    return tabled(f"{NAME}_throughput", "Tokens per second by batch", THROUGHPUT_NOTE, wide, found)


def across(found: pd.DataFrame, form: Callable[[Any], str]) -> pd.DataFrame:
    """Cells as text: a row per method, in the order of the smallest batch, a column per batch."""
    cells = found.assign(cell=[form(row) for row in found.itertuples()])
    wide = cells.pivot(index="method", columns="batch", values="cell").fillna(NOTHING)
    return wide.loc[list(dict.fromkeys(found.method))]


def tabled(name: str, title: str, note: str, wide: pd.DataFrame, found: pd.DataFrame) -> Table:
    """The cells under their heads; the numbers behind them are those of `study`."""
    heads = {"stops": "Stops paying"} | {batch: f"Batch {batch}" for batch in found.batch.unique()}
    spec: Spec = {"Method": of("method")} | {heads[column]: of(column) for column in wide.columns}
    return replace(build(name, title, note, wide.reset_index(), spec), frame=found)


def speedups(found: pd.DataFrame) -> Picture:
    """Speedup by batch: where a line meets 1 the method stops paying."""
    figure, axes = lines(found[found.method != BASELINE], "speedup")
    axes.axhline(1, color=INK, lw=0.8)
    axes.set_ylabel("speedup (×), 95 % interval")
    ends = pd.Series({method: stops(part) for method, part in found[found.method != BASELINE].groupby("method")})
    caption = "Against autoregressive decoding in batches of the same size. At 1 and below a method does not pay. "
    caption += "Hollow: lossy."
    return Picture(figure, NAME, "Speedup by batch", "Stops paying: " + listed(ends), caption, found)


def throughput(found: pd.DataFrame) -> Picture:
    """Tokens per second by batch."""
    figure, axes = lines(found, "tokens_per_s")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("tokens/s, all sequences together")
    best = found.groupby("method").tokens_per_s.max().map(significant)
    caption = "All sequences of a batch together; both axes in equal ratios."
    return Picture(figure, f"{NAME}_throughput", "Throughput by batch", "Highest: " + listed(best), caption, found)


def lines(found: pd.DataFrame, column: str) -> tuple[Figure, Axes]:
    """A line per method; speedups with their intervals."""
    figure, axes = canvas(3.9)
    for number, (method, part) in enumerate(found.groupby("method", sort=False)):
        colour, marker = (INK, "*") if method == BASELINE else family(number - (BASELINE in set(found.method)))
        reach = whiskers(part) if column == "speedup" else None
        axes.errorbar(part.batch, part[column], yerr=reach, fmt=marker + "-", ms=5, lw=1, capsize=2.5, color=colour,
                      mfc=PAPER if part.lossy.any() else colour, label=wrapped(str(method), 28))  # fmt: skip
    doubling(axes)
    axes.set_xticks(sorted(found.batch.unique()))
    axes.set_xlabel("sequences decoded together")
    axes.grid(color=FAINT, alpha=0.3, lw=0.6)
    legend(figure, axes, columns=2)
    return figure, axes
