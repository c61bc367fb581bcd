"""Training: the trainer, what drafters learn, and what is measured on held-out text."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from test_packing import texts

from baselines.draft_lesson import Layers
from bench import programs, zoo
from bench.blur import WIDTHS
from bench.drafters import Card, round_trip, save
from bench.errors import BenchError
from bench.methods import lesson
from bench.packing import Reader, packed
from bench.reading import read
from bench.sampling import NOISE_BITS, Law, pick
from bench.texts import Text
from bench.trainer import GREEDY, SAMPLED, WARM_UP, Plan, Trainer, pace, tally
from ptp.lesson import trained

LAW = Law(0.7, top_k=50)
TINY = zoo.load("tiny")
PTP = "ptp:slots=4:rank=8:groups=8"


def trainer(text="medusa:heads=2", steps=6, seed=0):
    torch.manual_seed(seed)
    reader = Reader(texts(60), 2, 64, seed)
    return Trainer(lesson(text, TINY, LAW), reader, Reader(texts(6, 9), 2, 64, 0), Plan(60, steps, seed=seed))


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


def test_places_are_counted_by_their_law():
    total = tally(torch.tensor([3, 0, 2]), torch.tensor([True, False, True]))
    assert total.tolist() == [[1, 1], [7, 2]]


def test_a_rehearsal_changes_nothing():
    one = trainer()
    before = {name: value.clone() for name, value in one.pupil.module.named_parameters()}
    one.rehearse()
    assert all(torch.equal(before[name], value) for name, value in one.pupil.module.named_parameters())
    assert (one.step, one.seconds, one.optimizer.state_dict()["state"]) == (0, 0, {})
    assert all(value.grad is None for value in one.pupil.module.parameters())


@pytest.mark.parametrize("wrong", [lambda loss: 1.1 * loss, lambda loss: math.nan * loss])
def test_a_compiler_that_errs_ends_the_training(wrong, monkeypatch):
    one = trainer()
    loss = one.pupil.loss
    monkeypatch.setattr(one.pupil, "loss", lambda batch: loss(batch) if programs.plain else wrong(loss(batch)))
    with pytest.raises(BenchError, match="compiles it wrong"):
        one.rehearse()


def test_a_loss_that_explodes_ends_the_training():
    one = trainer()
    one.losses = [torch.tensor(math.nan)]
    with pytest.raises(BenchError, match="lower --rate"):
        one.note()


@pytest.fixture(scope="module")
def own():
    """Texts that the target wrote."""
    torch.manual_seed(0)
    tokens = torch.randint(256, (32, 1))
    for _ in range(60):
        fresh = pick(torch.randint(1 << NOISE_BITS, (32,)), LAW(TINY.model.logits(tokens)[:, -1]))
        tokens = torch.cat([tokens, fresh[:, None]], 1)
    return [Text(ids.numpy().astype(np.int32), (0, 0), 0) for ids in tokens]


@pytest.mark.parametrize("text", [PTP, PTP + ":kind=c", PTP.replace("ptp", "independent")])
def test_students_learn_one_batch_by_heart(text, own):
    """Random targets are hard to predict; what the same places of the same texts say can be remembered."""
    torch.manual_seed(0)
    one, batch = lesson(text, TINY, LAW), Reader(own, 2, 64, 0).at(0)
    assert one.acceptance(batch)[0, 1] > 20
    assert_learned(one, batch)


def assert_learned(one, batch):
    """In 25 steps, always with the same noise, the loss of a batch falls by a quarter or more."""
    optimizer, seen = torch.optim.Adam(one.module.parameters(), 1e-2), []
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
    after = one.accepted()
    assert after.keys() == before.keys() == {SAMPLED, GREEDY}
    assert all(after[way] > before[way] + 0.05 for way in before)


def test_a_draft_of_all_layers_is_its_target():
    one = lesson("draft_model:layers=2:k=3", TINY, Law(0.7))
    batch = packed([texts(4)[:2], texts(4)[2:]], 2, 64)
    accepted = one.acceptance(batch)
    assert torch.equal(accepted[:, 0], 4 * accepted[:, 1])
    assert (accepted > 0).all()
    assert one.loss(batch).abs() < 1e-4


def test_a_draft_keeps_the_blur_that_accepts_most(own):
    """Of a shallow draft, and none of one that is its target; a card without it is of an older draft."""
    batch = Reader([replace(text, answer=0) for text in own], 2, 64, 0).at(0)
    for layers, blurred in ((1, True), (2, False)):
        one: Any = lesson(f"draft_model:layers={layers}:k=3", TINY, Law(1.5))
        torch.manual_seed(0)
        kept = one.accepted(batch, (0.0, *WIDTHS))[:, 0, 0].tolist()
        torch.manual_seed(0)
        one.measure([batch])
        best = max(range(len(kept)), key=kept.__getitem__)
        assert float(one.module.width) == pytest.approx((0.0, *WIDTHS)[best])
        assert (best > 0) == blurred
        assert one.options["blurred"]
    assert "width" not in Layers(TINY.model, 1).state_dict()


def test_heads_are_scored_at_the_right_tokens():
    """Texts in which everything is known ahead: heads that add i + 2 would be perfect, others are always wrong."""
    one: Any = lesson("medusa:heads=2", TINY, LAW)
    batch = packed([texts(4)[:2], texts(4)[2:]], 2, 64)
    rights = torch.cat(list(one.rights(batch)))
    assert len(rights) == batch.followed(3).sum()
    one.measure([batch])
    assert torch.allclose(one.module.accuracy, rights.float().mean(0))
    for index, right in zip(batch.followed(3).nonzero().tolist()[:10], rights[:10], strict=True):
        hidden = read(TINY.model, batch).hidden[tuple(index)]
        for head in range(2):
            best = TINY.model.score(one.module(hidden, head)).topk(16).indices
            wanted = batch.tokens[index[0], index[1] + head + 2]
            assert torch.equal(right[head], best == wanted)


@pytest.mark.parametrize("text", [PTP, PTP + ":kind=c", PTP.replace("ptp", "independent")])
def test_one_student_hears_noise_in_sampled_texts_and_none_in_greedy_ones(text, own):
    """Each kind of group learns for itself: at other weights of the two, other gradients."""
    both = [replace(t, answer=0, greedy=i % 2 == 0) for i, t in enumerate(own)]
    one, found = lesson(text, TINY, LAW), {}
    for name, some in {"both": both, "sampled": both[1::2], "greedy": both[::2]}.items():
        torch.manual_seed(0)
        batch = Reader(some, 2, 64, 0).at(0)
        one.measure([batch])
        found[name] = one.acceptance(batch)[:, 1]
        loss = one.loss(batch)
        loss.backward()
        embedding = one.module.embedding
        assert bool(embedding.embed.weight.grad.any()) == (name != "greedy" and one.informed)
        assert bool(embedding.none.grad.any()) == (name != "sampled" or not one.informed)
        one.module.zero_grad()
    assert (found["both"] > 0).all()
    assert found["sampled"][1] == found["greedy"][0] == 0
    assert found["greedy"][1] > 0


def test_confidence_at_temperature_0_is_measured_on_greedy_texts(own):
    both = [replace(t, answer=0, greedy=i % 2 == 0) for i, t in enumerate(own)]
    one = lesson(PTP, TINY, LAW)
    fresh = {way: one.module.confidence[way].intercept.clone() for way in ("argmax", "greedy", "pick")}
    one.measure([Reader(both[1::2], 2, 64, 0).at(0)])
    changed = {way: not torch.equal(one.module.confidence[way].intercept, fresh[way]) for way in fresh}
    assert changed == {"argmax": True, "greedy": False, "pick": False}
    one.measure([Reader(both[::2], 2, 64, 0).at(0)])
    assert not torch.equal(one.module.confidence["greedy"].intercept, fresh["greedy"])


def test_without_a_teacher_the_data_are_learned():
    """Sawtooth texts, which the target's law does not explain: only their own noise can be heard."""
    some = [replace(text, greedy=False) for text in texts(60)]
    assert_learned(lesson(PTP + ":kind=c:teacher=false", TINY, LAW), Reader(some, 2, 64, 0).at(0))
