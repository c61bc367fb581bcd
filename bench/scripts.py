"""How a text comes about: by talk alone, or from a passage that the target would never make up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.errors import BenchError
from bench.passages import Library
from bench.teacher import Request, Script, Stage, chat
from bench.texts import Span, Text
from bench.zoo.checkpoint import Tokenizer

ANSWER = 512  # tokens of the longest answer, where turns are taken
ROOM = 256  # tokens that a long prompt leaves for its answer
QUERY = 64  # tokens that the target may add to a question about passages
KEPT, CUTS = 0.8, 20  # share of a prompt that a cut leaves; most cuts
LEAST = 64  # tokens that must be left for a further turn's answer

# Our own words: none of these is how the bundled questions or Spec-Bench put it.
SUMMARISE = (
    "Summarize this text for me.\n\n{passage}",
    "Give a brief summary: {passage}",
    "{passage}\n\nWhat are the main points of this text?",
    "Please give me a short summary of this passage:\n\n{passage}",
    "Read the text below and tell me in a few sentences what it is about.\n\n{passage}",
    "{passage}\n\nTL;DR",
    "Condense this into one paragraph that a busy reader can understand.\n\nText: {passage}",
    "Write three key sentences that sum up the passage.\n\nPassage: {passage}",
)
# The target ends these turns itself: asked for a question about a passage it answers, apologises or writes a quiz.
CONSULT = (
    "{passages}\n\nQuestion: {word}",
    "Answer my question from these passages.\n\n{passages}\n\nMy question: {word}",
    "I found these paragraphs:\n\n{passages}\n\n{word}",
    "Read the context, then reply in one or two sentences.\n\nContext: {passages}\n\n{word}",
    "{passages}\n\nWith the help of the texts above, tell me this. {word}",
    "Sources:\n{passages}\n\nGive a short answer that rests on the sources. {word}",
)
WORDS = ("What", "What is", "What did", "Who", "When", "Where", "Why", "How", "How many", "Which", "In which year")
INTO_ENGLISH = (
    "Translate this {language} sentence to English: {sentence}",
    "Here is some {language}. Write it in English.\n\n{sentence}",
    "What does this {language} text mean in English? {sentence}",
    "Put this into English, please: {sentence}",
)
FROM_ENGLISH = (
    "Translate this English sentence to {language}: {sentence}",
    "Here is some English. Write it in {language}.\n\n{sentence}",
    "How do you say this in {language}? {sentence}",
)
LANGUAGES = ("German", "French", "Spanish")


@dataclass(frozen=True)
class Room:
    """Bounds of a text, in tokens."""

    length: int  # the whole text
    question: int  # the longest question that the target makes up

    def further(self, stage: Stage) -> int:
        """Tokens that another turn needs."""
        return len(stage.between) + self.question + len(stage.closing) + LEAST


def conversation(stage: Stage, room: Room, turns: int, first: list[int] | None = None,
                 opener: Sequence[int] = ()) -> Script:
    """The target asks and answers, up to `turns` times.

    `first`: a prompt that takes the first question's place; `opener`: how that question begins.

    There is another turn if the answer has ended as the template ends one, and if there is room.
    """
    spans: list[Span] = []
    ids, answer = first or stage.opening, stage.between[:1]
    for turn in range(turns):
        if turn:
            if answer[-1:] != stage.between[:1] or len(ids) + room.further(stage) > room.length:
                break
            ids = ids + stage.between[1:]
        if stage.closing and (turn or first is None):
            begun = [*opener] * (turn == 0)
            question = begun + stage.without_end((yield Request(ids + begun, room.question - len(begun), asks=True)))
            spans.append((len(ids), len(ids) + len(question)))
            ids = ids + question + stage.closing
        else:
            spans.append((len(stage.opening), len(ids) - len(stage.closing)))
        limit = room.length - len(ids)
        answer = yield Request(ids, min(limit, ANSWER) if stage.closing else limit, asks=False)
        spans.append((len(ids), len(ids) + len(answer)))
        ids = ids + answer
    return Text(np.array(ids, np.int32), spans[-2], spans[-1][0], tuple(spans[:-2]))


@dataclass(frozen=True)
class Desk:
    """Where scripts about passages are made. `random` decides which wording, which passage, how much of it."""

    tokenizer: Tokenizer
    stage: Stage
    room: Room
    library: Library

    def script(self, turns: int, random: np.random.Generator) -> Script:
        """Two in five are summaries, two answers from passages, one a translation."""
        make = (self.summary, self.summary, self.consultation, self.consultation, self.translation)
        return make[int(random.integers(len(make)))](turns, random)

    def summary(self, turns: int, random: np.random.Generator) -> Script:
        """Of one passage."""
        wording, passage = choice(SUMMARISE, random), self.library.passage(random, 80, 600)
        return self.about(turns, lambda share: wording.format(passage=cut(passage, share)))

    def consultation(self, turns: int, random: np.random.Generator) -> Script:
        """The target completes a question about passages, up to its mark, and answers it."""
        passages = [self.library.passage(random, 60, 130) for _ in range(random.integers(1, 6))]
        wording, word = choice(CONSULT, random), choice(WORDS, random)
        asked = self.fitted(lambda share: wording.format(
            passages="\n\n".join(cut(passage, share) for passage in passages), word=word))
        begun = asked[: len(asked) - len(self.stage.closing)]
        said = self.stage.without_end((yield Request(begun, QUERY, asks=True)))
        ends = [i + 1 for i, token in enumerate(said) if "?" in self.tokenizer.decode([token])]
        question = begun + said[: ends[0] if ends else None]
        return (yield from conversation(self.stage, self.room, turns, question + self.stage.closing))

    def translation(self, turns: int, random: np.random.Generator) -> Script:
        """Of a sentence, into English or out of it. One turn: what the target asks next is about nothing."""
        language = choice([*self.library.sentences], random)
        sentence = choice(self.library.sentences[language], random)
        wording = choice(FROM_ENGLISH if language == "English" else INTO_ENGLISH, random)
        named = choice(LANGUAGES, random) if language == "English" else language
        return self.about(1, lambda share: wording.format(language=named, sentence=cut(sentence, share)))

    def about(self, turns: int, prompt: Callable[[float], str]) -> Script:
        """A conversation that a prompt of ours begins."""
        return conversation(self.stage, self.room, turns, self.fitted(prompt))

    def fitted(self, prompt: Callable[[float], str]) -> list[int]:
        """Ids of a prompt with as large a share of its text as leaves room for an answer. BenchError if none does."""
        for cuts in range(CUTS):
            if len(ids := chat(self.tokenizer, prompt(KEPT**cuts))) <= self.room.length - ROOM:
                return ids
        raise BenchError(f"--long-length {self.room.length} leaves no room for a passage and an answer")


def choice(items: Sequence[str], random: np.random.Generator) -> str:
    """One of them."""
    return items[int(random.integers(len(items)))]


def cut(text: str, share: float) -> str:
    """The first words of a text."""
    if share == 1:
        return text
    words = text.split(" ")
    return " ".join(words[: math.ceil(share * len(words))])
