"""Records: identities, round trips, and what is refused."""

import gzip
import json
import lzma
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import synthetic
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.record import FILE, PHASES, SCHEMA, Record, Writer, check, digest, frame, read

RUN = synthetic.records(shape=synthetic.Shape(questions=3, turns=2, repeats=1))
GOOD = next(record for record in RUN if record.method == "ptp:k=16")


@st.composite
def consistent(draw):
    """Records that satisfy every identity, otherwise arbitrary."""
    drafted = draw(st.lists(st.integers(0, 20), max_size=12))
    accepted = [draw(st.integers(0, depth)) for depth in drafted]
    kept = [draw(st.integers(0, count + 1)) for count in accepted]
    if kept:
        kept[-1] = max(kept[-1], 1)
    time_ms = st.floats(0, 1e6)
    return replace(
        GOOD,
        method=draw(st.text(max_size=20)),
        question_id=draw(st.integers(0, 10**9) | st.text(max_size=5)),
        tokens=draw(st.lists(st.integers(0, 2**31), min_size=sum(kept), max_size=sum(kept))),
        rows=[depth + 1 for depth in drafted],
        drafted=drafted,
        accepted=accepted,
        kept=kept,
        phases={name: [draw(time_ms) for _ in kept] for name in PHASES},
        gaps=[draw(time_ms) for _ in kept],
        wall_ms=draw(time_ms),
    )


@given(consistent())
def test_json_round_trip(record):
    line = record.to_json()
    assert "\n" not in line
    assert Record.from_json(line) == record


def test_records_of_the_first_runs_do_not_say_what_their_prompt_was():
    old = json.loads(replace(GOOD, prompt=digest([1, 2, 3])).to_json())
    assert len(old.pop("prompt")) == 12
    assert Record.from_json(json.dumps(old)) == replace(GOOD, prompt="")
    assert digest([1, 23]) != digest([12, 3])


def change(record: Record, name: str, index: int, value: int) -> Record:
    values = list(getattr(record, name))
    values[index] = value
    changed: dict[str, Any] = {name: values}
    return replace(record, **changed)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (replace(GOOD, tokens=[*GOOD.tokens, 7]), "tokens but"),
        (change(GOOD, "accepted", 0, GOOD.drafted[0] + 1), "accepted <= drafted"),
        (change(GOOD, "accepted", 0, -1), "accepted <= drafted"),
        (replace(GOOD, tokens=[1, 2], kept=[2], accepted=[0], drafted=[4], rows=[5],
                 phases={name: [1.0] for name in PHASES}, gaps=[0.0]), "kept <= accepted + 1"),
        (replace(GOOD, rows=GOOD.rows[:-1]), "equally long"),
        (replace(GOOD, drafted=[*GOOD.drafted, 1]), "equally long"),
        (replace(GOOD, phases=GOOD.phases | {"verify": []}), "equally long"),
        (replace(GOOD, gaps=[]), "equally long"),
        (change(GOOD, "gaps", 0, -1), "negative"),
        (replace(GOOD, phases={"forward": GOOD.phases["forward"]}), "phases are"),
        (replace(GOOD, wall_ms=float("nan")), "not finite"),
        (replace(GOOD, prefill_ms=-1.0), "negative"),
        (change(GOOD, "rows", 0, 0), "rows >= 1"),
        (replace(GOOD, rows=[*GOOD.rows, 1], drafted=[*GOOD.drafted, 0], accepted=[*GOOD.accepted, 0],
                 kept=[*GOOD.kept, 0], phases={name: [*GOOD.phases[name], 1.0] for name in PHASES},
                 gaps=[*GOOD.gaps, 0.0]), "last step contributed no token"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(bad, words, tmp_path):
    check(GOOD)
    with pytest.raises(BenchError, match="inconsistent record") as error:
        check(bad)
    assert words in str(error.value)
    with Writer(tmp_path) as writer, pytest.raises(BenchError):
        writer.append(bad)
    assert (tmp_path / FILE).read_bytes() == b""


def test_a_step_may_keep_nothing():
    check(replace(GOOD, tokens=[5], rows=[3, 3], drafted=[0, 2], accepted=[0, 0], kept=[0, 1],
                  phases={name: [1.0, 1.0] for name in PHASES}, gaps=[0.0, 0.5]))  # fmt: skip


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_read_directory_and_compressed(tmp_path, suffix):
    opener: Any = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with opener(tmp_path / (FILE + suffix), "wb") as file:
        file.write("".join(record.to_json() + "\n" for record in RUN).encode())
    assert read(tmp_path) == RUN
    assert read(tmp_path / (FILE + suffix)) == RUN


def test_damaged_archive(tmp_path):
    path = tmp_path / (FILE + ".gz")
    path.write_bytes(gzip.compress(b"x" * 10000)[:20])
    with pytest.raises(BenchError, match="cannot read"):
        read(path)


def test_missing(tmp_path):
    with pytest.raises(BenchError, match=r"holds no records\.jsonl"):
        read(tmp_path)
    with pytest.raises(BenchError, match="No such file"):
        read(tmp_path / "nothing.jsonl")


def corrupt(lines):
    return [lines[0], lines[1][:-9], *lines[2:]]


def newer(lines):
    return [lines[0], json.dumps(json.loads(lines[1]) | {"schema": SCHEMA + 1, "tokens": "?"}), *lines[2:]]


def lacking(lines):
    return [lines[0], json.dumps({"schema": 1, "method": "x"}), *lines[2:]]


def mistyped(lines):
    return [lines[0], json.dumps(json.loads(lines[1]) | {"kept": None}), *lines[2:]]


def doubled(lines):
    return [lines[0], lines[0], *lines[2:]]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (corrupt, "line 2 is corrupt"),
        (newer, f"line 2: schema {SCHEMA + 1} is newer"),
        (lacking, "line 2: the record lacks question_id"),
        (mistyped, "line 2: a field has the wrong type"),
        (doubled, "line 2 repeats"),
    ],
)
def test_bad_line_in_the_middle(tmp_path, spoil, words):
    before = "".join(line + "\n" for line in spoil([record.to_json() for record in RUN[:4]])).encode()
    (tmp_path / FILE).write_bytes(before)
    with pytest.raises(BenchError, match=words):
        read(tmp_path)
    with pytest.raises(BenchError, match=words), Writer(tmp_path, resume=True):
        pass
    assert (tmp_path / FILE).read_bytes() == before


def test_records_of_schema_1_have_no_gaps(tmp_path):
    """They are read as if a step followed the one before at once."""
    old = json.loads(RUN[0].to_json()) | {"schema": 1}
    del old["gaps"]
    (tmp_path / FILE).write_text(json.dumps(old) + "\n")
    [record] = read(tmp_path)
    assert record.gaps == [0.0] * len(record.kept) and replace(record, schema=SCHEMA, gaps=RUN[0].gaps) == RUN[0]
    (tmp_path / FILE).write_text(json.dumps(old | {"schema": 2}) + "\n" + RUN[1].to_json() + "\n")
    with pytest.raises(BenchError, match="line 1: the record lacks gaps"):
        read(tmp_path)


def test_a_directory_with_records_is_refused_unless_resumed(tmp_path):
    with Writer(tmp_path / "new" / "run") as writer:
        writer.append(RUN[0])
        assert read(tmp_path / "new" / "run") == [RUN[0]]  # on disk while the writer is still open
    with pytest.raises(BenchError, match="already holds records"), Writer(tmp_path / "new" / "run"):
        pass
    with Writer(tmp_path / "new" / "run", resume=True) as writer:
        with pytest.raises(BenchError, match="measured already"):
            writer.append(RUN[0])
        with pytest.raises(BenchError, match="measured already"):
            writer.append(RUN[1], RUN[1])
        writer.append(RUN[1])
    assert read(tmp_path / "new" / "run") == RUN[:2]


def test_two_writers_are_refused(tmp_path):
    with Writer(tmp_path) as writer:
        writer.append(RUN[0])
        before = (tmp_path / FILE).read_bytes()
        for resume in (False, True):
            with pytest.raises(BenchError, match="another run is writing"), Writer(tmp_path, resume):
                pass
        assert (tmp_path / FILE).read_bytes() == before
    with Writer(tmp_path, resume=True) as writer:
        assert writer.records == [RUN[0]]


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="cannot write to"), Writer(tmp_path / "file"):
        pass


def test_read_only_directory(tmp_path):
    """Root may write anywhere, so the writer runs as another user where the test runs as root."""
    tmp_path.chmod(0o555)
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            with Writer(tmp_path):
                os._exit(1)
        except BenchError as error:
            os._exit(0 if "Permission denied" in str(error) else 2)
        except BaseException:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class FullDisk:
    """A file of which half fits, and then no more."""

    def __init__(self, file):
        self.file, self.room = file, True

    def write(self, data):
        if not self.room:
            full()
        self.room = False
        return self.file.write(data[: len(data) // 2])

    def __getattr__(self, name):
        return getattr(self.file, name)


def full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("late", [False, True])
def test_full_disk_leaves_what_was_there(tmp_path, monkeypatch, late):
    with Writer(tmp_path) as writer:
        writer.append(RUN[0])
        with monkeypatch.context() as patch:
            if late:
                patch.setattr(os, "fsync", full)
            else:
                patch.setattr(writer, "_file", FullDisk(writer._file))
            with pytest.raises(BenchError, match="No space left"):
                writer.append(RUN[1])
        assert RUN[1].key not in writer.done
        assert read(tmp_path) == [RUN[0]]
        writer.append(RUN[1])
    assert read(tmp_path) == RUN[:2]


def test_frame():
    df = frame(RUN)
    assert len(df) == len(RUN)
    for index in (0, 17):
        assert df.method[index] == RUN[index].method
        assert df.kept[index].tolist() == RUN[index].kept
        assert df.kept[index].dtype == np.int64
        assert df.forward[index].tolist() == RUN[index].phases["forward"]
    with pytest.raises(BenchError, match="no records"):
        frame([])
