"""Questions in Spec-Bench's schema: the bundled ones, or any file like its `question.jsonl`.

Spec-Bench (Xia et al. 2024, "Unlocking Efficiency in Large Language Model Inference") sorts questions into
six tasks by their category; MT-bench's eight categories together are one of the six.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bench.errors import BenchError

BUNDLED = Path(__file__).with_name("data") / "questions.jsonl"
QUALITY = Path(__file__).with_name("data") / "quality.jsonl"  # items `id`, `kind`, `prompt`, `target`

_MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
_SINGLE_TURN = ("translation", "summarization", "qa", "math_reasoning", "rag")
TASKS = dict.fromkeys(_MT_BENCH, "multi-turn conversation") | {name: name for name in _SINGLE_TURN}


@dataclass(frozen=True)
class Question:
    """One conversation: the user's turns in order, and the reference answers where there are any."""

    question_id: int | str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


def task_of(category: str) -> str:
    """Name the Spec-Bench task of a category; BenchError if there is none."""
    if category not in TASKS:
        raise BenchError(f"unknown category {category!r}: use one of {', '.join(TASKS)}")
    return TASKS[category]


def load(path: str | Path | None = None, limit: int | None = None) -> list[Question]:
    """Read questions from a JSONL file, or the bundled ones for None and "bundled".

    Without `limit` they come in file order; with it, the first `limit` of `round_robin`. Keys beyond the schema are
    ignored. BenchError: limit below 1; a file that cannot be read or holds no question; a line that is not a question.
    """
    if limit is not None and limit < 1:
        raise BenchError(f"limit is {limit}: ask for at least 1 question")
    source = BUNDLED if path is None or path == "bundled" else Path(path)
    # Not splitlines(): it would also split at U+2028, which JSON allows inside a string.
    lines = enumerate(_read(source).split("\n"), start=1)
    questions = [_parse(line, f"{source}, line {number}") for number, line in lines if line.strip()]
    if not questions:
        raise BenchError(f"{source} holds no question: give one JSON object per line")
    _refuse_duplicates(questions, source)
    return questions if limit is None else round_robin(questions)[:limit]


def round_robin(questions: Sequence[Question]) -> list[Question]:
    """Reorder round-robin over the tasks, file order within each: the tasks of every prefix are balanced."""
    return [question for row in zip_longest(*_by_task(questions)) for question in row if question]


def balanced(questions: Sequence[Question], per_task: int) -> list[Question]:
    """Keep the first `per_task` questions of each task, in file order; BenchError if `per_task` is below 1."""
    if per_task < 1:
        raise BenchError(f"per_task is {per_task}: ask for at least 1 question of each task")
    kept = {question.question_id for group in _by_task(questions) for question in group[:per_task]}
    return [question for question in questions if question.question_id in kept]


def fingerprint(questions: Iterable[Question]) -> str:
    """Hash content and order of the questions: sha256 in hex, equal for files that differ in layout only."""
    canonical = json.dumps([asdict(question) for question in questions], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def shared_ngrams(texts_a: Iterable[str], texts_b: Iterable[str], n: int = 13) -> set[str]:
    """Find the `ngrams` that both sides hold: long passages, and short questions that are equal as a whole.

    The first side may be a long stream: only the second side's grams are kept in memory.
    """
    known = {gram for text in texts_b for gram in ngrams(text, n)}
    return {gram for text in texts_a for gram in ngrams(text, n) if gram in known}


def ngrams(text: str, n: int = 13) -> Iterator[str]:
    """Word n-grams, lower-cased and without punctuation; a text of fewer than n words is one gram as a whole."""
    words = re.findall(r"\w+", text.lower())
    count = max(len(words) - n + 1, 1) if words else 0
    return (" ".join(words[start : start + n]) for start in range(count))


def answer_matches(answer: str, target: str) -> bool:
    """Score an answer to a quality item: its first line must be the target, or end with it as a separate word.

    So "The result is 12." matches "12", but neither "112" nor "3.12" does. Case counts; quotes, emphasis and full stops
    around either side do not.
    """
    said, wanted = (text.strip().split("\n")[0].strip(" \t\r\"'`*.") for text in (answer, target))
    return bool(wanted) and re.search(rf"(?<![\w.-]){re.escape(wanted)}$", said) is not None


def _by_task(questions: Sequence[Question]) -> list[list[Question]]:
    return [[q for q in questions if task_of(q.category) == task] for task in dict.fromkeys(TASKS.values())]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BenchError(f"{path}: {error.strerror}; name a JSONL file of questions, or 'bundled'") from error
    except UnicodeDecodeError as error:
        raise BenchError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _parse(line: str, place: str) -> Question:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{place} is not valid JSON: {str(error).split(': line')[0]}") from error
    if not isinstance(fields, dict):
        raise BenchError(f"{place} is not a JSON object: it needs question_id, category and turns")
    if missing := [key for key in ("question_id", "category", "turns") if key not in fields]:
        raise BenchError(f"{place} lacks the key {missing[0]!r}")
    _check(fields, place)
    answers = fields.get("reference") or []
    answers = answers if isinstance(answers, list) else [answers]
    return Question(fields["question_id"], fields["category"], tuple(fields["turns"]), tuple(map(str, answers)))


def _check(fields: dict[str, Any], place: str) -> None:
    identity, category, turns = fields["question_id"], fields["category"], fields["turns"]
    if isinstance(identity, bool) or not isinstance(identity, int | str):
        raise BenchError(f"{place}: question_id must be an integer or a string, not {identity!r}")
    if not isinstance(category, str) or category not in TASKS:
        raise BenchError(f"{place}: unknown category {category!r}; use one of {', '.join(TASKS)}")
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise BenchError(f"{place}: turns must be a list of one or more non-empty strings")


def _refuse_duplicates(questions: list[Question], source: Path) -> None:
    # As strings, because not every reader of the records tells 1 and "1" apart.
    identity, count = Counter(str(question.question_id) for question in questions).most_common(1)[0]
    if count > 1:
        raise BenchError(f"{source} holds question_id {identity} {count} times: make every id unique")
