"""The projection from row-cost curves: the arithmetic, and that nobody can take it for a measurement."""

import json
import subprocess
import sys

import pytest
import synthetic
from synthetic import handmade
from test_rows import replays

from bench import curves, project
from bench.__main__ import main
from bench.contents import Run
from bench.errors import BenchError
from bench.record import BASELINE, FILE, PHASES, frame


def phases(**ms):
    """Of two steps."""
    return {name: [float(ms.get(name, 0))] * 2 for name in PHASES}


RECORDS = [
    handmade(BASELINE, 1, [1] * 6, phases={name: [0.25 if name == "propose" else 1.0] * 6 for name in PHASES}),
    handmade("prompt_lookup:k=3", 1, [3, 3], phases=phases(propose=1.25, forward=9, observe=2), rows=[4, 16]),
    handmade("medusa", 1, [2, 4], phases=phases(forward=4), rows=[4, 4]),
]
ORIGIN = {"cpu": {"model": "Chip"}, "card": None}


def run(records=RECORDS, origin=ORIGIN):
    return Run(frame(records), origin, {}, {}, {})


def curve(tmp_path, **where):
    return curves.load(replays(tmp_path / "curves", **where)).curves


def test_speedup_is_acceptance_times_one_row_over_the_steps(tmp_path):
    """Steps of 4 and 16 rows take 4 and 8 ms, one row 3; three tokens a step; drafting 2 ms beyond the baseline's."""
    found = project.project(run(), curve(tmp_path, device="cpu")).set_index(["method", "curve"])
    row = found.loc["prompt_lookup:k=3", "shape:x @ 100"]
    assert (row.accepted, row.rows_per_step, row.one_ms, row.step_ms) == (3, 10, 3, 6)
    assert row.drafting_ms == 1.25 + 2 - 0.25 - 1
    assert row.free == 3 * 3 / 6 and row.speedup == 3 * 3 / 8
    quick = found.loc["medusa", "shape:x @ 200"]
    assert quick.drafting_ms == 0 and quick.speedup == quick.free == 3 * 3 / 4


def test_drafting_times_do_not_carry_over_to_other_hardware(tmp_path):
    for name, origin in {"known": ORIGIN, "unknown": {}}.items():
        found = project.project(run(origin=origin), curve(tmp_path / name, device="cuda"))
        assert found.speedup.isna().all() and found.free.notna().all()


def test_more_rows_than_the_curve_has_are_not_guessed(tmp_path):
    wide = [*RECORDS, handmade("medusa:rows=64", 1, [2, 4], rows=[4, 64])]
    table = project.tabled(project.project(run(wide), curve(tmp_path)))
    cells = {row[0]: row[-1] for row in table.rows}
    assert cells["medusa:rows=64"] == "–" and cells["medusa"] == "– … 2.25"


def test_a_batch_or_a_run_without_drafts_is_refused(tmp_path):
    found = curve(tmp_path)
    pair = [handmade(BASELINE, 1, [1], batch=2), handmade("medusa", 1, [2], batch=2)]
    with pytest.raises(BenchError, match="--batch 1"):
        project.project(run(pair), found)
    with pytest.raises(BenchError, match="no method that drafts"):
        project.project(run(RECORDS[:1]), found)


def test_everything_written_says_that_it_is_a_projection(tmp_path):
    synthetic.write_run(tmp_path / "run", shape=synthetic.Shape(questions=4, repeats=1))
    where = replays(tmp_path / "curves", target="shape:llama-7b")
    assert main(["project", str(tmp_path / "run"), "--rows", str(where), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "projection.md").read_text()
    assert page.count("projection, not a measurement; random weights: cost only") >= 2
    assert "shape:llama-7b @ 100" in page and "autoregressive" not in page.split("| Method")[1].split("\n\n")[0]
    assert (tmp_path / "out" / "figures" / "projection.png").stat().st_size > 10_000


def test_acceptance_of_random_weights_is_told(tmp_path):
    tiny = [record.__class__(**vars(record) | {"settings": record.settings | {"target": "tiny"}}) for record in RECORDS]
    assert "acceptance of random weights means nothing" in project.compose(run(tiny), curve(tmp_path)).mark


def test_neither_projection_nor_batches_need_torch():
    code = "import sys, bench.project, bench.batches; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_run_that_is_missing_is_one_line(tmp_path, capsys):
    where = replays(tmp_path / "curves")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).write_text("")
    for argv in (["project", str(tmp_path / "none"), "--rows", str(where)],
                 ["project", str(tmp_path / "run"), "--rows", str(where)],
                 ["project", str(tmp_path / "run"), "--rows", str(tmp_path)]):
        assert main(argv) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert json.loads((where / "provenance.json").read_text())["settings"]["random"]
