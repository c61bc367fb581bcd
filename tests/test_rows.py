"""Row-cost curves: what is measured is what was asked for, and the numbers are those of the replays."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny
import torch

from bench import curves, rows
from bench.__main__ import main
from bench.contents import COST_ONLY
from bench.errors import BenchError
from bench.loop import Decoder, Raw
from bench.sampling import Law
from bench.sequences import Sequences


def replays(directory, limit=None, target="shape:x", device="cuda", card="Card"):
    """Curves to compute by hand: rows 1, 4, 16 at 100 and 200 tokens."""
    directory.mkdir(parents=True)
    lines = [f"{context},{rows},{ms},{ms + extra}" for context in (100, 200)
             for rows, ms in ((1, 2.0), (4, 3.0), (16, 7.0)) for extra in (0, 1, 5)]
    (directory / curves.FILE).write_text("\n".join(["context,rows,forward_ms,step_ms", *lines]))
    limit = limit or {"copy_bytes_per_s": 1e9, "weight_bytes": 1_000_000, "cache_row_bytes": 1000}
    settings = {"target": target, "random": True, "dtype": "bfloat16", "device": device}
    origin = {"settings": settings, "limit": limit, "card": {"name": card}, "cpu": {"model": "Chip"}}
    (directory / "provenance.json").write_text(json.dumps(origin))
    return directory


def test_a_chain_has_its_rows_and_is_verified():
    target = tiny.transformer()
    sequences = Sequences(target, 1, context=40, widest=5)
    for count in (1, 2, 5):
        method = rows.Chain(sequences, Law(), count)
        tree = method.propose(0)
        assert method.rows == (count,) == tree.tokens.shape[1:]
        assert tree.resolve().depths.tolist() == [list(range(count))]
        raw = Decoder(method, sequences).decode([rows.prompt(sequences, 10)], 12)
        assert set(raw.rows) == {count} and max(map(max, raw.drafted)) == count - 1


def test_every_point_is_replayed_once_a_round_in_another_order():
    plan = rows.Plan((1, 3), (20, 30), steps=4)
    order = list(rows.order(plan))
    rounds = [order[i : i + 4] for i in range(0, len(order), 4)]
    assert len(rounds) == rows.ROUNDS and all(sorted(r) == sorted(rounds[0]) for r in rounds)
    assert len({tuple(r) for r in rounds}) > 1


def test_the_step_is_the_sum_of_its_phases():
    phases = {"propose": [1.0, 2.0], "forward": [10.0, 20.0], "verify": [0.5, 0.5], "commit": [0.0, 0.0],
              "observe": [0.0, 1.0]}
    raw = Raw([[1, 1]], [], [], torch.zeros(0), [1, 1], phases, [0.0, 0.0], 0.0, 0.0)
    assert list(rows.steps_of(raw)) == [(10.0, 11.5), (20.0, 23.5)]


def test_numbers_are_those_of_the_replays(tmp_path):
    found = curves.summary(curves.load(replays(tmp_path / "a"))).set_index(["context", "rows"])
    assert found.step_ms[100, 1] == 3.0 and found.forward_ms[200, 16] == 7.0 and (found.replays == 3).all()
    assert found.over_one[200, 16] == pytest.approx(8 / 3)
    assert (found.step_low[100, 1], found.step_high[100, 1]) == (2.5, 5.0)
    assert found.limit_ms[100, 1] == pytest.approx(1.1) and found.limit_ms[200, 4] == pytest.approx(1.2)
    assert found.limit_share[100, 1] == pytest.approx(1.1 / 3)


def test_between_the_points_a_line_and_nothing_beyond(tmp_path):
    curve = curves.load(replays(tmp_path / "a")).curves[0]
    assert (curve.name, curve.processor, curve.mark) == ("shape:x @ 100", "Card", COST_ONLY)
    found = curve.at(np.array([1, 2.5, 4, 10, 16, 17]))
    assert found[:5].tolist() == [3.0, 3.5, 4.0, 6.0, 8.0] and np.isnan(found[5])


def test_measured_written_and_written_again(tmp_path, capsys):
    out = tmp_path / "curves"
    flags = ["--target", "tiny", "--rows", "4,1", "--context", "12,30", "--steps", "6", "--device", "cpu"]
    assert main(["rows", *flags, "--out", str(out)]) == 0
    assert COST_ONLY in capsys.readouterr().out
    table = pd.read_csv(out / curves.FILE)
    assert set(zip(table.context, table.rows, strict=True)) == {(12, 1), (12, 4), (30, 1), (30, 4)}
    assert (table.step_ms > table.forward_ms).all() and (table.forward_ms > 0).all()
    assert len(table[table.rows == 1]) == 2 * rows.ROUNDS * 6  # one token a step
    origin = json.loads((out / "provenance.json").read_text())
    assert origin["settings"]["target"] == "tiny" and origin["settings"]["random"]
    assert 1e8 < origin["limit"]["copy_bytes_per_s"] < 1e13
    written = [out / name for name in ("rows.md", "rows.html", "tables/rows.csv", "figures/rows.png")]
    before = [path.read_bytes() for path in written]
    for path in written:
        path.unlink()
    assert main(["report", str(out)]) == 0
    assert [path.read_bytes() for path in written] == before
    assert COST_ONLY in written[0].read_text()


@pytest.mark.parametrize(("flags", "words"), [
    ("--rows 2,4", "must hold 1"),
    ("--rows 0,1", "invalid numbers value: '0,1'"),
    ("--rows 1,x", "invalid numbers value"),
    ("--steps 0", "--steps must be at least 1"),
    ("--context 12 --steps 40", "every context above half of it"),
    ("--context 5000", "the model has 4096: lower --context"),
    ("--target nowhere", "no model 'nowhere'"),
])
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(["rows", "--target", "tiny", "--device", "cpu", *flags.split()])
    except SystemExit as stop:
        status = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2 and len(lines) == 1 and words in lines[0]
    assert not list(tmp_path.iterdir())


def test_another_result_keeps_its_provenance(tmp_path, capsys):
    (tmp_path / "provenance.json").write_text("{}")
    assert main(["rows", "--target", "tiny", "--device", "cpu", "--out", str(tmp_path)]) == 2
    assert "holds other results already: choose another --out" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["{}"]


def test_curves_are_not_overwritten_and_damage_is_told(tmp_path):
    directory = replays(tmp_path / "a")
    assert main(["rows", "--target", "tiny", "--out", str(directory)]) == 2
    (directory / "provenance.json").write_text("{}")
    with pytest.raises(BenchError, match="not complete"):
        curves.load(directory)
    (directory / curves.FILE).write_text("context,rows\n1,2")
    with pytest.raises(BenchError, match="damaged"):
        curves.load(directory)
