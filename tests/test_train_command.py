"""`python -m bench train`: what it writes decodes, what stopped goes on, and bad input is one line."""

from functools import partial

import pytest
import tiny
import torch
from test_packing import texts

from baselines.draft_model import DraftModel
from baselines.draft_model import Settings as DraftSettings
from baselines.medusa import Medusa
from baselines.medusa import Settings as MedusaSettings
from bench import zoo
from bench.__main__ import main
from bench.drafters import load
from bench.sampling import Law
from bench.texts import Origin, Shard, shard_path
from bench.trainer import Trainer

LAW = Law(0.7, top_k=50)
TINY = zoo.load("tiny")
FLAGS = ("--target", "tiny", "--rows", "2", "--length", "64", "--device", "cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, law in enumerate((LAW, LAW, Law())):
        Shard(texts(80, number), Origin("tiny", "tiny", law, {})).save(shard_path(folder, number))
    return folder


@pytest.mark.parametrize(("text", "method"), [
    ("medusa:heads=2", lambda file: partial(Medusa, settings=MedusaSettings(rows=8, weights=file))),
    ("draft_model:layers=1", lambda file: partial(DraftModel, settings=DraftSettings(draft=file, k=2))),
])
def test_the_command_trains_stores_and_what_it_stored_decodes(data, tmp_path, capsys, text, method):
    flags = ["train", text, "--data", str(data), *FLAGS, "--steps", "12"]
    assert main([*flags, "--out", str(tmp_path / "a")]) == 0
    assert "tokens per step on held-out text" in capsys.readouterr().out
    file = tmp_path / "a" / "drafter.safetensors"
    card = load(file, text.partition(":")[0], TINY).card
    assert (card.steps, card.law, card.checksum) == (12, LAW, "tiny")
    assert abs(card.stored - card.acceptance) < 0.1
    make = method(str(file))
    drafter = make.func.load(make.keywords["settings"], TINY)
    work = tiny.groups(1, 2, 2)
    plain = tiny.decode(tiny.registered("autoregressive", TINY.model), TINY.model, LAW, work)
    drafted = tiny.decode(partial(make, drafter=drafter), TINY.model, LAW, work)
    assert [t.tokens for t in drafted] == [t.tokens for t in plain]
    assert main([*flags, "--out", str(tmp_path / "a")]) == 2
    assert "holds a trained drafter" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [
    (["autoregressive"], "nothing to train for 'autoregressive'; there is for draft_model, medusa, ptp"),
    (["medusa:arms=2"], "no option 'arms'; its options are heads=4"),
    (["medusa:heads=0"], "heads >= 1"),
    (["draft_model:layers=9"], "more than the 2 of tiny"),
    (["medusa", "--target", "tiny:seed=1"], "another target"),
    (["medusa", "--data", "nowhere"], "holds no teacher text"),
    (["medusa", "--minutes", "0"], "must be positive"),
    (["medusa", "--resume", "nowhere"], "either a new directory"),
])
def test_bad_input(data, tmp_path, capsys, flags, message):
    assert main(["train", "--data", str(data), *FLAGS, "--out", str(tmp_path / "x"), "--steps", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_texts_of_two_laws_are_refused(tmp_path, capsys):
    for number, law in enumerate((LAW, Law(1.0))):
        Shard(texts(80, number), Origin("tiny", "tiny", law, {})).save(shard_path(tmp_path, number))
    assert main(["train", "medusa", "--data", str(tmp_path), *FLAGS, "--out", str(tmp_path / "x")]) == 2
    assert "texts of 2 laws" in capsys.readouterr().err


def test_greedy_training_takes_greedy_answers_alone(data, tmp_path):
    flags = ["train", "medusa:heads=1", "--data", str(data), *FLAGS, "--steps", "2", "--greedy"]
    assert main([*flags, "--out", str(tmp_path)]) == 0
    assert load(tmp_path / "drafter.safetensors", "medusa", TINY).card.law == Law()


def run(data, out, *flags):
    return main(["train", *flags, "--data", str(data), *FLAGS, *out])


def test_minutes_may_be_parts_of_one(data, tmp_path):
    assert run(data, ["--out", str(tmp_path)], "medusa:heads=1", "--minutes", "0.005") == 0
    card = load(tmp_path / "drafter.safetensors", "medusa", TINY).card
    assert card.steps > 0
    assert 0 < card.minutes < 0.1


def test_several_methods_train_one_after_the_other(data, tmp_path, capsys):
    flags = ["medusa:heads=1", "draft_model:layers=1", "medusa:heads=2", "--steps", "2"]
    assert run(data, ["--out", str(tmp_path)], *flags) == 0
    names = {"medusa": "medusa", "draft_model": "draft_model", "medusa-2": "medusa"}
    files = {name: tmp_path / name / "drafter.safetensors" for name in names}
    assert load(files["medusa-2"], "medusa", TINY).card.options["heads"] == 2
    files["draft_model"].unlink()  # as if it had been stopped there
    (tmp_path / "medusa-2" / "checkpoint.pt").unlink()
    capsys.readouterr()
    assert run(data, ["--resume", str(tmp_path)], *flags) == 0
    assert all(load(file, names[name], TINY).card.steps == 2 for name, file in files.items())
    assert run(data, ["--out", str(tmp_path)], *flags) == 2
    assert "medusa holds a trained drafter" in capsys.readouterr().err


def test_a_stored_drafter_can_be_the_start(data, tmp_path, capsys):
    flags = ["medusa:heads=1", "--steps", "3"]
    assert run(data, ["--out", str(tmp_path / "a")], *flags) == 0
    file = tmp_path / "a" / "drafter.safetensors"
    before = load(file, "medusa", TINY)
    (step, seconds, accepted), = before.card.notes["curve"]
    assert step == 3 and 0 <= seconds <= 60 * before.card.minutes + 1 and accepted["sampled"] >= 1
    assert run(data, ["--out", str(tmp_path / "b")], *flags, "--rate", "1e-9", "--start", str(file)) == 0
    after = load(tmp_path / "b" / "drafter.safetensors", "medusa", TINY)
    assert after.card.steps == 6
    assert after.card.minutes >= before.card.minutes
    assert after.card.notes["start"] == before.card.sha256
    for name in ("matrices.0", "biases.0"):  # at such a rate nothing moves
        assert torch.allclose(after.weights[name], before.weights[name], atol=2e-2 * float(before.weights[name].max()))
        assert before.weights[name].any()
    wrong = {"medusa:heads=2": "another shape", "draft_model:layers=1": "trained for medusa",
             "medusa ptp": "one method", "medusa:heads=1 --greedy": "another law"}
    for text, message in wrong.items():
        capsys.readouterr()
        assert run(data, ["--out", str(tmp_path / "c"), "--start", str(file)], *text.split(), "--steps", "1") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_another_machine_goes_on_and_says_so(data, tmp_path, capsys, monkeypatch):
    flags = ["medusa:heads=1", "--steps", "3"]
    assert run(data, ["--out", str(tmp_path)], *flags) == 0
    assert run(data, ["--resume", str(tmp_path)], *flags) == 0
    assert "bit for bit" not in capsys.readouterr().out
    monkeypatch.setattr(Trainer, "machine", lambda _: "another machine")
    assert run(data, ["--resume", str(tmp_path)], *flags) == 0
    assert "bit for bit" in capsys.readouterr().out
