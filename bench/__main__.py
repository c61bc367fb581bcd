"""The command line: `python -m bench COMMAND`, also installed as `ptp-bench`."""

import argparse
import importlib
import sys

from bench.errors import BenchError

COMMANDS = {  # name -> (module with `arguments` and `command`, what it does); imported only when it is asked for
    "run": ("bench.run", "measure methods on questions, side by side"),
    "list": ("bench.listing", "models, methods with their options, suites"),
    "report": ("bench.report", "tables and figures of a run"),
    "compare": ("bench.compare", "two runs against each other: a gate for regressions"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit status, or 2 after one line on stderr where the user can mend something."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m bench", description="One model, one loop, one clock.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, about) in COMMANDS.items():
        one = commands.add_parser(name, help=about, description=about)
        if argv[:1] == [name]:
            handler = importlib.import_module(module)
            handler.arguments(one)
    args = parser.parse_args(argv)
    try:
        return handler.command(args)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `... | head` has seen enough
        sys.stderr.close()
        return 1


if __name__ == "__main__":
    sys.exit(main())
