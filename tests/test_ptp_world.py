"""The small world, reduced: four places, groups of four slots, seconds of training."""

import argparse
from dataclasses import replace
from math import exp, log

import pandas as pd
import pytest
import torch

import ptp.examination
import ptp.practice
from bench.errors import BenchError
from bench.losses import of_tokens
from bench.reading import read
from ptp import world
from ptp.draft import Draft
from ptp.examination import CALLS, inverse_perplexity, mark, perplexity, plain_perplexities, tokens_per_call, written
from ptp.losses import own_noise
from ptp.practice import (
    Course,
    Pupil,
    inverse_loss,
    inverse_slots,
    model_of,
    slot_loss,
    train,
    train_pupil,
    train_teacher,
)
from ptp.trips import City

COURSE = Course(City(side=2, reach=1.0), slots=4, width=32, layers=2, steps=80, rate=6e-3)


def test_the_city_is_lawful_and_random():
    for city in (Course().city, COURSE.city):
        law = city.law()
        assert torch.allclose(law.sum(1), torch.ones(city.places).double())
        assert 1 <= city.entropy() < log(city.places, 2)
        assert not torch.allclose(law[0], law[-1], atol=0.05)  # where a trip is matters


def test_trips_follow_the_law():
    torch.manual_seed(0)
    trips, law = COURSE.city.trips(4000, 12), COURSE.city.law()
    pairs = torch.zeros(4, 4).index_put((trips[:, :-1].flatten(), trips[:, 1:].flatten()), torch.tensor(1.0), True)
    assert torch.allclose(pairs.double() / pairs.sum(1, keepdim=True), law, atol=0.02)


def test_entropy_is_what_trips_cost():
    torch.manual_seed(0)
    city = City(side=3)
    trips, law = city.trips(20000, 8)[:, 4:], city.law()
    bits = -law[trips[:, :-1], trips[:, 1:]].log2().mean()
    assert bits == pytest.approx(city.entropy(), abs=0.02)


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    monkeypatch.setattr(ptp.examination, "TEXTS", 500)


@pytest.fixture(scope="module")
def teacher():
    return train_teacher(COURSE)


def test_texts_of_the_examination_are_the_teachers(teacher):
    """Every token is what a slow loop picks with the paper's noise."""
    paper = written(teacher, COURSE)
    for text in range(3):
        for stop in range(1, COURSE.length):
            logits = teacher.logits(paper.batch.tokens[text : text + 1, :stop])[0, -1]
            u = paper.noise[text, stop].item() / 2**30
            cumulative = logits.double().softmax(-1).cumsum(-1)
            assert paper.batch.tokens[text, stop] == (cumulative <= u).sum()


@pytest.mark.parametrize(("kind", "wrong", "expected"), [
    ("o", None, {2: 2, 4: 4}), ("c", None, {2: 2, 4: 4}),
    ("o", 0, {2: 2, 4: 4}),  # the slot of the known token does not count
    ("o", 2, {2: 2, 4: 2}), ("c", 0, {2: 1, 4: 1}), ("c", 1, {2: 2, 4: 2}),
])
def test_tokens_per_call_count_the_leading_correct_drafts(kind, wrong, expected, teacher, monkeypatch):
    """Drafts that are right but for one slot."""
    paper = written(teacher, COURSE)
    first = paper.starts + (1 if kind == "o" else 2)

    def known(way, logits, noise, law):
        tokens = paper.batch.tokens.gather(1, first + torch.arange(4))[:, None]
        slot = torch.arange(4)
        assert torch.equal(noise[:, 0], paper.noise.gather(1, first + slot))
        return Draft((tokens + (slot == wrong)) % 4, tokens.float())

    monkeypatch.setattr(ptp.examination, "draw", known)
    scores = tokens_per_call("x", Pupil(COURSE.config, kind), paper, 4, "pick")
    assert {score.horizon: score.value for score in scores} == expected


def test_perplexity_is_the_exponential_of_the_mean_loss():
    losses = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert perplexity("x", losses).value == pytest.approx(exp(1.5))
    assert mark("x", CALLS, 2, torch.tensor([1.0, 2.0, 3.0, 4.0])).standard_error == pytest.approx(0.6455, abs=1e-4)


def test_training_gives_back_the_average_of_the_weights():
    """Of step 0 nothing is left but what the later ones took over; the loss sees the average so far."""
    torch.manual_seed(0)
    module, seen, averages = torch.nn.Linear(2, 2), [], []

    def loss(average):
        seen.append(module.weight.detach().clone())
        averages.append(average.weight.clone())
        return module(torch.ones(2)).square().sum()

    average = train(module, loss, 12, 0.1)
    expected, after = seen[0], [*seen[1:], module.weight.detach()]
    for step, weight in enumerate(after):
        assert torch.allclose(averages[step], expected)
        expected = expected + 9 / (step + 9) * (weight - expected)
    assert torch.allclose(average.weight, expected)
    assert not torch.allclose(average.weight, module.weight)


def test_without_a_teacher_noise_is_read_off_the_average(monkeypatch):
    torch.manual_seed(0)
    pupil, steady, voices = Pupil(COURSE.config, "c"), Pupil(COURSE.config, "c"), []

    def listen(voice, *rest):
        voices.append(voice)
        return own_noise(voice, *rest)

    monkeypatch.setattr(ptp.practice, "own_noise", listen)
    inverse_loss(pupil, steady, COURSE).backward()
    assert [(voice.model, voice.embed) for voice in voices] == [(steady.model, steady.embedding)]
    assert all(weight.grad is None for weight in steady.parameters())
    assert {name for name, weight in pupil.named_parameters() if weight.grad is None} == set()


def test_a_slot_is_asked_for_the_token_that_its_own_noise_makes():
    """C-PTP: the token before the one whose law it predicts. O-PTP predicts the former itself."""
    torch.manual_seed(0)
    pupil, batch, starts = Pupil(COURSE.config, "c"), COURSE.trips(6), COURSE.starts(6)
    reading = read(pupil.model, batch)
    slots = inverse_slots(pupil, reading, starts, COURSE.slots)
    goals = of_tokens(slots.tokens(batch).flatten())
    both = slot_loss(pupil, reading, slots, goals)
    chances = pupil.echo(pupil.run(reading, slots)).log_softmax(-1)
    losses = [-chances[row, 0, slot, batch.tokens[row, starts[row, 0] + 1 + slot]].item()
              for row in range(6) for slot in range(4)]
    pupil.echo = None
    assert (both - slot_loss(pupil, reading, slots, goals)).item() == pytest.approx(sum(losses) / 24, abs=1e-5)
    assert Pupil(COURSE.config, "o").echo is None


@pytest.mark.slow
def test_listening_to_the_noise_wins(teacher):
    paper = written(teacher, COURSE)
    deaf = train_pupil(COURSE, "o", False, teacher)
    control = max(tokens_per_call("independent", deaf, paper, 4, way)[-1].value for way in ("argmax", "pick"))
    for kind, way in (("o", "argmax"), ("c", "pick")):
        pupil = train_pupil(COURSE, kind, True, teacher)
        assert tokens_per_call("PTP", pupil, paper, 4, way)[-1].value > 1.5 * control


@pytest.mark.slow
def test_no_teacher_is_needed(teacher):
    """Of what four stops at once cost a model that hears nothing, its own noise gives two thirds back."""
    exact, plain = plain_perplexities("teacher", teacher, COURSE)
    inverse = inverse_perplexity("inverse", train_pupil(replace(COURSE, steps=120), "c", True, None), COURSE)
    law = torch.linalg.matrix_power(COURSE.city.law(), 2)  # two stops ahead: the least that can be lost
    deaf = exp(-float((torch.linalg.matrix_power(law, 64)[0][:, None] * torch.xlogy(law, law)).sum()))
    assert plain.value < 1.01 * exact.value
    assert exact.value < inverse.value < (2 * plain.value + deaf) / 3


def test_the_page_is_written(tmp_path, monkeypatch):
    names = ["O-PTP", "independent, argmax", "independent, pick"]
    rows = [(name, CALLS, n, value, 0.01) for n in (2, 4) for name, value in zip(names, (n, 1.5, 1.25), strict=True)]
    rows += [(name, "parameters", 0, 1234, 0) for name in ("O-PTP", "independent")]
    rows += [(name, "CPU seconds", 0, 60, 0) for name in ("O-PTP", "independent")]
    rows += [("the law itself", "perplexity", 0, 5, 0.1), ("teacher", "perplexity", 0, 5.1, 0.1)]
    scores = pd.DataFrame(rows, columns=["model", "quantity", "horizon", "value", "standard_error"])
    page = world.publish(scores, COURSE, 90, tmp_path)
    assert "| O-PTP | 1,234 | 60 | 2.00 ± 0.01 | 4.00 ± 0.01 |" in page
    assert "| O-PTP / best independent | | | 1.33 | 2.67 |" in page
    assert "| the law itself |  |  | 5.000 ± 0.100 | -1.96% |" in page
    assert page == (tmp_path / "world.md").read_text()
    assert len(pd.read_csv(tmp_path / "world.csv")) == len(rows)
    assert (tmp_path / "world.png").stat().st_size > 5000


@pytest.mark.parametrize(("flags", "message"), [(["--steps", "0"], "--steps must be 1 or more"),
                                                (["--workers", "0"], "--workers must be"),
                                                (["--out", "{file}/x"], "choose another --out")])
def test_bad_flags_are_refused(flags, message, tmp_path):
    (tmp_path / "file").write_text("")
    parser = argparse.ArgumentParser()
    world.arguments(parser)
    with pytest.raises(BenchError, match=message):
        world.command(parser.parse_args([flag.format(file=tmp_path / "file") for flag in flags]))


def test_models_have_at_most_a_million_parameters():
    assert sum(p.numel() for p in Pupil(Course().config, "o").parameters()) < 1e6
    assert sum(p.numel() for p in model_of(Course().config).parameters()) < 1e6
