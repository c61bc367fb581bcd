"""Training: batches, losses against slow versions, the trainer, and drafters that decode after it."""

import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from rich.console import Console

from baselines.draft_model import DraftModel
from baselines.draft_model import Settings as DraftSettings
from baselines.medusa import Medusa
from baselines.medusa import Settings as MedusaSettings
from bench import losses, zoo
from bench.__main__ import main
from bench.drafters import Card, load, round_trip, save
from bench.errors import BenchError
from bench.losses import distil, of_law, of_tokens
from bench.methods import lesson
from bench.noise import NoiseKey
from bench.packing import PADDING, Batch, Reader, packed
from bench.sampling import Law
from bench.teacher import Stage, Teacher
from bench.texts import Origin, Shard, Text, shard_path
from bench.trainer import WARM_UP, Plan, Trainer, pace
from ptp.lesson import trained

LAW = Law(0.7, top_k=50)
TINY = zoo.load("tiny")
PTP = "ptp:slots=4:rank=8:groups=8"
FLAGS = ("--target", "tiny", "--rows", "2", "--length", "64", "--device", "cpu")


def texts(count, seed=0, words=40):
    """Sawtooth texts: the next id is the last one plus one, so that there is something to learn."""
    random = np.random.default_rng(seed)
    made = [(random.integers(words) + np.arange(random.integers(20, 60))) % words for _ in range(count)]
    return [Text(ids.astype(np.int32), (0, 0), 0) for ids in made]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, law in enumerate((LAW, LAW, Law())):
        Shard(texts(80, number), Origin("tiny", "tiny", law, {})).save(shard_path(folder, number))
    return folder


def trainer(text="medusa:heads=2", steps=6, seed=0):
    torch.manual_seed(seed)
    reader = Reader(texts(60), 2, 64, seed)
    return Trainer(lesson(text, TINY, LAW), reader, Reader(texts(6, 9), 2, 64, 0), Plan(60, steps, seed=seed))


# Batches

def test_packing_by_hand():
    batch = packed([Text(np.array(ids, np.int32), (0, 0), 0) for ids in ([1, 2, 3], [4, 5, 6, 7])], 2, 5)
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]]
    assert batch.texts.tolist() == [[0, 0, 0, 1, 1], [1, 1, PADDING, PADDING, PADDING]]
    assert batch.positions().tolist()[0] == [0, 1, 2, 0, 1]
    assert batch.followed(1).tolist() == [[True, True, False, True, False], [True, False, False, False, False]]
    assert batch.later(2).tolist() == [[3, 4, 5, 0, 0], [0, 0, 0, 0, 0]]


def test_a_packed_pass_is_that_of_each_text_alone():
    some = texts(5)
    batch = packed(some, 1, sum(len(t.ids) for t in some))
    whole, start = batch.read(TINY.model)[0], 0
    for text in some:
        alone = Batch(torch.tensor(text.ids.tolist())[None], torch.zeros(1, len(text.ids), dtype=torch.int64))
        assert torch.allclose(whole[start : start + len(text.ids)], alone.read(TINY.model)[0], atol=1e-4)
        start += len(text.ids)


def test_the_reader_is_a_function_of_the_step_and_shows_all_held_out_text():
    reader = Reader(texts(20), 2, 64, seed=3)
    assert torch.equal(reader.at(5).tokens, reader.at(5).tokens)
    assert not torch.equal(reader.at(5).tokens, reader.at(6).tokens)
    assert (reader.at(5).texts != PADDING).all()
    shown = torch.cat([batch.tokens[batch.texts != PADDING] for batch in Reader(texts(20), 40, 64, 0).whole(40)])
    assert shown.tolist() == [i for text in texts(20) for i in text.ids.tolist()]


# Losses

@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_loss_over_chunks_is_the_plain_one(monkeypatch, temperature):
    monkeypatch.setattr(losses, "CHUNK", 7)
    target = tiny.transformer()
    hidden = torch.randn(30, 16, dtype=torch.float64).requires_grad_()
    tokens, weight = torch.randint(12, (30,)), torch.rand(30)
    total = (distil(hidden, target, of_tokens(tokens), temperature) * weight).sum()
    [ours] = torch.autograd.grad(total, hidden)
    plain = F.cross_entropy(target.score(hidden) / temperature, tokens, reduction="none")
    assert torch.allclose(ours, torch.autograd.grad((plain * weight).sum(), hidden)[0], atol=1e-5)
    assert torch.allclose(distil(hidden, target, of_tokens(tokens), temperature), plain, atol=1e-5)


@pytest.mark.parametrize("law", tiny.LAWS.values())
def test_distillation_is_the_kl_divergence(law):
    target, temperature = tiny.transformer(), law.temperature or 1.0
    taught, hidden = torch.randn(2, 30, 16, dtype=torch.float64).unbind()
    got = distil(hidden, target, of_law(target, taught, law), temperature)
    mass = law(target.score(taught)).dense(12).double()
    p, log_q = mass / mass.sum(-1, keepdim=True), (target.score(hidden).double() / temperature).log_softmax(-1)
    assert torch.allclose(got.double(), F.kl_div(log_q, p, reduction="none").sum(-1), atol=1e-4)
    if law == Law(1.0):
        assert distil(taught, target, of_law(target, taught, law), temperature).abs().max() < 1e-5


# The trainer

def test_the_rate_rises_and_falls():
    rates = [pace(share) for share in np.linspace(0, 1, 200)]
    assert 0 < rates[0] < 0.1
    assert max(rates) == pytest.approx(1, abs=0.01)
    assert rates[-1] == pytest.approx(0.05)
    assert abs(int(np.argmax(rates)) / 200 - WARM_UP) < 0.02


def test_minutes_count_where_no_steps_are_given():
    plan = Plan(10)
    assert [plan.share(99, seconds) for seconds in (0, 5, 20)] == [0, 0.5, 1]
    assert Plan(10, steps=4).share(1, 99) == 0.25


def test_resuming_changes_nothing(tmp_path):
    whole, first, second = trainer(), trainer(), trainer(seed=0)
    whole.run(tmp_path / "whole", {"a": 1}, False, Console())
    first.train(3)
    first.save(tmp_path / "parts", {"a": 1})
    second.run(tmp_path / "parts", {"a": 1}, True, Console())
    ours, theirs = (t.pupil.module.state_dict() for t in (second, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if name != "accuracy")
    assert second.step == 6
    assert second.seconds > 0
    assert not list((tmp_path / "parts").glob(".*"))


def test_resuming_something_else_is_refused(tmp_path):
    one = trainer()
    one.save(tmp_path, {"target": "tiny"})
    with pytest.raises(BenchError, match="had target tiny, not other"):
        one.restore(tmp_path, {"target": "other"})
    with pytest.raises(BenchError, match="holds no training to resume"):
        one.restore(tmp_path / "nowhere", {})
    (tmp_path / "checkpoint.pt").write_text("torn")
    with pytest.raises(BenchError, match="holds no training to resume"):
        one.restore(tmp_path, {})


def test_a_loss_that_explodes_ends_the_training():
    one = trainer()
    one.losses = [torch.tensor(math.nan)]
    with pytest.raises(BenchError, match="lower --rate"):
        one.note("")


@pytest.fixture(scope="module")
def own():
    """Texts that the target wrote."""
    teacher = Teacher(TINY, Stage.of(TINY.tokenizer, raw=True), 32, 65, 1)
    return teacher.write(LAW, LAW, [NoiseKey(0, i) for i in range(32)])


@pytest.mark.parametrize("text", [PTP, PTP + ":kind=c", PTP.replace("ptp", "independent")])
def test_students_learn_one_batch_by_heart(text, own):
    """Random targets are hard to predict; what the same places of the same texts say can be remembered."""
    torch.manual_seed(0)
    one, batch, seen = lesson(text, TINY, LAW), Reader(own, 2, 64, 0).at(0), []
    optimizer = torch.optim.Adam(one.module.parameters(), 1e-2)
    assert one.acceptance(batch)[1] > 20
    for _ in range(25):
        torch.manual_seed(1)
        optimizer.zero_grad()
        seen.append(one.loss(batch))
        seen[-1].backward()
        optimizer.step()
    assert seen[-1] < 0.75 * seen[0]


def test_texts_of_another_law_leave_students_nothing_to_measure():
    with pytest.raises(BenchError, match="no place to measure at"):
        Trainer(lesson(PTP, TINY, Law(0.7, top_k=1)), Reader(texts(9), 2, 64, 0), Reader(texts(9), 2, 64, 0),
                Plan(60, 60)).accepted()


def test_a_student_survives_the_disk(tmp_path):
    one = lesson(PTP, TINY, LAW)
    card = Card("ptp", one.options, "tiny", "tiny", "", LAW, 1, 1.0, 1.0, 1.0)
    round_trip(one.module)
    save(tmp_path / "x", one.module, card)
    back = trained(tmp_path / "x", "ptp", TINY)
    assert back.design == one.module.design
    for name, value in one.module.state_dict().items():
        assert torch.equal(back.state_dict()[name], value)


@pytest.mark.parametrize("text", ["medusa:heads=2", "draft_model:layers=1:k=3"])
def test_training_lowers_the_loss_and_raises_the_acceptance(text):
    one = trainer(text, steps=60)
    before = one.accepted()
    assert before == one.accepted()  # the noise is the same
    one.train(5)
    first = torch.stack(one.losses).mean()
    one.train(50)
    assert torch.stack(one.losses[-5:]).mean() < 0.9 * first
    assert one.accepted() > before + 0.05


def test_a_draft_of_all_layers_is_its_target():
    one = lesson("draft_model:layers=2:k=3", TINY, Law(0.7))
    batch = packed(texts(4), 2, 64)
    accepted = one.acceptance(batch)
    assert accepted[0] == 4 * accepted[1]
    assert one.loss(batch).abs() < 1e-4


def test_heads_are_scored_at_the_right_tokens():
    """Texts in which everything is known ahead: heads that add i + 2 would be perfect, others are always wrong."""
    one: Any = lesson("medusa:heads=2", TINY, LAW)
    batch = packed(texts(4), 2, 64)
    rights = torch.cat(list(one.rights(batch)))
    assert len(rights) == batch.followed(3).sum()
    one.measure([batch])
    assert torch.allclose(one.module.accuracy, rights.float().mean(0))
    for index, right in zip(batch.followed(3).nonzero().tolist()[:10], rights[:10], strict=True):
        hidden = batch.read(TINY.model)[tuple(index)]
        for head in range(2):
            best = TINY.model.score(one.module(hidden, head)).topk(16).indices
            wanted = batch.tokens[index[0], index[1] + head + 2]
            assert torch.equal(right[head], best == wanted)


# The command

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
