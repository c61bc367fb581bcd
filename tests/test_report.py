"""Reports: the numbers are those of bench.stats, the bytes depend on the records alone, no name can break a page."""

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
import synthetic
from markdown_it import MarkdownIt
from synthetic import PLANS, Plan, Shape

from bench import report, stats
from bench.__main__ import main
from bench.contents import COST_ONLY, load
from bench.errors import BenchError
from bench.pages import html_page, latex_page, latex_text, markdown_page
from bench.record import BASELINE, FILE, TWIN, frame
from bench.sections import compose, find

SMALL = Shape(questions=13, repeats=1, tokens=24)
ODD = "odd|<b>x</b>&\"*_`$a$ \\n{}%#~^[x](y)'|:k=1,é≠"
VOID = {"meta", "br", "wbr"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    synthetic.write_run(path, shape=Shape(questions=26, repeats=1, tokens=32))
    return path


@pytest.fixture(scope="module")
def written(directory, tmp_path_factory) -> report.Paths:
    return report.write(directory, tmp_path_factory.mktemp("report"))


def markdown_tables(text: str) -> dict[str, list[list[str]]]:
    """Cells of every table by the heading above it, as a Markdown parser sees them; heads first."""
    found: dict[str, list[list[str]]] = {}
    title, tokens = "", MarkdownIt().enable("table").parse(text)
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            title = shown(token)
        elif before.type == "tr_open":
            found.setdefault(title, []).append([])
        if before.type in {"th_open", "td_open"}:
            found[title][-1].append(shown(token))
    return found


def shown(inline) -> str:
    return "".join(child.content for child in inline.children if child.type in {"text", "text_special"})


def page_of(directory: Path, plans=PLANS, shape=SMALL, **found) -> str:
    """The Markdown of a synthetic run with further files {name: object} in its directory."""
    synthetic.write_run(directory, plans, shape)
    for name, content in found.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return report.markdown(load(directory))


def test_main_table_holds_the_numbers_of_stats(directory, written):
    run = load(directory)
    expected = stats.main_table(run.records, run.verdicts)
    heads, *rows = markdown_tables(written.markdown.read_text())["Speedup"]
    assert [row[0] for row in rows] == list(expected.index)
    for row, (_, numbers) in zip(rows, expected.iterrows(), strict=True):
        cells = dict(zip(heads, row, strict=True))
        assert cells["Speedup"] == f"{numbers['speedup']:.2f}"
        assert cells["95 %"] == f"[{numbers['low']:.2f}, {numbers['high']:.2f}]"
        assert cells["Accepted"] == f"{numbers['accepted']:.2f}"
        assert cells["Rows"] == f"{numbers['rows_per_step']:.1f}"
        assert float(cells["Tokens/s"]) == pytest.approx(numbers["tokens_per_s"], rel=5e-3)
        assert cells["#"] == ("" if pd.isna(numbers["rank"]) else str(numbers["rank"]))
        assert cells["Verdict"] == numbers["verdict"]
        for note in (numbers["flags"], numbers["decision"] if numbers["decision"] == "no difference" else ""):
            assert note in cells["Notes"]


def test_task_table_holds_the_numbers_of_stats(directory, written):
    expected = stats.main_table(load(directory).records, {})
    columns = [*stats.TASK_NAMES, "speedup", "accepted"]
    _, *rows = markdown_tables(written.markdown.read_text())["Speedup, by task"]
    assert [row[1:] for row in rows] == [[f"{x:.2f}" for x in row] for row in expected[columns].to_numpy(float)]


def test_lossy_and_reference_methods_stay_out_of_the_main_table(written):
    found = markdown_tables(written.markdown.read_text())
    assert [row[0] for row in found["Speedup, lossy"][1:]] == ["medusa:typical"]
    assert [row[0] for row in found["Other implementations of the baseline"][1:]] == ["hf_eager"]
    assert not {"medusa:typical", "hf_eager"} & {row[0] for row in found["Speedup"]}
    assert not any("hf_eager" in row[0] for row in found["Pair by pair"])


def test_csv_files_hold_the_numbers_too(directory, written):
    expected = stats.main_table(load(directory).records, {})
    (path,) = [path for path in written.tables if path.name == "main.csv"]
    found = pd.read_csv(path, index_col="method")
    for name in ("speedup", "low", "high", "accepted", "tokens_per_s"):
        assert found[name].to_numpy() == pytest.approx(expected[name].to_numpy(float), rel=1e-5)


def test_figures_show_the_numbers_of_the_tables(directory):
    run = load(directory)
    pictures = {picture.name: picture for section in compose(run).sections for picture in section.pictures}
    assert set(pictures) == {"speedup", "acceptance", "phases", "budget", "kept"}
    both = find(run).both
    numbers = pictures["speedup"].numbers.set_index("method")
    assert numbers.speedup.to_dict() == both.speedup.drop([BASELINE, TWIN]).to_dict()
    steps = pictures["phases"].numbers.set_index("method").step_ms
    assert steps.to_dict() == stats.phase_table(run.records).step_ms.drop("hf_eager").to_dict()
    assert pictures["kept"].numbers.set_index("kept").sum().to_numpy() == pytest.approx(1)
    assert all(picture.alt.endswith(".") and picture.title for picture in pictures.values())


def test_same_records_give_the_same_bytes_in_another_process_without_torch(directory, written, tmp_path):
    code = "import sys; from bench.__main__ import main; sys.exit(main(sys.argv[1:]) or 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONHASHSEED": "7", "MPLBACKEND": "svg"}
    arguments = ["report", str(directory), "--out", str(tmp_path)]
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, timeout=240)
    first = written.markdown.parent
    names = sorted(path.relative_to(first) for path in first.rglob("*.*"))
    assert names == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.*"))
    assert len(names) == 3 + len(written.tables) + len(written.figures)
    for name in names:
        assert (first / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_compressed_records_give_the_same_report(directory, written, tmp_path):
    for name in ("provenance.json", "verdicts.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    (tmp_path / f"{FILE}.gz").write_bytes(gzip.compress((directory / FILE).read_bytes()))
    assert report.markdown(load(tmp_path)) == written.markdown.read_text()


class Page(HTMLParser):
    """Checks nesting, and collects ids, references, headings, texts of cells and addresses."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.cells: list[str] = []
        self.labels: list[str] = []
        self.count: dict[str, int] = {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.count[tag] = self.count.get(tag, 0) + 1
        self.ids += [values[name] for name in ("id",) if name in values]
        self.references += [values[name] for name in ("src", "href", "xlink:href", "action") if name in values]
        if values.get("role") in {"img", "region"}:
            self.labels.append(values["aria-label"])
        if tag in {"td", "th"}:
            self.cells.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open[-2:]):
            self.cells[-1] += data


def test_html_is_one_well_formed_page_that_fetches_nothing(written):
    text = written.html.read_text()
    page = Page(text)
    assert text.startswith("<!doctype html>")
    assert len(page.ids) == len(set(page.ids))
    targets = page.references + re.findall(r"url\(([^)]*)\)", text)
    assert targets
    assert {target.strip("'\"") for target in targets} <= {f"#{name}" for name in page.ids}
    assert not re.search(r"https?:|//[a-z]|@import|fetch\(", text)
    assert page.count["h1"] == 1
    assert page.count["figure"] == page.count["details"] == page.count["svg"] == len(written.figures)
    assert page.count["table"] == len(written.tables) + len(written.figures)
    assert all(page.labels)
    assert 'name="viewport"' in text


def test_figures_take_the_colour_of_the_page(directory):
    for section in compose(load(directory)).sections:
        for picture in section.pictures:
            texts = re.findall("<text[^>]*>", picture.svg)
            assert texts
            assert all("currentColor" in text for text in texts), picture.name


def test_html_shows_the_cells_of_the_markdown(written):
    cells = set(Page(written.html.read_text()).cells)
    for rows in markdown_tables(written.markdown.read_text()).values():
        assert {cell for row in rows for cell in row} <= cells


def test_odd_names_break_nothing(tmp_path):
    synthetic.write_run(tmp_path, (*PLANS[:3], Plan(ODD, accept=0.5, depth=2)), SMALL)
    composed = compose(load(tmp_path))
    assert ODD in [row[0] for row in markdown_tables(markdown_page(composed))["Speedup"]]
    html = html_page(composed)
    assert ODD in Page(html).cells
    assert "<b>" not in html
    latex = latex_page(composed)
    assert r"odd|<b>x</b>\&" in latex
    assert all(line.count("&") - line.count(r"\&") == line.count(" & ") for line in latex.splitlines())


def test_latex_escapes_every_special_character():
    assert latex_text("a_b & 5% $x {y} #1 ~^\\ [z]*") == (
        r"a\_b \& 5\% \$x \{y\} \#1 \textasciitilde{}\textasciicircum{}\textbackslash{} {[}z{]}{*}"
    )
    assert latex_text("é × –") == r"é \texttimes{} --"
    assert latex_text("漢") == "{[}U+6F22{]}"


def test_missing_files_are_told_not_guessed(tmp_path):
    synthetic.write_run(tmp_path, shape=SMALL)
    (tmp_path / "verdicts.json").unlink()
    (tmp_path / "provenance.json").unlink()
    page = report.markdown(load(tmp_path))
    found = markdown_tables(page)
    heads, *rows = found["Speedup"]
    assert {row[heads.index("Verdict")] for row in rows} == {"unchecked"}
    assert "nothing here has been checked" in page
    assert "Fastest:" not in page
    assert "Provenance" not in found


def test_made_up_weights_are_marked_everywhere(tmp_path):
    run = synthetic.records(shape=SMALL)
    made_up = [replace(record, settings=record.settings | {"target": "shape:llama-7b"}) for record in run]
    (tmp_path / FILE).write_text("".join(record.to_json() + "\n" for record in made_up))
    composed = compose(load(tmp_path))
    for page in (markdown_page(composed), latex_page(composed), html_page(composed)):
        assert page.count(COST_ONLY) > len(composed.sections)
    titles = [title for title in markdown_tables(markdown_page(composed)) if title != "Published speedups"]
    assert all(title.endswith(f" ({COST_ONLY})") for title in titles)
    pictures = [picture for section in composed.sections for picture in section.pictures]
    assert all(COST_ONLY in picture.svg for picture in pictures)


def test_flags_and_decisions_are_printed(tmp_path):
    plans = (*PLANS[:2], Plan("sham"), Plan("miracle", depth=4, cost=0.4), Plan("sound:k=2", accept=0.6, depth=2))
    page = page_of(tmp_path, plans)
    rows = {row[0]: row[-1] for row in markdown_tables(page)["Speedup"]}
    assert "no difference" in rows["sham"]
    assert "impossible" in rows["miracle"]
    assert all("few" in notes for notes in list(rows.values())[3:])
    assert "Fastest: sound:k=2" in page
    assert page.count("fewer than 20 prompts") == page.count("impossible: faster") == 1


def test_broken_methods_are_named_and_never_the_fastest(tmp_path):
    verdicts = {plan.label: {"verdict": "identical"} for plan in PLANS} | {"ptp:k=16": {"verdict": "BROKEN"}}
    page = page_of(tmp_path, verdicts=verdicts)
    assert "BROKEN: ptp:k=16." in page
    assert "Fastest: ptp:k=16" not in page


def test_no_speedup_of_a_broken_method_stands_without_the_word(tmp_path):
    verdicts = {plan.label: {"verdict": "identical"} for plan in PLANS} | {"ptp:k=16": {"verdict": "BROKEN"}}
    found = markdown_tables(page_of(tmp_path, verdicts=verdicts))
    assert "ptp:k=16 (BROKEN)" in [row[0] for row in found["Speedup, by task"]]
    ranked = [row[0] for row in found["Pair by pair"]]
    assert any("medusa" in label for label in ranked) and not any("ptp:k=16" in label for label in ranked)
    pictures = {picture.name: picture for section in compose(load(tmp_path)).sections for picture in section.pictures}
    assert all("(BROKEN)" in pictures[name].svg for name in ("speedup", "budget"))


def test_no_second_baseline_means_an_unknown_noise_floor(tmp_path):
    assert "the noise floor is unknown" in page_of(tmp_path, [plan for plan in PLANS if plan.label != TWIN])


def test_only_the_baseline_is_a_report_too(tmp_path):
    synthetic.write_run(tmp_path, PLANS[:1], SMALL)
    paths = report.write(tmp_path)
    assert [path.name for path in paths.figures] == ["phases.png"]
    assert all(path.exists() for path in (*paths.tables, *paths.figures, paths.html, paths.latex))


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "there are no records"), ('{"schema": 99}\n', "newer"), ('{"method": "a"}\n', "not a record")],
)
def test_bad_records_are_one_clear_line(tmp_path, capsys, content, message):
    (tmp_path / FILE).write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


def test_other_bad_input_is_one_clear_line(tmp_path, directory):
    with pytest.raises(BenchError, match="holds no records"):
        report.write(tmp_path)
    synthetic.write_run(tmp_path, PLANS[:1], SMALL)
    (tmp_path / "verdicts.json").write_text("{")
    with pytest.raises(BenchError, match=r"verdicts\.json cannot be read"):
        load(tmp_path)
    (tmp_path / "verdicts.json").write_text("[]")
    with pytest.raises(BenchError, match="no JSON object"):
        load(tmp_path)
    with pytest.raises(BenchError, match="choose another --out"):
        report.write(directory, directory / FILE)


def test_frame_without_the_baseline_says_so():
    records = frame(record for record in synthetic.records(PLANS[2:4], SMALL))
    with pytest.raises(BenchError, match="no records of 'autoregressive'"):
        stats.main_table(records, {})
