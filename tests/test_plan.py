"""Batches, the order of methods, and prompts over several turns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.plan import Part, Prompter, groups, shuffled
from bench.prompts import TASKS, Question
from bench.zoo.synthetic import ByteTokenizer

QUESTIONS = st.lists(st.tuples(st.sampled_from(sorted(TASKS)), st.integers(1, 3)), min_size=1, max_size=30).map(
    lambda kinds: [Question(i, category, ("turn",) * turns) for i, (category, turns) in enumerate(kinds)])
TALK = Question(1, "writing", ("one", "two", "three"))


@given(QUESTIONS, st.integers(1, 7))
def test_groups_hold_every_question_once(questions, batch):
    found = groups(questions, batch)
    assert [group.number for group in found] == list(range(len(found)))
    assert sorted(q.question_id for group in found for q in group.questions) == list(range(len(questions)))
    for group in found:
        assert 1 <= len(group.questions) <= batch
        assert {len(q.turns) for q in group.questions} == {group.turns}


@given(QUESTIONS)
def test_single_questions_keep_their_order(questions):
    assert [group.questions for group in groups(questions, 1)] == [(question,) for question in questions]


def test_tasks_are_not_mixed_where_the_batch_divides_them():
    questions = [Question(i, category, ("turn",)) for i in range(4) for category in ("qa", "rag", "translation")]
    assert [len({q.category for q in group.questions}) for group in groups(questions, 4)] == [1, 1, 1]


@given(QUESTIONS, st.integers(1, 4), st.integers(1, 5))
def test_parts_divide_the_groups(questions, batch, count):
    """Each group is in one part, as it was; the parts are as even as they can be."""
    whole = groups(questions, batch)
    parts = [Part(index, count).of(whole) for index in range(1, min(count, len(whole)) + 1)]
    assert sorted((group for part in parts for group in part), key=lambda group: group.number) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if count > len(whole):
        with pytest.raises(BenchError, match=f"no questions are left for --part {count}/{count}: .* {len(whole)} gr"):
            Part(count, count).of(whole)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "1.0/2", " 1/2", "01/2", "٢/٣"])
def test_a_part_is_written_one_way(text):
    with pytest.raises(BenchError, match="--part is I/N"):
        Part.parse(text)
    assert str(Part.parse("12/34")) == "12/34"


def test_order_of_methods_is_fixed_by_the_seed_and_differs_by_place():
    labels = ["a", "b", "c", "d", "e"]
    orders = {tuple(shuffled(labels, 0, repeat, group, 0)) for repeat in range(3) for group in range(20)}
    assert len(orders) > 30
    assert shuffled(labels, 0, 1, 2, 0) == shuffled(labels, 0, 1, 2, 0) != shuffled(labels, 1, 1, 2, 0)
    assert all(sorted(order) == labels for order in orders)
    firsts = [shuffled(labels, 0, 0, group, 0)[0] for group in range(1000)]
    assert all(150 < firsts.count(label) < 250 for label in labels)  # 200 expected, sd 13


def test_later_turns_continue_the_given_answers():
    prompter, tokenizer = Prompter(ByteTokenizer(), 8), ByteTokenizer()
    answers = {(1, 0): list(b"first"), (1, 1): [*b"second", tokenizer.END]}
    assert prompter.prompt(TALK, 0, {}) == tokenizer.chat([{"role": "user", "content": "one"}])
    assert prompter.prompt(TALK, 2, answers) == tokenizer.chat([
        {"role": "user", "content": "one"}, {"role": "assistant", "content": "first"},
        {"role": "user", "content": "two"}, {"role": "assistant", "content": "second"},
        {"role": "user", "content": "three"}])


def test_raw_prompts_are_plain_text():
    prompter = Prompter(ByteTokenizer(), 8, raw=True)
    assert prompter.prompt(TALK, 1, {(1, 0): list(b"first")}) == ByteTokenizer().encode("one\n\nfirst\n\ntwo")


@given(st.lists(st.lists(st.integers(0, 263), max_size=8), min_size=2, max_size=2), st.booleans())
def test_no_answer_breaks_the_promised_length(texts, raw):
    prompter = Prompter(ByteTokenizer(), 8, raw)
    longest = prompter.check([TALK], 4096)
    answers = {(1, turn): text for turn, text in enumerate(texts)}
    for turn in range(3):
        assert len(prompter.prompt(TALK, turn, answers)) + 8 <= prompter.longest(TALK, turn) <= longest


def test_the_question_that_is_too_long_is_named():
    prompter = Prompter(ByteTokenizer(), 8)
    fits = prompter.longest(TALK, 2)
    assert prompter.check([TALK], fits) == fits
    with pytest.raises(BenchError, match=f"question 1 is too long: with 8 .* needs {fits} positions, .* {fits - 1};"):
        prompter.check([Question(0, "qa", ("?",)), TALK], fits - 1)
