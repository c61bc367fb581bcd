"""Records: what a run leaves on disk, one JSON line per (method, question, turn, repeat).

Raw data first: ids, counts per step and phase times per step, from which every table can be computed later.
A record is on disk before the next prompt starts, and a run that was killed can be resumed.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import lzma
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench import destination
from bench.errors import BenchError

SCHEMA = 2  # records of 1 have no gaps: read as 0
FILE = "records.jsonl"
BASELINE = "autoregressive"
TWIN = "autoregressive-twin"
PHASES = ("propose", "forward", "verify", "commit", "observe")
COUNTS = ("rows", "drafted", "accepted", "kept")

Key = tuple[str, int | str, int, int]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One decoded sequence. Lists named after counts and phases hold one entry per contributing step."""

    method: str  # label: the name and its non-default options
    question_id: int | str
    category: str
    turn: int
    repeat: int
    group: int  # records with equal (method, repeat, turn, group) shared one batch
    batch: int  # sequences in that batch
    prompt_tokens: int
    tokens: list[int]  # new ids after clipping
    rows: list[int]  # rows that the target evaluated
    drafted: list[int]  # deepest draft offered
    accepted: list[int]  # accepted draft tokens, before clipping
    kept: list[int]  # tokens that reached the text, after clipping
    phases: dict[str, list[float]]  # ms
    gaps: list[float]  # ms since the step before, 0 for the first
    discarded_ms: float  # phases of the executed steps after the last contributing one
    prefill_ms: float  # the prompt without its last token
    wall_ms: float  # host time around the decode loop of the whole batch
    rejection: dict[str, float] | None  # {"excess", "variance", "tested"} of methods verified by rejection
    settings: dict[str, Any]
    prompt: str = ""  # `digest` of the prompt's ids; records of the first runs lack it
    schema: int = SCHEMA

    @property
    def key(self) -> Key:
        """What identifies a record within a run."""
        return self.method, self.question_id, self.turn, self.repeat

    @property
    def execution(self) -> tuple[str, int, int, int]:
        """What identifies the batch that it was decoded in."""
        return self.method, self.repeat, self.turn, self.group

    def to_json(self) -> str:
        """One line of JSON without a newline; raises ValueError where a number is not finite."""
        return json.dumps(asdict(self), separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Record:
        """The inverse of `to_json`.

        Raises json.JSONDecodeError for text that is not JSON, and BenchError for a newer schema, a missing
        key, a field of the wrong type, or a record that fails `check`.
        """
        data = json.loads(line)
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise BenchError("not a record: an object with an integer 'schema' is expected")
        if data["schema"] > SCHEMA:
            raise BenchError(f"schema {data['schema']} is newer than the newest known, {SCHEMA}: update ptp-bench")
        if data["schema"] == 1 and isinstance(data.get("kept"), list):
            data["gaps"] = [0.0] * len(data["kept"])
        missing = [field.name for field in fields(cls) if field.default is MISSING and field.name not in data]
        if missing:
            raise BenchError(f"the record lacks {', '.join(missing)}")
        record = cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})
        try:
            check(record)
        except (TypeError, AttributeError) as error:
            raise BenchError(f"a field has the wrong type: {error}") from error
        return record


def digest(ids: Iterable[int]) -> str:
    """What tells one prompt from another: the start of the sha256 of its ids."""
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:12]


def check(record: Record) -> None:
    """Raise BenchError where a record contradicts itself: the identities that every run must satisfy.

    Tokens are the sum of the kept; accepted <= deepest draft; kept <= accepted + 1; every list has one entry
    per step; the last step contributed; times are finite and not negative.
    """
    wrong = _contradiction(record)
    if wrong:
        raise BenchError(f"inconsistent record {record.key}: {wrong}")


def _contradiction(record: Record) -> str | None:
    steps = len(record.kept)
    if set(record.phases) != set(PHASES):
        return f"its phases are {sorted(record.phases)}, not {', '.join(PHASES)}"
    lists = {name: getattr(record, name) for name in (*COUNTS, "gaps")} | record.phases
    uneven = [f"{len(values)} {name}" for name, values in lists.items() if len(values) != steps]
    if uneven:
        return f"{steps} kept but {', '.join(uneven)}: lists per step must be equally long"
    if sum(record.kept) != len(record.tokens):
        return f"{len(record.tokens)} tokens but {sum(record.kept)} kept"
    if steps and record.kept[-1] == 0:
        return "its last step contributed no token"
    return _bad_step(record) or _bad_time(record)


def _bad_step(record: Record) -> str | None:
    for step, (rows, drafted, accepted, kept) in enumerate(
        zip(record.rows, record.drafted, record.accepted, record.kept, strict=True)
    ):
        if not (rows >= 1 and 0 <= accepted <= drafted and 0 <= kept <= accepted + 1):
            return (
                f"step {step} has rows={rows}, drafted={drafted}, accepted={accepted}, kept={kept}; "
                "needed are rows >= 1, accepted <= drafted and kept <= accepted + 1"
            )
    return None


def _bad_time(record: Record) -> str | None:
    times = [record.discarded_ms, record.prefill_ms, record.wall_ms]
    times += [time for phase in [record.gaps, *record.phases.values()] for time in phase]
    if all(math.isfinite(time) and time >= 0 for time in times):
        return None
    return "a time is negative or not finite"


def read(path: str | Path) -> list[Record]:
    """Records of a run directory, of a records.jsonl, or of one compressed by gzip (.gz) or xz (.xz).

    A torn last batch is dropped with a note on stderr. Raises BenchError for a missing or damaged file, a
    newer schema, a corrupt line (with its number), an inconsistent record, or a record that occurs twice.
    """
    path = Path(path)
    if path.is_dir():
        names = [path / (FILE + suffix) for suffix in ("", ".gz", ".xz")]
        found = next((name for name in names if name.exists()), None)
        if found is None:
            raise BenchError(f"{path} holds no {FILE}: give the directory of a run")
        path = found
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise BenchError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    return _parse(data, path)[0]


def _parse(data: bytes, path: Path) -> tuple[list[Record], int]:
    """The records of whole batches, and how many bytes of `data` they fill: less than all where the last is torn."""
    records: dict[Key, Record] = {}
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = Record.from_json(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            if number == len(lines):
                break
            raise BenchError(f"{path} line {number} is corrupt: repair it, or delete all lines of its batch") from error
        except BenchError as error:
            raise BenchError(f"{path} line {number}: {error}") from error
        if record.key in records:
            raise BenchError(f"{path} line {number} repeats {record.key}: delete one of the two lines")
        records[record.key] = record
    whole = _without_torn_batch(list(records.values()))
    if len(whole) < len(lines):
        print(f"note: dropped the torn last batch (from line {len(whole) + 1}) of {path.name}", file=sys.stderr)
    return whole, sum(map(len, lines[: len(whole)]))


def _without_torn_batch(records: list[Record]) -> list[Record]:
    """All but the last batch where some of its records are missing: a batch is one write, and times of one execution.

    Only the last can be torn: nothing is written behind it before it has been dropped.
    """
    if not records:
        return []
    last = records[-1]
    there = sum(record.execution == last.execution for record in records)
    return records[:-there] if there < last.batch else records


class Writer:
    """Appends records to a run directory so that each is on disk before `append` returns.

    A context manager. The records file itself is locked (flock), so the lock dies with its process.
    `records` are those found on resuming and those appended since; `done` is the set of their keys.
    """

    def __init__(self, directory: str | Path, resume: bool = False):
        self.directory = Path(directory)
        self.resume = resume
        self.records: list[Record] = []
        self.done: set[Key] = set()

    def __enter__(self) -> Writer:
        """Create and lock the file; raises BenchError where that is impossible or records exist already."""
        path = self.directory / FILE
        with destination.writing(self.directory):
            self._file: FileIO = path.open("a+b", buffering=0)  # a buffer would be written again after a full disk
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._recover(path)
            _sync_directory(self.directory)
        except BlockingIOError as error:
            self._file.close()
            raise BenchError(
                f"another run is writing to {self.directory}: wait for it or choose another --out"
            ) from error
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _recover(self, path: Path) -> None:
        """Take over what an earlier run left, cutting off a torn last batch."""
        self._file.seek(0)
        data = self._file.read()
        if data and not self.resume:
            raise BenchError(f"{self.directory} already holds records: choose another --out, or --resume it")
        self.records, self._end = _parse(data, path)
        self.done = {record.key for record in self.records}
        self._file.truncate(self._end)
        if self._end and data[self._end - 1] != ord("\n"):
            self._put(b"\n")

    def append(self, *records: Record) -> None:
        """Check and append records (those of one batch together), durably: written, flushed and synchronised.

        Raises BenchError for a record that is inconsistent or already there, and where the disk fails; then
        the file is left as it was before.
        """
        keys: set[Key] = set()
        for record in records:
            check(record)
            if record.key in self.done | keys:
                raise BenchError(f"{record.key} was measured already: delete what is left of its batch")
            keys.add(record.key)
        self._put("".join(record.to_json() + "\n" for record in records).encode())
        self.records += records
        self.done |= keys

    def _put(self, data: bytes) -> None:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._end)
            raise BenchError(
                f"cannot write to {self.directory / FILE} ({error.strerror}); the records before are safe"
            ) from error
        self._end += len(data)


def _sync_directory(directory: Path) -> None:
    """A new file survives a power cut only once its directory entry is on disk too."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row per record, the fields as columns; lists become numpy arrays, each phase a column of them (ms).

    Raises BenchError where there are no records.
    """
    rows = [vars(record) for record in records]
    if not rows:
        raise BenchError("there are no records: the run was stopped before its first prompt was done")
    plain = [field.name for field in fields(Record) if field.name not in {"phases", "gaps", "tokens", *COUNTS}]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in plain}
    for name in ("tokens", *COUNTS):
        columns[name] = pd.Series([np.asarray(row[name], np.int64) for row in rows], dtype=object)
    for name in PHASES:
        columns[name] = pd.Series([np.asarray(row["phases"][name], np.float64) for row in rows], dtype=object)
    columns["gaps"] = pd.Series([np.asarray(row["gaps"], np.float64) for row in rows], dtype=object)
    return pd.DataFrame(columns)
