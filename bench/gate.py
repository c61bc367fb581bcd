"""`python -m bench compare OLD NEW`: whether a run is as fast as an earlier one, as an exit status."""

import argparse
from pathlib import Path

from bench.compare import compare


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `compare`."""
    parser.add_argument("old", type=Path, metavar="OLD", help="directory of a run")
    parser.add_argument("new", type=Path, metavar="NEW", help="directory of a later run")
    parser.add_argument("--fail-below", type=float, metavar="RATIO", help="lowest new speed over old, such as 0.97")
    parser.add_argument("--force", action="store_true", help="compare runs of different targets, laws or machines")


def command(args: argparse.Namespace) -> int:
    """1 where a method became slower than allowed. BenchError for runs that cannot be compared."""
    found = compare(args.old, args.new, args.fail_below, args.force)
    print(found)
    return found.exit_code
