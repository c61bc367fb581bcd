"""Synthetic runs: records with known acceptance, cost and noise, for tests of what follows `records.jsonl`.

    run = synthetic.records(shape=Shape(questions=24))   # a list of Record, all default methods
    synthetic.write_run(directory)                       # a whole run directory: records, provenance, verdicts

Times follow a model that a test can reason about: a step of a method takes `cost` times the step of the
baseline, times noise. With noise=0 and drift=0 every speedup is exactly (tokens / steps) / cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from bench.record import BASELINE, FILE, PHASES, TWIN, Record

CATEGORIES = (
    *("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"),
    *("translation", "summarization", "qa", "math_reasoning", "rag"),
)
STEP_MS = 2.0
SHARE = {"propose": 0.06, "forward": 0.86, "verify": 0.04, "commit": 0.03, "observe": 0.01}


@dataclass(frozen=True)
class Plan:
    """One method: chance that a draft token is accepted, draft depth, step time over the baseline's."""

    label: str
    accept: float = 0.0
    depth: int = 0
    cost: float = 1.0
    lossless: str = "match"
    diverge: float = 0.0  # chance that a sequence's text leaves the baseline's


PLANS = (
    Plan(BASELINE),
    Plan(TWIN),
    Plan("prompt_lookup:k=8", accept=0.45, depth=8, cost=1.05),
    Plan("draft_model:k=4", accept=0.62, depth=4, cost=1.45),
    Plan("draft_model:k=4,verifier=reject", accept=0.6, depth=4, cost=1.5, lossless="reject", diverge=1.0),
    Plan("medusa", accept=0.55, depth=4, cost=1.15, diverge=0.05),
    Plan("medusa:typical", accept=0.7, depth=4, cost=1.15, lossless="lossy", diverge=0.9),
    Plan("independent:k=8", accept=0.5, depth=8, cost=1.2),
    Plan("ptp:k=16", accept=0.8, depth=16, cost=1.3),
    Plan("hf_eager", cost=9.0, lossless="reference"),
)


@dataclass(frozen=True)
class Shape:
    """The size of a run and its noise: `noise` is the log-scale of a time, `drift` the slow wander."""

    questions: int = 26
    turns: int = 1
    repeats: int = 2
    batch: int = 1
    tokens: int = 48
    noise: float = 0.01
    drift: float = 0.05
    seed: int = 0


def records(plans: tuple[Plan, ...] = PLANS, shape: Shape | None = None) -> list[Record]:
    """One run in the order of measuring: whole interleaved passes, shuffled by prompt."""
    shape = shape or Shape()
    order = np.random.default_rng((shape.seed, 1))
    cells = [
        (repeat, turn, group, plan)
        for repeat in range(shape.repeats)
        for group in order.permutation(-(-shape.questions // shape.batch))
        for turn in range(shape.turns)
        for plan in order.permutation(np.array(plans, dtype=object))
    ]
    wander = 1 + shape.drift * np.sin(np.linspace(0, 7, len(cells)))
    return [
        record
        for index, (repeat, turn, group, plan) in enumerate(cells)
        for record in _batch(shape, plan, (repeat, turn, int(group)), wander[index])
    ]


def _batch(shape: Shape, plan: Plan, place: tuple[int, int, int], slow: float) -> Iterator[Record]:
    repeat, turn, group = place
    first = group * shape.batch
    questions = range(first, min(first + shape.batch, shape.questions))
    rng = np.random.default_rng((shape.seed, 2, hash_of(plan.label), *place))
    slow *= float(np.exp(shape.noise * rng.standard_normal()))
    sequences = [_sequence(shape, plan, question, turn) for question in questions]
    longest = max(len(kept) for _, _, kept in sequences) + 1  # the end is noticed one step late
    step = STEP_MS * plan.cost * slow * np.exp(shape.noise * rng.standard_normal(longest))
    for question, (tokens, accepted, kept) in zip(questions, sequences, strict=True):
        steps = len(kept)
        yield Record(
            method=plan.label,
            question_id=question + 1,
            category=CATEGORIES[question % len(CATEGORIES)],
            turn=turn,
            repeat=repeat,
            group=group,
            batch=len(sequences),
            prompt_tokens=20 + question % 7,
            tokens=tokens,
            rows=[plan.depth + 1] * steps,
            drafted=[plan.depth] * steps,
            accepted=accepted,
            kept=kept,
            phases={name: (SHARE[name] * step[:steps]).tolist() for name in PHASES},
            gaps=[0.0] * steps,
            discarded_ms=float(step[steps:].sum()),
            prefill_ms=5.0 * slow,
            wall_ms=float(step.sum()) * 1.004,
            rejection=_rejection(plan, rng, steps),
            settings=_settings(shape, plan),
        )


@cache
def _sequence(shape: Shape, plan: Plan, question: int, turn: int) -> tuple[list[int], list[int], list[int]]:
    """Text, accepted and kept of one sequence: equal in every repeat; the text equal for every method."""
    text = np.random.default_rng((shape.seed, 3, question, turn))
    length = int(text.integers(shape.tokens // 2, shape.tokens, endpoint=True))
    tokens = text.integers(5, 1000, length)
    own = np.random.default_rng((shape.seed, 4, hash_of(plan.label), question, turn))
    if own.random() < plan.diverge:
        tokens[int(own.integers(1, length)) :] += 1
    accepted: list[int] = []
    kept: list[int] = []
    while sum(kept) < length:
        refused = np.flatnonzero(own.random(plan.depth) >= plan.accept)
        accepted.append(int(refused[0]) if len(refused) else plan.depth)
        kept.append(min(accepted[-1] + 1, length - sum(kept)))
    return tokens.tolist(), accepted, kept


def _rejection(plan: Plan, rng: np.random.Generator, steps: int) -> dict[str, float] | None:
    if plan.lossless != "reject":
        return None
    tested = steps * plan.depth
    variance = tested * plan.accept * (1 - plan.accept)
    return {"excess": float(rng.normal(0, variance**0.5)), "variance": variance, "tested": tested}


def _settings(shape: Shape, plan: Plan) -> dict[str, object]:
    return {
        "target": "synthetic",
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": shape.seed,
        "max_new_tokens": shape.tokens,
        "ignore_eos": False,
        "dtype": "float32",
        "device": "cpu",
        "clock": "host",
        "options": {"k": plan.depth} if plan.depth else {},
        "lossless": plan.lossless,
    }


def hash_of(label: str) -> int:
    """A seed from a label, the same in every process."""
    return int.from_bytes(label.encode()[:32], "big")


PROVENANCE = {
    "schema": 1,
    "date": "2026-01-02T03:04:05+00:00",
    "settings": {"suite": "synthetic", "seed": 0, "repeats": 2},
    "files": {"prompts": "0" * 64, "model": "1" * 64},
    "git": {"commit": "a" * 40, "dirty": False},
    "versions": {"ptp-bench": "0.1.0", "torch": "2.13.0", "numpy": "2.4.6"},
    "python": "3.11.7",
    "system": "Linux x86_64",
    "cpu": {"model": "Synthetic CPU", "cores": 2},
    "gpu": None,
}
VERDICTS = {"match": "identical", "reject": "distribution", "lossy": "lossy", "reference": "reference"}


def write_run(directory: Path, plans: tuple[Plan, ...] = PLANS, shape: Shape | None = None) -> list[Record]:
    """A run directory with records.jsonl, provenance.json and verdicts.json; returns the records."""
    run = records(plans, shape)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text("".join(record.to_json() + "\n" for record in run))
    (directory / "provenance.json").write_text(json.dumps(PROVENANCE, indent=1))
    verdicts = {
        plan.label: {
            "verdict": "numerical ties" if plan.label == "medusa" else VERDICTS[plan.lossless],
            "diverged": 0,
            "sequences": sum(record.method == plan.label for record in run),
            "first_positions": [],
            "detail": "synthetic",
        }
        for plan in plans
    }
    (directory / "verdicts.json").write_text(json.dumps(verdicts, indent=1))
    return run


def handmade(
    method: str, question_id: int | str, kept: list[int], step_ms: list[float] | float = 1.0, **other
) -> Record:
    """A small record to compute by hand: every draft token accepted, all of a step's time in `forward`.

    Any field of Record can be given by name; `lossless` goes to the settings.
    """
    steps = len(kept)
    times = [float(step_ms)] * steps if isinstance(step_ms, (int, float)) else step_ms
    accepted = [max(count - 1, 0) for count in kept]
    fields: dict = {
        "method": method,
        "question_id": question_id,
        "category": "qa",
        "turn": 0,
        "repeat": 0,
        "group": question_id,
        "batch": 1,
        "prompt_tokens": 10,
        "tokens": list(range(sum(kept))),
        "rows": [count + 1 for count in accepted],
        "drafted": accepted,
        "accepted": accepted,
        "kept": kept,
        "phases": {name: times if name == "forward" else [0.0] * steps for name in PHASES},
        "gaps": [0.0] * steps,
        "discarded_ms": 0.0,
        "prefill_ms": 4.0,
        "wall_ms": sum(times),
        "rejection": None,
        "settings": _settings(Shape(), Plan(method, lossless=other.pop("lossless", "match"))),
    }
    return Record(**fields | other)
