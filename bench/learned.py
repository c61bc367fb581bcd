"""`python -m bench learning FILE FILE ...`: what drafters accepted on held-out text while they were trained.

Each file's card has the curve. `learning.json` keeps what a page says of it, and `report` makes the page again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench import destination, drafters, report
from bench.errors import BenchError
from bench.layout import in_words
from bench.learning import FILE


def arguments(parser: argparse.ArgumentParser) -> None:
    """Drafters, and where to write."""
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="drafters that `train` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")


def command(args: argparse.Namespace) -> int:
    """Keep the cards' curves, write learning.md, .tex and .html. BenchError for a file that has none."""
    destination.check(args.out)
    cards = {path.stem: kept(path) for path in args.files}
    destination.put(args.out / FILE, json.dumps(cards, indent=1) + "\n")
    paths = report.write(args.out)
    print(f"wrote {paths.markdown}, {len(paths.tables)} tables and {len(paths.figures)} figures")
    return 0


def kept(path: Path) -> dict[str, Any]:
    """What a page says of a drafter. BenchError when its card has no curve."""
    card, _ = drafters.read(path, weights=False)
    if not card.notes.get("curve"):
        raise BenchError(f"{path.name} holds no curve of its training: leave it out, or train it anew")
    law = in_words(card.law.temperature, card.law.top_k, card.law.top_p)
    noted = {key: card.notes[key] for key in ("asked", "seed", "stored", "curve")}
    return noted | {"target": card.target, "law": law, "data": card.data, "steps": card.steps,
                    "minutes": card.minutes, "sha256": card.sha256}
