"""The end of a run: verdicts, the report, and the main table on the terminal."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from bench import record, stats, tables
from bench.layout import Table
from bench.tables import Found
from bench.terminal import show
from bench.zoo import Target


def conclude(directory: Path, target: Target, console: Console) -> int:
    """Judge the texts, write the report, print the table. 1 if a verdict is BROKEN, else 0."""
    found: Found = {}
    for table in shown(directory, found):
        show(table, console)
    console.print(f"{directory / 'report.md'}", soft_wrap=True)
    return 0


def shown(directory: Path, found: Found) -> Iterator[Table]:
    """What the terminal shows: the main table, and those of lossy methods and references if there are any."""
    df = record.frame(record.read(directory))
    yield tables.results("main", "Lossless methods", stats.main_table(df, found), {})[0]
    kinds = set(stats.kinds(df).values())
    if "lossy" in kinds:
        yield tables.results("lossy", "Lossy methods", stats.lossy_table(df, found), {})[0]
    if "reference" in kinds:
        yield tables.references(stats.reference_table(df, found))
