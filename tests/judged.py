"""Records of tiny models, ready to be judged: real decodings, turned into records by the run's own code.

    case = judged.measure({"guess": make}, target, law, groups)
    judge(case.records, case.target, case.prompts)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import tiny
import torch

from bench.measure import Job, record
from bench.model import Transformer
from bench.plan import Group
from bench.prompts import Question
from bench.record import BASELINE, Record
from bench.sampling import Law
from bench.verdict import Verdict, judge


@dataclass(frozen=True)
class Case:
    """A small run."""

    records: list[Record]
    target: Any  # what `judge` needs of a zoo target
    prompts: dict[tuple[int | str, int], list[int]]

    def verdicts(self) -> dict[str, Verdict]:
        return judge(self.records, self.target, self.prompts)

    def texts(self, label: str = BASELINE) -> dict[int | str, list[int]]:
        return {r.question_id: r.tokens for r in self.records if r.method == label}


def measure(makes: Mapping[str, tiny.Make], target: Transformer, law: Law, work: Sequence[tiny.Group],
            limit: int = 24) -> Case:
    """Decode by the baseline and by other methods. Question ids are those of the noise keys."""
    makes = {BASELINE: tiny.registered(BASELINE, target), **makes}
    records = [r for label, make in makes.items() for r in decoded(label, make, target, law, work, limit)]
    prompts = {(p.noise.question_id, 0): p.ids for group in work for p in group.prompts}
    return Case(records, SimpleNamespace(model=target, end_ids=work[0].end_ids), prompts)


def decoded(label, make, target, law, work, limit):
    """What a method leaves of every prompt."""
    decoder = tiny.decoder_of(make, target, law, len(work[0].prompts))
    facts = settings(law, work, limit) | {"dtype": str(target.norm.dtype).removeprefix("torch."),
                                          "lossless": decoder.method.verifier}
    return recorded(label, decoder, facts, work)


def settings(law, work, limit):
    """Those of a run."""
    return {"target": "tiny", "temperature": law.temperature, "top_k": law.top_k, "top_p": law.top_p,
            "seed": work[0].prompts[0].noise.seed, "max_new_tokens": limit, "ignore_eos": not work[0].end_ids,
            "dtype": "float32", "device": "cpu", "clock": "host", "options": {}, "lossless": "match"}


def recorded(label, decoder, facts, work):
    """One record per prompt, by anything that decodes."""
    for number, group in enumerate(work):
        questions = tuple(Question(p.noise.question_id, "qa", ("?",)) for p in group.prompts)
        job = Job(label, Group(number, questions), 0, 0, list(group.prompts))
        raw = decoder.decode(job.prompts, facts["max_new_tokens"], group.end_ids)
        yield from (record(job, raw, row, facts, group.end_ids) for row in range(len(questions)))


def work(seed: int, count: int, batch: int = 1, vocab: int = tiny.CONFIG.vocab, ends: frozenset[int] = frozenset()):
    """Groups of random prompts that all end alike."""
    return [tiny.Group(group.prompts, ends) for group in tiny.groups(seed, count, batch, vocab)]


def roomy(seed: int = 0) -> Transformer:
    """A float64 model with matrices large enough for half precision to show."""
    config = tiny.Config(vocab=64, hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=128, context=96)
    return tiny.transformer(seed, config, spread=2.0)


def cast(model: Transformer, dtype: torch.dtype) -> Transformer:
    """The same model with rounded weights."""
    copy = Transformer(model.config)
    for ours, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        ours.data = theirs.data.to(dtype)
    return copy.prepare()
