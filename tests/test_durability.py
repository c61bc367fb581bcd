"""What is on disk after a kill at any moment, and how a writer goes on from there."""

import os
import random
import signal
import time
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import pytest
import synthetic

from bench.record import FILE, Record, Writer, read

RUN = synthetic.records(shape=synthetic.Shape(questions=3, turns=2, repeats=1))


@pytest.mark.parametrize("cut", [1, 40, -1, -2])
def test_torn_last_line(tmp_path, cut, capsys):
    whole = [record.to_json() for record in RUN[:3]]
    (tmp_path / FILE).write_text("\n".join([*whole, RUN[3].to_json()[:cut]]))
    assert read(tmp_path) == RUN[:3]
    assert "torn last batch (from line 4)" in capsys.readouterr().err
    with Writer(tmp_path, resume=True) as writer:
        assert writer.records == RUN[:3]
        assert writer.done == {record.key for record in RUN[:3]}
        writer.append(*RUN[3:])
        assert writer.done == {record.key for record in RUN}
    assert read(tmp_path) == RUN
    assert "torn" in capsys.readouterr().err


@pytest.mark.parametrize("size", [2, 3])
def test_a_batch_that_was_cut_at_any_byte_is_dropped_as_a_whole(tmp_path, size, capsys):
    """Five questions in batches of three: of 3 and of 2."""
    run = synthetic.records(shape=synthetic.Shape(questions=5, repeats=1, batch=3, tokens=2))
    short = [replace(record, settings={}) for record in run]
    before, *others = [[*batch] for _, batch in groupby(short, lambda record: record.execution)]
    last = next(batch for batch in others if len(batch) == size)
    first, data = ("".join(record.to_json() + "\n" for record in part).encode() for part in (before, before + last))
    for end in range(len(first) + 1, len(data) - 1):
        (tmp_path / FILE).write_bytes(data[:end])
        assert read(tmp_path) == before
        with Writer(tmp_path, resume=True) as writer:
            assert writer.records == before
            writer.append(*last)
        note = f"note: dropped the torn last batch (from line {len(before) + 1}) of {FILE}\n"
        assert capsys.readouterr().err == note * 2
        assert (tmp_path / FILE).read_bytes() == data
    (tmp_path / FILE).write_bytes(data[:-1])
    assert read(tmp_path) == before + last


def test_last_line_without_newline_is_whole(tmp_path):
    (tmp_path / FILE).write_text("\n".join(record.to_json() for record in RUN[:3]))
    assert read(tmp_path) == RUN[:3]
    with Writer(tmp_path, resume=True) as writer:
        writer.append(RUN[3])
    assert read(tmp_path) == RUN[:4]


def write_all(directory: Path, run: list[Record], say: int) -> None:
    """A child process: resume, write what is missing, and tell the parent of every record that is on disk."""
    with Writer(directory, resume=True) as writer:
        os.write(say, b"ready\n")
        for record in run:
            if record.key not in writer.done:
                writer.append(record)
                os.write(say, f"{record.key}\n".encode())
    os.write(say, b"finished\n")


def killed_after(seconds: float, directory: Path, run: list[Record]) -> list[str]:
    """What `write_all` said before kill -9 hit it."""
    hear, say = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(hear)
        try:
            write_all(directory, run, say)
        finally:
            os._exit(0)
    os.close(say)
    with os.fdopen(hear) as lines:
        assert lines.readline() == "ready\n"
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        said = lines.read().splitlines()
    os.waitpid(child, 0)
    return said


def test_killed_writers_lose_nothing(tmp_path):
    """kill -9 at random moments, resume, until done: everything acknowledged is there, nothing twice."""
    run = synthetic.records(shape=synthetic.Shape(questions=26, tokens=200))
    rng = random.Random(0)
    acknowledged: set[str] = set()
    cut_short = 0
    for _ in range(12):
        said = killed_after(rng.uniform(0, 0.04), tmp_path, run)
        cut_short += "finished" not in said
        acknowledged |= set(said) - {"finished"}
        assert acknowledged <= {str(record.key) for record in read(tmp_path)}
    assert cut_short >= 8
    with Writer(tmp_path, resume=True) as writer:
        assert 0 < len(writer.done) <= len(run)
        writer.append(*(record for record in run if record.key not in writer.done))
    assert sorted(read(tmp_path), key=repr) == sorted(run, key=repr)
