"""The target writes its own training text: scripts say what is given and what it has to say itself."""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bench.conveyor import Conveyor, Job
from bench.errors import BenchError
from bench.loop import Decoder
from bench.methods import METHODS
from bench.noise import NoiseKey
from bench.sampling import Law
from bench.sequences import Prompt, Sequences
from bench.texts import Text
from bench.zoo import Target
from bench.zoo.checkpoint import Tokenizer


@dataclass(frozen=True)
class Request:
    """What a script wants the target to continue."""

    ids: list[int]
    limit: int  # new tokens
    asks: bool  # by the law of questions; else by that of answers


Script = Generator[Request, list[int], Text]  # is sent what the target said, the end id included


Tell = Callable[[float], None]  # is told the share of the texts that are written


@dataclass(frozen=True)
class Stage:
    """The ids around what the two speakers say."""

    opening: list[int]  # system prompt and the header of the user's turn
    closing: list[int]  # from the end of the user's turn to where the assistant speaks; empty: no turns at all
    between: list[int]  # from the end of the assistant's turn to where the user speaks again
    end_ids: frozenset[int]

    @staticmethod
    def of(target: Target, raw: bool) -> "Stage":
        """From the chat template, by what conversations share; `raw`: the target just writes."""
        if raw:
            return Stage(target.tokenizer.encode("")[:1] or beginning(target.tokenizer), [], [], target.end_ids)
        first, second = (chat(target.tokenizer, word) for word in "x7")
        opening, closing = shared_start(first, second), shared_end(first, second)
        # Behind an answer, whichever it was, come `between`, the next question and `closing`.
        tails = [shared_end(chat(target.tokenizer, "x", "x", word), chat(target.tokenizer, "x", "7", word))
                 for word in "x7"]
        return Stage(opening, closing, shared_start(*tails), target.end_ids)

    def without_end(self, said: list[int]) -> list[int]:
        """What follows brings its own end id. What found no end is closed where it was cut."""
        return said[:-1] if said[-1:] and said[-1] in self.end_ids else said


def chat(tokenizer: Tokenizer, *turns: str) -> list[int]:
    """A conversation, the user first, up to where the assistant speaks."""
    return tokenizer.chat([{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)])


def beginning(tokenizer: Tokenizer) -> list[int]:
    """What to write from where there is no begin-of-text token: the start of a line."""
    if not (ids := tokenizer.encode("\n")[:1]):
        raise BenchError("the tokenizer gives no token to begin a text with: leave --raw out")
    return ids


def shared_start(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The longest common beginning."""
    length = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
                  min(len(first), len(second)))
    return list(first[:length])


def shared_end(first: Sequence[int], second: Sequence[int]) -> list[int]:
    """The longest common end."""
    return shared_start(first[::-1], second[::-1])[::-1]


class Teacher:
    """Plays many scripts at a time, all through the same loop as every benchmark."""

    def __init__(self, target: Target, rows: int, length: int):
        """`rows` sequences at a time, of at most `length` tokens."""
        self.target, self.sequences = target, Sequences(target.model, rows, length, widest=1)
        self.conveyors: dict[Law, Conveyor] = {}
        self.said = 0  # tokens so far

    def play(self, scripts: Iterator[tuple[int, Script]], keys: list[NoiseKey], laws: tuple[Law, Law],
             tell: Tell) -> list[Text]:
        """One text per key. `laws`: of questions and of answers; were the first greedy, all would ask the same.

        `scripts`, each with the number of its key, begin in this order; they are made then, as that may take long.
        """
        asking, answering = laws
        texts: dict[int, Text] = {}
        queues: dict[Law, deque[Job]] = {asking: deque(), answering: deque()}

        def begin() -> bool:
            for number, script in scripts:
                go_on(script, number, 0, None)
                return True
            return False

        def go_on(script: Script, number: int, turn: int, said: list[int] | None) -> None:
            self.said += len(said or [])
            try:
                request = script.send(said)  # type: ignore[arg-type]  # None: it begins
            except StopIteration as end:
                texts[number] = end.value
                tell(len(texts) / len(keys))
                return
            key = NoiseKey(keys[number].seed, keys[number].question_id, turn)
            queues[asking if request.asks else answering].append(
                Job(Prompt(request.ids, key), request.limit, partial(go_on, script, number, turn + 1)))

        while begin() or any(queues.values()):
            for law, queue in queues.items():
                self.conveyor(law).drain(queue, begin)
        return [texts[number] for number in range(len(keys))]

    def conveyor(self, law: Law) -> Conveyor:
        """Made, and on a GPU captured, once."""
        if law not in self.conveyors:
            decoder = Decoder(METHODS["autoregressive"](self.sequences, law), self.sequences)
            self.conveyors[law] = Conveyor(decoder, self.target.end_ids)
        return self.conveyors[law]
