"""Marks of small students: tokens per call on the teacher's texts, and perplexity on trips nobody has seen."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bench.model import Transformer
from bench.packing import Batch
from bench.reading import read
from bench.sampling import NOISE_BITS, pick
from ptp.bins import Drawn
from ptp.completions import Completions, at, following, under
from ptp.draft import draw
from ptp.practice import LAW, Course, Pupil, inverse_slots, next_token_losses

HORIZONS = (2, 4, 8, 16)
TEXTS = 2000
CALLS, PERPLEXITY, PARAMETERS, SECONDS = "tokens per call", "perplexity", "parameters", "CPU seconds"


class Score(NamedTuple):
    """One line of the table of results."""

    model: str
    quantity: str
    horizon: int  # N of "tokens per call"; 0 otherwise
    value: float
    standard_error: float = 0.0


@dataclass
class Paper:
    """Texts to be examined on, and where the group of slots of each begins."""

    batch: Batch
    noise: Tensor  # [B, T] int64
    starts: Tensor  # [B, 1] int64


def written(teacher: Transformer, course: Course) -> Paper:
    """Trips that the teacher makes, stop by stop, each by `Pick` with a number of its own."""
    torch.manual_seed(course.seed + 1)
    tokens = torch.randint(course.city.places, (TEXTS, 1))
    noise = torch.randint(1 << NOISE_BITS, (TEXTS, course.length))
    for stop in range(1, course.length):
        chosen = pick(noise[:, stop], LAW(teacher.logits(tokens)[:, -1]))
        tokens = torch.cat([tokens, chosen[:, None]], 1)
    return Paper(Batch.whole(tokens), noise, course.starts(TEXTS))


def held_out(course: Course) -> Paper:
    """Trips of the world itself, whose noise nobody knows; the same for every model."""
    torch.manual_seed(course.seed + 2)
    batch = course.trips(TEXTS)
    return Paper(batch, torch.zeros_like(batch.tokens), course.starts(TEXTS))


@torch.no_grad()
def tokens_per_call(name: str, pupil: Pupil, paper: Paper, slots: int, way: str) -> list[Score]:
    """1, which the target gives by itself, and the leading correct drafts among N - 1. `way`: see `ptp.draft`."""
    drawn = under(Drawn(paper.noise, torch.ones_like(paper.noise, dtype=torch.bool)), paper.starts, slots)
    completions = Completions.of(paper.batch, pupil.kind, paper.starts, drawn)
    logits = pupil.model.score(pupil.run(read(pupil.model, paper.batch), completions))
    guess = draw(way, logits, at(paper.noise, completions.labels), LAW)
    right = (guess.tokens == completions.tokens(paper.batch))[:, 0, pupil.kind.known :]
    run = right.cumprod(1).double()
    return [mark(name, CALLS, n, 1 + run[:, : n - 1].sum(1)) for n in HORIZONS if n <= slots]


@torch.no_grad()
def plain_perplexities(name: str, teacher: Transformer, course: Course) -> list[Score]:
    """Of the law itself and of autoregressive prediction, of the stops that the teacher-free model is asked for."""
    paper, law = held_out(course), course.city.law()
    labels = following(paper.starts, course.slots)[:, 0] + 1
    exact = -law[at(paper.batch.tokens, labels - 1), at(paper.batch.tokens, labels)].log()
    model = at(next_token_losses(teacher, read(teacher, paper.batch)), labels - 1)
    return [perplexity("the law itself", exact), perplexity(name, model)]


@torch.no_grad()
def inverse_perplexity(name: str, pupil: Pupil, course: Course) -> Score:
    """Of the model that had no teacher: each group of slots hears its own noise, and no token after its start."""
    paper = held_out(course)
    reading = read(pupil.model, paper.batch)
    slots = inverse_slots(pupil, reading, paper.starts, course.slots)
    chances = pupil.model.score(pupil.run(reading, slots)).log_softmax(-1)
    return perplexity(name, -chances.gather(-1, slots.tokens(paper.batch)[..., None])[:, 0, :, 0])


def perplexity(name: str, losses: Tensor) -> Score:
    """From losses [texts, stops] in nats."""
    mean = mark(name, PERPLEXITY, 0, losses.double().mean(1))
    value = torch.tensor(mean.value, dtype=torch.float64).exp().item()
    return mean._replace(value=value, standard_error=value * mean.standard_error)


def mark(name: str, quantity: str, horizon: int, values: Tensor) -> Score:
    """Mean and standard error over texts."""
    return Score(name, quantity, horizon, values.mean().item(), (values.std() / len(values) ** 0.5).item())
