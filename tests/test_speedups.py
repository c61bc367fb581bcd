"""Speedups, the noise floor and rankings: small cases by hand, planted differences, the speed bar."""

import time

import numpy as np
import pytest
import synthetic
from synthetic import Plan, Shape, handmade

from bench.bootstrap import Interval
from bench.errors import BenchError
from bench.record import BASELINE, TWIN, frame
from bench.speedups import decision, kinds, ledger, noise_floor, ranking, ranks, speedup, speedups

RUN = frame(synthetic.records())


def test_speedup_is_a_ratio_of_sums():
    """Baseline 4 ms + 30 ms for 4 + 10 tokens; the method 2 ms + 20 ms for 4 + 10 tokens."""
    records = [
        handmade(BASELINE, 1, [1] * 4, 1.0),
        handmade(BASELINE, 2, [1] * 10, 3.0),
        handmade("m", 1, [2, 2], 1.0),
        handmade("m", 2, [5, 5], 10.0),
    ]
    assert speedup(frame(records), "m").estimate == pytest.approx(34 / 22)


def test_speedup_is_per_token_where_texts_differ():
    records = [handmade(BASELINE, 1, [1] * 4, 1.0), handmade("m", 1, [2] * 4, 1.0)]
    interval = speedup(frame(records), "m")
    assert interval.estimate == 2
    assert interval.prompts == 1
    assert interval.covers(1.0)  # one prompt says nothing


def test_the_time_of_a_batch_counts_once():
    """Baseline: one batch of 3 steps for 2 x 3 tokens. Method: one batch of 2 steps for 3 + 3 tokens."""
    records = [handmade(BASELINE, question, [1] * 3, group=0, batch=2) for question in (1, 2)]
    records += [handmade("m", 1, [2, 1], group=0, batch=2), handmade("m", 2, [3], group=0, batch=2)]
    interval = speedup(frame(records), "m")
    assert interval.estimate == pytest.approx(3 / 2)
    assert interval.prompts == 1  # questions decoded together are one unit


def test_questions_that_ever_shared_a_batch_are_one_prompt():
    records = [handmade("a", question, [1], group=question // 2, batch=2) for question in (0, 1, 2, 3)]
    records += [
        handmade("b", question, [1], group=group, batch=2) for question, group in ((0, 7), (1, 8), (2, 8), (3, 9))
    ]
    assert ledger(frame(records)).prompt.nunique() == 1
    assert ledger(frame(records[:4])).prompt.tolist() == [0, 0, 1, 1]


def test_only_what_both_sides_measured_is_compared():
    """A run that was stopped: question 2 lacks its second turn for m, question 3 its second repeat."""
    full = [
        handmade(method, question, [1], cost * (1 + 10 * (question > 1)), turn=turn, repeat=repeat)
        for method, cost in ((BASELINE, 2.0), ("m", 1.0))
        for question in (1, 2, 3)
        for turn in (0, 1)
        for repeat in (0, 1)
    ]
    whole = speedup(frame(full), "m")
    assert (whole.estimate, whole.prompts) == (2, 3)
    gaps = {("m", 2, 1, 0), ("m", 2, 1, 1), ("m", 3, 0, 1), ("m", 3, 1, 1)}
    spoiled = [
        record if record.method == BASELINE or record.question_id == 1 else
        handmade("m", record.question_id, [1], 11.0, turn=record.turn, repeat=record.repeat)
        for record in full if record.key not in gaps
    ]  # fmt: skip
    book = ledger(frame(spoiled))
    sums = book.sums([(BASELINE, "m")])[:, 0]
    assert sums[:, [1, 4]].tolist() == [[4, 4], [0, 0], [2, 2]]  # tokens
    assert sums[2].tolist() == [44, 2, 2, 22, 2, 2]
    assert speedup(frame(spoiled), "m").prompts == 2


def test_missing_sides():
    records = [handmade(BASELINE, 1, [1]), handmade("m", 2, [1])]
    with pytest.raises(BenchError, match="no common prompt"):
        speedup(frame(records), "m")
    with pytest.raises(BenchError, match="no records of 'x': the run holds autoregressive"):
        speedup(frame(records), "x")
    with pytest.raises(BenchError, match="no records of 'autoregressive'"):
        speedups(frame(records[1:]))


def test_question_ids_may_be_text():
    records = [handmade(method, question, [1], group=ord(question)) for method in (BASELINE, "m") for question in "ab"]
    assert speedup(frame(records), "m") == Interval(1, 1, 1, 2)


def test_without_noise_the_model_of_the_run_comes_back():
    plan = Plan("m", accept=0.6, depth=4, cost=1.3)
    df = frame(synthetic.records((Plan(BASELINE), plan), Shape(noise=0, drift=0)))
    rows = df[df.method == "m"]
    lengths = rows.tokens.map(len).sum() / rows.kept.map(len).sum()
    assert speedup(df, "m").estimate == pytest.approx(lengths / 1.3)


def test_speedups_agree_with_speedup():
    together = speedups(RUN, resamples=500)
    assert set(together) == set(RUN.method) - {BASELINE}
    for method in ("medusa", "hf_eager"):
        alone = speedup(RUN, method, resamples=500)
        np.testing.assert_allclose(
            [alone.low, alone.estimate, alone.high],
            [together[method].low, together[method].estimate, together[method].high],
        )


def test_decision():
    floor = Interval(0.99, 1.0, 1.02, 48)
    assert decision(Interval(1.1, 1.2, 1.3, 48), floor) == "faster"
    assert decision(Interval(0.8, 0.9, 0.95, 48), floor) == "slower"
    assert decision(Interval(0.9, 1.1, 1.3, 48), floor) == "no difference"
    assert decision(Interval(1.005, 1.01, 1.015, 48), floor) == "no difference"
    assert decision(Interval(0.982, 0.985, 0.988, 48), floor) == "no difference"  # as far, the other way
    assert decision(Interval(0.97, 0.975, 0.98, 48), floor) == "slower"
    assert decision(Interval(1.005, 1.01, 1.015, 48), None) == "faster"


def planted(cost: float, seed: int):
    plans = (Plan(BASELINE), Plan(TWIN), Plan("m", cost=cost))
    df = frame(synthetic.records(plans, Shape(questions=48, repeats=3, tokens=16, noise=0.03, seed=seed)))
    return decision(speedup(df, "m", resamples=2000), noise_floor(df, resamples=2000))


def test_a_planted_slowdown_of_three_percent_is_found_and_nothing_is_not():
    assert [planted(1.03, seed) for seed in range(6)] == ["slower"] * 6
    assert [planted(1.0, seed) for seed in range(6)] == ["no difference"] * 6


def test_noise_floor():
    assert noise_floor(RUN, 500) == speedup(RUN, TWIN, resamples=500)
    assert noise_floor(RUN[RUN.method != TWIN]) is None


def test_ranking():
    table = ranking(RUN, resamples=1000)
    lossless = [name for name, kind in kinds(RUN).items() if kind in {"match", "reject"} and name != TWIN]
    assert sorted(table.index) == sorted(lossless)
    assert table.index.tolist() == table.columns.tolist()
    assert table.index[0] == "ptp:k=16"
    assert table.index[-1] == BASELINE
    for a in table.index:
        for b in table.index:
            assert table.loc[a, b].estimate == pytest.approx(1 / table.loc[b, a].estimate)
            assert table.loc[a, b].estimate >= 1 or table.index.get_loc(a) > table.index.get_loc(b)
    assert table.loc["medusa", BASELINE].estimate == pytest.approx(speedup(RUN, "medusa").estimate)


def test_ranks_are_shared_where_methods_are_not_apart():
    def row(*intervals):
        return [Interval(low, (low + high) / 2, high, 48) for low, high in intervals]

    table = ranking(RUN, ["medusa", "ptp:k=16", BASELINE], resamples=100)
    table[:] = [
        row((1, 1), (0.9, 1.2), (1.5, 2)),
        row((0.8, 1.1), (1, 1), (1.2, 2)),
        row((0.5, 0.6), (0.5, 0.8), (1, 1)),
    ]
    assert ranks(table).tolist() == [1, 1, 3]
    restless = Interval(0.45, 0.6, 0.9, 48)  # so far is the baseline from its own copy
    assert ranks(table, restless).tolist() == [1, 1, 1]


def test_speed_bar():
    """10,000 resamples of 480 prompts, 3 repeats and 10 methods in under 5 s on two cores.

    Processor time of all threads together, so that a busy machine does not decide.
    """
    df = frame(synthetic.records(shape=Shape(questions=480, repeats=3, tokens=8)))
    assert len(df) == 480 * 3 * 10
    start = time.process_time()
    found = speedups(df)
    assert time.process_time() - start < 5
    assert len(found) == 9
    assert all(interval.prompts == 480 for interval in found.values())
