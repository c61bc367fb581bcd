"""Pages of a report: Markdown, LaTeX and HTML from the templates, with names escaped as each format needs it."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.layout import Table, plain
from bench.sections import Report

TEMPLATES = Path(__file__).with_name("templates")
LONG = 40  # characters from which a cell of LaTeX text is broken into lines
LATEX = {
    **{char: "\\" + char for char in "&%$#_{}"},
    **{char: "{" + char + "}" for char in "[]*"},  # behind a line's end they would be arguments
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "≈": r"$\approx$",
    "×": r"\texttimes{}",
    "·": r"\textperiodcentered{}",
    "–": "--",
    "…": r"\ldots{}",
}
LATEX_MARKS = {  # braces belong to LaTeX
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}


def markdown_page(report: Report) -> str:
    """The report as GitHub-flavoured Markdown, with links to its figures."""
    return _environment().get_template("report.md").render(report=report)


def latex_page(report: Report) -> str:
    """The tables as a LaTeX document (booktabs)."""
    return _environment(**LATEX_MARKS).get_template("report.tex").render(report=report)


def html_page(report: Report) -> str:
    """The report as one page that needs nothing else."""
    return _environment(autoescape=True).get_template("report.html").render(report=report)


def _environment(**options) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, **options,
    )  # fmt: skip
    environment.filters |= {
        "md": markdown_text, "grid": grid, "tex": latex_text, "columns": latex_columns, "breakable": breakable,
        "plain": plain, "svg": Markup,
    }  # fmt: skip
    return environment


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is, in a paragraph and in a table's cell."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*|~]|(?<!\w)_|_(?!\w)|(?<=\])[(\[:]", r"\\\g<0>", text)


def grid(table: Table) -> str:
    """A Markdown table with its columns aligned, so that it can be read as it is."""
    rows = [[markdown_text(cell) for cell in row] for row in (table.heads, *table.rows)]
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    rule = ["-" * (width - 1) + ":" if right else "-" * width
            for width, right in zip(widths, table.numeric, strict=True)]  # fmt: skip
    padded = [
        [cell.rjust(width) if right else cell.ljust(width)
         for cell, width, right in zip(row, widths, table.numeric, strict=True)]
        for row in rows
    ]  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in (padded[0], rule, *padded[1:]))


def latex_text(text: str) -> str:
    """Text that LaTeX sets as it is; characters that its fonts lack become their code points."""
    known = (LATEX.get(char, char) for char in " ".join(text.split()))
    return "".join(part if len(part) > 1 or ord(part) < 256 else f"{{[}}U+{ord(part):04X}{{]}}" for part in known)


def latex_columns(table: Table) -> str:
    """The column letters of a tabular."""
    longest = [max(map(len, column), default=0) for column in zip(*table.rows, strict=True)]
    return "".join(
        "r" if right else "L" if width > LONG else "l"
        for width, right in zip(longest, table.numeric, strict=True)
    )


def breakable(text: str) -> Markup:
    """HTML text that may break behind its colons, commas and underscores, as long labels must on a telephone."""
    return Markup("<wbr>").join(escape(part) for part in re.findall(r"[^:,_]+[:,_]*|[:,_]+", text))

