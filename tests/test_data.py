"""Teacher text: what the target writes, what is dropped, and what a second call leaves alone."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from bench import prompts, zoo
from bench.__main__ import main
from bench.errors import BenchError
from bench.filters import Sieve, is_loop, objections, spoken
from bench.noise import NoiseKey
from bench.openers import OPENERS
from bench.prompts import shared_ngrams
from bench.sampling import Law, pick
from bench.shifts import Shifts, due
from bench.teacher import Stage
from bench.texts import Origin, Shard, Text, shard_path, shards
from bench.writing import other_worker

FLAGS = ("--target", "tiny", "--batch", "2", "--shard", "4", "--length", "64",
         "--question", "12", "--device", "cpu", "--dtype", "fp32", "--opened", "0")
LAW = Law(0.7, top_k=50)


@pytest.fixture(scope="module")
def target():
    return zoo.load("tiny")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three shards, one of them greedy."""
    folder = tmp_path_factory.mktemp("data")
    assert main(["data", "--out", str(folder), "--sequences", "12", "--greedy", "0.34", *FLAGS]) == 0
    return folder


@pytest.fixture(scope="module")
def passages(tmp_path_factory):
    """A file as `passages` writes it."""
    file = tmp_path_factory.mktemp("passages") / "passages.jsonl"
    said = [" ".join(f"House {i} of street {s} has {i + s} rooms." for i in range(30)) for s in range(4)]
    file.write_text("".join(json.dumps({"kind": "passage", "text": words}) + "\n" for words in said)
                    + json.dumps({"kind": "sentence", "language": "Spanish", "text": "Llueve en la ciudad."}))
    return file


def text(*ids, begin=0, end=0, answer=0, earlier=()):
    return Text(np.array(ids, np.int32), (begin, end), answer, earlier)


def sift(target, texts, questions=()):
    sieve = Sieve(target.tokenizer, questions)
    return sieve.sift(texts, objections(texts, target.tokenizer, sieve.asked))


def test_the_stage_is_what_conversations_share(target):
    stage = Stage.of(target, raw=False)
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
             {"role": "user", "content": "How?"}]
    asked = stage.opening + list(b"Why?") + stage.closing
    assert asked == target.tokenizer.chat(turns[:1])
    assert asked + list(b"So.") + stage.between + list(b"How?") + stage.closing == target.tokenizer.chat(turns)
    assert Stage.of(target, raw=True) == Stage([target.tokenizer.BEGIN], [], [], target.end_ids)


def test_every_answer_is_the_targets_own(written, target):
    """Drawn again by whole forwards, from the noise that the shard's number names."""
    laws = []
    for number, shard in enumerate(shards(written)):
        law = shard.origin.law
        laws.append(law)
        for one in shard.texts:
            ids = torch.tensor(one.ids.tolist())[None]
            logits = target.model.logits(ids)[0]
            streams = {turn: [NoiseKey(0, f"teacher/{number}/{i}", turn).numbers("target", 64) for i in range(4)]
                       for turn in (0, 1)}
            assert explained(one.ids, range(*one.question), logits, LAW, streams[0])
            assert explained(one.ids, range(one.answer, len(one.ids)), logits, law, streams[1])
    assert laws == [LAW, LAW, Law()]


def explained(ids, places, logits, law, streams):
    """Whether one of the noise streams gives these ids at these places."""
    return any(all(int(pick(torch.tensor(u[i]), law(logits[i - 1]))) == ids[i] for i in places) for u in streams)


def test_end_ids_appear_only_where_turns_end(written, target):
    stage = Stage.of(target, raw=False)
    ended = 0
    for shard in shards(written):
        for one in shard.texts:
            begin, end = one.question
            assert begin == len(stage.opening)
            assert one.ids[end : one.answer].tolist() == stage.closing
            inside = [*one.ids[begin:end], *one.ids[one.answer : -1]]
            assert not set(inside) & target.end_ids
            ended += int(one.ids[-1]) in target.end_ids
            assert len(one.ids) <= 64
    assert ended


def test_a_second_call_writes_only_what_is_missing(written, tmp_path):
    def call(count):
        assert main(["data", "--out", str(tmp_path), "--sequences", str(count), "--greedy", "0.34", *FLAGS]) == 0

    call(4)
    first = shard_path(tmp_path, 0)
    stamp = first.stat().st_mtime_ns
    call(12)
    assert first.stat().st_mtime_ns == stamp
    for number in range(3):
        assert shard_path(tmp_path, number).read_bytes() == shard_path(written, number).read_bytes()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("flags, message", [
    (["--target", "tiny:seed=1"], "another target"),
    (["--temperature", "1"], "other settings"),
    (["--length", "80"], "other settings"),
    (["--length", "17"], "no room for an answer"),
    (["--length", "5000"], "exceeds the context"),
    (["--greedy", "2"], "between 0 and 1"),
    (["--long", "-1"], "between 0 and 1"),
    (["--long", "1", "--raw"], "need a chat template"),
    (["--long", "1", "--passages", "nowhere"], "holds no passages"),
    (["--shard", "-3"], "at least 1"),
    (["--seed", "-3"], "at least 0"),
    (["--second", "0.5"], "other settings"),
    (["--batch", "0"], "at least 1"),
    (["--dtype", "int4"], "unknown dtype"),
    (["--check", "nowhere"], "nowhere"),
])
def test_bad_input(written, capsys, flags, message):
    assert main(["data", "--out", str(written), "--sequences", "4", "--greedy", "0.34", *FLAGS, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_file_that_is_no_shard(tmp_path):
    shard_path(tmp_path, 0).write_text("x")
    with pytest.raises(BenchError, match="no shard of teacher text"):
        list(shards(tmp_path))
    with pytest.raises(BenchError, match="holds no teacher text"):
        list(shards(tmp_path / "empty"))


def test_a_shard_survives_the_disk(tmp_path):
    origin = Origin("tiny", "tiny", LAW, {"seed": 1})
    path = shard_path(tmp_path, 7)
    long = text(*range(9), begin=6, end=7, answer=8, earlier=((0, 2), (3, 5)))
    for texts in ([], [text(1, 2, 3, begin=1, end=2, answer=2), text(5)], [text(5), long, text(6)]):
        Shard(texts, origin, {"loop": 2}).save(path)
        again = Shard.load(path)
        assert (again.origin, again.dropped) == (origin, {"loop": 2})
        assert [(t.ids.tolist(), t.question, t.answer, t.earlier) for t in again.texts] == [
            (t.ids.tolist(), t.question, t.answer, t.earlier) for t in texts]
    assert long.questions == [(0, 2), (6, 7)]
    assert long.answers == [(3, 5), (8, 9)]


def test_loops_duplicates_and_short_answers_are_counted(target):
    random = np.random.default_rng(0)
    good = text(*random.integers(200, size=40))
    looping, short = text(*[7, 8, 9] * 20), text(*range(20), answer=15)
    before = text(*looping.ids, *good.ids, answer=len(looping.ids), earlier=((0, 0), (0, len(looping.ids))))
    kept, dropped = sift(target, [good, looping, short, good, before])
    assert kept == [good]
    assert dropped == {"short": 1, "loop": 2, "duplicate": 1, "benchmark": 0}
    sieve = Sieve(target.tokenizer, [])
    sieve.remember([good])
    assert sieve.sift([good], [None])[1]["duplicate"] == 1


def test_another_process_sifts_as_well(target):
    """What it is sent and sends back survives the way; it is how shards are sifted beside a GPU."""
    texts, asked = [text(*range(50)), text(7, answer=0)], Sieve(target.tokenizer, prompts.load()).asked
    with other_worker(torch.device("cuda")) as other:
        assert other.submit(objections, texts, target.tokenizer, asked).result() == [None, "short"]


def test_half_a_loop_is_none():
    random = np.random.default_rng(0)
    assert not is_loop(np.array([*random.integers(200, size=60), *[7, 8, 9] * 10]))
    assert is_loop(np.array([*random.integers(200, size=20), *[7, 8, 9] * 20]))
    assert not is_loop(np.array([1, 2, 3]))


def test_benchmark_questions_are_dropped(target):
    """Long ones by a 13-gram inside a longer text, short ones when they are equal as a whole."""
    questions = prompts.load()
    longest = max((turn for q in questions for turn in q.turns), key=len)
    shortest = min((turn for q in questions for turn in q.turns), key=len)
    words = [target.tokenizer.encode(turn)[1:] for turn in ("And so: " + longest, shortest, "And so it ends.")]
    ids = [i for part in words for i in part]
    a, b, c = np.cumsum([len(part) for part in words]).tolist()
    answered = text(*words[0])
    asked = text(*ids[a:], begin=0, end=b - a, answer=b - a)
    once = text(*ids[a:], *ids[b:], begin=c - a, end=c - a, answer=c - a, earlier=((0, b - a), (b - a, c - a)))
    for said in (answered, asked, once):
        kept, dropped = sift(target, [said], questions)
        assert (kept, dropped["benchmark"]) == ([], 1)
        assert sift(target, [said])[0] == [said]


def test_no_text_shares_a_13_gram_with_the_bundled_questions(written, target):
    said = [words for shard in shards(written) for text in shard.texts for words in spoken(text, target.tokenizer)]
    assert len(said) >= 20
    assert not shared_ngrams(said, [turn for question in prompts.load() for turn in question.turns])


def test_check_reports_what_is_shared(written, target, tmp_path, capsys):
    said = next(shards(written)).texts[0]
    asked = target.tokenizer.decode(said.ids[said.answer :].tolist())
    file = tmp_path / "mine.jsonl"
    for turn, status in ((asked, 1), ("What else is there?", 0)):
        file.write_text(json.dumps({"question_id": 1, "category": "qa", "turns": [turn]}))
        assert main(["data", "--out", str(written), "--sequences", "0", "--check", str(file), *FLAGS]) == status
        assert ("\n0 13-grams" not in capsys.readouterr().out) == bool(status)


def test_held_out_texts_are_few_and_fixed():
    random = np.random.default_rng(0)
    texts = [text(*random.integers(200, size=20)) for _ in range(2000)]
    assert 30 <= sum(t.is_held_out for t in texts) <= 100


def test_raw_texts_have_no_question(tmp_path):
    assert main(["data", "--out", str(tmp_path), "--sequences", "4", "--raw", "--greedy", "0", *FLAGS]) == 0
    texts = next(shards(tmp_path)).texts
    assert {(one.question, one.answer) for one in texts} == {((1, 1), 1)}
    assert len({one.digest() for one in texts}) == len(texts) > 1


LONG = ("--long", "0.5", "--long-length", "700", "--greedy", "0.5", "--second", "0.5", "--sequences", "16")


def test_shards_about_passages(passages, target, tmp_path, capsys):
    """Greedy ones among them, some texts of two turns; a second call finds nothing to do."""
    call = ["data", "--out", str(tmp_path), "--passages", str(passages), *FLAGS, *LONG, "--length", "160"]
    assert main(call) == 0
    first = capsys.readouterr().out.splitlines()[-1]
    found = list(shards(tmp_path))
    assert [(s.origin.settings["kind"], s.origin.law) for s in found] == [
        ("chat", LAW), ("long", LAW), ("chat", Law()), ("long", Law())]
    about = [target.tokenizer.decode(one.ids[: one.answer].tolist()) for s in found[1::2] for one in s.texts]
    assert len(about) >= 6
    assert all("House" in words or "Llueve" in words for words in about)
    assert any(one.earlier for s in found for one in s.texts)
    for shard in found:
        for one in shard.texts:
            assert len(one.ids) <= (700 if shard.origin.settings["kind"] == "long" else 160)
            law, logits = shard.origin.law, target.model.logits(torch.tensor(one.ids.tolist())[None])[0]
            if law == Law():
                assert all(int(logits[i - 1].argmax()) == one.ids[i] for span in one.answers for i in range(*span))
    stamps = [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())]
    assert main(call) == 0
    assert capsys.readouterr().out.splitlines()[-1] == first
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.iterdir())] == stamps
    passages.write_text(passages.read_text().replace("rooms", "doors"))
    assert main(call) == 2
    assert "other settings" in capsys.readouterr().err


def shifts(target, **changes):
    settings = {"batch": 3, "shard": 5, "length": 100, "question": 12, "greedy": 0.2, "seed": 0, "raw": False,
                "opened": 0.5, "second": 0.5, "long": 0.3, "long_length": 700} | changes
    return Shifts(target, Origin("tiny", "tiny", LAW, settings), None)


def test_a_shard_is_a_function_of_its_number(target):
    one, other = shifts(target), shifts(target)
    shares: list[float] = []
    other.write(1, shares.append)
    assert shares == [0.2, 0.4, 0.6, 0.8, 1]
    first, again = (each.write(0, shares.append) for each in (one, other))
    assert [t.ids.tolist() for t in first] == [t.ids.tolist() for t in again]
    assert len({t.digest() for t in [*first, *one.write(1, shares.append)]}) == 10


def test_kinds_and_laws_are_shared_out_evenly(target):
    origins = [shifts(target, long=0.25, greedy=0.25).origin(number) for number in range(64)]
    long = [origin.settings["kind"] == "long" for origin in origins]
    greedy = [origin.law == Law() for origin in origins]
    assert (sum(long), sum(greedy)) == (16, 16)
    assert sum(a and b for a, b in zip(long, greedy, strict=True)) == 4
    places = [number for number in range(90) if due(number, 0.3)]
    assert len(places) == 27
    assert {b - a for a, b in pairwise(places)} == {3, 4}
    assert not any(due(number, 0) for number in range(9))
    assert all(due(number, 1) for number in range(9))


def test_a_share_of_conversations_begins_with_our_words(target):
    texts = shifts(target, shard=60, question=40, long=0.0, greedy=0.0).write(0, lambda _: None)
    said = [target.tokenizer.decode(text.ids[slice(*text.question)].tolist()) for text in texts]
    ours = [words for words in said if words.startswith(OPENERS)]
    assert 20 <= len(ours) <= 40
    assert len(set(ours)) > 15
    assert all(end - begin <= 40 for begin, end in (text.question for text in texts))
    none = shifts(target, shard=20, question=40, long=0.0, opened=0.0).write(0, lambda _: None)
    assert not any(target.tokenizer.decode(t.ids[slice(*t.question)].tolist()).startswith(OPENERS) for t in none)


def test_long_texts_get_the_same_memory(target):
    ours = shifts(target, batch=21)
    assert [ours.teacher(kind).sequences.batch for kind in ("chat", "long")] == [21, 3]
