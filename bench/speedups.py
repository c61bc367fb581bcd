"""Speedups that can be believed: paired intervals, the noise floor, decisions and rankings.

Only what was measured for both sides is compared: a prompt's repeat counts where both have the same questions and
turns of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bench.bootstrap import Interval, ratio_intervals
from bench.errors import BenchError
from bench.quantities import BATCH, SEQUENCE, batches
from bench.record import BASELINE, TWIN

RESAMPLES = 10_000
Pair = tuple[str, str]  # (slow, fast): time per token of the first over that of the second


@dataclass(frozen=True)
class Ledger:
    """Decode time (ms), tokens and steps of every method on every prompt and repeat.

    A prompt is a question with its turns; in batched runs it is the questions that were ever decoded together.
    """

    methods: list[str]
    prompt: pd.Series  # number of the prompt, by question
    totals: np.ndarray  # [methods, prompts, repeats, 3]
    present: np.ndarray  # bool [methods, cells]: which (question, turn, repeat) each method was measured on
    place: np.ndarray  # int [cells]: prompt * repeats + repeat

    def sums(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Time, tokens, steps of slow, then of fast, over what both were measured on: [prompts, pairs, 6].

        Raises BenchError where a method was not measured, or two have no prompt in common.
        """
        out = np.stack([self._matched(*pair) for pair in pairs], axis=1)
        for number, (slow, fast) in enumerate(pairs):
            if not out[:, number].any():
                raise BenchError(f"{slow} and {fast} were measured on no common prompt: nothing can be compared")
        return out

    def _matched(self, slow: str, fast: str) -> np.ndarray:
        sides = [self._row(slow), self._row(fast)]
        prompts, repeats = self.totals.shape[1:3]
        unequal = self.present[sides[0]] != self.present[sides[1]]
        dropped = np.bincount(self.place[unequal], minlength=prompts * repeats) > 0
        both = self.totals[sides] * ~dropped.reshape(prompts, repeats, 1)  # [2, prompts, repeats, 3]
        return both.sum(axis=2).transpose(1, 0, 2).reshape(prompts, 6)

    def _row(self, method: str) -> int:
        if method not in self.methods:
            raise BenchError(f"no records of {method!r}: the run holds {', '.join(self.methods)}")
        return self.methods.index(method)


def ledger(df: pd.DataFrame) -> Ledger:
    """What every method spent on every prompt, from the frame of `bench.record.frame`."""
    prompt = _prompts(df)
    repeats, repeat_of = np.unique(df["repeat"], return_inverse=True)
    method_of, methods = pd.factorize(df.method)
    cell_of, cells = pd.factorize(pd.MultiIndex.from_frame(df[SEQUENCE]))
    present = np.zeros((len(methods), len(cells)), bool)
    present[method_of, cell_of] = True
    place = np.empty(len(cells), np.int64)
    place[cell_of] = prompt[df.question_id].to_numpy() * len(repeats) + repeat_of
    runs = batches(df)
    where = (
        pd.Index(methods).get_indexer(runs.method),
        prompt[runs.question_id].to_numpy(),
        np.searchsorted(repeats, runs["repeat"]),
    )
    totals = np.zeros((len(methods), prompt.max() + 1, len(repeats), 3))
    np.add.at(totals, where, runs[["decode_ms", "tokens", "steps"]].to_numpy(float))
    return Ledger(list(methods), prompt, totals, present, place)


def _prompts(df: pd.DataFrame) -> pd.Series:
    """Number of the prompt by question: questions that ever shared a batch are one prompt."""
    question_of, questions = pd.factorize(df.question_id)
    batch_of = df.groupby(BATCH, sort=False).ngroup().to_numpy() + len(questions)
    size = batch_of.max() + 1
    edges = coo_array((np.ones(len(df)), (question_of, batch_of)), shape=(size, size))
    labels = connected_components(edges, directed=False)[1][: len(questions)]
    return pd.Series(np.unique(labels, return_inverse=True)[1], index=questions)


def intervals(book: Ledger, pairs: Sequence[Pair], resamples: int = RESAMPLES, seed: int = 0) -> dict[Pair, Interval]:
    """Time per token of slow over fast for every pair, with shared resamples."""
    if not pairs:
        return {}
    sums = book.sums(pairs)[:, :, [0, 1, 3, 4]]
    return dict(zip(pairs, ratio_intervals(sums, resamples, seed), strict=True))


def speedups(
    df: pd.DataFrame, baseline: str = BASELINE, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Interval]:
    """`speedup` of every other method, with shared resamples."""
    book = ledger(df)
    pairs = [(baseline, method) for method in book.methods if method != baseline]
    return {fast: interval for (_, fast), interval in intervals(book, pairs, resamples, seed).items()}


def speedup(
    df: pd.DataFrame, method: str, baseline: str = BASELINE, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """(sum of baseline decode time / tokens) / (sum of the method's decode time / tokens) over the same prompts.

    95 % interval by resampling prompts with all their turns and repeats. Raises BenchError where a side was not
    measured or the two share no prompt.
    """
    pair = (baseline, method)
    return intervals(ledger(df[df.method.isin(pair)]), [pair], resamples, seed)[pair]


def noise_floor(df: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """Interval of the baseline against its own copy (A/A); None where the run has no copy.

    A copy that comes out 1 % slower might as well have come out faster: what counts is its reach `both_ways`.
    """
    return speedup(df, TWIN, resamples=resamples, seed=seed) if (df.method == TWIN).any() else None


def decision(interval: Interval, floor: Interval | None) -> str:
    """One of "faster", "slower", "no difference".

    There is no difference where the interval covers 1, or where the speedup is no farther from 1 than the noise floor.
    """
    if interval.covers(1.0) or (floor is not None and floor.both_ways.covers(interval.estimate)):
        return "no difference"
    return "faster" if interval.estimate > 1 else "slower"


def kinds(df: pd.DataFrame) -> dict[str, str]:
    """How each method is verified: "match", "reject", "lossy" or "reference"."""
    return {method: rows.settings.iloc[0]["lossless"] for method, rows in df.groupby("method", sort=False)}


def ranking(
    df: pd.DataFrame, methods: Sequence[str] | None = None, resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Square table of Interval: speed of the row's method over the column's, fastest first.

    Two methods are apart only where `decision` finds a difference. By default all lossless methods and the baseline.
    """
    if methods is None:
        methods = [name for name, kind in kinds(df).items() if kind in {"match", "reject"} and name != TWIN]
    book = ledger(df[df.method.isin(methods)])
    time, tokens, _ = book.totals.sum(axis=(1, 2)).T
    order = [book.methods[row] for row in np.argsort(time / tokens)]
    found = intervals(book, list(combinations(order, 2)), resamples, seed)
    itself = Interval(1.0, 1.0, 1.0, book.totals.shape[1])
    table = pd.DataFrame(itself, index=pd.Index(order, name="method"), columns=order, dtype=object)
    for (fast, slow), interval in found.items():
        table.loc[slow, fast] = interval
        table.loc[fast, slow] = interval.inverse
    return table


def ranks(table: pd.DataFrame, floor: Interval | None = None) -> pd.Series:
    """1 + number of methods that are apart from this one and faster, from the table of `ranking`."""
    faster = {name: [decision(entry, floor) == "faster" for entry in table[name]] for name in table.columns}
    return pd.Series({name: 1 + sum(found) for name, found in faster.items()}, dtype=int)
