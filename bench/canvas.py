"""What all figures share: size, colours, panels, and the way from a drawing to PNG and to SVG within a page.

Colours are Okabe and Ito's ("Color Universal Design", 2008), which stay apart for colour-blind readers; markers and
hatches keep things apart in grey. Bytes depend on the numbers alone: no dates, no random ids.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from bench.layout import NAME, broken

INK, PAPER, FAINT = "#1b1b1b", "#fefefe", "#8c8c8c"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
WIDTH = 4.8  # inches: narrow, so that text stays legible on a telephone
SMALL = 8.5  # points
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "hatch.linewidth": 0.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "ptp-bench",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """A figure with the `name` of its file, its title, a sentence in its place (`alt`), how to read it (`caption`) and
    its numbers. `mark` stands under the title. Its bytes are made when they are asked for."""

    figure: Figure
    name: str
    title: str
    alt: str
    caption: str
    numbers: pd.DataFrame
    mark: str = ""

    @cached_property
    def png(self) -> bytes:
        """For print: on white, in 256 colours, which takes a third of the bytes of all there could be."""
        file, small = io.BytesIO(), io.BytesIO()
        with mpl.rc_context(STYLE):
            self._titled.savefig(file, format="png", dpi=220, facecolor="white")
        Image.open(file).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
        return small.getvalue()

    @cached_property
    def svg(self) -> str:
        """For a page: transparent, its ink in the page's colours, to be set into the HTML as it is."""
        file = io.StringIO()
        blank = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with mpl.rc_context(STYLE):
            self._titled.savefig(file, format="svg", transparent=True, metadata=blank)
        return _inline(file.getvalue(), self.name)

    @cached_property
    def _titled(self) -> Figure:
        """The figure, laid out once for both kinds of file."""
        title = f"{self.title}\n({self.mark})" if self.mark else self.title
        self.figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        return self.figure


def canvas(height: float) -> tuple[Figure, Axes]:
    """One set of axes, `height` inches tall in all."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        return figure, figure.subplots()


def panels(count: int, x: str, y: str) -> tuple[Figure, list[Axes]]:
    """So many small panels, two in a row, on one scale, with the names of their axes at the edges."""
    rows = -(-count // 2)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.0 + 1.45 * rows), layout="constrained")
        grid = figure.subplots(rows, min(count, 2), sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    for empty in axes[count:]:
        empty.set_visible(False)
    for panel in axes[:count]:
        panel.tick_params(labelbottom=True)
    for last in axes[2 * rows - 2 : count]:
        last.set_xlabel(x)
    figure.supylabel(y, fontsize=9, color=INK)
    return figure, axes[:count]


def legend(figure: Figure, axes: Axes, columns: int = 3) -> None:
    """A legend under everything else."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=SMALL,
                  labelcolor=INK)


def wrapped(label: str, width: int = NAME) -> str:
    """A method's label in lines that a figure has room for."""
    return broken(label, width).replace("$", r"\$")  # matplotlib reads $ as mathematics


def _inline(svg: str, name: str) -> str:
    """An SVG fit for a page: no prologue, no addresses, ids of its own, ink and paper in the page's colours."""
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg).replace("xlink:href", "href")
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace(INK, "currentColor").replace(PAPER, "var(--paper)").replace(BLUE, "var(--blue)")
