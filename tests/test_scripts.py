"""Scripts: who is asked for what, and what becomes of it. The target's part is played by hand."""

import json
import re

import numpy as np
import pytest

from bench import prompts, scripts, zoo
from bench.errors import BenchError
from bench.passages import Library
from bench.scripts import ROOM, Desk, Room, conversation, cut
from bench.teacher import Stage, chat

TARGET = zoo.load("tiny")
TOKENIZER, STAGE, END = TARGET.tokenizer, Stage.of(TARGET, raw=False), [257]
PASSAGES = [" ".join(f"Word{i} of passage {p} is {i * p}." for i in range(90)) for p in range(1, 6)]
LIBRARY = Library(PASSAGES, {"English": ["We met at noon by the old harbour wall."],
                             "Spanish": ["Nos vimos al lado del puerto."]}, "")


def play(script, *said):
    """What the script asks for, and the text that it makes of the answers."""
    requests = [next(script)]
    for words in said:
        try:
            requests.append(script.send([*words.encode(), *END] if isinstance(words, str) else words))
        except StopIteration as end:
            return requests, end.value
    raise AssertionError(f"the script wants more: {requests[-1]}")


def words(text, span):
    return TOKENIZER.decode(text.ids[slice(*span)].tolist())


def test_one_turn():
    requests, text = play(conversation(STAGE, Room(400, 30), 1), "Why?", "Because.")
    assert [(r.limit, r.asks) for r in requests] == [(30, True), (400 - len(requests[1].ids), False)]
    assert requests[0].ids == STAGE.opening
    assert requests[1].ids == chat(TOKENIZER, "Why?")
    assert text.ids.tolist() == [*chat(TOKENIZER, "Why?"), *b"Because.", *END]
    assert (words(text, text.question), text.earlier) == ("Why?", ())
    assert text.answers == [(text.answer, len(text.ids))]


def test_two_turns():
    requests, text = play(conversation(STAGE, Room(900, 30), 2), "Why?", "Because.", "And how?", "So.")
    assert [r.asks for r in requests] == [True, False, True, False]
    assert requests[3].ids == chat(TOKENIZER, "Why?", "Because.", "And how?")
    assert text.ids.tolist() == [*requests[3].ids, *b"So.", *END]
    assert [words(text, span) for span in (*text.questions, *text.answers)] == ["Why?", "And how?", "Because.", "So."]
    assert text.earlier[1] == text.answers[0]


@pytest.mark.parametrize(("length", "first"), [(900, list(b"cut off")), (114, "Because.")])
def test_no_second_turn_after_a_cut_answer_or_without_room(length, first):
    _, text = play(conversation(STAGE, Room(length, 30), 2), "Why?", first)
    assert text.earlier == ()


def test_a_question_without_an_end_is_closed():
    requests, _ = play(conversation(STAGE, Room(400, 4), 1), list(b"Why "), "Because.")
    assert requests[1].ids == chat(TOKENIZER, "Why ")


def test_raw_is_one_long_answer():
    stage = Stage.of(TARGET, raw=True)
    requests, text = play(conversation(stage, Room(900, 30), 2), list(b"Once upon"))
    assert [(r.ids, r.limit, r.asks) for r in requests] == [(stage.opening, 899, False)]
    assert (text.question, text.answer) == ((1, 1), 1)


def desk(length=3000, library=LIBRARY):
    return Desk(TOKENIZER, STAGE, Room(length, 30), library)


def test_a_summary_shows_a_passage():
    for seed in range(20):
        requests, text = play(desk().summary(1, np.random.default_rng(seed)), "Short.")
        asked = words(text, text.question)
        assert requests[0].ids == chat(TOKENIZER, asked)
        assert not requests[0].asks
        assert len(requests[0].ids) <= 3000 - ROOM
        assert re.search(r"(Word\d+ of passage (\d) is \d+\. ?){9}", asked)


def test_a_consultation_is_asked_by_the_target_up_to_the_question_mark():
    counts = set()
    for seed in range(30):
        requests, text = play(desk().consultation(1, np.random.default_rng(seed)), " it? Nothing.", "That.")
        begun, asked = TOKENIZER.decode(requests[0].ids[len(STAGE.opening) :]), words(text, text.question)
        assert begun.endswith(scripts.WORDS)
        assert asked == begun + " it?"
        assert [r.asks for r in requests] == [True, False]
        assert requests[1].ids == text.ids[: text.answer].tolist() == chat(TOKENIZER, asked)
        counts.add(asked.count("\n\nWord"))
    assert len(counts) > 2, "several passages, not always as many"
    _, text = play(desk().consultation(1, np.random.default_rng(0)), " it", "That.")
    assert words(text, text.question).endswith(" it")


def test_a_translation_names_a_language():
    found = set()
    for seed in range(30):
        _, text = play(desk().translation(1, np.random.default_rng(seed)), "So.")
        asked = words(text, text.question)
        found |= {language for language in ("Spanish", "German", "French") if language in asked}
        assert ("harbour wall." in asked) != ("del puerto." in asked)
    assert len(found) == 3


def test_long_prompts_are_cut_to_fit_and_refused_if_they_cannot():
    for seed in range(20):
        requests, _ = play(desk(700).summary(1, np.random.default_rng(seed)), "Short.")
        assert 300 < len(requests[0].ids) <= 700 - ROOM
    with pytest.raises(BenchError, match="no room for a passage"):
        play(desk(300).summary(1, np.random.default_rng(0)), "Short.")


def test_scripts_are_functions_of_their_random_state_and_of_all_kinds():
    kinds = set()
    for seed in range(40):
        first, again = (next(desk().script(1, np.random.default_rng(seed))) for _ in "12")
        assert first == again
        kinds.add((first.asks, len(first.ids) > 200))
    assert kinds >= {(True, True), (False, True), (False, False)}


def test_wordings_are_not_those_of_the_bundled_questions():
    asked = [" ".join(turn.lower().split()) for question in prompts.load() for turn in question.turns]
    every = [wording for name in ("SUMMARISE", "CONSULT", "INTO_ENGLISH", "FROM_ENGLISH")
             for wording in getattr(scripts, name)]
    assert len(every) > 15
    for wording in every:
        filled = wording.format(passage="|", passages="|", word="|", sentence="|", language="German").lower()
        for piece in filled.split("|"):
            phrase = " ".join(piece.split())
            assert len(phrase.split()) < 4 or not any(phrase in turn for turn in asked), wording


def test_a_cut_keeps_the_beginning():
    assert [cut("a b c d", share) for share in (1, 0.5, 0.3, 0)] == ["a b c d", "a b", "a b", ""]


def test_a_library_is_read_from_its_file(tmp_path):
    file = tmp_path / "passages.jsonl"
    lines = [{"kind": "passage", "text": "It rains.\u2028It pours."},
             {"kind": "sentence", "language": "x", "text": "y"}]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    library = Library.read(file)
    assert (library.passages, library.sentences) == (["It rains.\u2028It pours."], {"x": ["y"]})
    for broken in ("", "x", '{"kind": "passage", "text": "y"}', '{"text": "y"}', "[]"):
        file.write_text(broken)
        with pytest.raises(BenchError, match="holds no passages"):
            Library.read(file)


def test_passages_are_whole_sentences_of_the_wanted_length():
    random = np.random.default_rng(0)
    lengths = []
    for _ in range(200):
        passage = LIBRARY.passage(random, 60, 130)
        lengths.append(len(passage.split()))
        assert re.fullmatch(r"(Word\d+ of passage \d is \d+\. ?)+", passage)
    assert 55 <= min(lengths) < 75
    assert 115 < max(lengths) <= 130
