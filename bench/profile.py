"""`python -m bench profile`: where a step's time goes: phases, kernels, gaps between them, and the bandwidth limit.

Phases and the step are timed by the loop's own clock, undisturbed; kernels (on a CPU: operators) by torch's profiler
in a second decoding of the same prompts, which may be slower. `profile.json` keeps it all, and `report` makes the page
again.
"""

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from bench import destination, journal, profiles, prompts, provenance, report, suite, zoo
from bench.consumption import copied_bytes_per_s
from bench.cost import read_bytes
from bench.errors import BenchError
from bench.loop import Decoder
from bench.measure import WARM_UP_TOKENS, Team
from bench.memory import memory_limits
from bench.noise import NoiseKey
from bench.plan import Prompter
from bench.profiles import NAME, Profile, Profiles
from bench.record import TWIN
from bench.run import LOCAL, free_directory
from bench.sequences import Prompt, Sequences
from bench.suite import DTYPES, RunSettings
from bench.terminal import console, show
from bench.timing import PHASES, synchronize


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `run`, and where to write."""
    suite.arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write (default: {LOCAL}/DATE-{NAME})")


def command(args: argparse.Namespace) -> int:
    """Profile one method after the other, write, print."""
    named = suite.given(args)
    if {"limit", "repeats", "part"} & named.keys():
        raise BenchError("profile decodes as many questions as --batch says, once: leave out --limit, --repeats and "
                         "--part")
    settings, out = suite.chosen(named), console()
    directory = args.out or free_directory(NAME)
    destination.check(directory)
    journal.unused(directory)
    with memory_limits(settings.device):
        profiled(settings).save(directory)
    found = profiles.compose(profiles.load(directory))
    paths = report.publish(found, directory, NAME)
    for table in found.sections[0].tables:
        show(table, out)
    out.print(f"{paths.markdown}", soft_wrap=True)
    return 0


def profiled(settings: RunSettings) -> Profiles:
    """Every method of the settings that decodes in the loop."""
    questions = prompts.load(settings.prompts, settings.batch)
    target = zoo.load(settings.target, settings.device, DTYPES[settings.dtype])
    prompter = Prompter(target.tokenizer, settings.max_new_tokens, settings.raw)
    batch = [Prompt(prompter.prompt(question, 0, {}), NoiseKey(settings.seed, question.question_id))
             for question in questions]
    team = Team(settings, target, max(len(prompt.ids) for prompt in batch) + settings.max_new_tokens)
    sequences = Sequences(target.model, len(batch), team.context, team.widest)
    origin = provenance.collect(settings.published(), journal.hashes(target, questions))
    speed = copied_bytes_per_s(sequences.device)
    found = [profile(label, Decoder(team.build(label, sequences), sequences), batch, settings.max_new_tokens, speed)
             for label in team.methods if label != TWIN]
    return Profiles(origin, target.random, found)


def profile(method: str, decoder: Decoder, batch: list[Prompt], tokens: int, bytes_per_s: float) -> Profile:
    """Decode the batch three times: to warm up, by the clock, and with the profiler. Ends of text are ignored."""
    decoder.decode(batch, min(WARM_UP_TOKENS, tokens))
    raw = decoder.decode(batch, tokens)
    steps = len(raw.rows)
    clock = {phase: float(np.median(raw.phases[phase])) for phase in PHASES}
    clock["step"] = float(np.median(np.sum(list(raw.phases.values()), axis=0)))
    clock["limit"] = 1000 * read_bytes(decoder.sequences, batch, raw) / steps / bytes_per_s
    events = watch(decoder, batch, tokens)
    spans = [(event.time_range.start, event.time_range.end) for event in events]
    first, last = min(spans)[0], max(end for _, end in spans)
    watched, busy = (last - first) / 1000 / steps, covered(spans) / 1000 / steps
    kernels = grouped(events, steps)
    kernels["share"] = kernels.ms / watched
    return Profile(method, clock, {"watched": watched, "busy": busy, "gaps": watched - busy},
                   kernels.to_dict("records"))


@torch.inference_mode()
def watch(decoder: Decoder, batch: list[Prompt], tokens: int) -> Sequence[FunctionEvent]:
    """What the profiler saw of the loop, prefill apart: kernels on a GPU, operators on a CPU."""
    on_cuda = decoder.sequences.device.type == "cuda"
    decoder.sequences.fill(batch, tokens, frozenset())
    decoder.prefill(max(len(prompt.ids) for prompt in batch) - 1)
    synchronize(decoder.sequences.device)
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
        decoder.run(tokens)
        synchronize(decoder.sequences.device)
    kind = DeviceType.CUDA if on_cuda else DeviceType.CPU
    events = [event for event in seen.events() or () if event.device_type == kind and not event.is_user_annotation]
    if not events:
        raise BenchError("the profiler saw nothing run: on a GPU it needs CUPTI and the right to use it")
    return events


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reach = 0.0, -np.inf
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total


def grouped(events: Iterable[FunctionEvent], steps: int) -> pd.DataFrame:
    """Calls and milliseconds per step by kernel; operators without those that they call."""
    seen = [(plain(event.key), event.self_cpu_time_total if event.device_type == DeviceType.CPU
             else event.time_range.elapsed_us()) for event in events]  # fmt: skip
    groups = pd.DataFrame(seen, columns=["kernel", "us"]).groupby("kernel").us
    table = pd.DataFrame({"calls": groups.size() / steps, "ms": groups.sum() / 1000 / steps})
    return table.sort_values("ms", ascending=False).reset_index()


def plain(name: str) -> str:
    """A kernel's name without its templates, arguments and number."""
    name = re.sub(r"\(anonymous namespace\)::|^void ", "", name)
    while (shorter := re.sub(r"<[^<>]*>", "", name)) != name:
        name = shorter
    return re.sub(r"(\(.*|_\d+)$", "", name).strip()
