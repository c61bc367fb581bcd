"""What is counted and timed: descriptive tables from the records, each quantity with its definition.

All functions are pure and take the DataFrame of `bench.record.frame`. Times are milliseconds. Prompts are prefilled
without their last token, so every new token comes from a decode step and no token is special.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from bench.errors import BenchError
from bench.record import BASELINE, PHASES

BATCH = ["method", "repeat", "turn", "group"]  # what identifies one execution of the decode loop
SEQUENCE = ["question_id", "turn", "repeat"]
CLOSURE = (0.97, 1.03)
PERCENTILES = (50, 95, 99)


def quantities(df: pd.DataFrame) -> pd.DataFrame:
    """One row per record (same index), its labels and these columns.

    tokens         new ids after clipping
    steps          target forwards up to and including the last one that contributed a token
    decode_ms      from the start of the first step to the end of the last of those: phases, and gaps between steps
    executed_ms    phases of those steps and of the steps after them (discarded)
    acceptance     tokens / steps
    closure        executed_ms / wall_ms: how much of the host's time the phases explain
    ttft_ms        prefill and first step: time to the first token
    rows_per_step  rows that the target evaluated / steps
    tpot_ms        decode_ms / tokens: time per output token; tokens_per_s is its reciprocal
    """
    steps = df.kept.map(len)
    rows = pd.DataFrame({name: _sums(df[name]) for name in PHASES}, index=df.index)
    first = sum((df[name].map(lambda times: times[0] if len(times) else np.nan) for name in PHASES), start=0.0)
    out = df[[*BATCH, "question_id", "category", "batch", "wall_ms", "prefill_ms"]].copy()
    out["tokens"] = df.tokens.map(len)
    out["steps"] = steps
    phases_ms = rows.sum(axis=1)
    out["decode_ms"] = phases_ms + _sums(df.gaps)
    out["executed_ms"] = phases_ms + df.discarded_ms
    out["acceptance"] = out.tokens / steps
    out["closure"] = out.executed_ms / out.wall_ms
    out["ttft_ms"] = df.prefill_ms + first
    out["rows_per_step"] = _sums(df.rows) / steps
    out["tpot_ms"] = out.decode_ms / out.tokens
    out["tokens_per_s"] = 1000 / out.tpot_ms
    return out


def _sums(column: pd.Series) -> np.ndarray:
    """Sum of every array of the column: float64 [records]."""
    lengths = column.map(len).to_numpy()
    owner = np.repeat(np.arange(len(column)), lengths)
    return np.bincount(owner, weights=np.concatenate(column.to_numpy()), minlength=len(column))


def batches(df: pd.DataFrame) -> pd.DataFrame:
    """One row per execution of the decode loop: what its sequences share counts once.

    decode_ms and steps are the longest sequence's (the batch's time counts once), tokens are summed, `question_id` is
    the first of its questions and `sequences` their number. Raises BenchError where more records claim one batch than
    the batch had sequences.
    """
    rows = quantities(df).groupby(BATCH, sort=False)
    out = rows.agg(
        question_id=("question_id", "first"),
        sequences=("question_id", "size"),
        batch=("batch", "max"),
        tokens=("tokens", "sum"),
        steps=("steps", "max"),
        decode_ms=("decode_ms", "max"),
        executed_ms=("executed_ms", "max"),
        wall_ms=("wall_ms", "max"),
    ).reset_index()
    crowded = out[out.sequences > out.batch]
    if len(crowded):
        worst = crowded.iloc[0]
        raise BenchError(
            f"{worst.sequences} records of {worst.method} share group {worst.group} of turn {worst.turn}, "
            f"repeat {worst['repeat']}, but its batch had {worst.batch} sequences: the run's group numbers are wrong"
        )
    return out


def acceptance(df: pd.DataFrame) -> pd.DataFrame:
    """Per method: acceptance length, micro (sum of tokens / sum of steps, over all sequences) and macro (mean over
    sequences of tokens / steps); rows_per_step (sum of rows / sum of steps), tokens, steps."""
    rows = quantities(df)
    rows["rows"] = rows.rows_per_step * rows.steps
    out = rows.groupby("method")[["tokens", "steps", "rows"]].sum()
    out["micro"] = out.tokens / out.steps
    out["macro"] = rows.groupby("method").acceptance.mean()
    out["rows_per_step"] = out.rows / out.steps
    return out[["micro", "macro", "rows_per_step", "tokens", "steps"]]


def acceptance_by_depth(df: pd.DataFrame) -> pd.DataFrame:
    """Acceptance rate of drafts at each depth: columns method, depth, steps, reached, joint, conditional.

    Over the `steps` that proposed depth d: joint is the share in which depth d was accepted; conditional is the same
    share among the `reached`, where depth d - 1 was accepted. Counts are unclipped: what the verifier decided.
    """
    out = []
    for method, rows in df.groupby("method"):
        drafted, accepted = np.concatenate(rows.drafted.to_numpy()), np.concatenate(rows.accepted.to_numpy())
        for depth in range(1, int(drafted.max(initial=0)) + 1):
            there = accepted[drafted >= depth]
            passed, reached = int((there >= depth).sum()), int((there >= depth - 1).sum())
            conditional = passed / reached if reached else np.nan
            out.append((method, depth, len(there), reached, passed / len(there), conditional))
    return pd.DataFrame(out, columns=["method", "depth", "steps", "reached", "joint", "conditional"])


def latency(df: pd.DataFrame) -> pd.DataFrame:
    """Per method: latencies in ms at P50, P95 and P99, TPOT and tokens/s.

    step_ms_*   from the event before propose to the event after observe; the steps of a batch count once
    token_ms_*  latency per token: step time / kept tokens, every token counting; the time of a step that kept nothing
                is carried to the next one
    ttft_ms_*   from the start of the prefill to the end of the first step
    tpot_ms     decode time / tokens, a batch's time counting once; tokens_per_s is its reciprocal
    """
    out = {}
    for method, rows in df.groupby("method"):
        values = {
            "step_ms": np.concatenate(list(map(_step_ms, _longest(rows).itertuples()))),
            "token_ms": np.concatenate(list(map(_token_ms, rows.itertuples()))),
            "ttft_ms": quantities(rows).ttft_ms.to_numpy(),
        }
        totals = batches(rows)[["decode_ms", "tokens"]].sum()
        out[method] = {
            f"{name}_p{level}": float(np.percentile(value, level))
            for name, value in values.items()
            for level in PERCENTILES
        } | {
            "tpot_ms": totals.decode_ms / totals.tokens,
            "tokens_per_s": 1000 * totals.tokens / totals.decode_ms,
        }
    return pd.DataFrame.from_dict(out, orient="index").rename_axis("method")


def _longest(df: pd.DataFrame) -> pd.DataFrame:
    """One record per batch: that of its longest sequence, which lists all steps that contributed to any."""
    steps = df.kept.map(len)
    return df.loc[steps.groupby([df[name] for name in BATCH]).idxmax()]


def _step_ms(row) -> np.ndarray:
    """Time of every step of one row of the frame: float64 [steps]."""
    return np.sum([getattr(row, name) for name in PHASES], axis=0)


def _token_ms(row) -> np.ndarray:
    """Latency of every token of one row of the frame: float64 [tokens]."""
    emitting = row.kept > 0
    arrivals = np.cumsum(_step_ms(row))[emitting]
    kept = row.kept[emitting]
    return np.repeat(np.diff(arrivals, prepend=0.0) / kept, kept)


def phase_table(df: pd.DataFrame) -> pd.DataFrame:
    """Per method: mean ms per step of every phase and of the step, closure, and whether closure is flagged.

    Means are over the contributing steps, those of a batch counting once. closure = sum of the phases of all executed
    steps / host time between two synchronisations around the loop, over all batches; `outside` counts the batches
    whose own closure leaves 0.97-1.03, `flagged` says that the method's does.
    """
    runs = batches(df)
    runs["inside"] = (runs.executed_ms / runs.wall_ms).between(*CLOSURE)
    totals = runs.groupby("method")[["executed_ms", "wall_ms", "inside"]].agg("sum")
    longest = _longest(df)
    steps = longest.kept.map(len).groupby(longest.method).sum()
    out = pd.DataFrame(
        {name: pd.Series(_sums(longest[name]), longest.index).groupby(longest.method).sum() / steps for name in PHASES}
    )
    out["step_ms"] = out.sum(axis=1)
    out["closure"] = totals.executed_ms / totals.wall_ms
    out["outside"] = runs.groupby("method").size() - totals.inside
    out["flagged"] = ~out.closure.between(*CLOSURE)
    return out


def kept_histogram(df: pd.DataFrame) -> pd.DataFrame:
    """Number of steps by the tokens they kept: index 0 .. most, one column per method."""
    counts = {
        method: np.bincount(np.concatenate(rows.kept.to_numpy()).astype(np.int64))
        for method, rows in df.groupby("method")
    }
    table = pd.DataFrame({method: pd.Series(count) for method, count in counts.items()})
    return table.fillna(0).astype(int).rename_axis("kept")


def rejection_z(df: pd.DataFrame) -> pd.DataFrame:
    """Per method verified by rejection: z = sum of excess / sqrt(sum of variance), and the rows `tested`.

    The excess of a tested row is (accepted - sum over x of min(p, q)), whose expectation is 0 when the distribution is
    kept (Leviathan et al. 2023, corollary 3.6). Repeats reuse their noise, so only one repeat of a sequence counts.
    """
    tested = df[df.rejection.notna()].drop_duplicates(["method", "question_id", "turn"])
    values = pd.DataFrame(tested.rejection.tolist(), index=tested.method, columns=["excess", "variance", "tested"])
    out = values.groupby(level="method").sum()
    certain = np.where(out.excess.abs() < 1e-9, 0.0, np.sign(out.excess) * np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        out["z"] = np.where(out.variance > 0, out.excess / np.sqrt(out.variance), certain)
    return out[["z", "excess", "variance", "tested"]]


def divergences(df: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Per method, its texts against the baseline's of the same (question, turn, repeat).

    sequences       texts compared
    diverged        texts whose ids differ; rate is their share
    first_positions where each of those differs first, counted from 0
    tokens          tokens compared up to and including the first difference
    """
    texts = df[df.method == baseline].set_index(SEQUENCE).tokens
    out = {}
    for method, rows in df[df.method != baseline].groupby("method"):
        own = rows.set_index(SEQUENCE).tokens
        both = own.index.intersection(texts.index)
        places = [_first_difference(own[key], texts[key]) for key in both]
        firsts = [place for place in places if place is not None]
        lengths = [len(texts[key]) if place is None else place + 1 for key, place in zip(both, places, strict=True)]
        rate = len(firsts) / len(both) if len(both) else np.nan
        out[method] = (len(both), len(firsts), rate, firsts, sum(lengths))
    columns = ["sequences", "diverged", "rate", "first_positions", "tokens"]
    return pd.DataFrame.from_dict(out, orient="index", columns=columns).rename_axis("method")


def _first_difference(text: np.ndarray, other: np.ndarray) -> int | None:
    """First position where two id lists differ; the end of the shorter where it is a prefix; None where equal."""
    shared = min(len(text), len(other))
    unequal = np.flatnonzero(text[:shared] != other[:shared])
    if len(unequal):
        return int(unequal[0])
    return None if len(text) == len(other) else shared
