"""The end of a run: verdicts, the report, and the main table on the terminal."""

import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from bench import record, report, stats, tables, verdict
from bench.layout import Table
from bench.null import Prompts
from bench.tables import Found
from bench.terminal import show
from bench.zoo import Target


def conclude(directory: Path, target: Target, prompts: Prompts, out: Console) -> int:
    """Judge the texts, write the report, print the table. 1 if a verdict is BROKEN, else 0."""
    verdicts = verdict.write(directory, target, prompts)
    paths = report.write(directory)
    for table in shown(directory, {label: asdict(found) for label, found in verdicts.items()}):
        show(table, out)
    out.print(f"{paths.markdown}, {paths.html.name}", soft_wrap=True)
    broken = {label: found.detail for label, found in verdicts.items() if found.verdict == "BROKEN"}
    for label, detail in broken.items():
        print(f"BROKEN: {label}: {detail}", file=sys.stderr)
    return 1 if broken else 0


def shown(directory: Path, found: Found) -> Iterator[Table]:
    """What the terminal shows: the main table, and those of lossy methods and references if there are any."""
    df = record.frame(record.read(directory))
    yield tables.results("main", "Lossless methods", stats.main_table(df, found), {})[0]
    kinds = set(stats.kinds(df).values())
    if "lossy" in kinds:
        yield tables.results("lossy", "Lossy methods", stats.lossy_table(df, found), {})[0]
    if "reference" in kinds:
        yield tables.references(stats.reference_table(df, found))
