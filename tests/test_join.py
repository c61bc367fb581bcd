"""A run in parts: joined it is what one run would have written, and parts that do not fit are refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_run import Liar, stopping

from bench import methods, report
from bench.__main__ import main
from bench.compare import compare
from bench.record import BASELINE, FILE, TWIN, Record, read
from bench.run import free_directory, titled
from bench.suite import SUITES

TURNS = {1: ("writing", ["Say a word.", "And again?"]), 2: ("qa", ["Who is there?"]), 3: ("rag", ["a b c a b c"]),
         4: ("coding", ["ab ab ab", "cd cd"]), 5: ("qa", ["Why?"])}
LABELS = ("hf_eager", "prompt_lookup:k=3")
RECORDS = 7 * (2 * (2 + 1) + 1)  # turns; repeats of the baseline, its twin and a method, and the reference once


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The whole, and two parts of the same."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder := tmp_path_factory.mktemp("runs"))
        lines = [json.dumps({"question_id": q, "category": c, "turns": t}) for q, (c, t) in TURNS.items()]
        Path("questions.jsonl").write_text("\n".join(lines))
        quick(patched)
        assert [main(argv("whole")), *(main(argv(f"{i}of2", "--part", f"{i}/2")) for i in (1, 2))] == [0, 0, 0]
    return folder


def quick(patched):
    """Tables and figures take longer than everything else here."""
    patched.setattr(report, "write", lambda folder: SimpleNamespace(markdown=folder / "-", html=folder / "-"))


@pytest.fixture
def here(runs, tmp_path, monkeypatch):
    """A copy of these runs, to be spoiled."""
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    quick(monkeypatch)
    return tmp_path


def argv(out: str, *more: str) -> list[str]:
    return ["run", "--target", "tiny", "--prompts", "questions.jsonl", "--device", "cpu", "--dtype", "fp64",
            "--methods", ",".join(LABELS), "--max-new-tokens", "8", "--temperature", "0.8", "--repeats", "2",
            "--out", out, *more]


def timeless(record: Record) -> Record:
    return replace(record, phases={}, gaps=[], discarded_ms=0, prefill_ms=0, wall_ms=0)


def spoil(part: str, change) -> None:
    """Let `change` have its way with a part's provenance."""
    path = Path(part, "provenance.json")
    change(origin := json.loads(path.read_text()))
    path.write_text(json.dumps(origin))


def keep(part: str, lines: list[str]) -> None:
    Path(part, FILE).write_text("".join(line + "\n" for line in lines))


def lines_of(part: str) -> list[str]:
    return Path(part, FILE).read_text().splitlines()


def refused(capsys, *parts: str) -> str:
    """The one line on stderr; nothing is written."""
    assert main(["join", *(parts or ("1of2", "2of2")), "--out", "joined"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert not Path("joined").exists()
    return line


def test_joined_parts_are_the_run(here, capsys):
    """The same records in the same order, but for their times; a reference where its baseline is."""
    whole, parts = read("whole"), [read("1of2"), read("2of2")]
    assert len(whole) == RECORDS
    for part in parts:
        assert len({r.group for r in part if r.turn == 1}) == 1  # of two questions with two turns
        outside = {(r.question_id, r.turn) for r in part if r.method == "hf_eager"}
        assert outside == {(r.question_id, r.turn) for r in part if r.method == BASELINE}
    assert main(["join", "2of2", "1of2", "--out", "joined"]) == 0
    assert "Lossless methods" in capsys.readouterr().out
    assert list(map(timeless, read("joined"))) == list(map(timeless, whole))
    assert {r.to_json() for r in read("joined")} == {r.to_json() for part in parts for r in part}
    found = json.loads(Path("joined/verdicts.json").read_text())
    assert {label: entry["sequences"] for label, entry in found.items()} == {BASELINE: 14, TWIN: 14, LABELS[1]: 14,
                                                                           LABELS[0]: 7}
    assert found == json.loads(Path("whole/verdicts.json").read_text())


def test_batches_are_divided_whole(here):
    flags = ("--batch", "2", "--methods", "prompt_lookup:k=3")
    assert [main(argv("big", *flags)), *(main(argv(f"b{i}", *flags, "--part", f"{i}/3")) for i in (1, 2, 3))] == [0] * 4
    assert main(["join", "b1", "b2", "b3", "--out", "joined"]) == 0
    assert list(map(timeless, read("joined"))) == list(map(timeless, read("big")))
    assert {r.batch for r in read("joined")} == {1, 2}


def test_the_report_names_every_card(here, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(here)
    dates = ["2026-01-01T10:00:00+00:00", "2026-01-01T10:00:07+00:00"]
    for part, card, date in (("1of2", "a", dates[0]), ("2of2", "b", dates[1])):
        spoil(part, lambda origin, card=card, date=date: origin.update(card={"name": "GPU", "id": card}, date=date))
        keep(part, [json.dumps(record | {"settings": record["settings"] | {"card": card}})
                    for record in map(json.loads, lines_of(part))])
    assert main(["join", "1of2", "2of2", "--out", "joined"]) == 0
    origin = json.loads(Path("joined/provenance.json").read_text())
    assert (origin["settings"]["part"], origin["card"]) == ("1/1", {"name": "GPU"})
    assert [part["card"] for part in origin["parts"]] == [{"id": "a"}, {"id": "b"}]
    assert [part["settings"] for part in origin["parts"]] == [{"part": "1/2"}, {"part": "2/2"}]
    assert [part["date"] for part in origin["parts"]] == dates
    page = Path("joined/report.md").read_text()
    assert "Measured on 2 cards, which differ by a few percent; every turn was measured by all methods on the" in page
    assert "parts · 2 · card · id" in page
    assert main(["report", "joined"]) == 0
    assert any("another card" in note for note in compare("1of2", "joined", resamples=100).notes)
    assert not compare("joined", "joined", resamples=100).notes
    assert main(["run", "--resume", "joined"]) == 0  # nothing is left to measure


def test_a_part_counts_only_its_own_and_is_resumed(here, monkeypatch, capsys):
    """A part is no run: it is not judged."""
    with monkeypatch.context() as patched:
        stopping(patched, 5, KeyboardInterrupt())
        assert main(argv("again", "--part", "2/2")) == 130
    assert "again lacks autoregressive on question 1, turn 1" in refused(capsys, "1of2", "again")
    assert main(["run", "--resume", "again", "--part", "1/2"]) == 2
    assert "has --part 2/2, not 1/2" in capsys.readouterr().err
    assert main(["run", "--resume", "again"]) == 0
    said, count = capsys.readouterr().out, len(read("2of2"))
    assert f"{count}/{count}  " in said and "again is part 2/2" in said
    assert list(map(timeless, read("again"))) == list(map(timeless, read("2of2")))
    assert not Path("again/verdicts.json").exists()
    assert main(["join", "again", "1of2", "--out", "joined"]) == 0
    [first, second] = json.loads(Path("joined/provenance.json").read_text())["parts"]
    assert "resumed" not in first and len(second["resumed"]) == 1


def test_a_broken_text_fails_the_whole(here, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "liar", Liar)
    for part in "12":
        assert main(argv(part, "--methods", "liar", "--repeats", "1", "--part", f"{part}/2")) == 0
    assert main(["join", "1", "2", "--out", "joined"]) == 1


@pytest.mark.parametrize(("change", "words"), [
    (lambda origin: origin["settings"].update(seed=7), "2of2 does not fit 1of2: --seed was 0, is 7"),
    (lambda origin: origin["files"].update(prompts="0" * 64), "sha256 of the prompts was .*, is 000000000000"),
    (lambda origin: origin["cpu"].update(model="Another"), "processor was .*, is Another"),
    (lambda origin: origin["settings"].update(part="2/3"), "1of2 is part 1/2, 2of2 is part 2/3"),
    (lambda origin: origin["settings"].update(part="1/2"), "1of2 and 2of2 are both part 1/2"),
])
def test_parts_of_other_runs_are_refused(here, capsys, change, words):
    spoil("2of2", change)
    assert re.search(words, refused(capsys))


def test_a_machine_of_another_kind_is_refused(here, capsys):
    """Verdicts ask how the arithmetic rounds that made the texts."""
    for part in ("1of2", "2of2"):
        spoil(part, lambda origin: origin["cpu"].update(model="Another"))
    assert "what is here does not fit 1of2: processor was Another" in refused(capsys)


def test_other_questions_are_refused(here, capsys):
    path = Path("questions.jsonl")
    path.write_text(path.read_text().replace("Why?", "How?"))
    assert "what is here does not fit 1of2: sha256 of the prompts" in refused(capsys)


def test_what_is_missing_is_named(here, capsys):
    assert "part 2/2 is missing" in refused(capsys, "1of2")
    assert "nowhere" in refused(capsys, "1of2", "nowhere")
    lines = lines_of("2of2")
    keep("2of2", lines[:3] + lines[4:])
    gone = Record.from_json(lines[3])
    assert (f"2of2 lacks {gone.method} on question {gone.question_id}, turn {gone.turn}, repeat {gone.repeat}: go on "
            "with  python -m bench run --resume 2of2") in refused(capsys)
    keep("2of2", lines[:3])
    assert f" and {len(lines) - 6} more: go on with" in refused(capsys)


def test_a_record_of_another_part_is_refused(here, capsys):
    keep("2of2", [*lines_of("2of2"), lines_of("1of2")[0]])
    assert "2of2 is part 2/2, but holds" in refused(capsys)


def test_parts_have_directories_of_their_own():
    names = [free_directory(titled(replace(SUITES["smoke"], part=part))).name for part in ("1/1", "1/12", "11/12")]
    assert [name.split("-smoke")[1] for name in names] == ["", "-1of12", "-11of12"]
