import json

import pytest
import torch

from bench import learning
from bench.__main__ import main
from bench.drafters import Card, save
from bench.sampling import Law

CURVE = [[10, 5.0, {"sampled": 1.2, "greedy": 1.4}], [70, 35.0, {"sampled": 1.5, "greedy": 1.9}]]


def drafter(path, **notes):
    """A file with a card; what it drafts is of no interest here."""
    stored = {"sampled": 1.55, "greedy": 2.0}
    card = Card("medusa", {}, "tiny", "tiny", "0" * 8, Law(0.7, 50), 80, 0.7, 1.6, 1.55,
                notes={"asked": "medusa:heads=2", "seed": 3, "stored": stored} | notes)
    save(path, torch.nn.Linear(2, 2), card)
    return path


def test_curves_become_a_page_that_is_made_again_from_what_was_kept(tmp_path):
    files = [drafter(tmp_path / f"{name}.safetensors", curve=CURVE) for name in ("one", "other")]
    assert main(["learning", *map(str, files), "--out", str(tmp_path / "out")]) == 0
    page = tmp_path / "out" / "learning.md"
    before, figure = page.read_bytes(), (tmp_path / "out" / "figures" / "learning.png").read_bytes()
    line = next(line for line in page.read_text().splitlines() if line.startswith("| one"))
    assert line.replace("|", " ").split() == ["one", "medusa:heads=2", "3", "80", "0.700", "1.55", "2.00"]
    found = learning.load(tmp_path / "out")
    assert list(found.sampled) == [1.2, 1.5, 1.2, 1.5]
    assert list(found.second) == [5.0, 35.0, 5.0, 35.0]
    page.unlink()
    assert main(["report", str(tmp_path / "out")]) == 0
    assert page.read_bytes() == before
    assert (tmp_path / "out" / "figures" / "learning.png").read_bytes() == figure


def test_a_drafter_without_a_curve_and_a_damaged_file_are_named(tmp_path, capsys):
    assert main(["learning", str(drafter(tmp_path / "old.safetensors")), "--out", str(tmp_path / "out")]) == 2
    assert "old.safetensors holds no curve" in capsys.readouterr().err
    (tmp_path / learning.FILE).write_text(json.dumps({"one": {"curve": 3}}))
    with pytest.raises(learning.BenchError, match=r"learning\.json is damaged"):
        learning.load(tmp_path)
