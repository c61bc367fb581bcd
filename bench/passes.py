"""The order of a run: whole passes over all questions, every turn by all methods, back to back and shuffled."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from bench.measure import Job, Rig, Team
from bench.methods import METHODS, REFERENCES
from bench.noise import NoiseKey
from bench.plan import Group, Part, Prompter, first_answers, groups, shuffled
from bench.progress import Progress
from bench.prompts import Question, balanced
from bench.record import Key, Record, Writer
from bench.sequences import Prompt
from bench.suite import RunSettings

REFERENCE_QUESTIONS = 5  # of each task


class Turn(NamedTuple):
    """What all methods decode in a row."""

    repeat: int
    group: Group
    turn: int


class Section(NamedTuple):
    """Methods that are measured side by side."""

    labels: list[str]
    groups: list[Group]
    repeats: int
    seed: int

    def turns(self) -> Iterator[Turn]:
        """Pass by pass, group by group, turn by turn."""
        for repeat in range(self.repeats):
            for group in self.groups:
                for turn in range(group.turns):
                    yield Turn(repeat, group, turn)

    def order(self, place: Turn) -> list[str]:
        """The methods as they take their turn."""
        return shuffled(self.labels, self.seed, place.repeat, place.group.number, place.turn)

    def keys(self) -> Iterator[Key]:
        """Of all its records, in the order in which they are measured."""
        for place in self.turns():
            for label in self.order(place):
                for question in place.group.questions:
                    yield label, question.question_id, place.turn, place.repeat


class Sections(NamedTuple):
    """Everything that a run decodes, or its part: all methods in the loop, then the references on a few questions."""

    inside: Section
    outside: Section

    def keys(self) -> Iterator[Key]:
        """Of all records, in order."""
        return chain.from_iterable(section.keys() for section in self)


def sections(settings: RunSettings, questions: Sequence[Question]) -> Sections:
    """What is measured on these questions. BenchError for a part without any.

    A part holds the references' questions whose baseline it holds: their later turns continue its answers.
    """
    own = Part.parse(settings.part).of(groups(questions, settings.batch))
    there = {question.question_id for group in own for question in group.questions}
    few = groups(balanced(questions, REFERENCE_QUESTIONS), 1)
    shared = [group for group in few if group.questions[0].question_id in there]
    return Sections(Section(settings.labels(METHODS), own, settings.repeats, settings.seed),
                    Section(settings.labels(REFERENCES), shared, 1, settings.seed))


class Passes:
    """The sections of a run, decoded one after the other."""

    def __init__(self, team: Team, prompter: Prompter, work: Sections, writer: Writer):
        self.team, self.prompter, self.work, self.writer = team, prompter, work, writer
        self.answers = {**first_answers(writer.records)}

    def __len__(self) -> int:
        """Number of batches."""
        return sum(len(section.labels) * len(list(section.turns())) for section in self.work)

    def measure(self, progress: Progress) -> None:
        """Decode what is not on disk yet."""
        inside, outside = self.work
        sizes = {len(group.questions) for group in inside.groups}
        self.decode(inside, {size: self.team.rig(size) for size in sorted(sizes)}, progress)
        self.decode(outside, {1: Rig(self.team, 1, self.team.references)}, progress)

    def decode(self, section: Section, rigs: dict[int, Rig], progress: Progress) -> None:
        """Turn by turn, by all methods of a section. Records are on disk before the next batch starts."""
        for place in section.turns():
            for job in self.jobs(section.order(place), place):
                fresh: list[Record] = []
                if not self.is_done(job):
                    fresh = rigs[len(job.prompts)].decode(job)
                    self.writer.append(*fresh)
                    self.answers |= first_answers(fresh)
                progress.advance(fresh)

    def jobs(self, labels: list[str], place: Turn) -> Iterator[Job]:
        """Methods on one turn."""
        repeat, group, turn = place
        prompts = [Prompt(self.prompter.prompt(question, turn, self.answers),
                          NoiseKey(self.team.settings.seed, question.question_id, turn))
                   for question in group.questions]
        for label in labels:
            yield Job(label, group, turn, repeat, prompts)

    def is_done(self, job: Job) -> bool:
        """Whether all its records are on disk."""
        return all((job.label, q.question_id, job.turn, job.repeat) in self.writer.done for q in job.group.questions)
