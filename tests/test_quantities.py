"""Every quantity against small cases computed by hand."""

import numpy as np
import pytest
import synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import handmade

from bench.errors import BenchError
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
from bench.record import BASELINE, PHASES, frame

RUN = frame(synthetic.records())


def phases(**times):
    return {name: times[name] for name in PHASES}


SPLIT = phases(propose=[1.0, 2.0], forward=[5.0, 6.0], verify=[0.5, 0.25], commit=[0.25, 0.5], observe=[0.25, 0.25])


def test_quantities():
    record = handmade("m", 1, [3, 1], prefill_ms=4.0, phases=SPLIT, gaps=[0.0, 2.0], discarded_ms=4.0, wall_ms=25.0,
                      rows=[5, 4])
    row = quantities(frame([record])).iloc[0]
    assert (row.tokens, row.steps) == (4, 2)
    assert row.decode_ms == 7 + 2 + 9
    assert row.executed_ms == 20
    assert row.acceptance == 2
    assert row.closure == 0.8
    assert row.ttft_ms == 4 + 7
    assert row.rows_per_step == 4.5
    assert row.tpot_ms == 4.5
    assert row.tokens_per_s == 1000 / 4.5


def test_a_text_without_tokens():
    row = quantities(frame([handmade("m", 1, []), handmade("m", 2, [1])])).iloc[0]
    assert (row.tokens, row.steps, row.decode_ms) == (0, 0, 0)
    assert np.isnan(row.acceptance)
    assert np.isnan(row.ttft_ms)


def batch_of_two(method="m", **other):
    """Steps of 1, 2, 3 and 4 ms; the first sequence needs three of them, the second one; the last is discarded."""
    return [
        handmade(method, 1, [2, 1, 3], [1.0, 2.0, 3.0], group=5, batch=2, discarded_ms=4.0, wall_ms=10.0, **other),
        handmade(method, 2, [4], [1.0], group=5, batch=2, discarded_ms=9.0, wall_ms=10.0, **other),
    ]


def test_a_batch_counts_its_time_once():
    (row,) = batches(frame(batch_of_two())).itertuples()
    assert (row.sequences, row.tokens, row.steps, row.question_id) == (2, 10, 3, 1)
    assert (row.decode_ms, row.executed_ms, row.wall_ms) == (6, 10, 10)
    table = latency(frame(batch_of_two()))
    assert table.tpot_ms["m"] == 0.6
    assert table.tokens_per_s["m"] == pytest.approx(10 / 0.006)
    assert phase_table(frame(batch_of_two())).step_ms["m"] == 2
    assert phase_table(frame(batch_of_two())).closure["m"] == 1


def test_batches_differ_by_method_repeat_turn_and_group():
    records = [
        *(
            handmade(method, 1, [1], repeat=repeat, turn=turn)
            for method in "ab"
            for repeat in (0, 1)
            for turn in (0, 1)
        ),
        handmade("a", 2, [1], group=2),
    ]
    assert len(batches(frame(records))) == 9


def test_wrong_group_numbers_are_refused():
    with pytest.raises(BenchError, match="2 records of m share group 0 of turn 0, repeat 0"):
        batches(frame([handmade("m", 1, [1], group=0), handmade("m", 2, [1], group=0)]))


def test_acceptance_micro_and_macro():
    table = acceptance(frame([handmade("m", 1, [4, 4]), handmade("m", 2, [1]), handmade("n", 1, [1])]))
    assert table.micro["m"] == 9 / 3
    assert table.macro["m"] == (4 + 1) / 2
    assert table.rows_per_step["m"] == 3  # every draft was accepted: rows are the kept tokens
    assert table.micro["n"] == table.macro["n"] == 1


def test_acceptance_by_depth():
    """Five steps; depth 2 was proposed in three of them, depth 3 in one."""
    record = handmade("m", 1, [1, 2, 3, 1, 1], drafted=[1, 2, 3, 2, 0], accepted=[0, 2, 2, 0, 0], rows=[2, 3, 4, 3, 1])
    rows = acceptance_by_depth(frame([record, handmade(BASELINE, 1, [1, 1])]))
    assert rows.method.unique().tolist() == ["m"]
    assert rows.depth.tolist() == [1, 2, 3]
    assert rows.steps.tolist() == [4, 3, 1]
    assert rows.reached.tolist() == [4, 2, 1]
    assert rows.joint.tolist() == [2 / 4, 2 / 3, 0]
    assert rows.conditional.tolist() == [2 / 4, 1, 0]


def test_depth_never_reached():
    rows = acceptance_by_depth(frame([handmade("m", 1, [1], drafted=[2], accepted=[0])]))
    assert rows.conditional.isna().tolist() == [False, True]


def test_latency_percentiles():
    times = [float(value) for value in range(1, 102)]  # 1 .. 101 ms, so that percentile p is 1 + p
    table = latency(frame([handmade("m", 1, [1] * 101, times)]))
    assert [table[f"step_ms_p{level}"]["m"] for level in (50, 95, 99)] == [51, 96, 100]
    assert [table[f"token_ms_p{level}"]["m"] for level in (50, 95, 99)] == [51, 96, 100]
    assert table.ttft_ms_p50["m"] == 5
    assert table.tpot_ms["m"] == 51


def test_latency_per_token_shares_a_step_and_carries_an_empty_one():
    """A step of 6 ms keeps 3 tokens (2 ms each); one of 1 ms keeps none, so the next token takes 1 + 4 ms."""
    record = handmade("m", 1, [3, 0, 1], [6.0, 1.0, 4.0], drafted=[2, 2, 0], accepted=[2, 0, 0], rows=[3, 3, 1])
    table = latency(frame([record]))
    assert table.token_ms_p50["m"] == 2
    assert table.token_ms_p99["m"] == pytest.approx(np.percentile([2, 2, 2, 5], 99))
    assert table.step_ms_p50["m"] == 4


def test_phase_table():
    records = [
        handmade("m", 1, [1, 1], phases=SPLIT, wall_ms=16.0),
        handmade("m", 2, [1, 1], phases=SPLIT, wall_ms=16.0, discarded_ms=8.0),
    ]
    row = phase_table(frame(records)).loc["m"]
    assert row[list(PHASES)].tolist() == [1.5, 5.5, 0.375, 0.375, 0.25]
    assert row.step_ms == 8
    assert row.closure == 40 / 32
    assert row.outside == 1
    assert row.flagged


@pytest.mark.parametrize(
    ("wall", "flagged"), [(100.0, False), (103.0, False), (104.0, True), (97.2, False), (96.9, True)]
)
def test_closure_is_flagged(wall, flagged):
    assert phase_table(frame([handmade("m", 1, [1] * 100, wall_ms=wall)])).flagged["m"] == flagged


def test_kept_histogram():
    table = kept_histogram(frame([handmade("m", 1, [1, 3, 3]), handmade("m", 2, [3]), handmade("n", 1, [1])]))
    assert table.m.tolist() == [0, 1, 0, 3]
    assert table.n.tolist() == [0, 1, 0, 0]


def test_rejection_z():
    def record(method, question, repeat, excess, variance):
        rejection = {"excess": excess, "variance": variance, "tested": 8}
        return handmade(method, question, [1], repeat=repeat, rejection=rejection)

    records = [record("m", 1, 0, 3.0, 9.0), record("m", 2, 0, 1.0, 7.0), handmade(BASELINE, 1, [1])]
    records += [record("m", 1, 1, 3.0, 9.0)]  # a repeat reuses the noise: it is no new evidence
    records += [record("sure", 1, 0, 0.0, 0.0), record("broken", 1, 0, -1.0, 0.0)]
    table = rejection_z(frame(records))
    assert table.z.to_dict() == {"m": 4 / np.sqrt(16), "sure": 0, "broken": -np.inf}
    assert table.tested["m"] == 16
    assert rejection_z(frame([handmade(BASELINE, 1, [1])])).empty


def test_divergences():
    def text(method, question, tokens, **other):
        return handmade(method, question, [1] * len(tokens), tokens=tokens, **other)

    records = [
        text(BASELINE, 1, [5, 6, 7]),
        text(BASELINE, 2, [5, 6, 7]),
        text(BASELINE, 3, [5, 6]),
        text(BASELINE, 4, [1], turn=1),
        text("m", 1, [5, 6, 7]),
        text("m", 2, [5, 9, 7]),
        text("m", 3, [5, 6, 8]),
        text("m", 4, [9], turn=0),  # another turn: not compared
        text("same", 4, [1], turn=1),
    ]
    table = divergences(frame(records))
    assert table.loc["m"].to_dict() == {
        "sequences": 3, "diverged": 2, "rate": 2 / 3, "first_positions": [1, 2], "tokens": 3 + 2 + 3,
    }  # fmt: skip
    assert table.diverged["same"] == 0
    assert BASELINE not in table.index


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
@settings(max_examples=25, deadline=None)
def test_any_run_adds_up(accepted, data):
    """However a text is cut into steps: shares, histogram and token latencies agree with the totals."""
    kept = [data.draw(st.integers(0, count + 1)) for count in accepted[:-1]] + [accepted[-1] + 1]
    times = [float(data.draw(st.integers(1, 50))) for _ in kept]
    rows = [count + 1 for count in accepted]
    df = frame([handmade("m", 1, kept, times, accepted=accepted, drafted=accepted, rows=rows)])
    assert kept_histogram(df).m.dot(kept_histogram(df).index) == sum(kept)
    assert acceptance(df).micro["m"] == pytest.approx(sum(kept) / len(kept))
    assert latency(df).tpot_ms["m"] == pytest.approx(sum(times) / sum(kept))
    assert phase_table(df).step_ms["m"] == pytest.approx(np.mean(times))
    assert (acceptance_by_depth(df).conditional.dropna() == 1).all()


def test_conditional_rates_multiply_to_the_joint_rate_at_fixed_depth():
    rows = acceptance_by_depth(RUN)
    for _, method in rows.groupby("method"):
        np.testing.assert_allclose(method.conditional.cumprod(), method.joint)


def test_acceptance_length_is_one_plus_the_joint_rates():
    """Where clipping is switched off, the micro acceptance length is 1 + the sum of the joint rates over depth."""
    df = RUN[RUN.method == "ptp:k=16"].copy()
    df["tokens"] = df.accepted.map(lambda counts: np.arange((counts + 1).sum()))
    joint = acceptance_by_depth(df).joint.sum()
    assert acceptance(df).micro["ptp:k=16"] == pytest.approx(1 + joint)
