"""What a run is: every setting in one frozen dataclass, presets of it, and the flags that override them."""

import argparse
from collections.abc import Container
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch

from bench.drafters import shipped
from bench.errors import BenchError
from bench.methods import LESSONS, REFERENCES, Entry, parse_each, parse_one, public, split
from bench.plan import WHOLE, Part
from bench.record import BASELINE, TWIN
from bench.sampling import Law
from bench.terminal import console
from bench.zoo import RANDOM

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
FEW = ("prompt_lookup:k=3", "draft_model:k=2", "medusa:rows=8", "ptp:k=2:slots=5", "independent:k=2:slots=5",
       "hf_eager")  # rows: on a CPU every one costs
# On an H200 8 drafts and 24 slots of ptp accept little more than 3 and 10, and a step costs half as much again.
MANY = ("prompt_lookup:k=3", "prompt_lookup", "draft_model:k=3", "medusa", "ptp:k=3:slots=10",
        "independent:k=3:slots=10", "hf_eager", "hf_static")
CONTROLS = ("ptp:k=3:pqd=false", "ptp:k=3:slots=10:shuffled=true")  # the budget's worth, and that of hearing the noise


def flag(default: Any, help: str) -> Any:
    """A field that is a flag of `run` as well."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that decides what a run measures. BenchError in one line for a value that makes no sense."""

    suite: str = "standard"
    target: str = flag("smollm2-135m", "model by name or path (see `python -m bench list`)")
    methods: tuple[str, ...] = flag((), "a,b:key=value,c (see `list`)")
    prompts: str = flag("bundled", "questions as JSONL in Spec-Bench's schema, or `bundled`")
    limit: int | None = flag(None, "at most this many questions, balanced over the tasks")
    max_new_tokens: int = flag(48, "longest answer, in tokens")
    temperature: float = flag(0.0, "0 is greedy")
    top_k: int = flag(0, "0 is off")
    top_p: float = flag(1.0, "1 is off")
    seed: int = flag(0, "of the noise and of the order of methods")
    batch: int = flag(1, "sequences decoded together")
    device: str = flag("auto", "auto, cpu, cuda or cuda:N")
    dtype: str = flag("auto", "auto, fp32, bf16, fp16 or fp64")
    repeats: int = flag(1, "whole passes over all questions")
    ignore_eos: bool = flag(False, "decode to the limit, past end-of-text ids")
    raw: bool = flag(False, "prompts as they are, without a chat template")
    part: str = flag(WHOLE, "I/N: only the I-th of N parts, which `join` makes one run")

    def __post_init__(self):
        for name in ("limit", "max_new_tokens", "batch", "repeats"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise BenchError(f"{spelled(name)} must be at least 1, got {value}")
        self.law()
        Part.parse(self.part)
        for label in self.lineup():
            if self.batch > 1 and label in REFERENCES:
                raise BenchError(f"{label} decodes one sequence at a time: leave it out of --methods, or use --batch 1")

    def law(self) -> Law:
        """Temperature, top-k and top-p."""
        return Law(self.temperature, self.top_k, self.top_p)

    def lineup(self) -> dict[str, Entry]:
        """By label: the baseline, its twin, and the methods that were asked for."""
        asked = {entry.label: entry for entry in parse_each(self.methods)}
        return dict.fromkeys((BASELINE, TWIN), parse_one(BASELINE)) | asked

    def labels(self, kinds: Container[str]) -> list[str]:
        """Of the line-up those of some names: of METHODS, which decode in the loop, or of REFERENCES."""
        return [label for label, entry in self.lineup().items() if entry.name in kinds]

    def can_run(self, method: str) -> bool:
        """Whether a preset's method is of use here: references take one sequence, one of them only on a GPU.

        At temperature 0 there is no noise to shuffle.
        """
        if method in REFERENCES:
            return self.batch == 1 and (method != "hf_static" or self.device != "cpu")
        return self.temperature > 0 or "shuffled" not in method

    def can_draft(self, method: str) -> bool:
        """Whether a preset's method has what it drafts with: trained for this target, or random as the target is."""
        name = parse_one(method).name
        return name not in LESSONS or self.target.partition(":")[0] in RANDOM or bool(shipped(name, self.target))

    def resolved(self) -> "RunSettings":
        """The same with a real device and dtype. BenchError for a device that is not there, or an unknown dtype."""
        device = find_device(self.device)
        return replace(self, device=device, dtype=find_dtype(self.dtype, device))

    def published(self) -> dict[str, Any]:
        """The settings as records and provenance show them: plain values, absolute paths cut to their last part."""
        methods = [entry.label for entry in parse_each(self.methods)]
        return asdict(self) | {"methods": methods, "target": public(self.target), "prompts": public(self.prompts)}

    @classmethod
    def from_published(cls, values: dict[str, Any]) -> "RunSettings":
        """The inverse, as far as possible. BenchError for what another version wrote."""
        values = {"part": WHOLE} | values  # the first runs could not be divided
        if odd := set(values) ^ {f.name for f in fields(cls)}:
            raise BenchError(f"the run's settings do not fit this version of ptp-bench ({min(odd)}): start a new run")
        return cls(**values | {"methods": tuple(values["methods"])})


SUITES = {
    "smoke": RunSettings(suite="smoke", target="tiny", methods=FEW[:-1], limit=6, max_new_tokens=16),
    "standard": RunSettings(limit=24),  # methods: `FEW` or `MANY`, by the device
    "paper": RunSettings(suite="paper", methods=MANY + CONTROLS, max_new_tokens=256, temperature=0.7, top_k=50,
                         repeats=3),
}
ABOUT = {
    "smoke": "seconds: a tiny random model, to see that everything works",
    "standard": "minutes: the default model, four questions per task, greedy (`make bench`)",
    "paper": "hours on a CPU: all questions, long answers, sampled, three passes, and PTP's controls",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per setting; a flag that is not given is None, and the preset's value holds."""
    parser.add_argument("--suite", help=f"preset: {', '.join(SUITES)} (default: standard)")
    for one in fields(RunSettings):
        if not one.metadata:
            continue
        if isinstance(one.default, bool):
            parser.add_argument(spelled(one.name), action="store_true", default=None, help=one.metadata["help"])
        else:
            number = float if isinstance(one.default, float) else int
            kind = str if isinstance(one.default, str | tuple) else number
            parser.add_argument(spelled(one.name), type=kind, metavar=one.name[0].upper(), help=one.metadata["help"])


def given(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names. BenchError for an unknown suite."""
    if args.suite is not None and args.suite not in SUITES:
        raise BenchError(f"unknown suite {args.suite!r}: use one of {', '.join(SUITES)}")
    named = {f.name: getattr(args, f.name) for f in fields(RunSettings) if getattr(args, f.name) is not None}
    if "methods" in named:
        named["methods"] = tuple(split(named["methods"], ","))
    if "dtype" in named:
        named["dtype"] = SHORT.get(named["dtype"], named["dtype"])
    return named


def chosen(named: dict[str, Any]) -> RunSettings:
    """The preset with the given settings in place of its own, ready to run.

    Of a preset's methods those are left out that cannot run here; those without a drafter, with a line that says so.
    """
    preset = SUITES[named.get("suite", "standard")]
    asked = replace(preset, **{"methods": (), **named}).resolved()
    if "methods" in named:
        return asked
    able = list(filter(asked.can_run, preset.methods or (FEW if asked.device == "cpu" else MANY)))
    if idle := [method for method in able if not asked.can_draft(method)]:
        console().print(f"left out, because no drafter for {public(asked.target)} is here: {', '.join(idle)} "
                        "(python -m bench train)", soft_wrap=True, markup=False)
    return replace(asked, methods=tuple(method for method in able if method not in idle))


def continued(saved: RunSettings, named: dict[str, Any]) -> RunSettings:
    """The settings of a run to resume. BenchError names the first one that is now asked to be different."""
    now = replace(saved, **{name: value for name, value in named.items() if value != "auto"})
    had, asked = saved.published(), now.published()
    for name in named:
        if asked[name] != had[name]:
            raise BenchError(f"the run to resume has {spelled(name)} {worded(had[name])}, not {worded(asked[name])}: "
                             "leave the flag out, or start a new run")
    return now.resolved()


def spelled(name: str) -> str:
    """A setting as a flag."""
    return "--" + name.replace("_", "-")


def worded(value: Any) -> str:
    """A setting's value as the command line writes it."""
    return ",".join(value) if isinstance(value, list) else str(value)


def find_device(name: str) -> str:
    """The device that a name means: "auto" takes the GPU if there is one. BenchError if there is no such device.

    `cuda:N` becomes the current one: there Triton launches, events are recorded, and pinned memory is mapped.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
        raise BenchError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise BenchError(f"there is no device {name}: this machine has {torch.cuda.device_count()} CUDA devices that "
                         "torch can use; leave --device out, or use --device cpu")
    if index:
        torch.cuda.set_device(name)
    return name


def find_dtype(name: str, device: str) -> str:
    """The dtype that a name means: "auto" takes the device's best one. BenchError if there is no such dtype."""
    dtype = best_dtype(device) if name == "auto" else SHORT.get(name, name)
    if dtype not in DTYPES:
        raise BenchError(f"unknown dtype {name!r}: use one of {', '.join(['auto', *SHORT])}")
    return dtype


def best_dtype(device: str) -> str:
    """bfloat16 where the device has instructions for it (half the bytes to read), float32 elsewhere."""
    able = torch.cpu.get_capabilities()
    return "bfloat16" if device != "cpu" or able.get("amx_bf16") or able.get("avx512_bf16") else "float32"
