"""`python -m bench list`: everything that `run` can be asked for by name."""

import argparse
import sys
from collections.abc import Iterator

from rich.markup import escape
from rich.table import Table

from bench import drafters, zoo
from bench.drafters import Card
from bench.layout import in_words
from bench.methods import LESSONS, METHODS, REFERENCES, options, shown
from bench.suite import ABOUT
from bench.terminal import console


def arguments(parser: argparse.ArgumentParser) -> None:
    """No flags."""


def command(args: argparse.Namespace) -> int:
    """Print models, methods with their options, drafters, suites."""
    out = console()
    out.print(table("models (--target)", zoo.names()))
    known = {**METHODS, **REFERENCES}
    out.print(table("methods (--methods a,b:key=value:key=value)", {name: about(name, known[name]) for name in known}))
    if drafted := dict(shipped()):
        out.print(table("drafters that come with this package", drafted))
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


def shipped() -> Iterator[tuple[str, str]]:
    """Every trained drafter by its target and method, and what its card says."""
    for target in zoo.PACKAGED:
        for method in LESSONS:
            if path := drafters.shipped(method, target):
                card, _ = drafters.read(path, weights=False)
                yield f"{target} {method}", f"{described(card)}, {path.stat().st_size / 2**20:.1f} MiB"


def described(card: Card) -> str:
    """A card in a line."""
    law = in_words(card.law.temperature, card.law.top_k, card.law.top_p)
    greedy = card.notes.get("stored", {}).get("greedy")
    also = f", {greedy:.2f} greedy" if greedy and card.law.temperature else ""
    cost = f"{card.steps} steps, {card.minutes:.0f} min"
    return f"{card.stored:.2f} tokens per step on held-out text ({law}){also}; {cost}"
