"""What drafters accepted on held-out text while they were trained: the pages made of what `learned` keeps of cards."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from bench.canvas import FAINT, Picture, canvas, legend
from bench.errors import BenchError
from bench.figures import family, listed
from bench.layout import Table, build, fixed, of, significant
from bench.sections import Report, Section

NAME = "learning"
FILE = f"{NAME}.json"
NOTE = (
    "Held-out answers of the target itself, by teacher forcing. In the end, as stored: after quantisation, on all of "
    "the held-out text; the curve is of a small part of it. Greedy: at temperature 0."
)


def load(directory: str | Path) -> pd.DataFrame:
    """One row per drafter and look at it: what its card says, with `step`, `second`, and what it accepted then.

    BenchError for a file that is damaged.
    """
    try:
        cards = json.loads((Path(directory) / FILE).read_text(encoding="utf-8"))
        rows = [{"drafter": name, "step": step, "second": second, "sampled": seen.get("sampled"),
                 "greedy": seen.get("greedy"), "in_the_end": card["stored"].get("sampled"),
                 "in_the_end_greedy": card["stored"].get("greedy")}
                | {key: card[key] for key in ("asked", "seed", "target", "law", "steps", "minutes")}
                for name, card in cards.items() for step, second, seen in card["curve"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{Path(directory) / FILE} is damaged ({type(error).__name__}): make it again") from error
    return pd.DataFrame(rows)


def compose(found: pd.DataFrame) -> Report:
    """The curves as a report."""
    ends = found.drop_duplicates("drafter", keep="last")
    facts = " · ".join([ends.target.iloc[0], ends.law.iloc[0]])
    section = Section(NAME, "Training", [], [table(ends)], [picture(found)])
    return Report(f"What drafters learned: {ends.target.iloc[0]}", "", facts, [section])


def table(ends: pd.DataFrame) -> Table:
    """A line per drafter."""
    return build(NAME, "Accepted in the end", NOTE, ends, {
        "Drafter": of("drafter"),
        "Asked for": of("asked"),
        "Seed": of("seed"),
        "Steps": of("steps"),
        "Minutes": of("minutes", significant),
        "Tokens/step": of("in_the_end", fixed),
        "Greedy": of("in_the_end_greedy", fixed),
    })  # fmt: skip


def picture(found: pd.DataFrame) -> Picture:
    """Tokens per step by minutes, a line per drafter."""
    figure, axes = canvas(3.6)
    for number, (name, part) in enumerate(found.groupby("drafter", sort=False)):
        colour, marker = family(number)
        axes.plot(part.second / 60, part.sampled, marker + "-", ms=3.5, lw=1, color=colour, label=name)
    axes.set_xlabel("minutes of training")
    axes.set_ylabel("tokens per step, held-out text")
    axes.grid(color=FAINT, alpha=0.3, lw=0.6)
    legend(figure, axes)
    last = found.drop_duplicates("drafter", keep="last").set_index("drafter").sampled
    alt = "Tokens per step on held-out text at the last look: " + listed(last.map("{:.2f}".format))
    caption = "Looked at every half minute on a small part of the held-out text, under the law of the training."
    return Picture(figure, NAME, "Acceptance by training time", alt, caption, found)
