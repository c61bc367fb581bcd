"""`python -m bench list`: everything that `run` can be asked for by name."""

import argparse
import sys

from rich.markup import escape
from rich.table import Table

from bench import zoo
from bench.methods import METHODS, REFERENCES, options, shown
from bench.suite import ABOUT
from bench.terminal import console


def arguments(parser: argparse.ArgumentParser) -> None:
    """No flags."""


def command(args: argparse.Namespace) -> int:
    """Print models, methods with their options, suites."""
    out = console()
    out.print(table("models (--target)", zoo.names()))
    known = {**METHODS, **REFERENCES}
    out.print(table("methods (--methods a,b:key=value:key=value)", {name: about(name, known[name]) for name in known}))
    out.print(table("suites (--suite)", ABOUT))
    return 0


def table(title: str, rows: dict[str, str]) -> Table:
    """Names on the left, what they mean on the right."""
    grid = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, text in rows.items():
        grid.add_row(escape(name), escape(text))
    return grid


def about(name: str, kind: type) -> str:
    """The first sentence of a method's module, and its options with their defaults."""
    sentence = (sys.modules[kind.__module__].__doc__ or "").split("\n")[0]
    given = ":".join(f"{key}={shown(value)}" for key, value in options(name).items())
    return f"{sentence} [{given}]" if given else sentence
