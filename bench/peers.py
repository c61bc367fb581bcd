"""`python -m bench peers FILE ...`: other benchmarks' result files in our table, our lengths in their definitions.

Files of peers become one DataFrame of ANSWERS columns, however much they tell; `table` makes our main table of it.
Their token counts are taken as they stand, though Spec-Bench counts what its methods generate past the end of a text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.bootstrap import ratio_intervals, ratio_of_sums
from bench.errors import BenchError
from bench.prompts import TASKS
from bench.tables import others
from bench.terminal import console, show

ANSWERS = ["method", "question_id", "category", "tokens", "time_s", "steps", "acceptance"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `peers`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE",
                        help="Spec-Bench's answers (.jsonl) or a result of `vllm bench` (.json)")
    parser.add_argument("--baseline", metavar="NAME", help="method to compare with (default: the first file's)")
    parser.add_argument("--output-tokens", type=int, metavar="N", help="tokens made, where vLLM's file does not say it")


def command(args: argparse.Namespace) -> int:
    """Print what the files hold as a main table. BenchError for a file that is none, or says too little."""
    found = [read_spec_bench(path) if path.suffix == ".jsonl" else read_vllm(path, output_tokens=args.output_tokens)
             for path in args.files]
    baseline, answers = args.baseline or found[0].method.iloc[0], pd.concat(found, ignore_index=True)
    if (twice := answers.duplicated(["method", "question_id"])).any():
        method, question = answers[twice].iloc[0][["method", "question_id"]]
        raise BenchError(f"question {question} is answered twice by {method}: give each file once, and files of "
                         "different methods different names")
    shown, out = others(table(answers, baseline), baseline), console()
    show(shown, out)
    out.print(shown.note, soft_wrap=True)
    return 0


def read_spec_bench(path: str | Path) -> pd.DataFrame:
    """Spec-Bench's answer file (model_answer/*.jsonl): one row per question, its turns and choices summed.

    method is the file's model_id. time_s includes the prefill. acceptance is the mean of `accept_lengths`; files
    without them give tokens / steps from `decoding_steps`, or from `idxs`, which count from 0 (evaluation/eval.py and
    inference_*.py of github.com/hemingkx/Spec-Bench, as of 2025). Raises BenchError for a damaged line, and for a
    question that failed there.
    """
    rows = [_answer(line, f"{path} line {number}") for number, line in _lines(Path(path))]
    if not rows:
        raise BenchError(f"{path} holds no answers")
    return pd.DataFrame(rows, columns=ANSWERS)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            yield number, line


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def _answer(line: str, place: str) -> tuple[Any, ...]:
    try:
        answer = json.loads(line)
        choices = answer["choices"]
        if any("ERROR" in choice["turns"] for choice in choices):
            raise BenchError(
                f"{place}: question {answer['question_id']} failed there; nothing is averaged over a failure"
            )
        tokens = sum(sum(choice["new_tokens"]) for choice in choices)
        time_s = float(sum(sum(choice["wall_time"]) for choice in choices))
        steps = sum(_steps(choice) for choice in choices)
        lengths = [length for choice in choices for length in choice.get("accept_lengths", ())]
        acceptance = float(np.mean(lengths)) if lengths else tokens / steps
        if not (isinstance(answer["model_id"], str) and isinstance(answer["question_id"], int | str)):
            raise TypeError("model_id must be a text, question_id a number or a text")
        if not (time_s > 0 and tokens > 0):
            raise ValueError("no time passed, or no tokens were made")
        return answer["model_id"], answer["question_id"], answer["category"], tokens, time_s, steps, acceptance
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise BenchError(f"{place} is not an answer of Spec-Bench: {type(error).__name__} {error}") from error


def _steps(choice: dict[str, Any]) -> int:
    if choice.get("accept_lengths"):
        return len(choice["accept_lengths"])
    return sum(choice["decoding_steps"]) if "decoding_steps" in choice else sum(choice["idxs"]) + len(choice["idxs"])


def read_vllm(path: str | Path, method: str | None = None, output_tokens: int | None = None) -> pd.DataFrame:
    """The JSON that `vllm bench serve`, `latency` or `throughput` leaves: one row, or one per iteration for latency.

    method is by default the file's name. acceptance is `spec_decode_acceptance_length` (1 + accepted / drafts) where
    the server told it. latency and throughput do not say how many tokens were generated: give `output_tokens` (per
    iteration of latency; in all for throughput), else tokens is NaN. Keys as in vllm/benchmarks of
    github.com/vllm-project/vllm, 2025. Raises BenchError for any other file.
    """
    path = Path(path)
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise BenchError(f"{path} is not JSON: {error}") from error
    try:
        rows = _vllm_rows(found if isinstance(found, dict) else {}, np.nan if output_tokens is None else output_tokens)
        out = pd.DataFrame(rows, columns=["tokens", "time_s", "acceptance"], dtype=float)  # null becomes NaN
    except (ValueError, TypeError) as error:
        raise BenchError(f"{path} is no result of vllm bench: {error}") from error
    if out.empty:
        raise BenchError(f"{path} is no result of vllm bench serve, latency or throughput")
    if not (out.time_s > 0).all() or (out.tokens <= 0).any():
        raise BenchError(f"{path} says that no time passed, or that no tokens were made: nothing can be told from it")
    out["method"], out["category"] = method or path.stem, "all"
    out["question_id"] = range(len(out))
    out["steps"] = out.tokens / out.acceptance
    return out[ANSWERS]


def _vllm_rows(found: dict[str, Any], output_tokens: float) -> list[tuple[float, float, float]]:
    """(tokens, seconds, acceptance length) of each row."""
    if "total_output_tokens" in found and "duration" in found:
        acceptance = found.get("spec_decode_acceptance_length", np.nan)
        return [(found["total_output_tokens"], found["duration"], acceptance)]
    if "latencies" in found and "avg_latency" in found:
        return [(output_tokens, seconds, np.nan) for seconds in found["latencies"]]
    if "elapsed_time" in found and "total_num_tokens" in found:
        return [(output_tokens, found["elapsed_time"], np.nan)]
    return []


def table(answers: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Peers' answers (of one baseline and some methods, concatenated) as a main table.

    Per method: speedup on each of the six tasks and overall with its 95 % interval over questions, by our definition
    (time per token of the baseline over the method's, on common questions); accepted, the micro acceptance length;
    tokens_per_s. Raises BenchError where the baseline or a number of tokens is missing, or no question is common.
    """
    silent = sorted(set(answers.method[answers.tokens.isna()]))
    if silent:
        raise BenchError(f"the files do not say how many tokens {', '.join(silent)} generated: give --output-tokens")
    methods = sorted(set(answers.method), key=lambda method: (method != baseline, method))
    if baseline not in methods:
        raise BenchError(f"no answers of {baseline!r}: there are {', '.join(methods)}")
    sums = answers.groupby(["method", "question_id"])[["time_s", "tokens"]].sum()
    tasks = answers.groupby("question_id").category.first().map(TASKS)
    weighted = answers.assign(kept=answers.acceptance * answers.steps).groupby("method")
    totals = weighted[["kept", "steps", "tokens", "time_s"]].sum()
    out = {method: _row(sums.loc[baseline], sums.loc[method], tasks) for method in methods}
    result = pd.DataFrame.from_dict(out, orient="index").rename_axis("method")
    return result.assign(accepted=totals.kept / totals.steps, tokens_per_s=totals.tokens / totals.time_s)


def _row(baseline: pd.DataFrame, method: pd.DataFrame, tasks: pd.Series) -> dict[str, float]:
    both = baseline.merge(method, left_index=True, right_index=True)
    if both.empty:
        raise BenchError("the files answer no common question")
    sums = both.to_numpy(float)  # [questions, 4]
    (interval,) = ratio_intervals(sums[:, None])
    by_task = {
        task: float(ratio_of_sums(sums[(tasks[both.index] == task).to_numpy()].sum(axis=0)))
        for task in dict.fromkeys(TASKS.values())
    }
    return by_task | {
        "speedup": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "prompts": interval.prompts,
    }


def in_peer_definition(df: pd.DataFrame, peer: str) -> pd.Series:
    """Acceptance length of each method in our records, counted as `peer` (a key of PEERS) counts it."""
    if peer not in PEERS:
        raise BenchError(f"unknown peer {peer!r}: choose one of {', '.join(PEERS)}")
    return pd.Series({method: PEERS[peer](rows) for method, rows in df.groupby("method")}, name=peer, dtype=float)


def _calls(df: pd.DataFrame) -> pd.Series:
    """Kept tokens of each step that a peer would call a verification: arrays, one per record.

    Peers draw the first token from the prefill. Our first step does that where it drafts nothing, so it is no call;
    where it drafts it is one, and the peer's prefill token comes on top.
    """
    return pd.Series(
        [row.kept[1:] if len(row.drafted) and row.drafted[0] == 0 else row.kept for row in df.itertuples()], df.index
    )


def _drafts(df: pd.DataFrame) -> bool:
    return any(row.any() for row in df.drafted)


def _spec_bench(df: pd.DataFrame) -> float:
    """Mean over all steps of accepted + 1, also past the end of the text (evaluation/speed.py on accept_lengths)."""
    return float(np.mean(np.concatenate(df.accepted.to_numpy()) + 1))


def _vllm(df: pd.DataFrame) -> float:
    """1 + accepted / drafts, a draft being a step that drafted anything (vllm/benchmarks/serve.py)."""
    drafts = np.concatenate(df.drafted.to_numpy()) > 0
    return 1 + float(np.concatenate(df.accepted.to_numpy()).sum() / drafts.sum()) if drafts.any() else 1.0


def _sglang(df: pd.DataFrame) -> float:
    """Completion tokens with the prefill's / verify calls (completion_tokens / spec_verify_ct in sglang's benches)."""
    calls = _calls(df)
    return float((calls.map(sum) + 1).sum() / calls.map(len).sum()) if _drafts(df) else 1.0


def _speed_bench(df: pd.DataFrame) -> float:
    """Mean over questions of tokens / chunks, the prefill's token being a chunk of its own.

    As specdec_bench/metrics/specbench.py of github.com/NVIDIA/Model-Optimizer pools a question's turns.
    """
    calls = _calls(df)
    sums = pd.DataFrame({"tokens": calls.map(sum) + 1, "chunks": calls.map(len) + 1}).groupby(df.question_id).sum()
    return float((sums.tokens / sums.chunks).mean()) if _drafts(df) else 1.0


def _dflash(df: pd.DataFrame) -> float:
    """Mean over sequences of kept tokens / verify calls, the prefill's token left out (z-lab/dflash, benchmark.py)."""
    calls = _calls(df)
    return float((calls.map(sum) / calls.map(len)).mean()) if _drafts(df) else 1.0


PEERS: dict[str, Callable[[pd.DataFrame], float]] = {
    "Spec-Bench": _spec_bench,
    "vLLM": _vllm,
    "SGLang": _sglang,
    "SPEED-Bench": _speed_bench,
    "DFlash": _dflash,
}
