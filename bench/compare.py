"""Two runs against each other: a regression gate for speed.

Methods keep their names; a method's ratio is its new speed over its old one, so above 1 is faster. Prompts are paired
where both runs measured the same question with the same prompt, id for id, and resampled as in every other interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bench.bootstrap import Interval
from bench.contents import read_object
from bench.errors import BenchError
from bench.provenance import cards
from bench.quantities import SEQUENCE
from bench.record import frame, read
from bench.speedups import RESAMPLES, intervals, ledger

ALIKE = (
    *("target", "temperature", "top_k", "top_p", "max_new_tokens", "ignore_eos"),
    *("dtype", "device", "clock"),
)
PROMPT_FILES = {"file prompts", "file questions"}  # prompts may differ: those in common are paired
KEY = ["method", *SEQUENCE]
PROVENANCE, VERDICTS = "provenance.json", "verdicts.json"
FAILED = 1


@dataclass(frozen=True)
class Comparison:
    """New speed over old by method, what to know about it, and the exit code: 1 where a method fell too far.

    Methods that are `broken` in the new run fail whatever their speed: that of a wrong text means nothing.
    """

    ratios: dict[str, Interval]
    failed: tuple[str, ...]
    notes: tuple[str, ...]
    fail_below: float | None = None
    broken: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0, or 1 where a method is slower than allowed or its text is broken."""
        return FAILED if self.failed or self.broken else 0

    def __str__(self) -> str:
        """A Markdown table, which is also plain text."""
        lines = ["| method | new / old speed | 95 % interval | prompts | |", "|---|---:|---:|---:|---|"]
        for method, ratio in self.ratios.items():
            lines.append(
                f"| {method} | {ratio.estimate:.3f} | {ratio.low:.3f} to {ratio.high:.3f} | {ratio.prompts} "
                f"| {self._word(method)} |"
            )
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip()

    def _word(self, method: str) -> str:
        ratio = self.ratios[method]
        if method in self.broken:
            return "FAILED (its new text is BROKEN)"
        word = "no difference" if ratio.covers(1.0) else "faster" if ratio.estimate > 1 else "slower"
        word += ", few prompts" if ratio.few else ""
        return f"{word}: FAILED (below {self.fail_below})" if method in self.failed else word


def compare(
    old: str | Path, new: str | Path, fail_below: float | None = None, force: bool = False, resamples: int = RESAMPLES
) -> Comparison:
    """Compare two run directories (or records files).

    A method fails where its ratio is below `fail_below` and its interval lies below 1, so that noise alone fails
    nothing; and where the new run's verdict on it is BROKEN. Raises BenchError where the runs share no method or no
    prompt, and, unless `force`, where their target, law, lengths, batch, dtype, device, processor or model file differ.
    """
    if fail_below is not None and not 0 < fail_below <= 1:
        raise BenchError(f"--fail-below is the lowest new speed over old, above 0 and at most 1, not {fail_below:g}")
    sides = [frame(read(run)) for run in (old, new)]
    methods, lonely = _shared(*(set(side.method) for side in sides))
    sides = [side[side.method.isin(methods)] for side in sides]
    if not methods:
        raise BenchError(f"{old} and {new} share no method: nothing can be compared")
    origins = [_beside(run, PROVENANCE) for run in (old, new)]
    differences = unlike([circumstances(*side) for side in zip(sides, origins, strict=True)])
    if differences and not force:
        raise BenchError(f"the runs cannot be compared: {'; '.join(differences)} (--force compares them all the same)")
    paired, notes = _paired(*sides)
    named = [side.assign(method=age + side.method) for age, side in zip(("old ", "new "), paired, strict=True)]
    df = pd.concat(named, ignore_index=True)
    found = intervals(ledger(df), [(f"old {method}", f"new {method}") for method in methods], resamples)
    ratios = dict(zip(methods, found.values(), strict=True))
    failed = [method for method, ratio in ratios.items() if ratio.high < 1 and ratio.estimate < (fail_below or 0)]
    if cards(origins[0]) != cards(origins[1]):
        notes.append("another card of the same model: cards differ by a few percent")
    verdicts = _beside(new, VERDICTS)
    broken = [method for method in methods if verdicts.get(method, {}).get("verdict") == "BROKEN"]
    return Comparison(ratios, tuple(failed), (*differences, *lonely, *notes), fail_below, tuple(broken))


def _shared(old: set[str], new: set[str]) -> tuple[list[str], list[str]]:
    """Methods of both runs, and notes on those of only one."""
    notes = [f"only the {name} run has {', '.join(sorted(only))}"
             for name, only in (("old", old - new), ("new", new - old)) if only]  # fmt: skip
    return sorted(old & new), notes


def _beside(run: str | Path, name: str) -> dict[str, Any]:
    """A file beside the records; empty where there is none. Raises BenchError for a damaged one."""
    path = Path(run)
    return read_object((path if path.is_dir() else path.parent) / name)


def circumstances(df: pd.DataFrame, origin: dict[str, Any]) -> dict[str, str]:
    """All that must be alike, by name."""
    out = {name: ", ".join(sorted({str(settings.get(name)) for settings in df.settings})) for name in ALIKE}
    out["batch"] = str(df.batch.max())
    on_cpu = out["device"] == "cpu"
    out["processor"] = str((origin.get("cpu" if on_cpu else "card") or {}).get("model" if on_cpu else "name"))
    files = {f"file {name}": str(digest)[:12] for name, digest in (origin.get("files") or {}).items()}
    return out | {name: digest for name, digest in files.items() if name not in PROMPT_FILES}


def unlike(sides: list[dict[str, str]]) -> list[str]:
    """What differs between two, one sentence each."""
    old, new = sides
    return [f"{name} was {old[name]}, is {new[name]}" for name in old if name in new and old[name] != new[name]]


def _paired(old: pd.DataFrame, new: pd.DataFrame) -> tuple[list[pd.DataFrame], list[str]]:
    """Records of both sides whose method, question, turn, repeat and prompt occur in both; and notes."""
    known = (old.prompt != "").all() and (new.prompt != "").all()  # else its length must do
    indexes = [pd.MultiIndex.from_frame(side[[*KEY, "prompt" if known else "prompt_tokens"]]) for side in (old, new)]
    sides = [old[indexes[0].isin(indexes[1])], new[indexes[1].isin(indexes[0])]]
    if sides[0].empty:
        raise BenchError("the runs share no prompt: nothing can be compared")
    notes = [
        f"{len(whole) - len(part)} of {len(whole)} {name} records have no partner and are left out"
        for name, whole, part in zip(("old", "new"), (old, new), sides, strict=True)
        if len(part) < len(whole)
    ]
    texts = [side.set_index(KEY).tokens.map(tuple) for side in sides]
    changed = int((texts[0] != texts[1].reindex(texts[0].index)).sum())
    return sides, [*notes, *([f"{changed} of {len(texts[0])} texts are not what they were"] if changed else [])]
