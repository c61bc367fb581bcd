"""`python -m bench train METHOD...`: train drafters on teacher text, one after the other, and store them small."""

import argparse
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench import destination, zoo
from bench.drafters import Card, identity, load, round_trip, save
from bench.errors import INTERRUPTED, BenchError
from bench.memory import memory_limits
from bench.methods import lesson
from bench.packing import Reader
from bench.shortlist import coverage, enlist
from bench.suite import DTYPES, best_dtype, find_device
from bench.terminal import console
from bench.texts import Corpus
from bench.trainer import CHECKPOINT, GREEDY, SAMPLED, Acceptance, Plan, Trainable, Trainer, shown

WEIGHTS = "drafter.safetensors"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `train`."""
    parser.add_argument("methods", metavar="METHOD", nargs="+",
                        help="name:key=value:..., as in `run`, with options of training")
    parser.add_argument("--target", default="smollm2-135m", metavar="T", help="model by name or path")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `data` wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new directory for checkpoint and drafter; "
                        "several methods get a directory each in it")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with trainings that were stopped")
    parser.add_argument("--start", type=Path, metavar="FILE",
                        help="begin with the weights of a stored drafter, and warm up anew")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M",
                        help="time to train each method, in all sessions; compilation is not counted")
    parser.add_argument("--steps", type=int, metavar="N", help="steps in place of minutes")
    parser.add_argument("--rows", type=int, default=16, metavar="B", help="packed rows of a step")
    parser.add_argument("--length", type=int, default=1024, metavar="L", help="tokens of a row")
    parser.add_argument("--rate", type=float, metavar="R", help="learning rate (default: the method's own)")
    parser.add_argument("--greedy", action="store_true", help="train for temperature 0, on greedy answers alone")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of first weights and of the order of texts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def command(args: argparse.Namespace) -> int:
    """Exit status: 0, or 130 after Ctrl-C. BenchError for the wrong target, law or options."""
    check(args)
    device, out = find_device(args.device), console()
    with memory_limits(device):
        # the target is frozen: on a GPU bf16 holds what it will run in
        dtype = DTYPES[best_dtype(device) if device != "cpu" else "float32"]
        target = zoo.load(args.target, device, dtype)
        corpus = Corpus.read(args.data, identity(target), args.greedy)
        jobs = [Job.of(args, text, directory, target, corpus) for text, directory in places(args)]
        try:
            for job in jobs:
                job.run(out)
        except KeyboardInterrupt:
            out.print(f"stopped; go on with the same flags and  --resume {args.out or args.resume}", soft_wrap=True)
            return INTERRUPTED
    return 0


def check(args: argparse.Namespace) -> None:
    """BenchError for flags that make no sense."""
    if bool(args.out) == bool(args.resume):
        raise BenchError("name either a new directory with --out or an old one with --resume")
    if args.minutes <= 0 or (args.steps is not None and args.steps < 1) or min(args.rows, args.length - 1) < 1:
        raise BenchError("--minutes and --steps must be positive, --rows at least 1, --length at least 2")
    if args.start and len(args.methods) > 1:
        raise BenchError("--start is for one method: train the others by a call of their own")
    for _, directory in places(args):
        if args.out and (directory / WEIGHTS).exists():
            raise BenchError(f"{directory} holds a trained drafter: choose another --out")
        destination.check(directory)


def places(args: argparse.Namespace) -> list[tuple[str, Path]]:
    """Every method and its directory: with several methods one of its name, numbered from the second on."""
    base, seen, found = args.out or args.resume, Counter[str](), []
    for text in args.methods:
        name = text.partition(":")[0]
        seen[name] += 1
        found.append((text, base / (name if seen[name] == 1 else f"{name}-{seen[name]}")))
    return found if len(found) > 1 else [(args.methods[0], base)]


@dataclass(frozen=True)
class Job:
    """One training."""

    args: argparse.Namespace
    text: str  # the method, as it was asked for
    directory: Path
    target: zoo.Target
    corpus: Corpus
    start: Card | None  # of the drafter that it begins with
    pupil: Trainable

    @property
    def method(self) -> str:
        """Its name."""
        return self.text.partition(":")[0]

    @staticmethod
    def of(args: argparse.Namespace, text: str, directory: Path, target: zoo.Target, corpus: Corpus) -> "Job":
        """BenchError for options that make no sense, or for a start of another kind."""
        torch.manual_seed(args.seed)
        pupil = lesson(text, target, corpus.law)
        enlist(pupil.module, corpus.seen)
        start = begun(pupil, args.start, text.partition(":")[0], target) if args.start else None
        return Job(args, text, directory, target, corpus, start, pupil)

    def run(self, out: Console) -> None:
        """Train, measure, store, measure what was stored."""
        args, corpus = self.args, self.corpus
        resume = bool(args.resume) and (len(args.methods) == 1 or (self.directory / CHECKPOINT).exists())
        seen, held_out = (Reader(texts, args.rows, args.length, args.seed) for texts in (corpus.seen, corpus.held_out))
        trainer = Trainer(self.pupil, seen, held_out, Plan(60 * args.minutes, args.steps, args.rate, args.seed))
        trainer.run(self.directory, self.facts(), resume, out)
        accepted = trainer.accepted()
        round_trip(self.pupil.module)
        card = save(self.directory / WEIGHTS, self.pupil.module, self.card(trainer, accepted, trainer.accepted()))
        size = (self.directory / WEIGHTS).stat().st_size / 2**20
        out.print(f"{self.directory / WEIGHTS}: {card.method}, {size:.1f} MiB, {card.steps} steps, "
                  f"{shown(accepted)} on held-out text, {shown(card.notes['stored'])} as stored", soft_wrap=True)

    def facts(self) -> dict[str, Any]:
        """What must be the same in all sessions."""
        args = self.args
        return {"method": self.text, "options": self.pupil.options, "target": identity(self.target),
                "data": self.corpus.digest, "law": vars(self.corpus.law), "rows": args.rows, "length": args.length,
                "seed": args.seed, "start": self.start.sha256 if self.start else ""}

    def card(self, trainer: Trainer, accepted: Acceptance, stored: Acceptance) -> Card:
        """What the drafter is, and what it was made from; steps and minutes count from the very first start."""
        args, corpus, way = self.args, self.corpus, SAMPLED if self.corpus.law.temperature else GREEDY
        notes = {"asked": self.text, "rows": args.rows, "length": args.length, "rate": trainer.rate, "seed": args.seed,
                 "greedy": round(corpus.greedy, 4), "accepted": accepted, "stored": stored, "curve": trainer.curve,
                 "start": self.start.sha256 if self.start else "", **coverage(self.pupil.module, corpus.held_out)}
        before, minutes = (self.start.steps, self.start.minutes) if self.start else (0, 0.0)
        return Card(self.method, self.pupil.options, self.target.name, identity(self.target), corpus.digest, corpus.law,
                    before + trainer.step, round(minutes + trainer.seconds / 60, 2), round(accepted[way], 4),
                    round(stored[way], 4), notes=notes)


def begun(pupil: Trainable, path: Path, method: str, target: zoo.Target) -> Card:
    """Give a new pupil the weights of a stored drafter. BenchError if that has another method, target, law or shape."""
    found = load(path, method, target)
    if found.card.law != pupil.law:
        raise BenchError(f"{path.name} was trained for another law ({found.card.law}; the texts are of {pupil.law}): "
                         "take texts of that law, or leave --start out")
    if found.card.options != pupil.options:
        raise BenchError(f"{path.name} has another shape: it was trained with {found.card.options}, asked for is "
                         f"{pupil.options}")
    trained = [parameter.requires_grad for parameter in pupil.module.parameters()]
    found.into(pupil.module)
    for parameter, wanted in zip(pupil.module.parameters(), trained, strict=True):
        parameter.requires_grad_(wanted)
    return found.card
