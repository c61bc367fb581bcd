"""What is decoded in which order: batches of questions, shuffled methods, and the prompt of every turn."""

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.errors import BenchError
from bench.prompts import Question, task_of
from bench.record import BASELINE, Record
from bench.zoo.checkpoint import Tokenizer

WHOLE = "1/1"

Answers = Mapping[tuple[int | str, int], list[int]]  # (question_id, turn) -> the baseline's tokens


@dataclass(frozen=True)
class Group:
    """Questions that are decoded together, turn by turn; all have the same number of turns."""

    number: int
    questions: tuple[Question, ...]

    @property
    def turns(self) -> int:
        """Turns of each of its questions."""
        return len(self.questions[0].turns)


@dataclass(frozen=True)
class Part:
    """What one of several processes decodes of a run: every `count`-th group of each task, so that parts are alike."""

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """From "I/N". BenchError unless 1 <= I <= N."""
        found = re.fullmatch(r"([1-9][0-9]*)/([1-9][0-9]*)", text)
        if not found or int(found[1]) > int(found[2]):
            raise BenchError(f"--part is I/N, the I-th of N parts of a run, as in 2/4, not {text!r}")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, everything: Sequence[Group]) -> list[Group]:
        """Its groups, which keep order and numbers. BenchError where it gets none."""
        dealt = sorted(everything, key=lambda group: (group.turns, task_of(group.questions[0].category)))
        if own := dealt[self.index - 1 :: self.count]:
            return sorted(own, key=lambda group: group.number)
        raise BenchError(f"no questions are left for --part {self}: the run has {len(everything)} groups of them, so "
                         "divide it into fewer parts")


def groups(questions: Sequence[Question], batch: int) -> list[Group]:
    """Batches of at most `batch` questions, in the order of their first ones.

    Questions of one task stay together as far as the batch size allows, so that tasks can be told apart.
    """
    if batch == 1:
        return [Group(number, (question,)) for number, question in enumerate(questions)]
    order = {question.question_id: place for place, question in enumerate(questions)}
    kinds: dict[int, list[Question]] = {}
    for question in sorted(questions, key=lambda q: task_of(q.category)):
        kinds.setdefault(len(question.turns), []).append(question)
    batches = [tuple(kind[i : i + batch]) for kind in kinds.values() for i in range(0, len(kind), batch)]
    batches.sort(key=lambda questions: min(order[question.question_id] for question in questions))
    return [Group(number, questions) for number, questions in enumerate(batches)]


def shuffled(labels: Sequence[str], seed: int, repeat: int, group: int, turn: int) -> list[str]:
    """The order of the methods, a function of its arguments alone, so that a resumed run keeps it."""
    return random.Random(f"{seed}/{repeat}/{group}/{turn}").sample(labels, len(labels))


def first_answers(records: Iterable[Record]) -> Answers:
    """Those of the baseline, which every method's later turns continue."""
    return {(record.question_id, record.turn): record.tokens for record in records
            if record.method == BASELINE and record.repeat == 0}


@dataclass(frozen=True)
class Prompter:
    """Questions as token ids. Every method's later turns continue the baseline's answers."""

    tokenizer: Tokenizer
    max_new_tokens: int
    raw: bool = False  # without the chat template

    def prompt(self, question: Question, turn: int, answers: Answers) -> list[int]:
        """The conversation up to where `turn` is answered, at most `longest` tokens.

        Odd answers can be longer when their text is encoded again (half a UTF-8 character is): such an answer is cut.
        """
        earlier = [list(answers[question.question_id, t]) for t in range(turn)]
        room = self.longest(question, turn) - self.max_new_tokens
        while len(ids := self.encode(question, [self.tokenizer.decode(answer) for answer in earlier])) > room:
            next(answer for answer in reversed(earlier) if answer).pop()
        return ids

    def prompts(self, questions: Iterable[Question], answers: Answers) -> dict[tuple[int | str, int], list[int]]:
        """What every (question_id, turn) continues, once all is measured."""
        return {(question.question_id, turn): self.prompt(question, turn, answers)
                for question in questions for turn in range(len(question.turns))}

    def longest(self, question: Question, turn: int) -> int:
        """Tokens of the conversation after `turn`, if every answer is as long as it may be."""
        return len(self.encode(question, ["x"] * turn)) + (turn + 1) * self.max_new_tokens

    def encode(self, question: Question, earlier: Sequence[str]) -> list[int]:
        """The ids of as many turns as there are earlier answers, and one more."""
        texts = [text for pair in zip(question.turns, earlier, strict=False) for text in pair]
        texts.append(question.turns[len(earlier)])
        if self.raw:
            return self.tokenizer.encode("\n\n".join(texts))
        roles = ("user", "assistant") * len(texts)
        return self.tokenizer.chat([{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)])

    def check(self, questions: Sequence[Question], context: int) -> int:
        """Tokens of the longest conversation. BenchError names the first question that exceeds the model's context."""
        lengths = [self.longest(question, len(question.turns) - 1) for question in questions]
        for question, length in zip(questions, lengths, strict=True):
            if length > context:
                raise BenchError(f"question {question.question_id} is too long: with {self.max_new_tokens} new tokens "
                                 f"per turn it needs {length} positions, the model has {context}; lower "
                                 "--max-new-tokens or leave the question out")
        return max(lengths)
