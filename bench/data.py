"""`python -m bench data`: the target writes text for its drafters to learn from."""

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import prompts, zoo
from bench.drafters import identity
from bench.errors import BenchError
from bench.filters import Sieve, spoken
from bench.memory import memory_limits
from bench.meter import Meter
from bench.noise import NoiseKey
from bench.prompts import Question, shared_ngrams
from bench.sampling import Law
from bench.suite import DTYPES, SHORT, best_dtype, find_device
from bench.teacher import Stage, Teacher
from bench.terminal import console
from bench.texts import Origin, Shard, shard_path, shards


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `data`."""
    parser.add_argument("--target", default="smollm2-135m", metavar="T", help="model by name or path")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shards go here; those there are kept")
    parser.add_argument("--sequences", type=int, default=20480, metavar="N", help="texts to write, before filtering")
    parser.add_argument("--batch", type=int, default=512, metavar="B", help="texts at a time, and of a shard")
    parser.add_argument("--length", type=int, default=640, metavar="L", help="tokens of a whole text")
    parser.add_argument("--question", type=int, default=128, metavar="Q", help="tokens of the longest question")
    parser.add_argument("--greedy", type=float, default=0.2, metavar="S", help="share of shards answered greedily")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="of all else")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="0 is off")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 is off")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise")
    parser.add_argument("--raw", action="store_true", help="no chat template: the target just writes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 or fp64")
    parser.add_argument("--check", metavar="PROMPTS", help="report what the texts share with this file of questions; "
                        "with --sequences 0 nothing is written")


def command(args: argparse.Namespace) -> int:
    """Exit status: 0, or 1 when `--check` found something."""
    if args.batch < 1 or args.sequences < 0 or args.question < 1:
        raise BenchError("--batch and --question must be at least 1, --sequences at least 0")
    if not 0 <= args.greedy <= 1:
        raise BenchError(f"--greedy is a share between 0 and 1, got {args.greedy}")
    out, device = console(), find_device(args.device)
    dtype = SHORT.get(args.dtype, best_dtype(device) if args.dtype == "auto" else args.dtype)
    if dtype not in DTYPES:
        raise BenchError(f"unknown dtype {args.dtype!r}: use one of {', '.join(['auto', *SHORT])}")
    questions = prompts.load(args.check) if args.check else []
    with memory_limits(device):
        target = zoo.load(args.target, device, DTYPES[dtype])
        if args.sequences:
            write(Job.of(args, target), out)
    out.print(summary(args.out), soft_wrap=True)
    return check(args.out, questions, target, out) if questions else 0


@dataclass(frozen=True)
class Job:
    """All that is to be written."""

    directory: Path
    count: int  # shards
    origin: Origin  # of those that are not greedy
    greedy: float
    teacher: Teacher
    sieve: Sieve

    @staticmethod
    def of(args: argparse.Namespace, target: zoo.Target) -> "Job":
        """BenchError for lengths that do not fit."""
        names = ("batch", "length", "question", "greedy", "seed", "raw")
        law = Law(args.temperature, args.top_k, args.top_p)
        origin = Origin(target.name, identity(target), law, {name: getattr(args, name) for name in names})
        teacher = Teacher(target, Stage.of(target.tokenizer, args.raw), args.batch, args.length, args.question)
        return Job(args.out, -(-args.sequences // args.batch), origin, args.greedy, teacher,
                   Sieve(target.tokenizer, prompts.load()))

    def law(self, number: int) -> Law:
        """Of the answers of shard `number`: greedy ones lie evenly between the others."""
        return Law() if int((number + 1) * self.greedy) > int(number * self.greedy) else self.origin.law


def write(job: Job, out: Console) -> None:
    """Write the shards that are not there yet."""
    with Meter(out) as meter:
        for number in range(job.count):
            path = shard_path(job.directory, number)
            if path.exists():
                job.sieve.remember(continued(path, job).texts)
                continue
            begin = time.perf_counter()
            fresh = write_shard(job, number)
            fresh.save(path)
            tokens = sum(len(text.ids) for text in fresh.texts)
            speed = tokens / (time.perf_counter() - begin)
            meter.show((number + 1) / job.count, f"{len(fresh.texts)} texts, {speed:,.0f} tokens/s")


def write_shard(job: Job, number: int) -> Shard:
    """One batch. What it holds depends on its number and on the texts of earlier shards, not on when it is written."""
    settings, law = job.origin.settings, job.law(number)
    keys = [NoiseKey(settings["seed"], f"teacher/{number}/{i}") for i in range(settings["batch"])]
    texts, dropped = job.sieve.sift(job.teacher.write(job.origin.law, law, keys))
    return Shard(texts, Origin(job.origin.target, job.origin.checksum, law, settings), dropped)


def continued(path: Path, job: Job) -> Shard:
    """A shard of an earlier session. BenchError if it was written for something else."""
    found = Shard.load(path)
    if found.origin.checksum != job.origin.checksum:
        raise BenchError(f"{path} was written by another target ({found.origin.target}): choose another --out")
    if found.origin.settings != job.origin.settings or found.origin.law not in (job.origin.law, Law()):
        raise BenchError(f"{path} was written with other settings: repeat those, or choose another --out")
    return found


def summary(directory: Path) -> str:
    """What a directory holds, in one line."""
    texts = tokens = greedy = 0
    dropped: Counter[str] = Counter()
    for shard in shards(directory):
        texts += len(shard.texts)
        tokens += sum(len(text.ids) for text in shard.texts)
        greedy += len(shard.texts) * (shard.origin.law == Law())
        dropped.update(shard.dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return f"{directory}: {texts:,} texts, {tokens:,} tokens, {greedy:,} texts answered greedily; dropped: {reasons}"


def check(directory: Path, questions: list[Question], target: zoo.Target, out: Console) -> int:
    """Report shared 13-grams; 1 if there are any."""
    turns = [turn for question in questions for turn in question.turns]
    texts = (words for shard in shards(directory) for words in spoken(shard.texts, target.tokenizer))
    shared = shared_ngrams(texts, turns)
    out.print(f"{len(shared)} 13-grams shared with the questions" + "".join(f"\n  {gram}" for gram in sorted(shared)),
              soft_wrap=True, markup=False)
    return 1 if shared else 0
