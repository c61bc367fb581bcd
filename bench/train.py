"""`python -m bench train METHOD`: train a method's drafter on teacher text, and store it small."""

import argparse
from pathlib import Path

import torch
from rich.console import Console

from bench import zoo
from bench.drafters import Card, identity, round_trip, save
from bench.errors import BenchError
from bench.memory import memory_limits
from bench.methods import lesson
from bench.packing import Reader
from bench.suite import DTYPES, best_dtype, find_device
from bench.terminal import console
from bench.texts import Corpus
from bench.trainer import Plan, Trainer

WEIGHTS = "drafter.safetensors"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `train`."""
    parser.add_argument("method", metavar="METHOD", help="name:key=value:..., as in `run`, with options of training")
    parser.add_argument("--target", default="smollm2-135m", metavar="T", help="model by name or path")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="what `data` wrote")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new directory for checkpoint and drafter")
    parser.add_argument("--resume", type=Path, metavar="DIR", help="go on with a training that was stopped")
    parser.add_argument("--minutes", type=float, default=30.0, metavar="M", help="time to train, in all sessions")
    parser.add_argument("--steps", type=int, metavar="N", help="steps in place of minutes")
    parser.add_argument("--rows", type=int, default=16, metavar="B", help="packed rows of a step")
    parser.add_argument("--length", type=int, default=1024, metavar="L", help="tokens of a row")
    parser.add_argument("--rate", type=float, metavar="R", help="learning rate (default: the method's own)")
    parser.add_argument("--greedy", action="store_true", help="train for temperature 0, on greedy answers alone")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of first weights and of the order of texts")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")


def command(args: argparse.Namespace) -> int:
    """Exit status: 0, or 130 after Ctrl-C. BenchError for the wrong target, law or options."""
    directory = check(args)
    device, out = find_device(args.device), console()
    with memory_limits(device):
        # the target is frozen: on a GPU bf16 holds what it will run in
        dtype = DTYPES[best_dtype(device) if device != "cpu" else "float32"]
        target = zoo.load(args.target, device, dtype)
        try:
            run(args, target, directory, out)
        except KeyboardInterrupt:
            out.print(f"stopped; go on with the same flags and  --resume {directory}", soft_wrap=True)
            return INTERRUPTED
    return 0


def check(args: argparse.Namespace) -> Path:
    """Where the checkpoint lies. BenchError for flags that make no sense."""
    if bool(args.out) == bool(args.resume):
        raise BenchError("name either a new directory with --out or an old one with --resume")
    if args.minutes <= 0 or (args.steps is not None and args.steps < 1) or min(args.rows, args.length - 1) < 1:
        raise BenchError("--minutes and --steps must be positive, --rows at least 1, --length at least 2")
    if args.out and (args.out / WEIGHTS).exists():
        raise BenchError(f"{args.out} holds a trained drafter: choose another --out")
    return args.out or args.resume


def run(args: argparse.Namespace, target: zoo.Target, directory: Path, out: Console) -> None:
    """Train, measure, store, measure what was stored."""
    corpus = Corpus.read(args.data, identity(target), args.greedy)
    plan = Plan(60 * args.minutes, args.steps, args.rate, args.seed)
    torch.manual_seed(args.seed)
    pupil = lesson(args.method, target, corpus.law)
    seen, held_out = (Reader(texts, args.rows, args.length, args.seed) for texts in (corpus.seen, corpus.held_out))
    trainer = Trainer(pupil, seen, held_out, plan)
    method = args.method.partition(":")[0]
    facts = {"method": method, "options": pupil.options, "target": identity(target), "data": corpus.digest,
             "law": vars(corpus.law), "rows": args.rows, "length": args.length, "seed": args.seed}
    trainer.run(directory, facts, bool(args.resume), out)
    acceptance = trainer.accepted()
    round_trip(pupil.module)
    stored = trainer.accepted()
    card = save(directory / WEIGHTS, pupil.module, Card(
        method, pupil.options, target.name, identity(target), corpus.digest, corpus.law, trainer.step,
        round(trainer.seconds / 60, 2), round(acceptance, 4), round(stored, 4)))
    size = (directory / WEIGHTS).stat().st_size / 2**20
    out.print(f"{directory / WEIGHTS}: {card.method}, {size:.1f} MiB, {card.steps} steps, {card.acceptance:.3f} tokens "
              f"per step on held-out text, {card.stored:.3f} as stored", soft_wrap=True)
