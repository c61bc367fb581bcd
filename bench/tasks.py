"""What quality is measured on: the bundled items, GSM8K from a local file, or lm-eval's own tasks by name.

The first two are lm-eval tasks made here, of questions with one right answer each; they need no network.
"""

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask, Task

from bench.errors import BenchError
from bench.prompts import QUALITY, answer_matches

BUNDLED, GSM8K = "bundled", "gsm8k"
METRIC = "solved"
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
Item = Mapping[str, Any]


def load(items: str) -> dict[str, Task]:
    """Tasks by name. BenchError for a name that lm-eval does not know, and for data that cannot be had."""
    kind, _, path = items.partition(":")
    if items == BUNDLED:
        return {BUNDLED: local(BUNDLED, QUALITY, ("prompt", "target"), 40, answer_matches)}
    if kind == GSM8K and path:
        return {GSM8K: local(GSM8K, Path(path), ("question", "answer"), 256, same_number)}
    return named(items)


def local(name: str, path: Path, keys: tuple[str, str], max_new_tokens: int,
          right: Callable[[str, str], bool]) -> Task:
    """A task of the questions in a JSONL file: `keys` hold question and answer, `right` judges an answer."""
    question, answer = keys
    rows = random.Random(0).sample(found := read(path, keys), len(found))  # so that the first few are like them all

    def judge(item: Item, results: list[str]) -> dict[str, float]:
        return {METRIC: float(right(results[0], item[answer]))}

    return ConfigurableTask(config={
        "task": name, "output_type": "generate_until", "test_split": "test", "num_fewshot": 0,
        "custom_dataset": lambda: {"test": Dataset.from_list(rows)},
        "doc_to_text": lambda item: item[question], "doc_to_target": lambda item: item[answer],
        "process_results": judge, "generation_kwargs": {"until": [], "max_gen_toks": max_new_tokens},
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}]})


def read(path: Path, keys: tuple[str, str]) -> list[dict[str, str]]:
    """The questions of a JSONL file. BenchError names the first line that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"{path} cannot be read ({error}): name a JSONL file of questions") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            rows.append(parsed(line, f"{path}, line {number}", keys))
    if not rows:
        raise BenchError(f"{path} holds no question: give one JSON object per line")
    return rows


def parsed(line: str, place: str, keys: tuple[str, str]) -> dict[str, str]:
    """One question with its answer. BenchError for anything else."""
    try:
        fields = json.loads(line)
        return {key: str(fields[key]) for key in keys}
    except (ValueError, KeyError, TypeError) as error:
        raise BenchError(f"{place} is no JSON object with {' and '.join(keys)}: mend or delete the line") from error


def same_number(answer: str, target: str) -> bool:
    """Whether the last numbers of both texts are equal, as GSM8K is scored (Cobbe et al. 2021, arXiv 2110.14168)."""
    said, wanted = (NUMBER.findall(text) for text in (answer, target))
    return bool(said and wanted) and float(said[-1].replace(",", "")) == float(wanted[-1].replace(",", ""))


def named(name: str) -> dict[str, Task]:
    """A task or group of lm-eval. Its data come from where its authors keep them."""
    from lm_eval.tasks import TaskManager  # reads thousands of files when it is made

    manager = TaskManager()
    if name not in manager.all_tasks:
        raise BenchError(f"unknown items {name!r}: use {BUNDLED}, {GSM8K}:PATH, or a task that lm-eval knows")
    try:
        return dict(manager.load([name])["tasks"])
    except Exception as error:  # offline, moved, gated, another format: every library on the way has its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BenchError(f"the data of {name} cannot be had ({reason}): use {BUNDLED} or {GSM8K}:PATH") from error
