"""`provenance.json`: what a run was asked for and where it ran, written when it starts and when it stops."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from bench import destination, provenance
from bench.errors import INTERRUPTED, BenchError
from bench.prompts import Question, fingerprint
from bench.suite import RunSettings
from bench.zoo import Target

FILE = "provenance.json"
T = TypeVar("T")
# what may differ when a run is resumed
PER_SESSION = ("date", "git", "sources", "versions", "python", "system", "cpu", "card", "card_before")


def settings(directory: Path) -> RunSettings:
    """What the run in `directory` was asked for. BenchError where there is none."""
    return RunSettings.from_published(read(directory)["settings"])


def place(run: Path | None, out: Path | None) -> Path | None:
    """Where a later pass over `run` writes.

    BenchError for a directory of another run, whose settings may differ, and for one that cannot be written.
    """
    if out and out != run and (out / FILE).exists():
        raise BenchError(f"{out} holds a run: name it in front of the flags, so that its settings hold, or choose "
                         "another --out")
    if directory := out or run:
        destination.check(directory)
    return directory


def unused(directory: Path) -> None:
    """BenchError where other results lie, which new ones would overwrite or hide."""
    if (directory / FILE).exists():
        raise BenchError(f"{directory} holds other results already: choose another --out")


def until_stopped(measured: Iterable[tuple[str, T]]) -> tuple[dict[str, T], int]:
    """By method, and the exit status: after Ctrl-C what was ready by then, and 130."""
    found = {}
    try:
        for label, one in measured:
            found[label] = one
    except KeyboardInterrupt:
        if not found:
            raise
        print(f"stopped: kept is what {', '.join(found)} gave", file=sys.stderr)
        return found, INTERRUPTED
    return found, 0


def hashes(target: Target, questions: Sequence[Question]) -> dict[str, str]:
    """Hashes of what is measured and on what."""
    return {"model": target.checksum, "prompts": fingerprint(questions)}


@contextmanager
def session(directory: Path, asked: RunSettings, found: dict[str, str], resume: bool) -> Iterator[None]:
    """Keep the provenance while the block runs: of the first session as it is, of later ones under "resumed".

    BenchError when the model or the questions are no longer what they were.
    """
    now = provenance.collect(asked.published(), found)
    whole = read(directory) if resume else now
    if resume:
        unchanged(directory, whole, found)
        now = {name: now[name] for name in PER_SESSION}
        whole.setdefault("resumed", []).append(now)
    write(directory, whole)
    try:
        yield
    finally:
        now["card_after"] = provenance.card_state(asked.device)
        write(directory, whole)


def unchanged(directory: Path, whole: dict[str, Any], found: dict[str, str]) -> None:
    """BenchError where a file that was found does not have the hash that the run in `directory` noted."""
    for name, now in found.items():
        if (was := whole["files"][name]) != now:
            raise BenchError(f"the {name} of {directory} had sha256 {was[:12]}.., now {now[:12]}..: start a new run")


def read(directory: Path) -> dict[str, Any]:
    """The provenance of a run directory. BenchError where it is missing or broken."""
    try:
        return json.loads((directory / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{directory} holds no run to resume: {FILE} is missing") from None
    except (OSError, ValueError) as error:
        raise BenchError(f"{directory / FILE} cannot be read ({error}): start a new run") from error


def write(directory: Path, whole: dict[str, Any]) -> None:
    """Replace the file in one go."""
    destination.put(directory / FILE, json.dumps(whole, indent=1) + "\n")
