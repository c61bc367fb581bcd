"""The figures of a report. Each returns a Picture, or None where the run holds nothing to draw."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from bench.bootstrap import Interval
from bench.canvas import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    SMALL,
    VERMILION,
    Picture,
    canvas,
    legend,
    panels,
    wrapped,
)
from bench.layout import BROKEN, significant
from bench.record import BASELINE, PHASES, TWIN

ENOUGH = 30  # steps that a plotted rate must rest on
DEEP = 12  # depth from which an axis in equal steps would hide the first ones
FAMILIES = [*zip((BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY), "osD^vP", strict=True)]
PHASE_COLOURS = dict(zip(PHASES, (ORANGE, SKY, GREEN, PURPLE, VERMILION), strict=True))
PHASE_HATCHES = dict(zip(PHASES, ("//", "", "..", "\\\\", "xx"), strict=True))
CLASSES = {  # marker, colour, fill
    "faster or slower": ("o", BLUE, BLUE),
    "no difference": ("s", FAINT, PAPER),
    "lossy": ("D", VERMILION, PAPER),
}


def speedup(table: pd.DataFrame, floor: Interval | None) -> Picture | None:
    """Dots with whiskers, fastest on top. `table`: index method; speedup, low, high, decision, lossy, verdict."""
    table = table.drop(index=[BASELINE, TWIN], errors="ignore").sort_values("speedup")
    if table.empty:
        return None
    broken = np.where(table.verdict == "BROKEN", f"\n{BROKEN.strip()}", "")
    names = [wrapped(method) + mark for method, mark in zip(table.index, broken, strict=True)]
    figure, axes = canvas(1.15 + _pitch(names) * len(names))
    if floor is not None and np.isfinite(floor.both_ways.high):
        axes.axvspan(floor.both_ways.low, floor.both_ways.high, color=FAINT, alpha=0.5, lw=0, label="noise floor (A/A)")
    axes.axvline(1, color=INK, lw=0.8)
    kind = np.where(table.lossy, "lossy", np.where(table.decision == "no difference", *list(CLASSES)[1::-1]))
    for name, (marker, colour, fill) in CLASSES.items():
        rows = np.flatnonzero(kind == name)
        if len(rows):
            part = table.iloc[rows]
            axes.errorbar(part.speedup, rows, xerr=whiskers(part), fmt=marker, color=colour, mfc=fill, ms=6,
                          capsize=3, label=name)  # fmt: skip
    _name_rows(axes, names)
    _values(axes, [f"{value:.2f}×" for value in table.speedup])
    axes.set_xlim(left=min(0.9, 0.95 * float(table.low.min())))
    axes.set_xlabel("speedup (×), 95 % interval")
    axes.grid(axis="x", color=FAINT, alpha=0.3, lw=0.6)
    legend(figure, axes)
    alt = "Speedup over autoregressive decoding, fastest first: " + listed(table.speedup[::-1].map("{:.2f}".format))
    caption = (
        "Right of the line is faster. Whiskers: 95 % interval, paired bootstrap over prompts. Grey band: as far "
        "from 1 as the baseline is from its own copy. Lossy methods change the text."
    )
    numbers = table[["speedup", "low", "high", "decision"]].iloc[::-1].reset_index()
    return Picture(figure, "speedup", "Speedup over autoregressive decoding", alt, caption, numbers)


def acceptance(rates: pd.DataFrame) -> Picture | None:
    """A panel per method of `stats.acceptance_by_depth`, the joint rates of the others behind it."""
    methods = list(dict.fromkeys(rates.method))
    if not methods:
        return None
    figure, axes = panels(len(methods), "draft depth (tokens)", "accepted (% of steps)")
    solid = rates.assign(conditional=rates.conditional.where(rates.reached >= ENOUGH))
    for panel, method in zip(axes, methods, strict=True):
        for _, rows in rates[rates.method != method].groupby("method"):
            panel.plot(rows.depth, rows.joint, color=FAINT, alpha=0.5, lw=0.7)
        rows = solid[solid.method == method]
        panel.plot(rows.depth, rows.conditional, "o-", color=BLUE, ms=3.5, label="conditional")
        panel.plot(rows.depth, rows.joint, "s--", color=VERMILION, ms=3.5, mfc=PAPER, label="joint")
        panel.set_title(wrapped(method, 28), fontsize=SMALL)
        panel.set_ylim(0, 1.04)
        _whole_numbers(panel)
        if rates.depth.max() > DEEP:
            doubling(panel)
        panel.grid(axis="y", color=FAINT, alpha=0.3, lw=0.6)
    axes[0].plot([], [], color=FAINT, lw=0.7, label="other methods, joint")
    legend(figure, axes[0])
    first = rates[rates.depth == 1].set_index("method").joint.map("{:.0%}".format)
    alt = "Share of draft tokens accepted, falling with draft depth. At depth 1: " + listed(first)
    caption = (
        "Conditional: of the steps that accepted the depth before. Joint: of all steps that offered this depth. "
        f"Conditional rates that rest on fewer than {ENOUGH} steps are left out."
    )
    return Picture(figure, "acceptance", "Acceptance by draft depth", alt, caption, rates)


def phases(table: pd.DataFrame) -> Picture | None:
    """Stacked bars of `stats.phase_table`, in its order from the top."""
    if table.empty:
        return None
    table = table.iloc[::-1]
    names = [wrapped(method) for method in table.index]
    figure, axes = canvas(1.35 + _pitch(names) * len(names))
    left = np.zeros(len(table))
    for phase in PHASES:
        axes.barh(range(len(table)), table[phase], left=left, height=0.68, color=PHASE_COLOURS[phase],
                  hatch=PHASE_HATCHES[phase], edgecolor=INK, lw=0.5, label=phase)  # fmt: skip
        left += table[phase].to_numpy()
    _name_rows(axes, names)
    _values(axes, [f"{significant(value)} ms" for value in left])
    axes.set_xlim(0, left.max() * 1.02)
    axes.set_xlabel("mean time per step (ms)")
    legend(figure, axes)
    alt = "Milliseconds per step: " + listed(table.step_ms[::-1].map(significant))
    caption = "The five phases in the order they run, from the left. Mean over the steps that contributed a token."
    numbers = table[[*PHASES, "step_ms"]].iloc[::-1].reset_index()
    return Picture(figure, "phases", "Where the time of a step goes", alt, caption, numbers)


def budget(table: pd.DataFrame) -> Picture | None:
    """Speedup against rows per step, options of one method joined. `table` as for `speedup`, with rows_per_step."""
    table = table.drop(index=[BASELINE, TWIN], errors="ignore").sort_values("rows_per_step")
    if table.empty:
        return None
    figure, axes = canvas(3.7)
    axes.axhline(1, color=INK, lw=0.8)
    axes.plot([1], [1], "*", color=INK, ms=10, ls="none", label=BASELINE)
    broken = table.verdict == "BROKEN"
    marks = np.select([broken, table.lossy], [BROKEN, " (lossy)"], "")
    names = table.index.str.split(":").str[0].to_numpy() + marks
    for number, (name, part) in enumerate(table.groupby(names)):
        colour, marker = family(number)
        hollow = part.lossy.any() or broken[part.index].any() or number >= len(FAMILIES)
        axes.errorbar(part.rows_per_step, part.speedup, yerr=whiskers(part), fmt=marker + "-", lw=1, color=colour,
                      mfc=PAPER if hollow else colour, ms=5.5, capsize=2.5, label=str(name))  # fmt: skip
    doubling(axes)
    axes.set_xlim(0.9, max(2.2, table.rows_per_step.max() * 1.15))
    axes.set_xlabel("rows that the target evaluates per step")
    axes.set_ylabel("speedup (×), 95 % interval")
    axes.grid(color=FAINT, alpha=0.3, lw=0.6)
    legend(figure, axes)
    points = table.rows_per_step.map("{:.1f} rows, ".format) + table.speedup.map("speedup {:.2f}".format)
    alt = "Speedup against rows per step: " + listed(points)
    caption = "What a speedup was bought with. A line joins the options of one method."
    numbers = table[["rows_per_step", "speedup", "low", "high"]].reset_index()
    return Picture(figure, "budget", "Speedup against draft budget", alt, caption, numbers)


def kept(histogram: pd.DataFrame) -> Picture | None:
    """A panel per column of `stats.kept_histogram`: share of the steps by the tokens they kept."""
    if histogram.empty or not len(histogram.columns):
        return None
    share = histogram / histogram.sum()
    mean = share.mul(share.index.to_numpy(), axis=0).sum()
    figure, axes = panels(len(share.columns), "tokens kept by a step", "share of steps (%)")
    for panel, method in zip(axes, share.columns, strict=True):
        panel.bar(share.index, share[method], color=SKY, edgecolor=INK, lw=0.5, width=0.85)
        panel.axvline(mean[method], color=VERMILION, ls="--", lw=1.2)
        panel.annotate(f"mean {mean[method]:.2f}", (1, 1), xycoords="axes fraction", ha="right", va="top",
                       fontsize=SMALL, color=INK)  # fmt: skip
        panel.set_title(wrapped(method, 28), fontsize=SMALL)
        _whole_numbers(panel)
    alt = "How many tokens a step keeps. Means: " + listed(mean.map("{:.2f}".format))
    caption = "Dashed line: the mean, which is the acceptance length."
    return Picture(figure, "kept", "Tokens kept per step", alt, caption, share.reset_index())


def family(number: int) -> tuple[str, str]:
    """Colour and marker of a line; 36 that differ in one of the two."""
    shift = number // len(FAMILIES)
    return FAMILIES[number % len(FAMILIES)][0], FAMILIES[(number + shift) % len(FAMILIES)][1]


def whiskers(table: pd.DataFrame) -> np.ndarray:
    """Distances from the estimate to its limits, [2, methods]; an unbounded limit draws nothing."""
    reach = np.stack([table.speedup - table.low, table.high - table.speedup]).astype(float)
    return np.where(np.isfinite(reach), reach.clip(0), 0)


def _pitch(names: list[str]) -> float:
    """Inches from row to row, so that the longest name has room."""
    return 0.06 + 0.15 * max(2, 1 + max(name.count("\n") for name in names))


def _name_rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.4)


def _values(axes: Axes, texts: list[str]) -> None:
    """Values in a column of their own at the right edge, where no whisker runs through them."""
    for row, text in enumerate(texts):
        axes.annotate(text, (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL, color=INK)


def _whole_numbers(panel: Axes) -> None:
    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 4, 5, 10], min_n_ticks=1))
    panel.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))


def doubling(axes: Axes) -> None:
    """An x axis on which every doubling is as long as the next."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(2, numticks=12))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def listed(values: pd.Series) -> str:
    """Values by name, as a sentence."""
    return "; ".join(f"{method} {value}" for method, value in values.items()) + "."
