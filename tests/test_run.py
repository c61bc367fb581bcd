"""A run from end to end: what it writes, how it continues after every kind of stop, and when it fails."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from baselines.autoregressive import Autoregressive
from bench import measure, methods, passes, prompts, report, run, zoo
from bench.__main__ import main
from bench.plan import Prompter
from bench.record import BASELINE, FILE, TWIN, Record, read

LABELS = {BASELINE, TWIN, "prompt_lookup:k=3", "draft_model:draft=[tiny:seed=1,layers=1]:k=2"}
TURNS = {1: ("writing", ["Say a word.", "And again?", "Once more."]), 2: ("qa", ["Who is there?"]),
         3: ("rag", ["a b c a b c a b"]), 4: ("coding", ["ab ab ab", "cd cd"]), 5: ("qa", ["Why?"])}
PLACES = {(question, turn) for question, (_, turns) in TURNS.items() for turn in range(len(turns))}
LIMIT = 12


@pytest.fixture(scope="module", autouse=True)
def here(tmp_path_factory):
    """All runs of this file share a directory."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("runs")
    os.chdir(folder)
    lines = [json.dumps({"question_id": q, "category": c, "turns": t}) for q, (c, t) in TURNS.items()]
    Path("questions.jsonl").write_text("\n".join(lines))
    yield folder
    os.chdir(before)


def argv(out: str, *more: str) -> list[str]:
    return ["run", "--target", "tiny", "--prompts", "questions.jsonl", "--device", "cpu", "--dtype", "fp64",
            "--methods", ",".join(sorted(LABELS - {BASELINE, TWIN})), "--max-new-tokens", str(LIMIT),
            "--temperature", "0.8", "--repeats", "2", "--out", out, *more]


def texts(directory: str) -> dict:
    return {record.key: record.tokens for record in read(directory)}


@pytest.fixture(autouse=True)
def no_report(whole, monkeypatch):
    """Tables and figures are drawn once, for the whole run: they take longer than everything else here."""
    monkeypatch.setattr(report, "write", lambda folder: SimpleNamespace(markdown=folder / "-", html=folder / "-"))


@pytest.fixture(scope="module")
def whole(here):
    """A run that nothing disturbs."""
    assert main(argv("whole")) == 0
    return read("whole")


def test_every_cell_is_there_once(whole):
    assert {r.key for r in whole} == {(label, q, t, repeat) for label in LABELS for q, t in PLACES for repeat in (0, 1)}
    for record in whole:
        assert record.category == TURNS[record.question_id][0]
        assert 1 <= len(record.tokens) <= LIMIT
        assert (record.batch, record.settings["clock"], record.settings["dtype"]) == (1, "host", "float64")
        assert record.settings["lossless"] == "match"
        assert record.wall_ms >= sum(map(sum, record.phases.values())) > 0
    assert {tuple(r.settings["options"].items()) for r in whole if r.method == "prompt_lookup:k=3"} == {
        (("k", 3), ("ngram", 3))}


def test_drafts_were_kept_and_refused(whole):
    for label in LABELS - {BASELINE, TWIN}:
        steps = [pair for r in whole if r.method == label for pair in zip(r.accepted, r.drafted, strict=True)]
        assert any(accepted > 0 for accepted, _ in steps), label
        assert any(accepted < drafted for accepted, drafted in steps), label


def test_the_order_is_interleaved_and_shuffled(whole):
    size = len(LABELS)
    turns = [whole[i : i + size] for i in range(0, len(whole), size)]
    for records in turns:
        assert {r.method for r in records} == LABELS
        assert len({(r.repeat, r.question_id, r.turn) for r in records}) == 1
    assert len({tuple(r.method for r in records) for records in turns}) > len(turns) / 2
    assert [records[0].repeat for records in turns] == sorted(records[0].repeat for records in turns)


def test_the_baseline_decodes_what_a_plain_loop_does(monkeypatch):
    """Greedy, without end ids; later turns behind what the run itself answered before."""
    monkeypatch.setattr(passes, "REFERENCE_QUESTIONS", 1)
    assert main(argv("greedy", "--temperature", "0", "--ignore-eos", "--methods", "hf_eager")) == 0
    target, found = zoo.load("tiny", "cpu", torch.float64), texts("greedy")
    answers = {key[1:3]: tokens for key, tokens in found.items() if (key[0], key[3]) == (BASELINE, 0)}
    prompter = Prompter(target.tokenizer, LIMIT)
    for question in prompts.load("questions.jsonl"):
        for turn in range(len(question.turns)):
            ids = prompter.prompt(question, turn, answers)
            for _ in range(LIMIT):
                ids.append(int(target.model.logits(torch.tensor([ids]))[0, -1].argmax()))
            for label in (BASELINE, TWIN):
                assert found[label, question.question_id, turn, 1] == ids[-LIMIT:]
    outside = [record for record in read("greedy") if record.method == "hf_eager"]
    assert [(r.question_id, r.turn) for r in outside] == [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]  # one of each task
    for record in outside:
        assert record.tokens == found[BASELINE, record.question_id, record.turn, 0]
        assert (record.settings["lossless"], record.repeat) == ("reference", 0)


def test_later_turns_continue_the_baseline(whole):
    seen: dict = {}
    for record in whole:
        seen.setdefault((record.question_id, record.turn), set()).add((record.prompt_tokens, *record.tokens))
    assert all(len(found) == 1 for found in seen.values())  # all methods, all repeats


def test_a_batch_gives_the_same_texts(whole):
    assert main(argv("batch", "--batch", "3", "--repeats", "1")) == 0
    found = read("batch")
    assert {r.key: r.tokens for r in found} == {r.key: r.tokens for r in whole if r.repeat == 0}
    assert_batches_are_whole(found)
    assert {r.batch for r in found if r.question_id in (2, 3, 5)} == {3}
    for record in found:
        assert {len(TURNS[r.question_id][1]) for r in found if r.execution == record.execution} == {
            len(TURNS[record.question_id][1])}


def assert_batches_are_whole(found: list[Record]) -> None:
    """All sequences of a batch left a record, and all of one execution."""
    for record in found:
        together = [r for r in found if r.execution == record.execution]
        assert len(together) == record.batch
        assert {r.wall_ms for r in together} == {record.wall_ms}


def test_a_torn_batch_is_decoded_anew_as_a_whole():
    """Killed in mid-write, with some lines of a batch of three on disk."""
    assert main(argv("whole-batches", "--batch", "3", "--repeats", "1")) == 0
    found, data = read("whole-batches"), Path("whole-batches", FILE).read_bytes().splitlines(keepends=True)
    last = max(number for number, record in enumerate(found) if record.batch == 3) - 2  # its first record
    for lines, torn in ((1, b""), (2, b""), (2, data[last + 2][:99])):
        out = shutil.copytree("whole-batches", f"torn-{lines}-{len(torn)}")
        Path(out, FILE).write_bytes(b"".join(data[: last + lines]) + torn)
        assert main(["run", "--resume", out]) == 0
        again = read(out)
        assert {r.key: r.tokens for r in again} == {r.key: r.tokens for r in found}
        assert_batches_are_whole(again)
        assert again[:last] == found[:last]
        assert all(new.wall_ms != old.wall_ms for new, old in zip(again[last:], found[last:], strict=True))


def test_end_of_text_can_be_ignored(here):
    assert main(argv("long", "--ignore-eos", "--repeats", "1", "--limit", "2")) == 0
    assert {len(r.tokens) for r in read("long")} == {LIMIT}


def test_files_beside_the_records(whole):
    provenance = json.loads(Path("whole/provenance.json").read_text())
    assert provenance["settings"]["max_new_tokens"] == LIMIT
    assert provenance["settings"]["methods"] == sorted(LABELS - {BASELINE, TWIN})
    assert len(provenance["files"]["prompts"]) == 64
    verdicts = json.loads(Path("whole/verdicts.json").read_text())
    assert {label: found["verdict"] for label, found in verdicts.items()} == dict.fromkeys(LABELS, "identical")
    assert "prompt_lookup:k=3" in Path("whole/report.md").read_text()


def stopping(monkeypatch, after: int, error: BaseException) -> None:
    """Let the run end with `error` after some batches."""
    decode, left = measure.Rig.decode, iter(range(after))

    def decode_some(self, job):
        if next(left, None) is None:
            raise error
        return decode(self, job)

    monkeypatch.setattr(measure.Rig, "decode", decode_some)


def test_ctrl_c_keeps_what_was_measured(whole, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        stopping(patched, 7, KeyboardInterrupt())
        assert main(argv("stopped")) == 130
    assert "go on with  python -m bench run --resume stopped" in capsys.readouterr().out
    assert len(read("stopped")) == 7
    assert main(["run", "--resume", "stopped", "--seed", "0"]) == 0
    assert texts("stopped") == {r.key: r.tokens for r in whole}
    assert len(json.loads(Path("stopped/provenance.json").read_text())["resumed"]) == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_is_one_line(error, monkeypatch, capsys, tmp_path):
    stopping(monkeypatch, 2, error)
    assert main(argv(str(tmp_path / "out"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "out of memory on cpu" in lines[0]
    assert "--resume" in lines[0]
    assert len(read(tmp_path / "out")) == 2


def test_other_errors_are_not_swallowed(monkeypatch, tmp_path):
    stopping(monkeypatch, 2, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        main(argv(str(tmp_path / "out")))
    assert len(read(tmp_path / "out")) == 2


def test_a_different_run_is_not_resumed(whole, capsys):
    assert main(["run", "--resume", "whole", "--seed", "5"]) == 2
    assert "has --seed 0, not 5" in capsys.readouterr().err
    Path("other.jsonl").write_text(Path("questions.jsonl").read_text().replace("Why?", "How?"))
    provenance = Path("whole/provenance.json").read_text()
    Path("moved").mkdir()
    Path("moved/provenance.json").write_text(provenance.replace("questions.jsonl", "other.jsonl"))
    assert main(["run", "--resume", "moved"]) == 2
    assert "the prompts of moved had sha256" in capsys.readouterr().err


def test_killed_at_random_moments(whole):
    """Ten times: whatever is on disk when the process dies is whole, and is continued to the same end."""
    dice, context = random.Random(4), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.run"])
    start, kills = argv("killed"), 0
    while kills < 10:
        process = context.Process(target=main, args=(start,))
        goal = written("killed") + dice.randint(1, 5)
        process.start()
        while process.is_alive() and written("killed") < goal:
            time.sleep(0.001)
        time.sleep(dice.uniform(0, 0.02))
        assert process.is_alive(), "it ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills, start = kills + 1, ["run", "--resume", "killed"]
    assert written("killed") < len(whole)
    assert main(start) == 0
    assert texts("killed") == {r.key: r.tokens for r in whole}


def written(directory: str) -> int:
    """Lines of the records file."""
    path = Path(directory, FILE)
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Liar(Autoregressive):
    """Forwards another token than the one it was given."""

    def propose(self, kind):
        tree = super().propose(kind)
        tree.tokens = (tree.tokens + 1) % 256
        return tree


def test_a_broken_verdict_fails_the_run(monkeypatch, capsys):
    monkeypatch.setitem(methods.METHODS, "liar", Liar)
    assert main(argv("broken", "--methods", "liar", "--repeats", "1")) == 1
    captured = capsys.readouterr()
    assert "BROKEN: liar" in captured.err
    assert "BROKEN" in captured.out
    assert json.loads(Path("broken/verdicts.json").read_text())["liar"]["verdict"] == "BROKEN"


def test_default_directory_is_numbered(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first = run.free_directory("smoke")
    assert first.parts[:2] == ("results", "local")
    assert first.name.endswith("-smoke")
    first.mkdir(parents=True)
    assert run.free_directory("smoke").name == f"{first.name}-2"
