"""Tables on terminals of every width."""

import io

import pandas as pd
import pytest
from rich.console import Console

from bench.layout import NOTHING, Table
from bench.terminal import show

HEADS = ["Method", "#", "Speedup", "95 %", "Accepted", "Rows", "Tokens/s", "Verdict", "Quality (%)", "Notes"]
LONG = "draft_model:draft=smollm2-135m:k=2:verify=reject"
ROWS = [[LONG, "1", "1.25", "[0.96, 1.56]", "2.86", "3.0", "1483", "identical", NOTHING, "no difference, few"]]


def printed(width: int, rows=ROWS) -> list[str]:
    to = Console(width=width, file=io.StringIO())
    show(Table("main", "Lossless methods", "", HEADS, rows, pd.DataFrame()), to)
    return to.file.getvalue().splitlines()


def heads(lines: list[str]) -> set[str]:
    return {head for head in HEADS if any(f" {head} " in f" {line} " for line in lines[:4])}


def test_a_wide_terminal_shows_all():
    lines = printed(200)
    assert heads(lines) == set(HEADS)
    assert any(LONG in line for line in lines)


@pytest.mark.parametrize(("width", "gone"), [(135, {"Quality (%)"}), (120, {"Quality (%)", "#", "Rows", "Tokens/s"})])
def test_a_narrower_one_leaves_out_what_says_least_and_keeps_names_whole(width, gone):
    lines = printed(width)
    assert heads(lines) == set(HEADS) - gone
    assert any(LONG in line for line in lines)
    assert max(map(len, lines)) <= width


def test_eighty_characters_break_names_at_their_colons():
    lines = printed(80)
    assert max(map(len, lines)) <= 80
    assert {"draft_model:", "draft=smollm2-135m:", "k=2:verify=reject"} <= {line.split("  ")[0] for line in lines}
    assert any("[0.96, 1.56]" in line and "identical" in line for line in lines)


@pytest.mark.parametrize("width", [20, 40, 60])
def test_no_number_is_ever_cut_off(width):
    """Half a number is another number."""
    more = ["m", "2", "1.20", "[1.01, 1.44]", "2.00", "4.0", "1400", "numerical ties", NOTHING, ""]
    lines = printed(width, [*ROWS, more])
    text = " ".join(" ".join(lines).split())
    for cell in ("1.25", "[0.96, 1.56]", "2.86", "identical", "[1.01, 1.44]", "numerical ties"):
        assert cell in text


def test_quality_that_was_measured_stays():
    (row,) = ROWS
    assert "Quality (%)" in heads(printed(120, [[*row[:8], "51.0", row[9]]]))
