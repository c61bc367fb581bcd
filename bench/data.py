"""`python -m bench data`: the target writes text for its drafters to learn from."""

import argparse
from collections import Counter
from pathlib import Path

from rich.console import Console

from bench import destination, prompts, zoo
from bench.errors import BenchError
from bench.filters import spoken
from bench.memory import memory_limits
from bench.prompts import Question, shared_ngrams
from bench.sampling import Law
from bench.suite import DTYPES, find_device, find_dtype
from bench.terminal import console
from bench.texts import shards
from bench.writing import SHARES, Job, write


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `data`."""
    parser.add_argument("--target", default="smollm2-135m", metavar="T", help="model by name or path")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="shards go here; those there are kept")
    parser.add_argument("--sequences", type=int, default=20480, metavar="N", help="texts to write, before filtering; "
                        "rounded up to whole shards (%(default)s)")
    parser.add_argument("--batch", type=int, default=1024, metavar="B", help="texts at a time (of --long texts: as "
                        "many as take the same memory; %(default)s)")
    parser.add_argument("--shard", type=int, metavar="N", help="texts of a shard; default: eight batches")
    parser.add_argument("--length", type=int, default=640, metavar="L", help="tokens of a whole text (%(default)s)")
    parser.add_argument("--question", type=int, default=128, metavar="Q",
                        help="tokens of the longest question (%(default)s)")
    parser.add_argument("--second", type=float, default=0.25, metavar="S", help="share of texts with a second turn, "
                        "where it fits (%(default)s)")
    parser.add_argument("--opened", type=float, default=0.5, metavar="S", help="share of conversations whose first "
                        "words are ours, so that they are about more (%(default)s)")
    parser.add_argument("--greedy", type=float, default=0.2, metavar="S",
                        help="share of shards answered greedily (%(default)s)")
    parser.add_argument("--long", type=float, default=0.0, metavar="S", help="share of shards about free text: "
                        "summaries, answers from passages, translations (%(default)s)")
    parser.add_argument("--long-length", type=int, default=1536, metavar="L",
                        help="tokens of a whole text there (%(default)s)")
    parser.add_argument("--passages", type=Path, metavar="FILE", help="that free text, as  python -m bench passages  "
                        "writes it; default: fetched and cached")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T",
                        help="of all that is not greedy (%(default)s)")
    parser.add_argument("--top-k", type=int, default=50, metavar="K", help="0 is off (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="1 is off (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the noise")
    parser.add_argument("--raw", action="store_true", help="no chat template: the target just writes")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--dtype", default="auto", help="auto, fp32, bf16, fp16 or fp64")
    parser.add_argument("--check", metavar="PROMPTS", help="drop texts that share a 13-gram with this file of "
                        "questions, as with the bundled ones, and report what all shards share with it; with "
                        "--sequences 0 nothing is written")


def command(args: argparse.Namespace) -> int:
    """Exit status: 0, or 1 when `--check` found something."""
    refuse_nonsense(args)
    args.shard = args.shard or 8 * args.batch
    destination.check(args.out)
    out, device = console(), find_device(args.device)
    dtype = find_dtype(args.dtype, device)
    questions = prompts.load(args.check) if args.check else []
    with memory_limits(device):
        target = zoo.load(args.target, device, DTYPES[dtype])
        if args.sequences:
            write(Job.of(args, target, questions), out)
    out.print(summary(args.out), soft_wrap=True)
    return check(args.out, questions, target, out) if questions else 0


def refuse_nonsense(args: argparse.Namespace) -> None:
    """BenchError for numbers that mean nothing."""
    if min(args.batch, args.question, args.shard or 1) < 1 or min(args.sequences, args.seed) < 0:
        raise BenchError("--batch, --shard and --question must be at least 1, --sequences and --seed at least 0")
    for name in SHARES:
        if not 0 <= getattr(args, name) <= 1:
            raise BenchError(f"--{name} is a share between 0 and 1, got {getattr(args, name)}")
    if args.raw and args.long:
        raise BenchError("texts about passages need a chat template: leave out --raw or --long")


def summary(directory: Path) -> str:
    """What a directory holds, in one line."""
    counts, dropped = Counter[str](), Counter[str]()
    for shard in shards(directory):
        counts["texts"] += len(shard.texts)
        counts["greedy"] += len(shard.texts) * (shard.origin.law == Law())
        counts[shard.origin.settings["kind"]] += len(shard.texts)
        counts["turns"] += sum(bool(text.earlier) for text in shard.texts)
        counts["tokens"] += sum(len(text.ids) for text in shard.texts)
        counts["answers"] += sum(end - begin for text in shard.texts for begin, end in text.answers)
        dropped.update(shard.dropped)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
    return (f"{directory}: {counts['texts']:,} texts, {counts['tokens']:,} tokens, {counts['answers']:,} of them in "
            f"answers; {counts['long']:,} texts about passages, {counts['turns']:,} of two turns, {counts['greedy']:,} "
            f"answered greedily; dropped: {reasons}")


def check(directory: Path, questions: list[Question], target: zoo.Target, out: Console) -> int:
    """Report shared 13-grams; 1 if there are any."""
    turns = [turn for question in questions for turn in question.turns]
    texts = (words for shard in shards(directory) for text in shard.texts for words in spoken(text, target.tokenizer))
    shared = shared_ngrams(texts, turns)
    out.print(f"{len(shared)} 13-grams shared with the questions" + "".join(f"\n  {gram}" for gram in sorted(shared)),
              soft_wrap=True, markup=False)
    return 1 if shared else 0
