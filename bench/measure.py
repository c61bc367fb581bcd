"""One batch decoded by one method, and the records that it leaves."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench import drafters, provenance
from bench.clip import clip
from bench.loop import Decoder, Method, Raw
from bench.memory import small_workspace
from bench.methods import METHODS, REFERENCES, Entry, Reference
from bench.noise import NoiseKey
from bench.plan import Group
from bench.record import Record, digest
from bench.sequences import Prompt, Sequences
from bench.suite import RunSettings
from bench.zoo import Target

PROBE_ROWS = 512  # more than any method's step has
WARM_UP = "Nobody counts how long this takes."
WARM_UP_TOKENS = 8
DIGITS = 3  # of a millisecond, in records
LOSSLESS = ("match", "reject")  # verifiers that keep the text, or its distribution


@dataclass(frozen=True)
class Job:
    """A turn of a group of questions, for one method."""

    label: str
    group: Group
    turn: int
    repeat: int
    prompts: list[Prompt]


class Team:
    """The methods of a run with their trained parts, and the references, whatever the batch size."""

    def __init__(self, settings: RunSettings, target: Target, context: int):
        """`context`: longest prompt plus answer. BenchError for what a method or a reference cannot do."""
        small_workspace()
        self.settings, self.target, self.context = settings, target, context
        self.end_ids: frozenset[int] = frozenset() if settings.ignore_eos else target.end_ids
        self.entries, self.facts, law = settings.lineup(), described(settings), settings.law()
        self.methods = settings.labels(METHODS)
        self.references = {label: REFERENCES[(name := self.entries[label].name)](name, target.model, law, context)
                           for label in settings.labels(REFERENCES)}
        self.drafters = {label: METHODS[(entry := self.entries[label]).name].load(entry.settings, target)
                         for label in self.methods}
        files = {label: METHODS[(entry := self.entries[label]).name].file(entry.settings, target)
                 for label in self.methods}
        self.cards = {label: drafters.read(file, weights=False)[0] for label, file in files.items() if file}
        probe = Sequences(target.model, 1, 1, PROBE_ROWS)  # a method knows its rows once it is built
        self.widest = max(max(self.build(label, probe).rows) for label in self.methods)

    def hashes(self) -> dict[str, str]:
        """Of the drafters on disk."""
        return {f"drafter of {label}": card.sha256 for label, card in self.cards.items()}

    def remark(self, label: str) -> str:
        """What must stand beside a method's numbers."""
        return self.cards[label].remark(self.settings.law()) if label in self.cards else ""

    def build(self, label: str, sequences: Sequences) -> Method:
        """A method on its sequences."""
        entry = self.entries[label]
        return METHODS[entry.name](sequences, self.settings.law(), entry.settings, self.drafters[label])

    def rig(self, batch: int) -> "Rig":
        """All methods on the same sequences, ready to decode batches of one size."""
        sequences = Sequences(self.target.model, batch, self.context, self.widest)
        return Rig(self, batch, {label: Decoder(self.build(label, sequences), sequences) for label in self.methods})


class Rig:
    """Decoders that are ready to decode batches of one size."""

    def __init__(self, team: Team, batch: int, decoders: dict[str, Decoder] | dict[str, Reference]):
        self.team, self.decoders, self.limit = team, decoders, team.settings.max_new_tokens
        ids = team.target.tokenizer.encode(WARM_UP)[: team.context - self.limit]
        warm_up = [Prompt(ids, NoiseKey(team.settings.seed, WARM_UP))] * batch
        for decoder in decoders.values():
            decoder.decode(warm_up, min(WARM_UP_TOKENS, self.limit))

    def decode(self, job: Job) -> list[Record]:
        """Decode the job's prompts; one record each."""
        decoder, end_ids = self.decoders[job.label], self.team.end_ids
        raw = decoder.decode(job.prompts, self.limit, end_ids)
        facts = self.team.facts | {"clock": decoder.clock.name, "lossless": lossless(decoder),
                                   "options": settled(self.team.entries[job.label], decoder).options,
                                   "remark": self.team.remark(job.label)}
        return [record(job, raw, row, facts, end_ids) for row in range(len(job.prompts))]


def lossless(decoder: Decoder | Reference) -> str:
    """What a decoder keeps of the baseline's text: "match", "reject", "lossy", or "reference" for nothing at all."""
    if isinstance(decoder, Reference):
        return "reference"
    return decoder.method.verifier if decoder.method.verifier in LOSSLESS else "lossy"


def settled(entry: Entry, decoder: Decoder | Reference) -> Entry:
    """The entry with what its trained part decided in place of options that were left out."""
    return entry if isinstance(decoder, Reference) else replace(entry, settings=decoder.method.settings)


def described(settings: RunSettings) -> dict[str, Any]:
    """What every record says about the run, the very card included if there is one."""
    names = ("target", "temperature", "top_k", "top_p", "seed", "max_new_tokens", "ignore_eos", "dtype", "device")
    card = provenance.card(settings.device) if settings.device != "cpu" else None
    published = settings.published()
    return {name: published[name] for name in names} | ({"card": card["id"]} if card else {})


def record(job: Job, raw: Raw, row: int, facts: dict[str, Any], end_ids: frozenset[int]) -> Record:
    """The record of sequence `row` of the batch."""
    question, accepted = job.group.questions[row], [counts[row] for counts in raw.accepted]
    text = clip(raw.tokens[row], accepted, facts["max_new_tokens"], end_ids)
    steps, (gaps, phases) = len(text.kept), rounded(raw)
    return Record(
        method=job.label, question_id=question.question_id, category=question.category, turn=job.turn,
        repeat=job.repeat, group=job.group.number, batch=len(job.prompts), prompt_tokens=len(job.prompts[row].ids),
        tokens=text.tokens, rows=raw.rows[:steps], drafted=[counts[row] for counts in raw.drafted[:steps]],
        accepted=accepted[:steps], kept=text.kept,
        phases={name: times[:steps] for name, times in phases.items()}, gaps=gaps[:steps],
        discarded_ms=round(sum(sum(times[steps:]) for times in phases.values()), DIGITS),
        prefill_ms=round(raw.prefill_ms, DIGITS), wall_ms=round(raw.wall_ms, DIGITS),
        rejection=evidence(raw, row, steps) if facts["lossless"] == "reject" else None, settings=facts,
        prompt=digest(job.prompts[row].ids))


def rounded(raw: Raw) -> tuple[list[float], dict[str, list[float]]]:
    """Gaps and phase times of all steps, in milliseconds to the microsecond: CUDA events tell half of one apart.

    The borders between phases are rounded, not the times between them, so that errors do not add up: any stretch of
    steps, and so decode time, keeps its length to a microsecond.
    """
    times = np.array([raw.gaps, *raw.phases.values()]).T  # [steps, 1 + phases]
    borders = (times.cumsum() * 10**DIGITS).round()
    gaps, *phases = (np.diff(borders, prepend=0).reshape(times.shape) / 10**DIGITS).T.tolist()
    return gaps, dict(zip(raw.phases, phases, strict=True))


def evidence(raw: Raw, row: int, steps: int) -> dict[str, float]:
    """What the ratio test saw in the contributing steps of a sequence."""
    excess, variance, tested = raw.evidence[:steps, :, row].sum(0).tolist()
    return {"excess": excess, "variance": variance, "tested": tested}
