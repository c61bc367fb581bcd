"""Who writes what: every shard of teacher text is a function of its number and of the settings."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.noise import NoiseKey
from bench.openers import OPENERS
from bench.passages import Library
from bench.sampling import Law
from bench.scripts import Desk, Room, choice, conversation
from bench.teacher import Script, Stage, Teacher, Tell, chat
from bench.texts import Origin, Text
from bench.zoo import Target

LENGTH = {"chat": "length", "long": "long_length"}  # kind of text -> the setting that bounds it


@dataclass
class Shifts:
    """The teacher's work, shard by shard."""

    target: Target
    base: Origin  # of a shard of conversations that are not greedy, without its kind
    library: Library | None  # where there are long texts
    teachers: dict[str, Teacher] = field(default_factory=dict)  # by kind

    def __post_init__(self):
        self.settings: dict[str, Any] = self.base.settings
        self.stage = Stage.of(self.target, self.settings["raw"])
        room, stage = self.room("chat"), self.stage
        shortest = len(stage.opening) + (room.question + len(stage.closing) if stage.closing else 0) + 1
        if room.length <= shortest:
            raise BenchError(f"--length {room.length} leaves no room for an answer: it must be above {shortest}")
        context = self.target.config.context
        if (longest := max(room.length, self.room("long").length if self.library else 0)) > context:
            raise BenchError(f"--length {longest} exceeds the context of {self.target.name}, {context}")

    def origin(self, number: int) -> Origin:
        """Of shard `number`: long ones lie evenly between the others, and greedy ones evenly within each kind."""
        kind = self.kind(number)
        before = sum(self.kind(earlier) == kind for earlier in range(number))
        law = Law() if due(before, self.settings["greedy"]) else self.base.law
        return replace(self.base, law=law, settings={**self.settings, "kind": kind})

    def kind(self, number: int) -> str:
        """`long`: from passages."""
        return "long" if due(number, self.settings["long"]) else "chat"

    @property
    def said(self) -> int:
        """Tokens that the target has written so far."""
        return sum(teacher.said for teacher in self.teachers.values())

    def write(self, number: int, tell: Tell) -> list[Text]:
        """All texts of a shard, not yet sifted."""
        count, seed, origin = self.settings["shard"], self.settings["seed"], self.origin(number)
        order = sorted(range(count), key=self.turns, reverse=True)  # the longest first: none runs on when all are done
        scripts = ((i, self.script(origin.settings["kind"], number, i)) for i in order)
        keys = [NoiseKey(seed, f"teacher/{number}/{i}") for i in range(count)]
        return self.teacher(origin.settings["kind"]).play(scripts, keys, (self.base.law, origin.law), tell)

    def script(self, kind: str, number: int, i: int) -> Script:
        """What text `i` of a shard is about."""
        turns, room = self.turns(i), self.room(kind)
        random = np.random.default_rng((self.settings["seed"], number, i))
        if kind == "chat":
            return conversation(self.stage, room, turns, opener=self.opener(random, room.question))
        assert self.library is not None
        return Desk(self.target.tokenizer, self.stage, room, self.library).script(turns, random)

    def opener(self, random: np.random.Generator, longest: int) -> list[int]:
        """How a question begins: with words of ours in a share of the texts, where they leave room for more."""
        if not self.stage.closing or random.random() >= self.settings["opened"]:
            return []
        asked, stage = chat(self.target.tokenizer, choice(OPENERS, random)), self.stage
        ids = asked[len(stage.opening) : len(asked) - len(stage.closing)]
        return ids if len(ids) < longest else []

    def turns(self, i: int) -> int:
        """Most turns of text `i` of any shard."""
        return 1 + due(i, self.settings["second"])

    def room(self, kind: str) -> Room:
        """Bounds of a kind of text."""
        return Room(self.settings[LENGTH[kind]], self.settings["question"])

    def teacher(self, kind: str) -> Teacher:
        """Made when first needed. All kinds get the same memory: the longer the texts, the fewer at a time."""
        if kind not in self.teachers:
            length = self.room(kind).length
            rows = max(1, self.settings["batch"] * self.settings["length"] // length)
            self.teachers[kind] = Teacher(self.target, rows, length)
        return self.teachers[kind]


def due(number: int, share: float) -> bool:
    """Whether `number` is one of those that make up a share of all numbers, spread evenly."""
    return int((number + 1) * share) > int(number * share)
