"""bench.prompts and its two bundled files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.prompts import (
    QUALITY,
    TASKS,
    Question,
    answer_matches,
    balanced,
    fingerprint,
    load,
    round_robin,
    shared_ngrams,
    task_of,
)

BENCHMARKS = Path(__file__).parents[2] / "shared" / "data"
GOOD = {"question_id": 1, "category": "qa", "turns": ["Why is the sky blue?"]}


def quality_items():
    return [json.loads(line) for line in QUALITY.read_text(encoding="utf-8").splitlines()]


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


@st.composite
def question_sets(draw):
    """Questions of random categories with distinct ids."""
    categories = draw(st.lists(st.sampled_from(list(TASKS)), min_size=1, max_size=40))
    return [Question(number, category, (f"Question {number}?",)) for number, category in enumerate(categories)]


# -- the bundled questions


def test_bundled_has_eight_questions_of_each_of_six_tasks_under_ids_1_to_48():
    questions = load()
    assert [question.question_id for question in questions] == list(range(1, 49))
    assert Counter(task_of(question.category) for question in questions) == dict.fromkeys(TASKS.values(), 8)
    assert len(set(TASKS.values())) == 6
    assert load("bundled") == questions


def test_bundled_conversations_cover_each_mt_bench_category_in_two_turns():
    questions = load()
    talks = [question for question in questions if task_of(question.category) == "multi-turn conversation"]
    assert len({question.category for question in talks}) == 8
    assert {len(question.turns) for question in talks} == {2}
    assert {len(question.turns) for question in questions if question not in talks} == {1}


def test_bundled_texts_are_in_the_prompts_and_no_two_alike():
    questions = load()
    for question in questions:
        body = question.turns[0].split("\n\n", 1)[-1]
        if question.category == "summarization":
            assert 200 <= len(body.split()) <= 350
        if question.category == "rag":
            assert 2 <= body.count("Passage ") <= 4 and "\n\nQuestion: " in body
        if question.category == "translation":
            assert len(body.split()) >= 40
    texts = [turn for question in questions for turn in question.turns]
    assert len(set(texts)) == len(texts) == 56


def test_bundled_reasoning_has_numeric_references():
    answers = [question.reference for question in load() if question.category == "math_reasoning"]
    assert all(len(answer) == 1 and answer[0].isdigit() for answer in answers)


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the published benchmark files are not beside this checkout")
@pytest.mark.parametrize("file", ["spec_bench.jsonl", "gsm8k_test.jsonl"])
def test_bundled_texts_share_no_13_gram_with_published_benchmarks(file):
    published: list[str] = []
    for line in (BENCHMARKS / file).read_text(encoding="utf-8").split("\n"):
        if line.strip():
            item = json.loads(line)
            published += item.get("turns") or [item["question"]]
    ours = [turn for question in load() for turn in question.turns] + [item["prompt"] for item in quality_items()]
    assert len(published) > 480
    assert shared_ngrams(ours, published) == set()
    assert shared_ngrams([*ours, published[7]], published) != set(), "the check itself sees a planted question"


# -- reading files


def test_load_reads_spec_bench_lines(tmp_path):
    path = write(
        tmp_path / "questions.jsonl",
        {**GOOD, "question_id": "a-1", "source": "ignored"},
        "",
        {**GOOD, "category": "math", "turns": ["One\u2028line?", "Zwei?"], "reference": ["1", "2"]},
        {**GOOD, "question_id": 2, "reference": "Rayleigh scattering"},
        {**GOOD, "question_id": 3, "reference": None},
    )
    assert load(path) == [
        Question("a-1", "qa", ("Why is the sky blue?",)),
        Question(1, "math", ("One\u2028line?", "Zwei?"), ("1", "2")),
        Question(2, "qa", ("Why is the sky blue?",), ("Rayleigh scattering",)),
        Question(3, "qa", ("Why is the sky blue?",)),
    ]


def test_load_keeps_raw_line_separators_inside_strings_and_drops_a_byte_order_mark(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({**GOOD, "turns": ["a\u2028b"]}, ensure_ascii=False), encoding="utf-8-sig")
    assert load(path)[0].turns == ("a\u2028b",)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no question"),
        (["", "  "], "holds no question"),
        ([GOOD, "", '{"question_id": 2,'], "line 3 is not valid JSON"),
        (["[" * 100_000], "line 1 is not valid JSON"),
        (["[1, 2]"], "line 1 is not a JSON object"),
        ([{"category": "qa", "turns": ["a"]}], "line 1 lacks the key 'question_id'"),
        ([{"question_id": 1, "turns": ["a"]}], "line 1 lacks the key 'category'"),
        ([{"question_id": 1, "category": "qa"}], "line 1 lacks the key 'turns'"),
        ([{**GOOD, "turns": "Why?"}], "line 1: turns must be a list"),
        ([{**GOOD, "turns": []}], "line 1: turns must be a list"),
        ([{**GOOD, "turns": ["Why?", " "]}], "line 1: turns must be a list"),
        ([{**GOOD, "turns": ["Why?", 2]}], "line 1: turns must be a list"),
        ([{**GOOD, "category": "poetry"}], "line 1: unknown category 'poetry'"),
        ([{**GOOD, "category": ["qa"]}], "line 1: unknown category"),
        ([{**GOOD, "question_id": True}], "line 1: question_id must be an integer or a string"),
        ([{**GOOD, "question_id": 1.5}], "line 1: question_id must be an integer or a string"),
        ([GOOD, GOOD], "question_id 1 2 times"),
        ([GOOD, {**GOOD, "question_id": "1"}], "question_id 1 2 times"),
    ],
)
def test_load_refuses_a_bad_file_in_one_line(tmp_path, lines, message):
    path = write(tmp_path / "questions.jsonl", *lines)
    with pytest.raises(BenchError) as error:
        load(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_load_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(BenchError, match="No such file"):
        load(tmp_path / "absent.jsonl")
    with pytest.raises(BenchError, match="directory"):
        load(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b'{"question_id": "\xe9"}')
    with pytest.raises(BenchError, match="not UTF-8"):
        load(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("count", [0, -3])
def test_counts_below_one_are_refused(count):
    with pytest.raises(BenchError, match=f"limit is {count}"):
        load(limit=count)
    with pytest.raises(BenchError, match=f"per_task is {count}"):
        balanced(load(), count)


def test_task_of_an_unknown_category_is_refused():
    with pytest.raises(BenchError, match="unknown category 'poetry'"):
        task_of("poetry")


# -- choosing


@given(st.integers(1, 60))
def test_limit_takes_a_prefix_in_which_tasks_differ_by_at_most_one(limit):
    taken = load(limit=limit)
    counts = Counter(task_of(question.category) for question in taken)
    assert len(taken) == min(limit, 48)
    assert max(counts.values()) - min(counts[task] for task in TASKS.values()) <= 1
    assert taken == load(limit=60)[:limit]


@given(question_sets(), st.integers(1, 40))
def test_every_prefix_is_as_balanced_as_the_set_allows(questions, length):
    order = round_robin(questions)
    assert sorted(order, key=lambda question: question.question_id) == questions
    total = Counter(task_of(question.category) for question in questions)
    counts = Counter(task_of(question.category) for question in order[:length])
    for task, available in total.items():
        assert counts[task] >= min(available, max(counts.values()) - 1)


@given(question_sets(), st.integers(1, 10))
def test_balanced_keeps_the_first_of_each_task_in_file_order(questions, per_task):
    kept = balanced(questions, per_task)
    seen: Counter[str] = Counter()
    expected = []
    for question in questions:
        seen[task_of(question.category)] += 1
        if seen[task_of(question.category)] <= per_task:
            expected.append(question)
    assert kept == expected


# -- fingerprints and shared text


def test_fingerprint_depends_on_content_and_order_only(tmp_path):
    first = load()
    spaced = write(
        tmp_path / "spaced.jsonl",
        *(json.dumps({"extra": 0, **vars(question)}, separators=(" ,", " : ")) for question in first),
    )
    assert fingerprint(load(spaced)) == fingerprint(first)
    assert len(fingerprint(first)) == 64
    variants = [
        first[::-1],
        first[:-1],
        [replace(first[0], turns=(first[0].turns[0] + " ", first[0].turns[1])), *first[1:]],
        [replace(first[0], category="roleplay"), *first[1:]],
        [replace(first[0], question_id="1"), *first[1:]],
        [replace(first[0], reference=("x",)), *first[1:]],
    ]
    assert len({fingerprint(variant) for variant in [first, *variants]}) == 7


words = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12)


@given(words, words, st.integers(1, 5))
def test_shared_ngrams_equals_the_slow_comparison(a, b, n):
    def grams(text):
        return {tuple(text[i : i + n]) for i in range(len(text) - n + 1)} or ({tuple(text)} if text else set())

    expected = {" ".join(gram) for gram in grams(a) & grams(b)}
    assert shared_ngrams([" ".join(a)], [", ".join(b).upper()], n) == expected


def test_shared_ngrams_finds_thirteen_words_but_not_twelve():
    text = "one two three four five six seven eight nine ten eleven twelve thirteen"
    assert shared_ngrams([f"Zero {text.title()}, fourteen."], [f"none {text} none"]) == {text}
    twelve = text.rsplit(" ", 1)[0]
    assert shared_ngrams([f"zero {twelve} x"], [f"none {twelve} y"]) == set()
    assert shared_ngrams(["Who wrote it?"], ["who wrote it"]) == {"who wrote it"}


# -- the quality items


def test_quality_items_are_well_formed_and_unique():
    items = quality_items()
    assert len(items) == len({item["id"] for item in items}) == len({item["prompt"] for item in items}) == 100
    assert Counter(item["kind"] for item in items) == dict.fromkeys(
        ("extraction", "copying", "format", "arithmetic"), 25
    )
    for item in items:
        assert set(item) == {"id", "kind", "prompt", "target"}
        assert item["target"] == item["target"].strip() != "" and "\n" not in item["target"]
        assert answer_matches(item["target"], item["target"])


def test_quality_items_are_not_answered_by_echoing_a_line_of_the_prompt():
    for item in quality_items():
        if not item["prompt"].startswith(("Copy this sentence exactly", "Choose the right answer")):
            for line in item["prompt"].split("\n"):
                assert not answer_matches(line, item["target"]), item["id"]
                assert not answer_matches(line.rsplit(" Answer with", 1)[0], item["target"]), item["id"]


@pytest.mark.parametrize(
    ("answer", "target", "match"),
    [
        ("12", "12", True),
        (' "The result is **12**."\nBecause 7 + 5 = 12', "12", True),
        ("7 + 5 = 12\n\nThis is 3.", "12", True),
        ("112", "12", False),
        ("3.12", "12", False),
        ("-12", "12", False),
        ("12 apples", "12", False),
        ("GREEN", "green", False),
        ("My dog sleeps.", "My dog sleeps", True),
        ("", "12", False),
        ("anything", ".", False),
    ],
)
def test_answer_matches(answer, target, match):
    assert answer_matches(answer, target) is match
