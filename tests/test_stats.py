"""The tables, and that they are made without torch."""

import subprocess
import sys

import numpy as np
import pytest
import synthetic
from synthetic import Plan, Shape, handmade

from bench import stats
from bench.record import BASELINE, TWIN, frame

RUN = frame(synthetic.records())
VERDICTS = {"medusa": {"verdict": "numerical ties"}, "ptp:k=16": {"verdict": "identical"}}
TASKS = ["multi-turn conversation", "translation", "summarization", "qa", "math_reasoning", "rag"]


def test_main_table():
    table = stats.main_table(RUN, VERDICTS, resamples=500)
    assert table.columns.tolist() == [
        *TASKS, "speedup", "low", "high", "prompts", "accepted", "rows_per_step", "tokens_per_s", "rank",
        "verdict", "decision", "flags",
    ]  # fmt: skip
    assert table.index[:3].tolist() == [BASELINE, TWIN, "ptp:k=16"]
    assert table.speedup[2:].is_monotonic_decreasing
    assert "medusa:typical" not in table.index
    assert "hf_eager" not in table.index
    ptp = table.loc["ptp:k=16"]
    assert ptp.verdict == "identical"
    assert ptp.decision == "faster"
    assert ptp["rank"] == 1
    assert ptp.low < ptp.speedup < ptp.high
    assert ptp.accepted == stats.acceptance(RUN).micro["ptp:k=16"]
    assert ptp.rows_per_step == 17
    assert ptp.tokens_per_s == pytest.approx(stats.latency(RUN).tokens_per_s["ptp:k=16"])
    assert (ptp.prompts, ptp["flags"]) == (26, "")
    base = table.loc[BASELINE]
    assert (base.speedup, base.low, base.high, base.decision, base.verdict) == (1, 1, 1, "baseline", "unchecked")
    assert (base[TASKS] == 1).all()
    assert table.decision[TWIN] == "noise floor"
    assert table["rank"].isna()[TWIN]


def test_a_broken_method_has_no_rank_and_moves_nobody():
    whole = stats.main_table(RUN, {}, resamples=200)
    best = whole.index[whole["rank"] == 1][0]
    table = stats.main_table(RUN, {best: {"verdict": "BROKEN"}}, resamples=200)
    assert set(table.index[table["rank"].isna()]) == {best, TWIN}
    assert table["rank"].min() == 1


def test_tasks_are_the_speedups_of_their_prompts():
    table = stats.main_table(RUN, {}, resamples=200)
    for task, categories in {"rag": ["rag"], TASKS[0]: list(synthetic.CATEGORIES[:8])}.items():
        alone = stats.speedup(RUN[RUN.category.isin(categories)], "medusa", resamples=2)
        assert table.loc["medusa", task] == pytest.approx(alone.estimate)


def test_tasks_that_were_not_measured_or_share_a_batch_are_empty():
    some = RUN[RUN.category.isin(["qa", "rag"])]
    table = stats.main_table(some, {}, resamples=200)
    assert table[["translation", "summarization"]].isna().all(axis=None)
    assert table[["qa", "rag"]].notna().all(axis=None)
    mixed = frame(synthetic.records(shape=Shape(questions=16, batch=4)))  # 13 categories in turn, by fours
    table = stats.main_table(mixed, {}, resamples=200)
    assert table[TASKS[0]].notna().all()
    assert table[TASKS[1:]].isna().all(axis=None)


def test_lossy_and_reference_tables():
    lossy = stats.lossy_table(RUN, {}, resamples=200)
    assert lossy.index.tolist() == ["medusa:typical"]
    assert lossy["rank"].tolist() == [1]
    outside = stats.reference_table(RUN, {}, resamples=200)
    assert outside.index.tolist() == ["hf_eager"]
    assert "rank" not in outside
    assert outside.decision["hf_eager"] == "slower"
    plain = RUN[RUN.method.isin([BASELINE, "medusa"])]
    assert stats.lossy_table(plain, {}).empty
    assert stats.reference_table(plain, {}).empty
    assert stats.lossy_table(plain, {}).columns.tolist() == lossy.columns.tolist()


def flags(*records):
    return stats.main_table(frame(records), {}, resamples=300)["flags"]


def run_of(method, kept, step_ms, questions=24, **other):
    return [handmade(method, question, kept, step_ms, **other) for question in range(questions)]


def test_an_impossible_speedup_is_flagged():
    """Two tokens per step cannot make decoding three times as fast; twice is the limit."""
    base = run_of(BASELINE, [1] * 4, 3.0)
    assert flags(*base, *run_of("m", [2, 2], 2.0))["m"] == "impossible"
    assert flags(*base, *run_of("m", [2, 2], 3.0))["m"] == ""
    assert flags(*base, *run_of("m", [2, 2], 3.3))["m"] == ""


def test_the_limit_in_a_batch_is_by_its_steps():
    """Texts of 8 and 2 tokens in one batch, 4 and 2 steps: twice as fast is possible though 10 / 6 are accepted."""
    base, fast = [], []
    for group in range(24):
        base += [handmade(BASELINE, 2 * group + i, [1] * n, group=group, batch=2) for i, n in enumerate((8, 2))]
        fast += [handmade("m", 2 * group + i, kept, group=group, batch=2) for i, kept in enumerate(([2] * 4, [1, 1]))]
    assert flags(*base, *fast)["m"] == ""
    table = stats.main_table(frame(base + fast), {}, resamples=300)
    assert (table.speedup["m"], table.accepted["m"]) == (2, 10 / 6)


def test_few_prompts_open_closure_and_a_restless_baseline_are_flagged():
    base = run_of(BASELINE, [1] * 4, 3.0)
    assert flags(*base, *run_of("m", [2, 2], 4.0, wall_ms=10.0))["m"] == "closure 0.80"
    assert flags(*base, *run_of("m", [2, 2], 4.0, questions=19))["m"] == "few"
    assert flags(*base, *run_of(TWIN, [1] * 4, 2.9))[TWIN] == "A/A apart"
    both = flags(*base, *run_of("m", [2, 2], 2.0, questions=19, wall_ms=10.0))["m"]
    assert both == "few, impossible, closure 0.40"


def test_inside_the_noise_floor_there_is_no_difference():
    """The copy of the baseline comes out 2 % apart, so 1 % is nothing even though it is perfectly steady."""
    base = [handmade(BASELINE, question, [1] * 4, 1.0) for question in range(24)]
    twin = [handmade(TWIN, question, [1] * 4, 0.96 if question % 2 else 1.02) for question in range(24)]
    slow = [handmade("m", question, [1] * 4, 0.995) for question in range(24)]
    table = stats.main_table(frame(base + twin + slow), {}, resamples=500)
    assert table.low["m"] > 1
    assert table.decision["m"] == "no difference"
    alone = stats.main_table(frame(base + slow), {}, resamples=500)
    assert alone.decision["m"] == "faster"


def test_tables_agree_however_the_records_are_ordered():
    shuffled = RUN.sample(frac=1, random_state=3).reset_index(drop=True)
    one, other = (stats.main_table(df, VERDICTS, resamples=300) for df in (RUN, shuffled))
    columns = [*TASKS, "speedup", "accepted", "tokens_per_s"]
    np.testing.assert_allclose(one[columns], other.loc[one.index, columns])


def test_two_turns_and_batches_run_through():
    plans = (Plan(BASELINE), Plan(TWIN), Plan("m", accept=0.7, depth=4))
    df = frame(synthetic.records(plans, Shape(questions=40, turns=2, batch=4)))
    table = stats.main_table(df, {}, resamples=300)
    assert table.prompts.tolist() == [10, 10, 10]
    assert table.decision["m"] == "faster"


def test_no_torch():
    code = "import sys, bench.stats, bench.compare, bench.peers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
