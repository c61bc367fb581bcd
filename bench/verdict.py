"""Whether a method kept the text: one verdict per method, against the baseline's texts under the same noise.

identical       every text equals the baseline's, id for id
numerical ties  texts part only where the run's arithmetic cannot decide, and no more often than those of the baseline
                padded to the method's rows
distribution    verified by rejection, and it accepted as often as the two laws say
lossy           does not claim to keep the text
reference       an outside implementation with random numbers of its own
BROKEN          a divergence that is none of these: the run fails
unchecked       nothing to compare with
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path

from bench.noise import NoiseKey
from bench.null import Prompts, Rate, law_of, padded_rate, prompt_of, shared
from bench.quantities import rejection_z
from bench.record import BASELINE, Key, Record, frame, read
from bench.ties import Recheck, Row, movement, obtainable
from bench.zoo import Target

FILE = "verdicts.json"
LEVEL = 1e-3  # of the test whether divergences are more frequent than the null's
FARTHEST = 4.0  # standard deviations that the rejection statistic may be off
SHOWN = 8  # first positions named in a detail line


@dataclass(frozen=True)
class Verdict:
    """What verdicts.json says about a method; `first_positions` count new tokens from 0."""

    verdict: str
    diverged: int
    sequences: int
    first_positions: list[int]
    detail: str


@dataclass(frozen=True)
class Pair:
    """A method's text beside the baseline's: same question, turn and repeat, same prompt and noise."""

    base: Record
    own: Record

    @cached_property
    def position(self) -> int:
        """How many tokens they share: where they part, if they do."""
        return shared(self.base.tokens, self.own.tokens)

    @property
    def differs(self) -> bool:
        """Whether they part at all."""
        return self.base.tokens != self.own.tokens

    @property
    def tokens(self) -> tuple[int, ...]:
        """The baseline's token there and the method's; only one of them where a text ends without cause."""
        return tuple(r.tokens[self.position] for r in (self.base, self.own) if len(r.tokens) > self.position)

    @property
    def place(self) -> str:
        """For messages."""
        return f"question {self.own.question_id}, turn {self.own.turn}, token {self.position}"


Objections = dict[Key, str]  # by the key of the method's record: why it is no matter of rounding
Null = Callable[[int], Rate]  # rows -> how often the baseline diverges from itself when it is padded to them


def write(directory: Path, target: Target, prompts: Prompts) -> dict[str, Verdict]:
    """Judge a run and write its verdicts.json. Raises what `judge` raises."""
    verdicts = judge(read(directory), target, prompts)
    table = {label: asdict(verdict) for label, verdict in verdicts.items()}
    (directory / FILE).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return verdicts


def judge(records: Iterable[Record], target: Target, prompts: Prompts) -> dict[str, Verdict]:
    """One verdict per method. `target` as it ran; `prompts`: the ids that each (question_id, turn) continued.

    Only divergences cost forwards: two per baseline text that some method left, one of them in a wider dtype (a copy
    of the target, gone afterwards), and one more decoding of the baseline per number of rows. Raises BenchError where
    `prompts` are not those of the records.
    """
    methods: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        methods[record.method].append(record)
    baseline = {record.key[1:]: record for record in methods.get(BASELINE, [])}
    pairs = {label: [Pair(baseline[own.key[1:]], own) for own in rows if own.key[1:] in baseline]
             for label, rows in methods.items()}
    parted = [pair for label, rows in methods.items() if keeps_text(rows[0]) for pair in pairs[label] if pair.differs]
    why = unexplained(parted, target, prompts)
    null = cache(partial(padded_rate, target, list(baseline.values()), prompts))
    return {label: verdict_of(rows, pairs[label], why, null) for label, rows in methods.items()}


def unexplained(parted: Iterable[Pair], target: Target, prompts: Prompts) -> Objections:
    """What rounding does not explain, among pairs that differ."""
    objections: Objections = {}
    texts: dict[tuple, list[Pair]] = defaultdict(list)
    for pair in parted:
        if len(pair.tokens) == 2:
            texts[pair.base.question_id, pair.base.turn, tuple(pair.base.tokens)].append(pair)
        else:
            objections[pair.own.key] = f"{pair.place}: one text ends where the other goes on"
    if not texts:
        return objections
    model = Recheck(target.model)
    for pairs in texts.values():
        base = pairs[0].base
        prompt = prompt_of(base, prompts)
        rows = model.rows([*prompt, *base.tokens], {len(prompt) + pair.position for pair in pairs})
        for pair in pairs:
            if said := objection(pair, rows[len(prompt) + pair.position]):
                objections[pair.own.key] = said
    return objections


def objection(pair: Pair, row: Row) -> str:
    """Why rounding does not explain a divergence; empty if it does.

    It does if both tokens can be drawn with the number of their position once every logit may move by as much as the
    run's dtype deviates in that row. (A difference of two logits then moves by twice as much: the tolerance.)
    """
    settings, place = pair.base.settings, pair.base.prompt_tokens + pair.position
    noise = int(NoiseKey(settings["seed"], pair.base.question_id, pair.base.turn).numbers("target", place + 1)[place])
    law, (theirs, own) = law_of(settings), pair.tokens
    if all(obtainable(row.exact, law, noise, token, row.deviation) for token in pair.tokens):
        return ""
    needed = max(movement(row.exact, law, noise, token) for token in pair.tokens)
    return (f"{pair.place}: {own} instead of {theirs} needs logits moved by {needed:.2g}, "
            f"{settings['dtype']} moves them by {row.deviation:.2g}")


def keeps_text(record: Record) -> bool:
    """Whether its method claims the baseline's very text: `match` does, `reject` where the law leaves no choice."""
    kind = record.settings["lossless"]
    return kind == "match" or (kind == "reject" and record.settings["temperature"] == 0)


def verdict_of(rows: list[Record], pairs: list[Pair], why: Objections, null: Null) -> Verdict:
    """The verdict of the method whose records are `rows`."""
    kind, parted = rows[0].settings["lossless"], [pair for pair in pairs if pair.differs]
    name, detail = "unchecked", "no text of the baseline to compare with"
    if rows[0].method == BASELINE:
        name, detail = "identical", "the baseline itself"
    elif kind in ("lossy", "reference"):
        name, detail = kind, f"{len(parted)} of {len(pairs)} texts differ from the baseline's, which they may"
    elif kind == "reject":
        name, detail = by_rejection(rows)
    if keeps_text(rows[0]) and pairs and name in ("unchecked", "distribution"):
        name, detail = by_text(rows, pairs, why, null)
    return Verdict(name, len(parted), len(pairs), [pair.position for pair in parted], detail)


def by_rejection(rows: list[Record]) -> tuple[str, str]:
    """Whether drafts were accepted as often as the two laws say."""
    if not any(record.rejection and record.rejection["tested"] for record in rows):
        return "unchecked", "no draft was ever tested"
    seen = rejection_z(frame(rows)).iloc[0]
    kept = abs(seen.z) <= FARTHEST
    return ("distribution" if kept else "BROKEN",
            f"{seen.tested:.0f} drafts tested, accepted {seen.z:+.2f} standard deviations from what both laws say"
            + ("" if kept else f"; beyond {FARTHEST:g} is no chance"))


def by_text(rows: list[Record], pairs: list[Pair], why: Objections, null: Null) -> tuple[str, str]:
    """Whether the texts are the baseline's, or part from them at near-ties only and no more often than they must."""
    parted = [pair for pair in pairs if pair.differs]
    if not parted:
        return "identical", f"all {len(pairs)} texts equal the baseline's"
    said, own = [why[pair.own.key] for pair in parted if pair.own.key in why], rate(pairs)
    count = f"{len(parted)} of {len(pairs)} texts leave the baseline's ({own}; first at {listed(parted)})"
    if said:
        return "BROKEN", f"{count}; {len(said)} of them not by rounding: {said[0]}"
    width = max(n for record in rows for n in record.rows)
    allowed = null(width)
    chance = own.excess(allowed)
    compared = f"{count}; the baseline padded to {width} rows: {allowed}, chance {chance:.2g}"
    if chance < LEVEL:
        return "BROKEN", f"{compared}: more often than rounding explains"
    return "numerical ties", f"{compared}; rounding explains each"


def rate(pairs: Iterable[Pair]) -> Rate:
    """Divergences per token over distinct texts: repeats reuse their noise, so that a copy says nothing new."""
    distinct = {(pair.own.question_id, pair.own.turn, *map(tuple, (pair.base.tokens, pair.own.tokens))): pair
                for pair in pairs}.values()
    return Rate(sum(pair.differs for pair in distinct), sum(pair.position + pair.differs for pair in distinct))


def listed(parted: list[Pair]) -> str:
    """The first few positions, in order."""
    places = sorted(pair.position for pair in parted)
    return "token " + ", ".join(map(str, places[:SHOWN])) + (", ..." if len(places) > SHOWN else "")
