"""What the small world showed, as a page and as a figure."""

from collections.abc import Iterator

import pandas as pd

from bench.canvas import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, Picture, canvas, legend
from ptp.examination import CALLS, PARAMETERS, PERPLEXITY, SECONDS, TEXTS
from ptp.practice import Course

COLOURS, MARKERS = (BLUE, GREEN, ORANGE, PURPLE), "os^v"


def lines(scores: pd.DataFrame, course: Course, seconds: float) -> Iterator[str]:
    """The page in Markdown; `seconds` is what all of it took."""
    city, cpu = course.city, scores[scores.quantity == SECONDS].value.sum()
    yield "# A world where Parallel Token Prediction must win\n"
    yield (f"Trips through a city of {city.side} × {city.side} places: the next stop is near or popular, by chance "
           f"({city.entropy():.2f} bits per stop). Every student made {course.steps} steps of training with seed "
           f"{course.seed}; all of it took {seconds / 60:.1f} minutes, training {cpu / 60:.1f} minutes of CPU time.\n")
    yield "## Tokens per call\n"
    yield (f"1 + the leading correct drafts among N − 1, on {TEXTS} texts of the teacher, ± standard error. "
           "A perfect student has N. C-PTP, with a teacher or without, has a second head while it learns.\n")
    yield from calls_table(scores)
    yield "\n## Perplexity\n"
    yield f"Of {course.slots} stops in each of {TEXTS} held-out trips, ± standard error (the trips are the same).\n"
    yield from perplexity_table(scores)
    yield "\n![Tokens per call by horizon](world.png)"


def calls_table(scores: pd.DataFrame) -> Iterator[str]:
    """One row per way of drafting, one column per horizon; the last row compares with the control."""
    calls = scores[scores.quantity == CALLS]
    horizons, names = sorted(calls.horizon.unique()), list(calls.model.unique())
    yield "| model | parameters | CPU seconds | " + " | ".join(f"N = {n}" for n in horizons) + " |"
    yield "|---|" + "---:|" * (2 + len(horizons))
    value = calls.pivot(index="model", columns="horizon", values="value")
    error = calls.pivot(index="model", columns="horizon", values="standard_error")
    for name in names:
        cells = [f"{value[n][name]:.2f} ± {error[n][name]:.2f}" for n in horizons]
        yield f"| {name} | {cost(scores, name)} | " + " | ".join(cells) + " |"
    control = value[value.index.str.startswith("independent")].max()
    for name in [name for name in names if not name.startswith("independent")]:
        ratios = [f"{value[n][name] / control[n]:.2f}" for n in horizons]
        yield f"| {name} / best independent | | | " + " | ".join(ratios) + " |"


def perplexity_table(scores: pd.DataFrame) -> Iterator[str]:
    """One row per model; the first is the law itself, the second the autoregressive model."""
    found = scores[scores.quantity == PERPLEXITY]
    yield "| model | parameters | CPU seconds | perplexity | over autoregressive |"
    yield "|---|---:|---:|---:|---:|"
    plain = found.value.iloc[1]
    for row in found.itertuples():
        cells = f"{row.value:.3f} ± {row.standard_error:.3f} | {row.value / plain - 1:+.2%}"
        yield f"| {row.model} | {cost(scores, row.model)} | {cells} |"


def cost(scores: pd.DataFrame, name: str) -> str:
    """Two cells: parameters and CPU seconds of a training; the way of drawing drafts costs nothing."""
    known = scores[scores.model == name.split(",")[0]].set_index("quantity").value
    return f"{known[PARAMETERS]:,.0f} | {known[SECONDS]:.0f}" if PARAMETERS in known else " | "


def picture(scores: pd.DataFrame) -> Picture:
    """Tokens per call by horizon, beside what a perfect student has."""
    calls = scores[scores.quantity == CALLS]
    figure, axes = canvas(3.4)
    horizons = sorted(calls.horizon.unique())
    axes.plot(horizons, horizons, color=FAINT, linestyle=":", label="perfect")
    for (name, line), colour, marker in zip(calls.groupby("model", sort=False), COLOURS, MARKERS, strict=False):
        axes.errorbar(line.horizon, line.value, 1.96 * line.standard_error, color=colour, marker=marker, markersize=4,
                      label=name, capsize=2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(horizons, [str(n) for n in horizons])
    axes.set_xlabel("horizon N: 1 + drafted tokens", color=INK)
    axes.set_ylabel("tokens per call", color=INK)
    legend(figure, axes)
    best = calls[calls.horizon == max(horizons)].set_index("model").value
    alt = "At the longest horizon: " + ", ".join(f"{name} {value:.1f}" for name, value in best.items()) + "."
    return Picture(figure, "world", "Tokens per call in a small world", alt, "Whiskers: 95 % intervals.", calls)
