"""`python -m bench world`: a world where Parallel Token Prediction must win, and by how much it does."""

import argparse
import io
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from bench import destination
from bench.errors import BenchError
from ptp.examination import (
    PARAMETERS,
    SECONDS,
    Score,
    inverse_perplexity,
    plain_perplexities,
    tokens_per_call,
    written,
)
from ptp.practice import Course, model_of, train_pupil, train_teacher
from ptp.world_page import lines, picture

TEACHER = "autoregressive (the teacher)"


@dataclass(frozen=True)
class Job:
    """One student to train and examine, in a process of its own."""

    name: str
    kind: str
    ways: tuple[str, ...] = ()  # of drawing drafts; none: only its perplexity is asked for
    informed: bool = True


INVERSE = Job("inverse autoregressive (no teacher)", "c")
JOBS = (  # the longest first
    INVERSE,
    Job("C-PTP", "c", ("pick",)),
    Job("O-PTP", "o", ("argmax",)),
    Job("independent", "o", ("argmax", "pick"), informed=False),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `world`."""
    course = Course()
    parser.add_argument("--out", type=Path, default=Path("results/world"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=course.steps, help="of every student (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=course.seed, help="of the training (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="students trained at a time (default: %(default)s)")


def command(args: argparse.Namespace) -> int:
    """0 when table and figure are written. BenchError for a number below 1, or a place that cannot be written."""
    for name in ("steps", "workers"):
        if getattr(args, name) < 1:
            raise BenchError(f"--{name} must be 1 or more, got {getattr(args, name)}")
    begin, course = time.perf_counter(), replace(Course(), steps=args.steps, seed=args.seed)
    destination.check(args.out)
    scores = run(course, args.workers)
    with destination.writing(args.out):
        page = publish(scores, course, time.perf_counter() - begin, args.out)
    print(page)
    return 0


def run(course: Course, workers: int) -> pd.DataFrame:
    """Train and examine everybody: one line per model, quantity and horizon."""
    torch.set_num_threads(1)  # matrices of this size only lose by more; students share the cores instead
    begin = time.process_time()
    teacher = train_teacher(course)
    scores = [*costs(TEACHER, teacher, begin), *plain_perplexities(TEACHER, teacher, course)]
    file = io.BytesIO()
    torch.save(teacher.state_dict(), file)
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for found in pool.map(attend, JOBS, [course] * len(JOBS), [file.getvalue()] * len(JOBS)):
            scores += found
            print(f"{found[0].model}: trained and examined", flush=True)
    return pd.DataFrame(scores)


def attend(job: Job, course: Course, weights: bytes) -> list[Score]:
    """A worker's task: one student, from nothing to its marks."""
    torch.set_num_threads(1)
    teacher = model_of(course.config)
    teacher.load_state_dict(torch.load(io.BytesIO(weights), weights_only=True))
    teacher.requires_grad_(False)
    begin = time.process_time()
    pupil = train_pupil(course, job.kind, job.informed, None if job == INVERSE else teacher)
    scores = costs(job.name, pupil, begin)
    if job == INVERSE:
        return [*scores, inverse_perplexity(job.name, pupil, course)]
    paper = written(teacher, course)
    for way in job.ways:
        name = job.name if len(job.ways) == 1 else f"{job.name}, {way}"
        scores += tokens_per_call(name, pupil, paper, course.slots, way)
    return scores


def costs(name: str, model: nn.Module, begin: float) -> list[Score]:
    """What a training cost."""
    size = sum(p.numel() for p in model.parameters())
    return [Score(name, PARAMETERS, 0, size), Score(name, SECONDS, 0, time.process_time() - begin)]


def publish(scores: pd.DataFrame, course: Course, seconds: float, out: Path) -> str:
    """Write world.csv, world.md and world.png; returns the page."""
    page = "\n".join(lines(scores, course, seconds)) + "\n"
    scores.to_csv(out / "world.csv", index=False, float_format="%.6g")
    (out / "world.md").write_text(page)
    (out / "world.png").write_bytes(picture(scores).png)
    return page
