"""Tables from records. Everything that a report needs is importable from here; nothing here imports torch.

`bench.quantities` defines what is counted, `bench.bootstrap` how sure we are, `bench.speedups` what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from bench.bootstrap import Interval, ratio_of_sums
from bench.prompts import TASKS, task_of
from bench.quantities import (
    acceptance,
    acceptance_by_depth,
    batches,
    divergences,
    kept_histogram,
    latency,
    phase_table,
    quantities,
    rejection_z,
)
from bench.record import BASELINE, TWIN
from bench.speedups import (
    RESAMPLES,
    Ledger,
    decision,
    intervals,
    kinds,
    ledger,
    noise_floor,
    ranking,
    ranks,
    speedup,
    speedups,
)

__all__ = [
    "TASK_NAMES",
    "Interval",
    "acceptance",
    "acceptance_by_depth",
    "batches",
    "decision",
    "divergences",
    "kept_histogram",
    "kinds",
    "latency",
    "lossy_table",
    "main_table",
    "noise_floor",
    "phase_table",
    "quantities",
    "ranking",
    "ranks",
    "reference_table",
    "rejection_z",
    "speedup",
    "speedups",
]

TASK_NAMES = tuple(dict.fromkeys(TASKS.values()))
Verdicts = Mapping[str, Mapping[str, Any]]


def main_table(df: pd.DataFrame, verdicts: Verdicts, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Lossless methods, one row each: the baseline, its copy, then by speedup. Columns:

    the six tasks     speedup on the prompts of that task alone; NaN where there are none or a batch mixes tasks
    speedup low high  over all prompts with the 95 % interval; `prompts` is their number
    accepted          acceptance length, micro
    rows_per_step     what the speedup was bought with
    tokens_per_s      tokens / decode time
    rank              1 + number of methods in this table that are apart from this one and faster; a BROKEN one has none
    verdict           from `verdicts` ({method: {"verdict": ...}}), "unchecked" where absent
    decision          "faster", "slower", "no difference"; "baseline" and "noise floor" for those two
    flags             empty, or what to beware of: see `_remarks` and `_flags`
    """
    methods = _methods(df, {"match", "reject"})
    table = _table(df, methods, verdicts, resamples)
    rivals = [method for method in methods if method != TWIN and table.verdict[method] != "BROKEN"]
    _insert_rank(table, df, rivals, resamples)
    order = table.index.map({BASELINE: 0, TWIN: 1}.get).fillna(2)
    return table.iloc[np.lexsort((-table.speedup, order))]


def lossy_table(df: pd.DataFrame, verdicts: Verdicts, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Methods that do not keep the text, ranked among themselves; columns as in `main_table`."""
    methods = _methods(df, {"lossy"})
    table = _table(df, methods, verdicts, resamples)
    _insert_rank(table, df, methods, resamples)
    return table.sort_values("speedup", ascending=False)


def reference_table(df: pd.DataFrame, verdicts: Verdicts, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Outside implementations of the baseline, never ranked; columns as in `main_table` without `rank`."""
    return _table(df, _methods(df, {"reference"}), verdicts, resamples).sort_values("speedup", ascending=False)


def _insert_rank(table: pd.DataFrame, df: pd.DataFrame, rivals: Sequence[str], resamples: int) -> None:
    floor = noise_floor(df, resamples)
    rank = ranks(ranking(df, rivals, resamples), floor) if rivals else pd.Series(dtype=int)
    table.insert(table.columns.get_loc("verdict"), "rank", rank.reindex(table.index).astype("Int64"))


def _methods(df: pd.DataFrame, shown: set[str]) -> list[str]:
    return [method for method, kind in kinds(df).items() if kind in shown]


def _table(df: pd.DataFrame, methods: Sequence[str], verdicts: Verdicts, resamples: int) -> pd.DataFrame:
    book = ledger(df)
    twin = [TWIN] if TWIN in book.methods else []
    found = intervals(book, [(BASELINE, method) for method in dict.fromkeys([*methods, *twin])], resamples)
    floor = found.get((BASELINE, TWIN))
    lengths, limits, closure, said = acceptance(df), _limits(book, methods), phase_table(df), _remarks(df)
    totals = batches(df).groupby("method")[["tokens", "decode_ms"]].sum()
    rows = {}
    for method in methods:
        interval = found[BASELINE, method]
        decided = {BASELINE: "baseline", TWIN: "noise floor"}.get(method) or decision(interval, floor)
        rows[method] = {
            "speedup": interval.estimate,
            "low": interval.low,
            "high": interval.high,
            "prompts": interval.prompts,
            "accepted": lengths.micro[method],
            "rows_per_step": lengths.rows_per_step[method],
            "tokens_per_s": 1000 * totals.tokens[method] / totals.decode_ms[method],
            "verdict": verdicts.get(method, {}).get("verdict", "unchecked"),
            "decision": decided,
            "flags": ", ".join(said[method] + _flags(interval, decided, limits[method], closure.loc[method])),
        }
    columns = ["speedup", "low", "high", "prompts", "accepted", "rows_per_step", "tokens_per_s"]
    columns += ["verdict", "decision", "flags"]
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return pd.concat([_by_task(df, book, methods), table], axis=1).rename_axis("method")


def _by_task(df: pd.DataFrame, book: Ledger, methods: Sequence[str]) -> pd.DataFrame:
    """Speedup of each method on the prompts of each task: [methods, tasks]."""
    tasks = df.category.map(task_of).groupby(book.prompt[df.question_id].to_numpy())
    only = tasks.first().where(tasks.nunique() == 1)  # [prompts]; None for a batch of several tasks
    table = pd.DataFrame(index=methods, columns=list(TASK_NAMES), dtype=float)
    for method in methods:
        sums = book.sums([(BASELINE, method)])[:, 0, [0, 1, 3, 4]]
        for task in TASK_NAMES:
            table.loc[method, task] = ratio_of_sums(sums[(only == task).to_numpy()].sum(axis=0))
    return table


def _limits(book: Ledger, methods: Sequence[str]) -> dict[str, float]:
    """The largest possible speedup of each method, if no step were slower than the baseline's: baseline steps per
    token over the method's. In batches of one it is the acceptance length."""
    totals = {method: book.sums([(BASELINE, method)])[:, 0].sum(axis=0) for method in methods}
    return {method: float(ratio_of_sums(total[[2, 1, 5, 4]])) for method, total in totals.items()}


def _remarks(df: pd.DataFrame) -> dict[str, list[str]]:
    """What records say must stand beside a method's numbers: that its drafter was trained for another law."""
    said = {method: rows.settings.iloc[0].get("remark") for method, rows in df.groupby("method")}
    return {method: [remark] if remark else [] for method, remark in said.items()}


def _flags(interval: Interval, decided: str, limit: float, phases: pd.Series) -> list[str]:
    """few: under 20 prompts. impossible: the interval lies above the acceptance length, which no method can reach
    against an honest baseline. closure: the phases do not add up to the host's time. A/A apart: the baseline differs
    from its own copy, so something but the method moves the times."""
    flags = {
        "few": interval.few,
        "impossible": decided == "faster" and interval.low > limit,
        f"closure {phases.closure:.2f}": phases.flagged,
        "A/A apart": decided == "noise floor" and not interval.covers(1.0),
    }
    return [name for name, raised in flags.items() if raised]
