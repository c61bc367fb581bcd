"""The order of a run: whole passes over all questions, every turn by all methods, back to back and shuffled."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.measure import Job, Rig, Team
from bench.noise import NoiseKey
from bench.plan import Group, Prompter, groups, shuffled
from bench.progress import Progress
from bench.prompts import Question, balanced
from bench.record import BASELINE, Record, Writer
from bench.sequences import Prompt

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

    def turns(self) -> Iterator[Turn]:
        """Pass by pass, group by group, turn by turn."""
        for repeat in range(self.repeats):
            for group in self.groups:
                for turn in range(group.turns):
                    yield Turn(repeat, group, turn)


class Passes:
    """Everything that a run decodes: all methods in the loop, then the references on a few questions."""

    def __init__(self, team: Team, prompter: Prompter, questions: Sequence[Question], writer: Writer):
        self.team, self.prompter, self.writer, self.settings = team, prompter, writer, team.settings
        self.inside = Section(team.methods, groups(questions, self.settings.batch), self.settings.repeats)
        self.outside = Section([*team.references], groups(balanced(questions, REFERENCE_QUESTIONS), 1), 1)
        self.answers: dict[tuple[int | str, int], list[int]] = {}
        self.remember(writer.records)

    def __len__(self) -> int:
        """Number of batches."""
        return sum(len(section.labels) * len(list(section.turns())) for section in (self.inside, self.outside))

    def measure(self, progress: Progress) -> None:
        """Decode what is not on disk yet."""
        sizes = {len(group.questions) for group in self.inside.groups}
        self.decode(self.inside, {size: self.team.rig(size) for size in sorted(sizes)}, progress)
        self.decode(self.outside, {1: Rig(self.team, 1, self.team.references)}, progress)

    def decode(self, section: Section, rigs: dict[int, Rig], progress: Progress) -> None:
        """Turn by turn, by all methods of a section. Records are on disk before the next batch starts."""
        for turn in section.turns():
            for job in self.jobs(section.labels, turn):
                fresh: list[Record] = []
                if not self.is_done(job):
                    fresh = [r for r in rigs[len(job.prompts)].decode(job) if r.key not in self.writer.done]
                    self.writer.append(*fresh)
                    self.remember(fresh)
                progress.advance(fresh)

    def jobs(self, labels: list[str], place: Turn) -> Iterator[Job]:
        """Methods on one turn, in an order of its own."""
        repeat, group, turn = place
        prompts = [Prompt(self.prompter.prompt(question, turn, self.answers),
                          NoiseKey(self.settings.seed, question.question_id, turn)) for question in group.questions]
        for label in shuffled(labels, self.settings.seed, repeat, group.number, turn):
            yield Job(label, group, turn, repeat, prompts)

    def prompts(self) -> dict[tuple[int | str, int], list[int]]:
        """What every (question_id, turn) continued, once all is measured."""
        return {(question.question_id, turn): self.prompter.prompt(question, turn, self.answers)
                for group in self.inside.groups for question in group.questions for turn in range(group.turns)}

    def is_done(self, job: Job) -> bool:
        """Whether all its records are on disk."""
        return all((job.label, q.question_id, job.turn, job.repeat) in self.writer.done for q in job.group.questions)

    def remember(self, records: Sequence[Record]) -> None:
        """Keep the baseline's first answers: later turns continue them."""
        for record in records:
            if record.method == BASELINE and record.repeat == 0:
                self.answers[record.question_id, record.turn] = record.tokens
