"""`python -m bench rows`: what a step costs by the number of its rows, in the loop that decodes."""

import argparse
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from bench import curves, destination, journal, provenance, report, zoo
from bench.consumption import copied_bytes_per_s
from bench.errors import BenchError
from bench.loop import Decoder, Method, Raw
from bench.memory import memory_limits
from bench.meter import Meter
from bench.methods import public
from bench.noise import NoiseKey
from bench.run import LOCAL, free_directory
from bench.sampling import Law
from bench.sequences import Prompt, Sequences
from bench.suite import DTYPES, find_device, find_dtype
from bench.terminal import console, show
from bench.tree import Tree, chain, chain_parents

ROUNDS = 3  # passes over all points, each in an order of its own: drift hits all alike
WARM_UP_STEPS = 8


@dataclass(frozen=True)
class Plan:
    """Points of the curves: so many rows at so many committed tokens, and the steps of one pass at each."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    steps: int

    def __post_init__(self):
        if min(self.rows) != 1:
            raise BenchError("--rows must hold 1, which all others are compared with, and nothing below it")
        if self.steps < 1 or min(self.contexts) <= self.steps // 2:
            raise BenchError(f"--steps must be at least 1, and every context above half of it ({self.steps // 2})")

    @property
    def longest(self) -> int:
        """Positions of the longest text, its last tokens included."""
        return max(self.contexts) + self.steps


class Chain(Method):
    """A root and drafts that are arbitrary ids: only what its rows cost is of interest. `settings`: their number."""

    def __init__(self, sequences, law, settings=1, drafter=None):
        super().__init__(sequences, law, settings, drafter)
        s = sequences
        self.rows = (settings,)
        self.drafts = arbitrary(settings - 1, s.target.config.vocab).to(s.device).repeat(s.batch, 1)
        self.parents, self.structure = chain_parents(settings, s.batch, s.device), chain(settings, s.batch, s.device)

    def propose(self, kind: int) -> Tree:
        """The same drafts behind every root."""
        tokens = torch.cat([self.sequences.root_tokens(), self.drafts], 1)
        return Tree(tokens, self.parents, depth=tokens.shape[1] - 1, is_chain=True, structure=self.structure)


def arbitrary(count: int, vocab: int) -> torch.Tensor:
    """Ids without a meaning, the same everywhere: [count] int64."""
    return (7919 * torch.arange(1, count + 1)) % vocab


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `rows`."""
    parser.add_argument("--target", default="smollm2-135m", help="model by name or path (see `python -m bench list`)")
    parser.add_argument("--rows", type=numbers, default="1,2,4,8,16,32,64,128", metavar="N,..", help="rows of a step")
    parser.add_argument("--context", type=numbers, default="300,900", metavar="N,..", help="tokens before a step")
    parser.add_argument("--steps", type=int, default=24, metavar="N", help=f"per point, in each of {ROUNDS} passes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 or fp64")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"new directory (default: {LOCAL}/DATE-rows-TARGET)")


def numbers(text: str) -> tuple[int, ...]:
    """`1,2,4` -> (1, 2, 4), ascending."""
    found = tuple(sorted({int(piece) for piece in text.split(",")}))
    if found[0] < 1:
        raise ValueError
    return found


def command(args: argparse.Namespace) -> int:
    """Measure, write, print."""
    directory = args.out or free_directory("rows-" + re.sub(r"\W+", "-", public(args.target)))
    measure(args, directory)
    found, paths = curves.compose(curves.load(directory)), report.write(directory)
    out = console()
    show(found.sections[0].tables[0], out)
    out.print(" · ".join(filter(None, [found.facts, found.mark])), soft_wrap=True)
    out.print(f"{paths.markdown}, {paths.figures[0]}", soft_wrap=True)
    return 0


def measure(args: argparse.Namespace, directory: Path) -> None:
    """Replays of every point and where they come from, written to a new directory."""
    if (directory / curves.FILE).exists():
        raise BenchError(f"{directory} holds curves already: choose another --out")
    journal.unused(directory)
    destination.check(directory)
    plan, device = Plan(args.rows, args.context, args.steps), find_device(args.device)
    dtype = find_dtype(args.dtype, device)
    with memory_limits(device):
        target = zoo.load(args.target, device, DTYPES[dtype])
        if plan.longest > (most := target.config.context):
            raise BenchError(f"{plan.longest} positions are needed, the model has {most}: lower --context")
        settings = {"target": public(args.target), "random": target.random, "dtype": dtype, "device": device,
                    "rows": args.rows, "contexts": args.context, "steps": args.steps, "rounds": ROUNDS}
        origin = provenance.collect(settings, {"model": target.checksum})
        replays, origin["limit"] = replayed(target, plan)
    origin["card_after"] = provenance.card_state(device)
    with destination.writing(directory):
        replays.to_csv(directory / curves.FILE, index=False, float_format="%.6g", lineterminator="\n")
    journal.write(directory, origin)


def replayed(target: zoo.Target, plan: Plan) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every step of every point, and what the limit by bandwidth hangs on."""
    sequences = Sequences(target.model, 1, plan.longest, max(plan.rows))
    decoders = {rows: Decoder(Chain(sequences, Law(), rows), sequences) for rows in plan.rows}
    for decoder in decoders.values():
        decoder.decode([prompt(sequences, min(plan.contexts))], min(WARM_UP_STEPS, plan.steps))
    points, found = list(order(plan)), []
    with Meter(console()) as meter:
        for place, (context, rows) in enumerate(points):
            raw = decoders[rows].decode([prompt(sequences, context - plan.steps // 2)], plan.steps)
            found += [(context, rows, *times) for times in steps_of(raw)]
            meter.show((place + 1) / len(points), f"{rows}-row steps at {context}")
    cache = sequences.cache
    limit = {"copy_bytes_per_s": copied_bytes_per_s(sequences.device), "weight_bytes": target.model.weight_bytes,
             "cache_row_bytes": cache.bytes // (cache.batch * cache.capacity)}
    return pd.DataFrame(found, columns=list(curves.COLUMNS)), limit


def order(plan: Plan) -> Iterator[tuple[int, int]]:
    """(context, rows) of all points, once a round."""
    points = [(context, rows) for context in plan.contexts for rows in plan.rows]
    for number in range(ROUNDS):
        yield from random.Random(number).sample(points, len(points))


def prompt(sequences: Sequences, length: int) -> Prompt:
    """A text without a meaning."""
    return Prompt(arbitrary(length, sequences.target.config.vocab).tolist(), NoiseKey(0, "rows"))


def steps_of(raw: Raw) -> Iterator[tuple[float, float]]:
    """Milliseconds of the forward and of the whole step, step by step."""
    return zip(raw.phases["forward"], map(sum, zip(*raw.phases.values(), strict=True)), strict=True)
