"""What is not worth learning from: repetitions, loops, answers without content, and anything the benchmark asks."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.prompts import Question, shared_ngrams
from bench.texts import Text
from bench.zoo.checkpoint import Tokenizer

GRAM = 8  # tokens
FRESH = 0.5  # least share of an answer's grams that must differ from one another
SHORTEST = 8  # tokens of an answer
FACTORS = np.random.default_rng(0).integers(1 << 62, size=GRAM, dtype=np.uint64) * 2 + 1


class Sieve:
    """Drops texts, and counts why. Remembers what it has let through."""

    def __init__(self, tokenizer: Tokenizer, questions: Sequence[Question]):
        """`questions`: nobody may train on what shares a 13-gram with them."""
        self.tokenizer = tokenizer
        self.questions = [turn for question in questions for turn in question.turns]
        self.seen: set[bytes] = set()

    def remember(self, texts: Sequence[Text]) -> None:
        """Texts of earlier shards."""
        self.seen |= {text.digest() for text in texts}

    def sift(self, texts: Sequence[Text]) -> tuple[list[Text], dict[str, int]]:
        """The texts to keep -> (texts, reason -> number of dropped ones)."""
        kept, dropped = [], Counter({"short": 0, "loop": 0, "duplicate": 0, "benchmark": 0})
        suspicious = self.shares(texts)
        for text in texts:
            if reason := self.objection(text, suspicious):
                dropped[reason] += 1
            else:
                self.seen.add(text.digest())
                kept.append(text)
        return kept, dict(dropped)

    def objection(self, text: Text, suspicious: bool) -> str | None:
        """Why a text is dropped, or None."""
        answer = text.ids[text.answer :]
        if len(answer) < SHORTEST:
            return "short"
        if is_loop(answer):
            return "loop"
        if text.digest() in self.seen:
            return "duplicate"
        return "benchmark" if suspicious and self.shares([text]) else None

    def shares(self, texts: Sequence[Text]) -> bool:
        """Whether any of the texts shares a 13-gram with a question."""
        return bool(shared_ngrams(spoken(texts, self.tokenizer), self.questions))


def spoken(texts: Sequence[Text], tokenizer: Tokenizer) -> list[str]:
    """Questions and answers as text; apart, because a short question that is equal as a whole counts as shared."""
    parts = [part for text in texts for part in (text.ids[slice(*text.question)], text.ids[text.answer :])]
    return [tokenizer.decode(part.tolist()) for part in parts]


def is_loop(ids: np.ndarray) -> bool:
    """Whether most of what is said was said before. ids [T] integers."""
    if len(ids) < GRAM:
        return False
    grams = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), GRAM) @ FACTORS  # wraps around: a hash
    return len(np.unique(grams)) < FRESH * len(grams)
