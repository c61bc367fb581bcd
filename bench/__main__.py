"""The command line: `python -m bench COMMAND`, also installed as `ptp-bench`."""

import argparse
import importlib
import multiprocessing
import signal
import sys
from typing import NoReturn

from bench.errors import INTERRUPTED, BenchError

COMMANDS = {  # name -> (module with `arguments` and `command`, what it does); imported only when it is asked for
    "run": ("bench.run", "measure methods on questions, side by side"),
    "join": ("bench.join", "the parts of a run, measured apart, as one run"),
    "list": ("bench.listing", "models, methods with their options, suites"),
    "report": ("bench.report", "tables and figures of a run"),
    "quality": ("bench.quality", "what the methods' texts are worth, through lm-eval, beside their speed"),
    "cost": ("bench.cost", "memory and energy of each method, alone in its process"),
    "rows": ("bench.rows", "what a step costs by the number of its rows"),
    "profile": ("bench.profile", "where a step's time goes: phases, kernels, gaps"),
    "project": ("bench.project", "what a run's acceptance would be worth at other shapes"),
    "batches": ("bench.batches", "what methods are worth in larger batches, from a run per batch size"),
    "compare": ("bench.gate", "two runs against each other: a gate for regressions"),
    "peers": ("bench.peers", "result files of Spec-Bench and vLLM in the same table"),
    "passages": ("bench.passages", "free text for prompts with long contexts"),
    "data": ("bench.data", "teacher text, written by the target itself"),
    "train": ("bench.train", "train a drafter on teacher text"),
    "learning": ("bench.learned", "what drafters accepted on held-out text while they were trained"),
    "world": ("ptp.world", "train every method on a small world, where parallel prediction must win"),
}


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status, or 2 after one line on stderr where the user can mend something.

    `kill` is Ctrl-C: a command keeps what it has, and the exit status is the same.
    """
    argv = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGTERM, interrupt)
    try:
        return dispatch(argv)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `... | head` has seen enough
        sys.stderr.close()
        return 1


def interrupt(*_: object) -> NoReturn:
    """Stop at a signal, and whatever runs in processes of their own: on a terminal Ctrl-C reaches those by itself."""
    for child in multiprocessing.active_children():
        child.terminate()
    raise KeyboardInterrupt


def dispatch(argv: list[str]) -> int:
    """Import the one module that is needed, and run it."""
    parser = Parser(prog="python -m bench", description="One model, one loop, one clock.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, about) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if argv[:1] == [name]:
            handler = importlib.import_module(module)
            handler.arguments(command)
    args = parser.parse_args(argv)
    return handler.command(args)


if __name__ == "__main__":
    sys.exit(main())
