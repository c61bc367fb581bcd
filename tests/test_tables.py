"""Tables as a reader sees them: gaps where nothing was measured, few digits, and no number without its meaning."""

from dataclasses import replace

import pytest
import synthetic
from test_report import markdown_tables, page_of

from bench import report, tables
from bench.contents import load
from bench.layout import percent, significant
from bench.record import BASELINE, FILE, TWIN
from bench.sections import find


def test_reference_ratio_is_ours_over_theirs(tmp_path):
    synthetic.write_run(tmp_path, shape=synthetic.Shape(repeats=1, tokens=32))
    table = tables.references(find(load(tmp_path)).references)
    (ratio,) = table.frame.ratio
    (low,), (high,) = table.frame.low, table.frame.high
    assert low < ratio < high
    assert ratio == pytest.approx(9.0, rel=0.05)  # as planted


def test_a_resumed_run_says_what_was_different_then(tmp_path):
    page = page_of(tmp_path, provenance=synthetic.PROVENANCE | {"resumed": [
        {"date": "2026-01-03", "git": synthetic.PROVENANCE["git"] | {"dirty": True}, "python": "3.11.7"}]})
    rows = {row[0]: row[1] for row in markdown_tables(page)["Provenance"]}
    assert {name: value for name, value in rows.items() if name.startswith("resumed")} == {
        "resumed · 1 · date": "2026-01-03", "resumed · 1 · git · dirty": "True"}


def test_quality_and_cost_are_shown_where_they_were_measured(tmp_path):
    asked = {"items": 37, "task": "bundled", "differing": 3, "tokens_per_s": 1483.2, "tokens_per_step": 2.5}
    quality = {BASELINE: asked | {"score": 0.52, "p": None}, "medusa": asked | {"score": 0.514, "p": 0.03}}
    cost = {"medusa": {"peak_memory_mib": 812.4, "own_memory_mib": 20, "energy_mj_per_token": None,
                       "roofline_share": 0.456}}
    found = markdown_tables(page_of(tmp_path, quality=quality, cost=cost))
    heads, *rows = found["Speedup"]
    scores = {row[0]: row[heads.index("Quality (%)")] for row in rows}
    assert (scores["medusa"], scores[BASELINE], scores[TWIN]) == ("51.4 (p=0.03)", "52.0", "–")
    assert found["Quality"][1:] == [[BASELINE, "52.0", "37 of bundled", "–", "–", "1483", "2.50"],
                                    ["medusa", "51.4", "37 of bundled", "3", "0.03", "1483", "2.50"]]
    memory = {row[0]: row[-4:] for row in found["Rows, clock, memory, energy"]}
    assert memory["medusa"] == ["812", "20", "–", "0.46"]


@pytest.mark.parametrize(("verdict", "differing", "said"), [
    ("identical", 2, True), ("identical", 0, False), ("numerical ties", 2, False)])
def test_identical_texts_that_part_on_the_items_are_told(tmp_path, verdict, differing, said):
    asked = {"score": 0.5, "items": 37, "task": "bundled", "p": None, "tokens_per_s": 1.0, "tokens_per_step": 1.0}
    page = page_of(tmp_path, verdicts={"medusa": {"verdict": verdict}},
                   quality={BASELINE: asked | {"differing": 0}, "medusa": asked | {"differing": differing}})
    assert ("but not on the items of Quality: medusa." in page) == said


def test_quality_that_was_not_measured_is_a_gap_beside_every_speedup(tmp_path):
    heads, *rows = markdown_tables(page := page_of(tmp_path))["Speedup"]
    assert {row[heads.index("Quality (%)")] for row in rows} == {"–"}
    assert page.count("Quality: not measured") == 2  # the lossy table as well


def test_qualities_that_were_not_measured_are_explained(tmp_path):
    one = {"score": 0.5, "p": None, "items": 9, "task": "t", "differing": 0, "tokens_per_s": 1, "tokens_per_step": 1}
    every = {plan.label: one for plan in synthetic.PLANS}
    assert "–: not asked" not in page_of(tmp_path, quality=every)
    some = {BASELINE: one, "medusa:typical": one}
    assert page_of(tmp_path, quality=some).count("–: not asked") == 1  # in the main table


def test_several_cards_are_told(tmp_path):
    """The run was resumed elsewhere in the middle of a turn; references are on few questions, and that is no matter."""
    run = synthetic.records(shape=synthetic.Shape(questions=3, repeats=1, tokens=16))
    half = len(run) // 2
    moved = [replace(record, settings=record.settings | {"card": "a" if number < half else "b"})
             for number, record in enumerate(run)]
    for records, said in ((run, 0), (moved, 1)):
        (tmp_path / FILE).write_text("".join(record.to_json() + "\n" for record in records))
        assert report.markdown(load(tmp_path)).count("on 2 cards, which differ by a few percent; 1 of 3 turns") == said


def test_a_run_of_parts_says_what_was_different_in_each(tmp_path):
    """The second part was resumed, with another commit."""
    git = synthetic.PROVENANCE["git"]
    again = {"date": "2026-01-04", "git": git | {"dirty": True}, "card": {"name": "GPU", "id": "c"}}
    page = page_of(tmp_path, provenance=synthetic.PROVENANCE | {"card": {"name": "GPU"}, "parts": [
        {"date": "2026-01-03", "card": {"id": "a"}}, {"date": "2026-01-03", "card": {"id": "b"}, "resumed": [again]}]})
    rows = {row[0]: row[1] for row in markdown_tables(page)["Provenance"]}
    assert rows["card · name"] == "GPU"
    assert {name: value for name, value in rows.items() if name.startswith("parts")} == {
        "parts · 1 · date": "2026-01-03", "parts · 1 · card · id": "a",
        "parts · 2 · date": "2026-01-03", "parts · 2 · card · id": "b",
        "parts · 2 · resumed · 1 · date": "2026-01-04", "parts · 2 · resumed · 1 · git · dirty": "True",
        "parts · 2 · resumed · 1 · card · id": "c"}


def test_numbers_keep_three_digits_and_no_exponent():
    printed = {0.01234: "0.0123", 1.999: "2.00", 12.345: "12.3", 12345.6: "12346", 0.0: "0.00"}
    assert {value: significant(value) for value in printed} == printed
    assert significant(float("nan")) == "–"
    assert percent(0.1234) == "12.3"
