"""Teacher text: what the target writes, what is dropped, and what a second call leaves alone."""

import json

import numpy as np
import pytest
import torch

from bench import prompts, zoo
from bench.__main__ import main
from bench.errors import BenchError
from bench.filters import Sieve, is_loop, spoken
from bench.noise import NoiseKey
from bench.prompts import shared_ngrams
from bench.sampling import Law, pick
from bench.teacher import Stage, Teacher
from bench.texts import Origin, Shard, Text, shard_path, shards

FLAGS = ("--target", "tiny", "--batch", "4", "--length", "64", "--question", "12", "--device", "cpu", "--dtype", "fp32")
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


def text(*ids, begin=0, end=0, answer=0):
    return Text(np.array(ids, np.int32), (begin, end), answer)


def test_the_stage_is_what_conversations_share(target):
    stage, chat = Stage.of(target.tokenizer, raw=False), target.tokenizer.chat([{"role": "user", "content": "Why?"}])
    assert stage.opening + list(b"Why?") + stage.closing == chat
    assert Stage.of(target.tokenizer, raw=True) == Stage([target.tokenizer.BEGIN], [])


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
    stage = Stage.of(target.tokenizer, raw=False)
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
    for texts in ([], [text(1, 2, 3, begin=1, end=2, answer=2), text(5)]):
        Shard(texts, origin, {"loop": 2}).save(path)
        again = Shard.load(path)
        assert (again.origin, again.dropped) == (origin, {"loop": 2})
        assert [(t.ids.tolist(), t.question, t.answer) for t in again.texts] == [
            (t.ids.tolist(), t.question, t.answer) for t in texts]


def test_loops_duplicates_and_short_answers_are_counted(target):
    random = np.random.default_rng(0)
    good = text(*random.integers(200, size=40))
    looping, short = text(*[7, 8, 9] * 20), text(*range(20), answer=15)
    kept, dropped = Sieve(target.tokenizer, []).sift([good, looping, short, good])
    assert kept == [good]
    assert dropped == {"short": 1, "loop": 1, "duplicate": 1, "benchmark": 0}


def test_half_a_loop_is_none():
    random = np.random.default_rng(0)
    assert not is_loop(np.array([*random.integers(200, size=60), *[7, 8, 9] * 10]))
    assert is_loop(np.array([*random.integers(200, size=20), *[7, 8, 9] * 20]))
    assert not is_loop(np.array([1, 2, 3]))


def test_benchmark_questions_are_dropped(target):
    """Long ones by a 13-gram inside a longer text, short ones when they are equal as a whole."""
    questions = prompts.load()
    longest = max((turn for q in questions for turn in q.turns), key=len)
    said = text(*target.tokenizer.encode("And so: " + longest)[1:])
    kept, dropped = Sieve(target.tokenizer, questions).sift([said])
    assert (kept, dropped["benchmark"]) == ([], 1)
    assert Sieve(target.tokenizer, []).sift([said])[0] == [said]


def test_no_text_shares_a_13_gram_with_the_bundled_questions(written, target):
    said = [words for shard in shards(written) for words in spoken(shard.texts, target.tokenizer)]
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


def test_the_teacher_alone(target):
    teacher = Teacher(target, Stage.of(target.tokenizer, raw=True), 2, 40, 1)
    first, second = teacher.write(LAW, Law(1.0), [NoiseKey(0, 1), NoiseKey(0, 2)])
    assert first.question == (1, 1)
    assert first.answer == 1
    assert first.ids.tolist() != second.ids.tolist()
