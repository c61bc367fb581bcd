"""Peers' files and peers' definitions, against cases computed by hand."""

import json

import numpy as np
import pandas as pd
import pytest
import synthetic
from synthetic import handmade

from bench import peers
from bench.__main__ import main
from bench.errors import BenchError
from bench.record import BASELINE, frame
from bench.stats import acceptance


def answer(question, category, choices, model="eagle"):
    return {"question_id": question, "category": category, "answer_id": "x", "model_id": model, "choices": choices,
            "tstamp": 1.0}  # fmt: skip


def choice(new_tokens, wall_time, **counts):
    return {"index": 0, "turns": ["text"] * len(new_tokens), "new_tokens": new_tokens, "wall_time": wall_time} | counts


def write(path, *answers):
    path.write_text("".join(json.dumps(line) + "\n" for line in answers))
    return path


def test_spec_bench_answers(tmp_path):
    """Its three ages: accept_lengths with decoding_steps, with idxs, and no lengths at all."""
    path = write(
        tmp_path / "a.jsonl",
        answer(81, "writing", [choice([10, 20], [1.0, 2.0], decoding_steps=[5, 6], accept_lengths=[3, 3, 4, 2])]),
        answer(82, "qa", [choice([12], [0.5], idxs=[3], accept_lengths=[4, 2])]),
        answer(83, "qa", [choice([12], [0.5], decoding_steps=[4])]),
        answer(84, "qa", [choice([12], [0.5], idxs=[3])]),
        answer(85, "rag", [choice([6], [0.5], idxs=[1]), choice([9], [1.5], idxs=[2])]),
    )
    df = peers.read_spec_bench(path)
    assert df.columns.tolist() == peers.ANSWERS
    assert df.question_id.tolist() == [81, 82, 83, 84, 85]
    assert df.tokens.tolist() == [30, 12, 12, 12, 15]
    assert df.time_s.tolist() == [3.0, 0.5, 0.5, 0.5, 2.0]
    assert df.steps.tolist() == [4, 2, 4, 4, 5]
    assert df.acceptance.tolist() == [3, 3, 3, 3, 3]
    assert set(df.method) == {"eagle"}


def test_the_command_prints_them_side_by_side(tmp_path, capsys):
    """Eagle needs half the time for as many tokens; vLLM's file knows no questions, so it stands alone."""
    slow = [answer(n, "qa" if n % 2 else "rag", [choice([10], [2.0], idxs=[9])], "vicuna") for n in range(24)]
    fast = [answer(n, "qa" if n % 2 else "rag", [choice([10], [1.0], idxs=[4])]) for n in range(24)]
    files = [str(write(tmp_path / f"{name}.jsonl", *lines)) for name, lines in (("v", slow), ("e", fast))]
    assert main(["peers", *files]) == 0
    rows = {cells[0]: cells[1:] for line in capsys.readouterr().out.splitlines() if (cells := line.split())}
    assert rows["eagle"] == [*"–––", "2.00", "–", "2.00", "2.00", "[2.00,", "2.00]", "2.00", "10.0", "24"]
    assert main(["peers", files[0], "--baseline", "eagle"]) == 2
    assert "no answers of 'eagle': there are vicuna" in capsys.readouterr().err
    latency = tmp_path / "latency.json"
    latency.write_text(json.dumps({"avg_latency": 2.0, "latencies": [2.0, 2.0]}))
    assert main(["peers", str(latency)]) == 2
    assert main(["peers", str(latency), "--output-tokens", "64"]) == 0
    assert "32.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 2 is not an answer of Spec-Bench: JSONDecodeError"),
        (json.dumps({"question_id": 1}), "line 2 is not an answer of Spec-Bench: KeyError 'choices'"),
        (json.dumps([1]), "line 2 is not an answer"),
        (json.dumps(answer(9, "qa", [choice([1], [1.0])])), "KeyError 'idxs'"),
        (json.dumps(answer(9, "qa", [choice([1], [1.0], idxs=[0]) | {"turns": ["ERROR"]}])), "question 9 failed there"),
    ],
)
def test_damaged_spec_bench_file(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", answer(1, "qa", [choice([1], [1.0], idxs=[0])]))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(BenchError, match=words):
        peers.read_spec_bench(path)


def test_no_answers(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(BenchError, match="holds no answers"):
        peers.read_spec_bench(tmp_path / "a.jsonl")
    with pytest.raises(BenchError, match="cannot read"):
        peers.read_spec_bench(tmp_path / "missing")


SERVE = {"backend": "vllm", "model_id": "m", "duration": 8.0, "completed": 4, "total_input_tokens": 100,
         "total_output_tokens": 400, "output_throughput": 50.0, "mean_tpot_ms": 19.0,
         "spec_decode_acceptance_length": 2.5}  # fmt: skip
LATENCY = {"avg_latency": 1.5, "std_latency": 0.5, "latencies": [1.0, 2.0], "percentiles": {"50": 1.5}}
THROUGHPUT = {"elapsed_time": 4.0, "num_requests": 10, "total_num_tokens": 900, "requests_per_second": 2.5}


def test_vllm_serve(tmp_path):
    (tmp_path / "eagle.json").write_text(json.dumps(SERVE))
    (row,) = peers.read_vllm(tmp_path / "eagle.json").itertuples()
    assert (row.method, row.category, row.tokens, row.time_s) == ("eagle", "all", 400, 8)
    assert (row.acceptance, row.steps) == (2.5, 160)
    plain = {key: value for key, value in SERVE.items() if not key.startswith("spec")}
    for content in (plain, plain | {"spec_decode_acceptance_length": None}):
        (tmp_path / "plain.json").write_text(json.dumps(content))
        found = peers.read_vllm(tmp_path / "plain.json")
        assert np.isnan(found.acceptance[0]) and np.isnan(found.steps[0])


def test_vllm_latency_and_throughput(tmp_path):
    (tmp_path / "l.json").write_text(json.dumps(LATENCY))
    (tmp_path / "t.json").write_text(json.dumps(THROUGHPUT))
    assert peers.read_vllm(tmp_path / "l.json", "a", output_tokens=1024).tokens.tolist() == [1024, 1024]
    assert peers.read_vllm(tmp_path / "l.json").time_s.tolist() == [1, 2]
    (row,) = peers.read_vllm(tmp_path / "t.json").itertuples()
    assert row.time_s == 4
    assert np.isnan(row.tokens)  # its 900 tokens count the prompts too
    with pytest.raises(BenchError, match="do not say how many tokens t generated: give --output-tokens"):
        peers.table(peers.read_vllm(tmp_path / "t.json"), "t")


@pytest.mark.parametrize("text", [
    "{", "[]", '{"duration": 1}', '{"total_output_tokens": "many", "duration": 1}',
    '{"latencies": 5, "avg_latency": 1}',
    '{"total_output_tokens": [3], "duration": 1}', '{"total_output_tokens": 3, "duration": 0}',
    '{"total_output_tokens": 3, "duration": null}', '{"total_output_tokens": -3, "duration": 1}'])
def test_no_vllm_file(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BenchError, match=r"is not JSON|is no result of vllm bench|says that no time passed"):
        peers.read_vllm(tmp_path / "x.json")


def test_a_file_given_twice_is_refused(tmp_path, capsys):
    """It would be one row of twice the tokens."""
    path = str(write(tmp_path / "a.jsonl", answer(1, "qa", [choice([3], [1.0], idxs=[2])])))
    assert main(["peers", path, path]) == 2
    assert "question 1 is answered twice by" in capsys.readouterr().err


def test_table_of_spec_bench(tmp_path):
    base = write(
        tmp_path / "base.jsonl",
        *(answer(q, c, [choice([10], [1.0], idxs=[9])], "vanilla") for q, c in ((1, "qa"), (2, "math"), (3, "stem"))),
    )
    fast = write(
        tmp_path / "fast.jsonl",
        answer(1, "qa", [choice([10], [0.5], accept_lengths=[5, 5])]),
        answer(2, "math", [choice([20], [1.0], accept_lengths=[4] * 5)]),
        answer(4, "rag", [choice([20], [1.0], accept_lengths=[20])]),
    )
    answers = pd.concat([peers.read_spec_bench(base), peers.read_spec_bench(fast)])
    table = peers.table(answers, "vanilla")
    assert table.index.tolist() == ["vanilla", "eagle"]
    assert table.columns[:6].tolist() == [
        "multi-turn conversation", "translation", "summarization", "qa", "math_reasoning", "rag",
    ]  # fmt: skip
    row = table.loc["eagle"]
    assert row.qa == 2
    assert row["multi-turn conversation"] == 2
    assert row.speedup == pytest.approx((2.0 / 20) / (1.5 / 30))
    assert row.prompts == 2
    assert np.isnan(row.rag)  # the baseline did not answer it
    assert row.accepted == (10 + 20 + 20) / 8
    assert row.tokens_per_s == 50 / 2.5
    assert table.speedup["vanilla"] == table.accepted["vanilla"] == 1
    with pytest.raises(BenchError, match="no answers of 'x': there are eagle, vanilla"):
        peers.table(answers, "x")
    with pytest.raises(BenchError, match="no common question"):
        peers.table(pd.concat([peers.read_spec_bench(base)[:1], peers.read_spec_bench(fast)[1:]]), "vanilla")


def test_table_of_vllm(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(SERVE))
    (tmp_path / "b.json").write_text(json.dumps(SERVE | {"duration": 20.0, "spec_decode_acceptance_length": 1.0}))
    both = pd.concat([peers.read_vllm(tmp_path / "s.json", "eagle"), peers.read_vllm(tmp_path / "b.json", "plain")])
    row = peers.table(both, "plain").loc["eagle"]
    assert (row.speedup, row.accepted, row.tokens_per_s) == (2.5, 2.5, 50)
    assert (row.low, row.high) == (0, np.inf)  # one number has no interval


def records():
    """Question 1: drafts from the first step on; the last step is clipped from 4 to 2. Question 2: first step blind."""
    one = handmade("m", 1, [3, 1, 2], drafted=[3, 3, 3], accepted=[2, 0, 3], rows=[4, 4, 4])
    two = handmade("m", 2, [1, 4], drafted=[0, 3], accepted=[0, 3], rows=[1, 4])
    return frame([one, two, handmade(BASELINE, 1, [1] * 6), handmade(BASELINE, 2, [1] * 5)])


def test_peer_definitions():
    df = records()
    found = {peer: peers.in_peer_definition(df, peer) for peer in peers.PEERS}
    assert found["Spec-Bench"]["m"] == (3 + 1 + 4 + 1 + 4) / 5
    assert found["vLLM"]["m"] == 1 + (2 + 0 + 3 + 3) / 4
    # calls: three of question 1 with the prefill's token on top; one of question 2, whose first step was the prefill
    assert found["SGLang"]["m"] == ((1 + 6) + (1 + 4)) / (3 + 1)
    assert found["SPEED-Bench"]["m"] == ((1 + 6) / (1 + 3) + (1 + 4) / (1 + 1)) / 2
    assert found["DFlash"]["m"] == (6 / 3 + 4 / 1) / 2
    assert all(series[BASELINE] == 1 for series in found.values())
    with pytest.raises(BenchError, match="unknown peer 'x': choose one of Spec-Bench, vLLM"):
        peers.in_peer_definition(df, "x")


def test_turns_of_a_question_are_one_request_of_speed_bench_and_two_sequences_of_dflash():
    turns = [handmade("m", 1, kept, turn=turn) for turn, kept in enumerate(([2, 2], [4]))]
    df = frame([*turns, handmade("m", 2, [2])])
    assert peers.in_peer_definition(df, "SPEED-Bench")["m"] == ((1 + 4 + 1 + 4) / (3 + 2) + (1 + 2) / 2) / 2
    assert peers.in_peer_definition(df, "DFlash")["m"] == (2 + 4 + 2) / 3


def test_definitions_agree_on_long_texts():
    """They differ by the first token and the end, so on long texts of equal length they meet."""
    shape = synthetic.Shape(questions=6, repeats=1, tokens=4000)
    plan = synthetic.Plan("m", accept=0.6, depth=4)
    df = frame(synthetic.records((plan,), shape))
    for peer in peers.PEERS:
        assert peers.in_peer_definition(df, peer)["m"] == pytest.approx(acceptance(df).micro["m"], rel=0.02)
