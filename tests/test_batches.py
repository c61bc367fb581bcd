"""The batch study: its numbers are those of the runs, and it takes only runs that differ in their batch."""

import json

import pandas as pd
import pytest
import synthetic
from synthetic import PLANS, Plan, Shape

from bench import batches, stats
from bench.__main__ import main
from bench.contents import load
from bench.record import BASELINE, FILE, TWIN

LINES = (Plan(BASELINE), Plan(TWIN), Plan("quick", 0.8, 4, 1.1), Plan("wide", 0.5, 8, 1.3),
         Plan("loose", 0.9, 4, 1.1, lossless="lossy"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories by batch; `wide` gets dearer with the batch, as more rows do."""
    made = {}
    for batch in (16, 1, 4):
        plans = [Plan(p.label, p.accept, p.depth, p.cost + (p.label == "wide") * batch / 4, p.lossless) for p in LINES]
        made[batch] = tmp_path_factory.mktemp(f"b{batch}")
        synthetic.write_run(made[batch], tuple(plans), Shape(questions=32, repeats=1, batch=batch))
    return made


def test_numbers_are_those_of_the_runs(runs):
    found = batches.study(batches.by_batch([load(run) for run in runs.values()])).set_index(["method", "batch"])
    for batch, directory in runs.items():
        run = load(directory)
        table = stats.main_table(run.records, run.verdicts)
        for method in (BASELINE, "quick", "wide"):
            for column in ("speedup", "low", "high", "tokens_per_s"):
                assert found.loc[(method, batch), column] == table.loc[method, column]
    assert TWIN not in found.index.get_level_values("method") and found.lossy["loose", 4]


@pytest.mark.parametrize(("decisions", "words"), [
    (["faster", "faster", "faster"], "not by 16"),
    (["faster", "no difference", "slower"], "at 4"),
    (["faster", "slower", "faster"], "at 4"),
    (["no difference", "slower", "slower"], "at 1"),
])
def test_where_a_method_stops_paying(decisions, words):
    assert batches.stops(pd.DataFrame({"batch": [1, 4, 16], "decision": decisions})) == words


def test_the_whole(runs, tmp_path):
    assert main(["batches", *map(str, runs.values()), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "batches.md").read_text()
    heads, quick, wide = (next(line for line in page.splitlines() if line.startswith(f"| {name} "))
                          for name in ("Method", "quick", "wide"))
    assert [cell.strip() for cell in heads.split("|")[2:-1]] == ["Batch 1", "Batch 4", "Batch 16", "Stops paying"]
    assert quick.split("|")[-2].strip() == "not by 16" and wide.split("|")[-2].strip() == "at 4"
    assert "batches of 1, 4, 16" in page and "batch 1 ·" not in page
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"batches.png", "batches_throughput.png"}


def test_a_method_that_was_not_measured_everywhere_has_a_dash(runs, tmp_path):
    synthetic.write_run(tmp_path, LINES[:3], Shape(questions=32, repeats=1, batch=1))
    found = batches.study(batches.by_batch([load(tmp_path), load(runs[4])]))
    cells = {row[0]: row[1:] for row in batches.speedup_table(found).rows}
    assert cells["wide"][0] == "–" and cells["wide"][1] != "–" and cells["quick"][0] != "–"


def test_batches_that_are_not_full_are_told(runs, tmp_path):
    assert batches.filled({4: load(runs[4]), 16: load(runs[16])}) == []
    synthetic.write_run(tmp_path, LINES[:3], Shape(questions=20, repeats=1, batch=16))
    [said] = batches.filled({4: load(runs[4]), 16: load(tmp_path)})
    assert said.startswith("Of the sequences, 80% in batches of 16;")


def test_a_broken_text_is_told(runs, tmp_path):
    run = synthetic.write_run(tmp_path, LINES, Shape(questions=32, repeats=1, batch=1))
    (tmp_path / "verdicts.json").write_text(json.dumps({run[0].method: {}, "quick": {"verdict": "BROKEN"}}))
    found = batches.study(batches.by_batch([load(tmp_path), load(runs[4])]))
    cells = {row[0]: row[1] for row in batches.speedup_table(found).rows}
    assert cells["quick"].endswith("BROKEN") and "BROKEN" not in cells["wide"]


def test_runs_that_cannot_be_set_side_by_side(runs, tmp_path, capsys):
    def refused(*directories):
        assert main(["batches", *map(str, directories), "--out", str(tmp_path / "out")]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    assert "one run per batch size" in refused(runs[1])
    assert "one run per batch size" in refused(runs[1], runs[1], runs[4])
    synthetic.write_run(tmp_path / "fewer", LINES, Shape(questions=8, repeats=1))
    assert "different questions" in refused(runs[4], tmp_path / "fewer")
    synthetic.write_run(tmp_path / "law", PLANS[:3], Shape(questions=32, repeats=1))
    path = tmp_path / "law" / FILE
    path.write_text(path.read_text().replace('"temperature":0.0', '"temperature":0.7'))
    assert "temperature" in refused(tmp_path / "law", runs[4])
    assert not (tmp_path / "out").exists()
