"""`python -m bench cost`: memory and energy of each method, alone in a process of its own, over seconds of decoding."""

import argparse
import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from bench import destination, journal, prompts, suite, zoo
from bench.clip import clip
from bench.consumption import Meter, copied_bytes_per_s
from bench.errors import BenchError
from bench.layout import Table, build, fixed, of, significant, tenths, whole
from bench.loop import Decoder, Raw
from bench.measure import WARM_UP_TOKENS, Team
from bench.memory import memory_limits
from bench.methods import METHODS
from bench.noise import NoiseKey
from bench.plan import Prompter, groups
from bench.record import TWIN
from bench.sequences import Prompt, Sequences
from bench.suite import DTYPES, RunSettings
from bench.terminal import console, show

FILE = "cost.json"
SECONDS = 10.0  # of decoding, at least: the energy counter moves in steps of a tenth of a second or so
MIB = 1 << 20
NOTE = ("Peak: of the allocator on a GPU, without what the compiler takes to try kernels out; of the whole process on "
        "a CPU. Own: what the method adds to the target's memory. Energy: of the whole card, prefill included. "
        "Roofline: time to read weights and cache, of a step.")


@dataclass(frozen=True)
class Cost:
    """What a method was seen to take; None where the machine does not tell."""

    peak_memory_mib: float
    own_memory_mib: float
    energy_mj_per_token: float | None
    roofline_share: float  # see `Account.share`
    tokens: int
    seconds: float  # of decoding, without prefill


@dataclass
class Account:
    """What has been decoded so far."""

    tokens: int = 0  # clipped
    seconds: float = 0.0  # host time around the loop
    steps_s: float = 0.0  # all executed steps
    read_bytes: float = 0.0  # that these steps had to read: weights once, cache once

    def share(self, bytes_per_s: float) -> float:
        """Time that reading takes at this speed, over the time that the steps took."""
        return self.read_bytes / bytes_per_s / self.steps_s


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cost`: a run, or those of `run`."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="directory of a run: its settings, its report")
    suite.arguments(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, metavar="S", help="of decoding per method, at least")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write {FILE} (default: RUN)")


def command(args: argparse.Namespace) -> int:
    """Measure one method after the other, print, write. Exit status: 0, or 130 after Ctrl-C, which loses nothing."""
    named = suite.given(args)
    if {"repeats", "part"} & named.keys() or not args.seconds > 0:
        raise BenchError("cost decodes for --seconds, which must be above 0, and has no --repeats and no --part")
    settings = continued(args.run, named) if args.run else suite.chosen(named)
    out, directory = console(), journal.place(args.run, args.out)
    found, status = journal.until_stopped(measure(settings, args.seconds, out))
    show(table(found, settings), out)
    out.print(NOTE, soft_wrap=True)
    if directory:
        write(directory, found)
    return status


def continued(run: Path, named: dict[str, Any]) -> RunSettings:
    """The settings of a run; but on as many of its questions as `named` has for a limit."""
    own = {"limit": named.pop("limit")} if "limit" in named else {}
    return replace(suite.continued(journal.settings(run), named), **own)


def measure(settings: RunSettings, seconds: float, out: Console) -> Iterator[tuple[str, Cost]]:
    """By label: the baseline and every method in the loop, each in a fresh process."""
    texts = {suite.parse_one(text).label: (text,) for text in settings.methods}
    for label in settings.labels(METHODS):
        if label != TWIN:
            out.print(f"{label} ...", soft_wrap=True, markup=False)
            yield label, in_a_process(replace(settings, methods=texts.get(label, ())), label, seconds)


def in_a_process(settings: RunSettings, label: str, seconds: float) -> Cost:
    """`alone`, in a process that does nothing else. BenchError if it is killed."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(alone, settings, label, seconds).result()
        except BrokenProcessPool as error:
            raise BenchError(f"the process that measured {label} was killed, most likely for its memory: lower --batch "
                             "or take a smaller --target") from error


def alone(settings: RunSettings, label: str, seconds: float) -> Cost:
    """Decode first turns by one method, again and again until `seconds` of decoding are over."""
    questions = prompts.load(settings.prompts, settings.limit)
    with memory_limits(settings.device):
        target = zoo.load(settings.target, settings.device, DTYPES[settings.dtype])
        prompter = Prompter(target.tokenizer, settings.max_new_tokens, settings.raw)
        team = Team(settings, target, prompter.check(questions, target.config.context))
        meter = Meter(target.model.norm.device)
        sequences = Sequences(target.model, min(settings.batch, len(questions)), team.context, team.widest)
        decoder = Decoder(team.build(label, sequences), sequences)
        batches = first_turns(settings, questions, prompter, sequences.batch)
        decoder.decode(next(batches), min(WARM_UP_TOKENS, settings.max_new_tokens))
        meter.start()
        account = spend(decoder, team, batches, seconds)
        energy = meter.energy_mj()
        peak = meter.peak_bytes()
    share = account.share(copied_bytes_per_s(sequences.device))
    return Cost(peak / MIB, decoder.method.extra_bytes / MIB, energy and energy / account.tokens, share,
                account.tokens, account.seconds)


def first_turns(settings: RunSettings, questions: list[prompts.Question], prompter: Prompter,
                batch: int) -> Iterator[list[Prompt]]:
    """Full batches of first turns, without end."""
    turns = [Prompt(prompter.prompt(question, 0, {}), NoiseKey(settings.seed, question.question_id))
             for group in groups(questions, batch) for question in group.questions]
    endless = cycle(turns)
    while True:
        yield [next(endless) for _ in range(batch)]


def spend(decoder: Decoder, team: Team, batches: Iterator[list[Prompt]], seconds: float) -> Account:
    """Decode batch after batch."""
    account, limit = Account(), team.settings.max_new_tokens
    while account.seconds < seconds:
        batch = next(batches)
        raw = decoder.decode(batch, limit, team.end_ids)
        account.seconds += raw.wall_ms / 1000
        account.steps_s += sum(map(sum, raw.phases.values())) / 1000
        account.read_bytes += read_bytes(decoder.sequences, batch, raw)
        account.tokens += sum(len(clip(tokens, [], limit, team.end_ids).tokens) for tokens in raw.tokens)
    return account


def read_bytes(sequences: Sequences, batch: list[Prompt], raw: Raw) -> float:
    """What the steps of a batch must read: every weight once per step, and the cache at its mean length."""
    cache = sequences.cache
    rows = sum(len(prompt.ids) + len(tokens) / 2 for prompt, tokens in zip(batch, raw.tokens, strict=True))
    return len(raw.rows) * (sequences.target.weight_bytes + rows * cache.bytes / (cache.batch * cache.capacity))


def write(directory: Path, found: dict[str, Cost]) -> None:
    """cost.json, as the report reads it. BenchError where that cannot be written."""
    content = json.dumps({label: asdict(cost) for label, cost in found.items()}, indent=1)
    with destination.writing(directory):
        (directory / FILE).write_text(content + "\n", encoding="utf-8")


def table(found: dict[str, Cost], settings: RunSettings) -> Table:
    """A row per method."""
    frame = pd.DataFrame([{"method": label} | asdict(cost) for label, cost in found.items()])
    frame = frame.astype({"energy_mj_per_token": float})
    return build("cost", f"Cost of {suite.public(settings.target)}, {settings.dtype}, {settings.device}", NOTE, frame, {
        "Method": of("method"),
        "Peak (MiB)": of("peak_memory_mib", whole),
        "Own (MiB)": of("own_memory_mib", significant),
        "mJ/token": of("energy_mj_per_token", tenths),
        "Roofline": of("roofline_share", fixed),
        "Tokens": of("tokens"),
        "Seconds": of("seconds", tenths),
    })  # fmt: skip
