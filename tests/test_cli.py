"""Bad input: one clear line, status 2, nothing left behind. And what the other commands print."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.__main__ import COMMANDS, interrupt, main
from bench.record import FILE, read

GOOD = {"question_id": 1, "category": "qa", "turns": ["How far is it?"]}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path / "cache"))
    files = {"good.jsonl": json.dumps(GOOD), "empty.jsonl": "", "torn.jsonl": json.dumps(GOOD) + '\n{"question',
             "odd.jsonl": json.dumps(GOOD | {"category": "poetry"}),
             "long.jsonl": json.dumps(GOOD | {"turns": ["x" * 5000]}),
             "broken.gguf": "GGUF and nothing else", "plain": ""}
    for name, text in files.items():
        Path(name).write_text(text)
    Path("empty").mkdir()
    return tmp_path


def complaint(capsys, *argv: str) -> str:
    """The one line on stderr."""
    try:
        status = main(list(argv))
    except SystemExit as stop:  # argparse
        status = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert status == 2
    assert len(lines) == 1, lines
    assert re.match(r"error: .{15,}", lines[0])
    return lines[0]


@pytest.mark.parametrize("flags, message", [
    ("--prompts none.jsonl", "none.jsonl"),
    ("--prompts empty.jsonl", "empty.jsonl holds no question"),
    ("--prompts torn.jsonl", "line 2 is not valid JSON"),
    ("--prompts odd.jsonl", "unknown category 'poetry'"),
    ("--prompts long.jsonl", "question 1 is too long: .* the model has 4096"),
    ("--methods medussa", "unknown method 'medussa'; there are autoregressive"),
    ("--methods prompt_lookup:kk=3", "no option 'kk'"),
    ("--methods prompt_lookup:k=x", "type int"),
    ("--methods medusa:weights=nowhere", "nowhere: not a drafter that can be read"),
    ("--methods draft_model:draft=nowhere", "no model 'nowhere'"),
    ("--temperature -1", "temperature must be 0"),
    ("--top-p 1.5", "top-p must be"),
    ("--limit 0", "--limit must be at least 1"),
    ("--limit many", "invalid int value: 'many'"),
    ("--suite quick", "unknown suite 'quick'"),
    ("--device cuda:99", "there is no device cuda:99"),
    ("--part 3/2", "--part is I/N, .* not '3/2'"),
    ("--part 0/2", "--part is I/N"),
    ("--part half", "--part is I/N"),
    ("--part 2/2", "no questions are left for --part 2/2: the run has 1 groups"),
    ("--dtype int4", "unknown dtype 'int4'"),
    ("--target nowhere", "no model 'nowhere'"),
    ("--target empty", "config.json"),
    ("--target broken.gguf", "broken.gguf"),
    ("--target tiny:kind=mamba", "tiny:kind=mamba"),
    ("--target shape:llama-9b", "unknown shape 'llama-9b'"),
    ("--out plain", "cannot write to plain"),
    ("--out /proc/here", "cannot write to /proc/here"),
    ("--resume nowhere", "nowhere holds no run to resume"),
    ("--resume a --out b", "not allowed with"),
    ("--frobnicate", "unrecognized arguments: --frobnicate"),
])
def test_bad_input_to_run(capsys, here, flags, message):
    before = sorted(here.rglob("*"))
    base = ["run", "--suite", "smoke", "--prompts", "good.jsonl", "--device", "cpu"]
    assert re.search(message, complaint(capsys, *base, *flags.split()))
    assert sorted(here.rglob("*")) == before


def test_other_bad_input(capsys):
    assert "COMMAND" in complaint(capsys)
    assert "invalid choice: 'rum'" in complaint(capsys, "rum")
    assert "empty" in complaint(capsys, "report", "empty")


def test_a_second_run_into_one_directory_is_refused(capsys):
    Path("taken").mkdir()
    (Path("taken") / FILE).write_text("x")
    assert "choose another --out" in complaint(
        capsys, "run", "--suite", "smoke", "--prompts", "good.jsonl", "--out", "taken")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_place_is_refused(capsys):
    Path("empty").chmod(0o500)
    line = complaint(capsys, "run", "--suite", "smoke", "--prompts", "good.jsonl", "--out", "empty/run")
    assert "cannot write to empty/run (Permission denied): choose another --out" in line


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in ("smollm2-135m", "shape:llama-7b", "prompt_lookup", "[k=10:ngram=3]", "smoke", "standard", "paper"):
        assert name in text


def test_help_of_the_whole_needs_no_torch():
    code = "import sys, bench.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.endswith("False\n")


def killed(begun: Callable[[], bool], *argv: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a command that is killed, as `kill` does it, once it has begun."""
    command = [sys.executable, "-m", "bench", *argv]
    with Path("said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.PIPE, text=True)
    while not begun():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.5)  # a process that is just being made would complain itself
    process.terminate()
    errors = process.communicate(timeout=60)[1]
    return process.returncode, Path("said").read_text(), errors


def test_kill_is_ctrl_c_to_a_run():
    records = Path("out", FILE)
    status, said, errors = killed(lambda: records.exists() and records.stat().st_size > 0, "run", "--suite", "smoke",
                                  "--device", "cpu", "--repeats", "1000", "--out", "out")
    assert (status, errors) == (130, "")
    assert "what was measured is kept: go on with  python -m bench run --resume out" in said
    assert read("out")


@pytest.mark.slow
def test_kill_is_ctrl_c_to_cost():
    """Which measures in other processes: they end too, without a word."""
    status, said, errors = killed(lambda: "prompt_lookup ..." in Path("said").read_text(), "cost", "--suite", "smoke",
                                  "--methods", "prompt_lookup", "--device", "cpu", "--seconds", "1", "--out", "out")
    assert (status, errors) == (130, "stopped: kept is what autoregressive gave\n")
    assert "Cost of tiny" in said
    assert list(json.loads(Path("out/cost.json").read_text())) == ["autoregressive"]


def test_a_signal_stops_the_processes_that_a_command_began():
    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    child.join(60)
    assert child.exitcode == -signal.SIGTERM
