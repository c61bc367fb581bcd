"""`python -m bench report RUN`: tables as Markdown, LaTeX and CSV, figures as PNG, and one HTML page, from records.

The same of `rows`, `learning` and `profile`, from what they keep. The same records give the same bytes; the only dates
are those that the run recorded. Nothing here imports torch.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from bench import curves, destination, learning, profiles
from bench.contents import Run, load
from bench.pages import html_page, latex_page, markdown_page
from bench.sections import Report, compose


@dataclass(frozen=True)
class Paths:
    """Files that were written."""

    markdown: Path
    latex: Path
    html: Path
    tables: list[Path]
    figures: list[Path]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `report`."""
    parser.add_argument("run", type=Path, metavar="RUN",
                        help="directory of a run, of `rows`, of `learning` or of `profile`")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: into RUN)")


def command(args: argparse.Namespace) -> int:
    """0 when all is written. BenchError for a missing or damaged run, or a place that cannot be written."""
    destination.check(args.out or args.run)
    paths = write(args.run, args.out)
    print(f"wrote {paths.html}, {paths.markdown.name}, {paths.latex.name}, "
          f"{len(paths.tables)} tables and {len(paths.figures)} figures")  # fmt: skip
    return 0


def markdown(run: Run) -> str:
    """The report of a run as Markdown."""
    return markdown_page(compose(run))


def write(directory: str | Path, out: str | Path | None = None) -> Paths:
    """Write the report of a run directory, of row-cost curves, of trainings or of profiles, into it or into `out`.

    report.md, report.tex, report.html, tables/*.csv, figures/*.png. Raises BenchError as `command` does.
    """
    for other in (curves, learning, profiles):
        if (Path(directory) / other.FILE).exists():
            return publish(other.compose(other.load(directory)), Path(out or directory), other.NAME)
    return publish(compose(load(directory)), Path(out or directory))


def publish(report: Report, out: Path, name: str = "report") -> Paths:
    """Write any report: NAME.md, NAME.tex, NAME.html, tables/*.csv, figures/*.png.

    BenchError for a place that cannot be written.
    """
    with destination.writing(out):
        return _write(report, out, name)


def _write(report: Report, out: Path, name: str) -> Paths:
    tables = [table for section in report.sections for table in section.tables]
    pictures = [picture for section in report.sections for picture in section.pictures]
    paths = Paths(
        out / f"{name}.md",
        out / f"{name}.tex",
        out / f"{name}.html",
        [out / "tables" / f"{table.name}.csv" for table in tables],
        [out / "figures" / f"{picture.name}.png" for picture in pictures],
    )
    for folder in ("tables", "figures"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    pages = {paths.markdown: markdown_page, paths.latex: latex_page, paths.html: html_page}
    for path, page in pages.items():
        path.write_text(page(report), encoding="utf-8")
    for path, table in zip(paths.tables, tables, strict=True):
        path.write_text(table.csv, encoding="utf-8")
    for path, picture in zip(paths.figures, pictures, strict=True):
        path.write_bytes(picture.png)
    return paths
