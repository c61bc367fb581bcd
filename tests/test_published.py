"""Every number of README.md and results/README.md stands in a table that was made from records, digit by digit.

A row of a leaderboard (a table with the columns Method and Run) is held against its method's row in the tables of its
run, column by column. A row of another table must agree with one row of a table in a directory that its section links
to. A number in a sentence must be a cell of a table checked so, or belong to one of the phrases that are no results.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from bench import batches, curves, learning, profiles, project
from bench.contents import load
from bench.pages import latex_page, markdown_page
from bench.sections import Report, compose
from bench.suite import SUITES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "README.md"
DOCUMENTS = (ROOT / "README.md", RESULTS)
NUMBER = re.compile(r"(?<![\w.,/-])\d+(?:\.\d+)?(?!\w|[.,/-]\d)")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
LAW = re.compile(r"T=[\d.]+(?:, top-[kp] [\d.]+)*|greedy")
COLUMNS = {  # head of a leaderboard -> columns of the run's tables, and what they are multiplied with
    "Speedup": (["speedup"], 1), "95 %": (["low", "high"], 1), "Accepted": (["accepted"], 1),
    "Rows": (["rows_per_step"], 1), "Tokens/s": (["tokens_per_s"], 1), "Quality (%)": (["quality"], 100),
}  # fmt: skip
STANDARD = SUITES["standard"]
KEPT = [(kind, path.parent) for kind in (curves, learning, profiles)
        for path in sorted(ROOT.glob(f"results/runs/*/{kind.FILE}"))]  # fmt: skip
NO_RESULTS = (  # what a sentence may say without a table
    "Python 3.11 or newer", "Qwen2 and 2.5", "95 %", "excludes 1",
    f"{STANDARD.limit} questions", f"{STANDARD.limit} bundled questions", f"{STANDARD.max_new_tokens} new tokens",
    "480 questions", "at most 256 new tokens", "at most 128 new tokens",
)  # fmt: skip


@dataclass
class Section:
    """What stands under one heading: tables as rows of cells, heads first; the rest as one text."""

    folder: Path
    tables: list[list[list[str]]] = field(default_factory=list)
    text: str = ""

    @property
    def linked(self) -> list[Path]:
        """Directories that it links to and that hold tables."""
        cells = " ".join(cell for table in self.tables for row in table for cell in row)
        places = [self.folder / target for _, target in LINK.findall(self.text + cells) if ":" not in target]
        return [folder for place in places if frames(folder := place if place.is_dir() else place.parent)]


def sections(text: str, folder: Path) -> list[Section]:
    """A Markdown document without its code."""
    found, inside = [Section(folder)], False
    for line in re.sub(r"```.*?```|^(?: {4}[^\n]*\n)+", "", text, flags=re.S | re.M).split("\n"):
        if line.startswith("#"):
            found.append(Section(folder))
        if line.startswith("|"):
            if not inside:
                found[-1].tables.append([])
            cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
            if not set(line) <= set("|-: "):
                found[-1].tables[-1].append(cells)
        else:
            found[-1].text += re.sub(r"`[^`]*`", "", line) + "\n"
        inside = line.startswith("|")
    return found


@cache
def frames(directory: Path) -> list[pd.DataFrame]:
    """The tables of a directory, as they are on disk."""
    paths = sorted([*directory.glob("*.csv"), *directory.glob("tables/*.csv")])
    return [pd.read_csv(path, dtype=str, keep_default_na=False) for path in paths]


@cache
def facts(directory: Path, method: str) -> dict[str, str]:
    """What the tables of a run say about a method in a row of its own."""
    found: dict[str, str] = {}
    for name in ("verdicts", "references", "lossy", "main"):
        path = directory / "tables" / f"{name}.csv"
        if path.exists():
            rows = pd.read_csv(path, dtype=str, keep_default_na=False).set_index("method")
            found |= rows.loc[method].to_dict() if method in rows.index else {}
    return found


@cache
def law(directory: Path) -> str:
    """The law of a run, as documents write it."""
    settings = json.loads((directory / "provenance.json").read_text())["settings"]
    if not settings["temperature"]:
        return "greedy"
    cuts = [f"top-k {settings['top_k']}"] * bool(settings["top_k"])
    cuts += [f"top-p {settings['top_p']:g}"] * (settings["top_p"] < 1)
    return ", ".join([f"T={settings['temperature']:g}", *cuts])


def is_shown(printed: str, value: str, factor: float = 1) -> bool:
    """Whether a number on disk is rounded to what is printed."""
    try:
        return f"{factor * float(value):.{len(printed.partition('.')[2])}f}" == printed
    except ValueError:
        return False


def complaints(documents: dict[Path, str]) -> list[str]:
    """What the tables do not bear out."""
    found = {path: sections(text, path.parent) for path, text in documents.items()}
    wrong = [said for path in found for part in found[path] for table in part.tables for said in of_table(table, part)]
    cells = {number for part in found[RESULTS] for table in part.tables for row in table[1:] for cell in row
             for number in NUMBER.findall(LINK.sub("", cell))}  # fmt: skip
    laws = {law(folder) for part in found[RESULTS] for folder in part.linked if (folder / "verdicts.json").exists()}
    for path, parts in found.items():
        for part in parts:
            wrong += [f"{path.name}: {said}" for said in of_sentences(part.text, cells, laws)]
    return wrong


def of_table(table: list[list[str]], part: Section) -> Iterator[str]:
    """What is wrong in a table. In a leaderboard a cell without a link means the run of the row above."""
    heads, *rows = table
    run = part.folder
    for cells in rows:
        row = dict(zip(heads, cells, strict=True))
        if {"Method", "Run"} <= set(heads):
            links = LINK.findall(row["Run"])
            run = (part.folder / links[0][1]).parent if links else run
            yield from of_method(row, run)
        elif not is_borne_out(tuple(cells), tuple(part.linked)):
            yield f"no table bears out the row {' | '.join(cells)}"


def of_method(row: dict[str, str], run: Path) -> Iterator[str]:
    """What is wrong in a row of a leaderboard."""
    known = facts(run, row["Method"])
    if not known:
        yield f"{run.name} has no tables of {row['Method']}"
        return
    texts = {"Method": row["Method"], "Run": row["Run"], "Law": law(run), "Verdict": known["verdict"]}
    for head, cell in row.items():
        numbers = NUMBER.findall(cell)
        if head in ("Date", "Commit"):
            right = cell in run.name
        elif head in texts:
            right = cell == texts[head]
        elif head not in COLUMNS:
            right = not numbers
        else:
            names, factor = COLUMNS[head]
            values = [known.get(name, "") for name in names]
            right = not numbers or (len(numbers) == len(values) and all(map(is_shown, numbers, values, [factor] * 2)))
        if not right:
            yield f"{run.name}, {row['Method']}, {head}: {cell}"


def plain(text: str) -> str:
    """Text without addresses, and without phrases that are no results."""
    text = LINK.sub(r"\1", " ".join(text.split()))
    for phrase in NO_RESULTS:
        text = text.replace(phrase, "")
    return text


@cache
def is_borne_out(cells: tuple[str, ...], folders: tuple[Path, ...]) -> bool:
    """Whether rows of tables that hold this one's first cell hold its numbers as well."""
    key, *others = shown = [plain(cell) for cell in cells]
    values = [value for folder in folders for frame in frames(folder) for row in frame.to_numpy().tolist()
              if key in row for value in row]  # fmt: skip
    claimed = [number for cell in (others if values else shown) for number in NUMBER.findall(cell)]
    return all(any(is_shown(number, value) for value in values) for number in claimed)


def of_sentences(text: str, cells: set[str], laws: set[str]) -> Iterator[str]:
    """Numbers in sentences that no table holds, and laws that no run had."""
    text = plain(text)
    yield from (said for said in LAW.findall(text) if said not in laws)
    yield from (number for number in NUMBER.findall(LAW.sub("", text)) if number not in cells)


def current() -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in DOCUMENTS}


def test_every_number_is_in_a_table():
    assert complaints(current()) == []


def test_there_is_something_to_check():
    found = sections(RESULTS.read_text(encoding="utf-8"), RESULTS.parent)
    boards = [table for part in found for table in part.tables if {"Method", "Run"} <= set(table[0])]
    assert boards
    runs = [folder for part in found for folder in part.linked if (folder / "verdicts.json").exists()]
    assert runs
    assert all(facts(folder, "autoregressive") for folder in runs)
    assert {kind for kind, _ in KEPT} == {curves, learning, profiles}


def check_pages(report: Report, directory: Path, name: str) -> None:
    """Texts and tables, byte for byte: `python -m bench report` mends this. Figures depend on matplotlib too."""
    assert (directory / f"{name}.md").read_text(encoding="utf-8") == markdown_page(report)
    assert (directory / f"{name}.tex").read_text(encoding="utf-8") == latex_page(report)
    tables = [table for section in report.sections for table in section.tables]
    assert {path.name: path.read_text(encoding="utf-8") for path in (directory / "tables").iterdir()} == {
        f"{table.name}.csv": table.csv for table in tables}
    pictures = [picture.name for section in report.sections for picture in section.pictures]
    assert {path.stem for path in directory.glob("figures/*")} == set(pictures)


@pytest.mark.parametrize("run", sorted({path.parent for path in ROOT.glob("results/runs/*/records.jsonl*")}),
                         ids=lambda run: run.name)
def test_reports_are_what_the_records_say(run):
    check_pages(compose(load(run)), run, "report")


@pytest.mark.parametrize(("kind", "directory"), KEPT, ids=[directory.name for _, directory in KEPT])
def test_other_pages_are_what_is_kept_of_their_numbers(kind, directory):
    check_pages(kind.compose(kind.load(directory)), directory, kind.NAME)


def named(run: str) -> Path:
    """A published run by the end of its name."""
    [found] = ROOT.glob(f"results/runs/*-{run}")
    return found


def test_batches_are_what_their_runs_say():
    runs = [load(named(f"batch{size}-h100-8b13927")) for size in (1, 4, 16, 64)]
    check_pages(batches.compose(runs), named("batches-h100-8b13927"), batches.NAME)


def test_the_projection_is_what_its_run_and_curves_say():
    rows = ("smollm2-135m-h200-cfa09d4", "smollm2-1.7b-h200-1d52db3", "llama-7b-h200-cfa09d4", "llama-8b-h200-1d52db3")
    found = [curve for name in rows for curve in curves.load(named(f"rows-{name}")).curves]
    page = project.compose(load(named("paper-sampled-h200-cfa09d4")), found)
    check_pages(page, named("projection-h200-cfa09d4"), project.NAME)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.parent.name)
def test_a_changed_digit_is_seen(path):
    """Every last digit of every number outside code, one after the other."""
    documents = current()
    text = documents[path]
    code = re.compile(r"```.*?```|^(?: {4}[^\n]*\n)+|`[^`\n]*`|\]\([^)]*\)|^\|[ -:|]*\|$", re.S | re.M)
    hidden = {place for match in code.finditer(text) for place in range(*match.span())}
    places = [match.end() - 1 for match in NUMBER.finditer(text) if match.end() - 1 not in hidden]
    assert places
    for place in places:
        changed = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
        assert complaints(documents | {path: changed}), text[place - 40 : place + 1]
