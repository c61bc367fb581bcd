"""Where a step's time goes: the pages made of what `profile` measured and keeps. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench import destination
from bench.contents import COST_ONLY
from bench.errors import BenchError
from bench.layout import Spec, Table, build, of, percent, significant, tenths
from bench.record import PHASES
from bench.sections import Report, Section
from bench.tables import environment

NAME = "profile"  # of the report
FILE = f"{NAME}.json"
SHOWN = 15  # kernels of a method; the CSV has all
CLOCK = (*PHASES, "step", "limit")
WATCHED = ("watched", "busy", "gaps")
KERNEL = {"kernel": str, "calls": float, "ms": float, "share": float}
STEP_NOTE = (
    "Milliseconds per step. Phases and step: medians of the loop's own clock, without the profiler. Limit: time to "
    "read all weights and the filled cache once at the measured copy bandwidth. Watched, busy, gaps: with the "
    "profiler, the time from the first kernel to the last, the part in which a kernel ran, and the rest."
)
KERNEL_NOTE = (
    "Per step, with the profiler. Share: of the watched time; kernels that overlap may sum to more than 100 %. "
    "On a CPU: operators, each without those that it calls."
)


@dataclass(frozen=True)
class Profile:
    """A method's step; milliseconds per step."""

    method: str
    clock: dict[str, float]  # CLOCK
    watched: dict[str, float]  # WATCHED
    kernels: list[dict[str, Any]]  # KERNEL: name, calls and ms per step, share of what was watched; the longest first


@dataclass(frozen=True)
class Profiles:
    """Those of all methods, as they are kept."""

    provenance: Mapping[str, Any]
    random: bool  # the target's weights are made up
    profiles: list[Profile]

    def save(self, directory: Path) -> None:
        """Write them in one go. BenchError for a place that cannot be written."""
        destination.put(directory / FILE, json.dumps(asdict(self), indent=1) + "\n")


def load(directory: str | Path) -> Profiles:
    """Read what `save` wrote. BenchError for a file that is damaged."""
    path = Path(directory) / FILE
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        found = Profiles(whole["provenance"], whole["random"], [read(one) for one in whole["profiles"]])
        facts(found)
        if not found.profiles:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(f"{path} is damaged ({type(error).__name__}): measure again") from error
    return found


def read(one: Mapping[str, Any]) -> Profile:
    """A method's profile from JSON. KeyError, TypeError or ValueError where something is missing or no number."""
    clock, watched = ({name: float(one[part][name]) for name in names}
                      for part, names in (("clock", CLOCK), ("watched", WATCHED)))
    kernels = [{name: kind(kernel[name]) for name, kind in KERNEL.items()} for kernel in one["kernels"]]
    return Profile(str(one["method"]), clock, watched, kernels)


def facts(found: Profiles) -> str:
    """The setting in one line."""
    settings = found.provenance["settings"]
    return " · ".join([settings["target"], settings["dtype"], settings["device"], f"batch {settings['batch']}"])


def compose(found: Profiles) -> Report:
    """A table of steps, then one of kernels for every method."""
    shown = [steps(found.profiles), *(kernels(profile, number) for number, profile in enumerate(found.profiles))]
    sections = [Section(NAME, "Where a step's time goes", [], shown, []),
                Section("environment", "Environment", [], [environment(found.provenance)], [])]
    title = f"Profile: {found.provenance['settings']['target']}"
    return Report(title, COST_ONLY if found.random else "", facts(found), sections)


def steps(profiles: list[Profile]) -> Table:
    """A row per method."""
    frame = pd.DataFrame([{"method": profile.method, **profile.clock, **profile.watched} for profile in profiles])
    frame["share"] = frame.limit / frame.step
    spec: Spec = {"Method": of("method")} | {name.capitalize(): of(name, significant) for name in CLOCK}
    spec["Limit / step (%)"] = of("share", percent)
    spec |= {name.capitalize(): of(name, significant) for name in WATCHED}
    return build("profile_steps", "A step (ms)", STEP_NOTE, frame, spec)


def kernels(profile: Profile, number: int) -> Table:
    """The longest kernels of a method."""
    frame = pd.DataFrame(profile.kernels, columns=list(KERNEL))
    table = build(f"profile_kernels_{number}", profile.method, KERNEL_NOTE, frame.head(SHOWN), {
        "Kernel": of("kernel"),
        "Calls": of("calls", tenths),
        "Each (µs)": lambda row: tenths(1000 * row.ms / row.calls),
        "ms": of("ms", significant),
        "Share (%)": of("share", percent),
    })  # fmt: skip
    return replace(table, frame=frame)
