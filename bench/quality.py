"""`python -m bench quality`: what each method's texts are worth, beside the speed at which they were made."""

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lm_eval.api.task import Task
from lm_eval.evaluator import evaluate
from scipy.stats import binomtest

from bench import destination, journal, suite, tables, tasks, zoo
from bench.errors import BenchError
from bench.harness import HarnessModel, Made
from bench.measure import Team
from bench.memory import memory_limits
from bench.methods import METHODS, parse_one, public
from bench.record import BASELINE, TWIN
from bench.suite import DTYPES, RunSettings, spelled
from bench.terminal import console, show

FILE, ANSWERS = "quality.json", "quality_answers.jsonl"
STRANGERS = ("suite", "prompts", "repeats", "part")  # flags of `run` that mean nothing here


@dataclass(frozen=True)
class Answer:
    """One item as a method answered it."""

    task: str
    item: int
    value: float  # its score, 1 for a right answer; the first metric of the task under its first filter
    said: Any  # the text, or (log-probability, is greedy)


@dataclass(frozen=True)
class Result:
    """All items by one method, in the order of the tasks."""

    answers: list[Answer]
    made: Made

    @property
    def score(self) -> float:
        """Mean over items."""
        return sum(answer.value for answer in self.answers) / len(self.answers)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `quality`: a run, or those of `run`, and what to ask."""
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help="directory of a run: its settings, its report")
    suite.arguments(parser)
    parser.add_argument("--items", metavar="NAME", help="bundled (default), gsm8k:PATH, or a task of lm-eval")
    parser.add_argument("--data", metavar="PATH", help="GSM8K's questions as JSONL: the same as --items gsm8k:PATH")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where to write {FILE} (default: RUN)")


def command(args: argparse.Namespace) -> int:
    """Ask, score, compare, print. Exit status: 0, or 130 after Ctrl-C, which keeps the methods that were asked."""
    settings, items, directory = chosen(args), asked(args), journal.place(args.run, args.out)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant to be so
    out = console()
    with memory_limits(settings.device):
        results, status = journal.until_stopped(measure(settings, tasks.load(items), args.max_new_tokens))
    found = compare(results)
    if directory:
        write(directory, found, results)
    title = f"Quality of {public(settings.target)} on {items.partition(':')[0]}, temperature {settings.temperature:g}"
    show(shown := tables.quality(found, title), out)
    out.print(f"{shown.note}\n{remark(found)}", soft_wrap=True)
    return status


def chosen(args: argparse.Namespace) -> RunSettings:
    """The settings of `run`, or of RUN with its methods in the loop; but all items, unless a flag says how many.

    BenchError for flags that mean nothing here.
    """
    named = suite.given(args)
    if odd := [name for name in STRANGERS if name in named]:
        raise BenchError(f"{spelled(odd[0])} means nothing to quality: leave it out")
    if not args.run:
        return suite.chosen({"methods": ("prompt_lookup",), "limit": None} | named)
    free = {"limit": named.pop("limit", None), "batch": named.pop("batch", 1)}
    named.pop("max_new_tokens", None)
    saved = suite.continued(journal.settings(args.run), named)
    return replace(saved, methods=tuple(m for m in saved.methods if parse_one(m).name in METHODS), **free)


def asked(args: argparse.Namespace) -> str:
    """What `--items` and `--data` name. BenchError when they contradict."""
    if args.data and args.items not in (None, tasks.GSM8K):
        raise BenchError(f"--data is for GSM8K: leave out --items {args.items}, or --data")
    if args.items == tasks.GSM8K and not args.data:
        raise BenchError(f"{tasks.GSM8K} needs a local file: --items {tasks.GSM8K}:PATH")
    return f"{tasks.GSM8K}:{args.data}" if args.data else args.items or tasks.BUNDLED


def measure(settings: RunSettings, work: dict[str, Task],
            max_new_tokens: int | None = None) -> Iterator[tuple[str, Result]]:
    """Every method on all tasks, by label, the baseline first. BenchError for methods outside the loop.

    `max_new_tokens`: in place of the tasks' own.
    """
    target = zoo.load(settings.target, settings.device, DTYPES[settings.dtype])
    team = Team(settings, target, target.config.context)
    if team.references:
        raise BenchError(f"{min(team.references)} decodes outside the loop: leave it out of --methods")
    for label in team.methods:
        if label != TWIN:
            print(f"{label} ...", file=sys.stderr, flush=True)
            yield label, ask(HarnessModel(team, label, max_new_tokens), work)


def ask(model: HarnessModel, work: dict[str, Task]) -> Result:
    """One method on all tasks."""
    settings = model.team.settings
    found = evaluate(lm=model, task_dict=work, limit=settings.limit, apply_chat_template=not settings.raw,
                     bootstrap_iters=0)
    assert found is not None  # only other ranks of a distributed run get nothing
    return Result([answer(task, sample) for task, samples in found["samples"].items()
                   for sample in samples if sample["filter"] == samples[0]["filter"]], model.made)


def answer(task: str, sample: dict[str, Any]) -> Answer:
    """What lm-eval logged of an item. BenchError for a metric that has no value per item."""
    value = sample[sample["metrics"][0]]
    if not isinstance(value, bool | int | float):
        raise BenchError(f"{task} is not scored item by item: choose other --items")
    return Answer(task, sample["doc_id"], float(value), sample["resps"][0][0])


def compare(results: dict[str, Result]) -> dict[str, dict[str, Any]]:
    """By method: score, p against the baseline (None where texts are identical), speed. Ready for JSON.

    RuntimeError when identical texts score differently: then the scorer is wrong.
    """
    base = results[BASELINE]
    found = {}
    for label, result in results.items():
        differing = sum(a.said != b.said for a, b in zip(base.answers, result.answers, strict=True))
        if not differing and result.score != base.score:
            raise RuntimeError(f"{label} gave the baseline's very texts, and scores {result.score}, not {base.score}")
        p = mcnemar(zip(base.answers, result.answers, strict=True)) if differing else None
        made = result.made
        task = ", ".join(dict.fromkeys(answer.task for answer in result.answers))
        found[label] = {"score": result.score, "p": p, "items": len(result.answers), "task": task,
                        "differing": differing,
                        "tokens_per_s": 1000 * made.tokens / made.ms if made.ms else None,
                        "tokens_per_step": made.tokens / made.steps if made.steps else None}
    return found


def mcnemar(pairs: Iterable[tuple[Answer, Answer]]) -> float:
    """McNemar's exact test: are items that only one of two solves as often the one's as the other's?

    Where items score more than 0 and 1 it is the sign test. 1.0 where no item scores differently.
    """
    signs = [a.value < b.value for a, b in pairs if a.value != b.value]
    return float(binomtest(sum(signs), len(signs)).pvalue) if signs else 1.0


def write(directory: Path, found: dict[str, dict[str, Any]], results: dict[str, Result]) -> None:
    """quality.json for the report, and every answer. BenchError where that cannot be written."""
    lines = [json.dumps({"method": label} | vars(answer)) for label, result in results.items()
             for answer in result.answers]
    with destination.writing(directory):
        (directory / ANSWERS).write_text("\n".join(lines) + "\n", encoding="utf-8")
        (directory / FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def remark(found: dict[str, dict[str, Any]]) -> str:
    """Which methods gave the baseline's texts."""
    same = [label for label, entry in found.items() if label != BASELINE and not entry["differing"]]
    return f"The baseline's very texts, and its score: {', '.join(same) or 'no method'}."
