"""`python -m bench passages`: free text in one file, for prompts that the target would not make up."""

import argparse
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.free_text import passages_file
from bench.terminal import console
from bench.zoo.fetch import sha256


def arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `passages`."""
    parser.add_argument("--out", type=Path, required=True, metavar="FILE",
                        help="JSON lines, about 10 MB, for  data --passages FILE  on a machine without a network")


def command(args: argparse.Namespace) -> int:
    """Exit status 0."""
    source = passages_file()
    try:
        shutil.copyfile(source, args.out)
    except OSError as error:
        raise BenchError(f"cannot write {args.out} ({error.strerror}): choose another --out") from error
    library = Library.read(args.out)
    counts = ", ".join(f"{len(texts):,} sentences in {language}" for language, texts in library.sentences.items())
    console().print(f"{args.out}: {len(library.passages):,} passages, {counts}", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class Library:
    """Texts to ask about."""

    passages: list[str]
    sentences: dict[str, list[str]]  # by language
    digest: str  # sha256 of the file

    @staticmethod
    def read(path: Path) -> "Library":
        """BenchError for a file that `passages` has not written."""
        passages, sentences = [], defaultdict(list)
        try:
            for line in path.read_text(encoding="utf-8").strip("\n").split("\n"):
                entry = json.loads(line)
                if entry["kind"] == "passage":
                    passages.append(entry["text"])
                else:
                    sentences[entry["language"]].append(entry["text"])
            if not passages or not sentences:
                raise ValueError("it lacks passages or sentences")
            return Library(passages, dict(sentences), sha256(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} holds no passages ({error}): write it with  python -m bench passages --out "
                             f"{path}") from error

    def passage(self, random: np.random.Generator, fewest: int, most: int) -> str:
        """Part of a passage: from some sentence on, that many words or fewer, and whole sentences where it can be."""
        words = self.passages[random.integers(len(self.passages))].split(" ")
        count = int(random.integers(fewest, most + 1))
        ends = [0] + [i + 1 for i, word in enumerate(words) if word.endswith((".", "!", "?"))]
        begins = [begin for begin in ends if begin + count <= len(words)] or [0]
        begin = begins[random.integers(len(begins))]
        end = max((end for end in ends if begin + fewest <= end <= begin + count), default=begin + count)
        return " ".join(words[begin:end])
