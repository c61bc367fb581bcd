"""`python -m bench run`: decode every question by every method, side by side, and write what was seen."""

import argparse
from datetime import date
from itertools import count
from pathlib import Path

from rich.console import Console

from bench import destination, journal, prompts, suite, zoo
from bench.errors import INTERRUPTED, BenchError
from bench.measure import Team
from bench.memory import OutOfMemoryError, memory_limits
from bench.passes import Passes, sections
from bench.plan import WHOLE, Prompter
from bench.progress import progress
from bench.record import FILE, Writer
from bench.suite import DTYPES, RunSettings
from bench.terminal import console

LOCAL = Path("results") / "local"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `run`."""
    suite.arguments(parser)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="DIR", help=f"new directory (default: {LOCAL}/DATE-SUITE)")
    where.add_argument("--resume", type=Path, metavar="DIR", help="go on with a run that was stopped")


def command(args: argparse.Namespace) -> int:
    """Exit status: 0 when all was measured, 1 when a verdict is BROKEN, 130 after Ctrl-C."""
    named = suite.given(args)
    settings = suite.continued(journal.settings(args.resume), named) if args.resume else suite.chosen(named)
    directory = args.resume or args.out or free_directory(titled(settings))
    destination.check(directory)
    out = console()
    try:
        with memory_limits(settings.device):
            return run(settings, directory, bool(args.resume), out)
    except KeyboardInterrupt:
        out.print(f"stopped; {kept(directory)}", soft_wrap=True)
        return INTERRUPTED
    except OutOfMemoryError as error:
        raise BenchError(f"{error}; {kept(directory)}") from error


def run(settings: RunSettings, directory: Path, resume: bool, out: Console) -> int:
    """Load, check, measure, conclude: a part of a run is left as it is, for `join` to conclude."""
    questions = prompts.load(settings.prompts, settings.limit)
    work = sections(settings, questions)
    target = zoo.load(settings.target, settings.device, DTYPES[settings.dtype])
    prompter = Prompter(target.tokenizer, settings.max_new_tokens, settings.raw)
    context = prompter.check(questions, target.config.context)
    team = Team(settings, target, context)
    hashes = journal.hashes(target, questions) | team.hashes()
    with Writer(directory, resume) as writer, journal.session(directory, settings, hashes, resume):
        passes = Passes(team, prompter, work, writer)
        with progress(len(passes), out) as bar:
            passes.measure(bar)
    if settings.part != WHOLE:
        out.print(f"{directory} is part {settings.part}; of all parts:  python -m bench join PART PART ... --out RUN",
                  soft_wrap=True)
        return 0
    from bench.conclude import conclude  # matplotlib and scipy are slow to import

    return conclude(directory, target, prompter.prompts(questions, passes.answers), out)


def titled(settings: RunSettings) -> str:
    """The suite, and the part of it: parts that begin at the same time need directories of their own."""
    return settings.suite if settings.part == WHOLE else f"{settings.suite}-{settings.part.replace('/', 'of')}"


def free_directory(title: str) -> Path:
    """results/local/DATE-TITLE, numbered when it is taken."""
    first = LOCAL / f"{date.today().isoformat()}-{title}"
    return next(path for n in count(1) if not (path := first.with_name(first.name + f"-{n}" * (n > 1))).exists())


def kept(directory: Path) -> str:
    """What to say about records that are on disk already."""
    path = directory / FILE
    if not path.exists() or not path.stat().st_size:
        return "nothing was measured yet"
    return f"what was measured is kept: go on with  python -m bench run --resume {directory}"
