"""The target writes its own training text: given the header of a user's turn, it invents a question and answers it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.clip import clip
from bench.errors import BenchError
from bench.loop import Decoder
from bench.methods import METHODS
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import Prompt, Sequences
from bench.texts import Text
from bench.zoo import Target
from bench.zoo.checkpoint import Tokenizer

ANSWERING = 1  # turn of the noise; questions are drawn with turn 0


@dataclass(frozen=True)
class Stage:
    """The ids around a question that the target invents."""

    opening: list[int]  # system prompt and the header of the user's turn
    closing: list[int]  # from the end of the user's turn to where the assistant speaks; empty: no turns at all

    @staticmethod
    def of(tokenizer: Tokenizer, raw: bool) -> "Stage":
        """From the chat template, by what two conversations share; `raw`: the target just writes."""
        if raw:
            return Stage(tokenizer.encode("")[:1] or beginning(tokenizer), [])
        first, second = (tokenizer.chat([{"role": "user", "content": text}]) for text in ("x", "7"))
        opening = shared_start(first, second)
        return Stage(opening, shared_start(first[::-1], second[::-1])[::-1])


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What to write from where there is no begin-of-text token: the start of a line."""
    if not (ids := tokenizer.encode("\n")[:1]):
        raise BenchError("the tokenizer gives no token to begin a text with: leave --raw out")
    return ids


def shared_start(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The longest common beginning."""
    length = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
    return list(first[:length])


class Teacher:
    """Writes batches of conversations, all with the same loop as every benchmark."""

    def __init__(self, target: Target, stage: Stage, batch: int, length: int, asked: int):
        """`length`: tokens of a whole text; `asked`: tokens of the longest question."""
        self.target, self.stage, self.length, self.asked = target, stage, length, asked
        shortest = len(stage.opening) + (asked + len(stage.closing) if stage.closing else 0) + 1
        if length <= shortest:
            raise BenchError(f"--length {length} leaves no room for an answer: it must be above {shortest}")
        if length > target.config.context:
            raise BenchError(f"--length {length} exceeds the context of {target.name}, {target.config.context}")
        self.sequences = Sequences(target.model, batch, length, widest=1)
        self.decoders: dict[Law, Decoder] = {}

    def write(self, asking: Law, answering: Law, keys: list[NoiseKey]) -> list[Text]:
        """One text per key. Questions are drawn by `asking`: at temperature 0 all would be the same."""
        opening, closing = self.stage.opening, self.stage.closing
        asked = [Prompt(opening, key) for key in keys]
        questions = self.decode(asking, asked, self.asked) if closing else [[] for _ in keys]
        starts = [opening + self.without_end(question) + closing for question in questions]
        prompts = [Prompt(ids, NoiseKey(k.seed, k.question_id, ANSWERING)) for ids, k in zip(starts, keys, strict=True)]
        answers = self.decode(answering, prompts, self.length - max(map(len, starts)))
        return [Text(np.array(start + answer, np.int32), (len(opening), len(start) - len(closing)), len(start))
                for start, answer in zip(starts, answers, strict=True)]

    def without_end(self, question: list[int]) -> list[int]:
        """The closing brings its own end id. A question that found no end is closed where it was cut."""
        return question[:-1] if question[-1:] and question[-1] in self.target.end_ids else question

    def decode(self, law: Law, prompts: list[Prompt], limit: int) -> list[list[int]]:
        """What follows each prompt, the end id included."""
        if law not in self.decoders:
            self.decoders[law] = Decoder(METHODS["autoregressive"](self.sequences, law), self.sequences)
        raw = self.decoders[law].decode(prompts, limit, self.target.end_ids)
        return [clip(tokens, [], limit, self.target.end_ids).tokens for tokens in raw.tokens]
