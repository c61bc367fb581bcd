"""What is not worth learning from: repetitions, loops, answers without content, and anything the benchmark asks."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.prompts import Question, ngrams
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
        self.asked = {gram for question in questions for turn in question.turns for gram in ngrams(turn)}
        self.seen: set[bytes] = set()

    def remember(self, texts: Sequence[Text]) -> None:
        """Texts of earlier shards."""
        self.seen |= {text.digest() for text in texts}

    def sift(self, texts: Sequence[Text], objections: Sequence[str | None]) -> tuple[list[Text], dict[str, int]]:
        """The texts to keep -> (texts, reason -> number of dropped ones)."""
        kept, dropped = [], Counter({"short": 0, "loop": 0, "duplicate": 0, "benchmark": 0})
        for text, reason in zip(texts, objections, strict=True):
            if reason := reason or ("duplicate" if text.digest() in self.seen else None):
                dropped[reason] += 1
            else:
                self.seen.add(text.digest())
                kept.append(text)
        return kept, dict(dropped)


def objections(texts: Sequence[Text], tokenizer: Tokenizer, asked: set[str]) -> list[str | None]:
    """Why texts are dropped, whatever was written before; None for those that are not. `asked`: grams of questions."""
    return [objection(text, tokenizer, asked) for text in texts]


def objection(text: Text, tokenizer: Tokenizer, asked: set[str]) -> str | None:
    """Why a text is dropped, or None."""
    answers = [text.ids[slice(*span)] for span in text.answers]
    if min(map(len, answers)) < SHORTEST:
        return "short"
    if any(map(is_loop, answers)):
        return "loop"
    return "benchmark" if any(gram in asked for part in spoken(text, tokenizer) for gram in ngrams(part)) else None


def spoken(text: Text, tokenizer: Tokenizer) -> list[str]:
    """Questions and answers as text; apart, because a short question that is equal as a whole counts as shared."""
    return [tokenizer.decode(text.ids[slice(*span)].tolist()) for span in (*text.questions, *text.answers)]


def is_loop(ids: np.ndarray) -> bool:
    """Whether most of what is said was said before. ids [T] integers."""
    if len(ids) < GRAM:
        return False
    grams = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), GRAM) @ FACTORS  # wraps around: a hash
    return len(np.unique(grams)) < FRESH * len(grams)
