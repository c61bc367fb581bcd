"""Shards of teacher text, one after another: while one is decoded, the one before is sifted."""

import argparse
import signal
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console

from bench import prompts, zoo
from bench.drafters import identity
from bench.errors import BenchError
from bench.filters import Sieve, objections
from bench.free_text import passages_file
from bench.meter import Meter
from bench.passages import Library
from bench.prompts import Question
from bench.sampling import Law
from bench.shifts import Shifts
from bench.texts import Origin, Shard, Text, shard_path

SHARES = ("greedy", "opened", "second", "long")
SETTINGS = ("batch", "shard", "length", "question", "seed", "raw", "long_length", *SHARES)


@dataclass(frozen=True)
class Job:
    """All that is to be written."""

    directory: Path
    count: int  # shards
    shifts: Shifts
    sieve: Sieve

    @staticmethod
    def of(args: argparse.Namespace, target: zoo.Target, questions: list[Question]) -> "Job":
        """BenchError for lengths that do not fit."""
        library = Library.read(args.passages or passages_file()) if args.long else None
        settings = {name: getattr(args, name) for name in SETTINGS} | {"passages": library.digest if library else ""}
        law = Law(args.temperature, args.top_k, args.top_p)
        shifts = Shifts(target, Origin(target.name, identity(target), law, settings), library)
        sieve = Sieve(target.tokenizer, [*prompts.load(), *questions])
        return Job(args.out, -(-args.sequences // args.shard), shifts, sieve)


@dataclass(frozen=True)
class Unsifted:
    """A shard that is being sifted, in another process."""

    texts: list[Text]
    objections: Future[list[str | None]]
    origin: Origin
    path: Path

    def save(self, sieve: Sieve) -> None:
        """Write what is left of it."""
        kept, dropped = sieve.sift(self.texts, self.objections.result())
        Shard(kept, self.origin, dropped).save(self.path)


def write(job: Job, out: Console) -> None:
    """Write the shards that are not there yet. While one is decoded, the one before is sifted."""
    with Meter(out) as meter, other_worker(job.shifts.target.model.norm.device) as other:
        last: Unsifted | None = None
        for number in range(job.count):
            path, origin = shard_path(job.directory, number), job.shifts.origin(number)
            if path.exists():
                job.sieve.remember(continued(path, origin).texts)
                continue
            texts = decode(job, number, meter)
            found = other.submit(objections, texts, job.sieve.tokenizer, job.sieve.asked)
            if last:
                last.save(job.sieve)
            last = Unsifted(texts, found, origin, path)
        if last:
            last.save(job.sieve)


def decode(job: Job, number: int, meter: Meter) -> list[Text]:
    """The texts of a shard, not yet sifted; the meter shows how far they are."""
    begin, before, kind = time.perf_counter(), job.shifts.said, job.shifts.kind(number)

    def tell(share: float) -> None:
        speed = (job.shifts.said - before) / (time.perf_counter() - begin)
        meter.show((number + share) / job.count, f"shard {number + 1} of {job.count}, {kind}: {speed:,.0f} tokens/s")

    return job.shifts.write(number, tell)


def other_worker(device: torch.device) -> Executor:
    """Where shards are sifted. A thread would hold the interpreter's lock, and a GPU wait for its next step."""
    if device.type == "cpu":
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(1, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN))


def continued(path: Path, origin: Origin) -> Shard:
    """A shard of an earlier session. BenchError if it was written for something else than `origin` says."""
    found = Shard.load(path)
    if found.origin.checksum != origin.checksum:
        raise BenchError(f"{path} was written by another target ({found.origin.target}): choose another --out")
    if found.origin != origin:
        raise BenchError(f"{path} was written with other settings: repeat those, or choose another --out")
    return found
