"""`python -m bench join PART PART ... --out RUN`: what several processes measured (`run --part I/N`), as one run."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from bench import destination, journal, prompts, provenance, record, suite, zoo
from bench.compare import unlike
from bench.conclude import conclude
from bench.curves import processor
from bench.errors import BenchError
from bench.memory import memory_limits
from bench.passes import sections
from bench.plan import WHOLE, Part, Prompter, first_answers
from bench.prompts import Question
from bench.record import Key, Record, Writer
from bench.run import LOCAL, free_directory
from bench.suite import DTYPES, RunSettings, spelled, worded
from bench.terminal import console

Origin = Mapping[str, Any]  # a provenance
NAMED = 3  # missing records that a message names


class Piece(NamedTuple):
    """The directory of a part, read."""

    path: Path
    part: Part
    origin: Origin
    records: list[Record]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The parts; and flags of `run`, for a model or questions that lie elsewhere now."""
    parser.add_argument("parts", type=Path, nargs="+", metavar="PART", help="directories of all the parts of a run")
    suite.arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"new directory (default: {LOCAL}/DATE-SUITE)")


def command(args: argparse.Namespace) -> int:
    """Exit status: 0, or 1 when a verdict is BROKEN. BenchError where the parts do not make one run."""
    pieces = ordered([read(path) for path in args.parts])
    whole = replace(journal.settings(pieces[0].path), part=WHOLE)
    settings = suite.continued(whole, suite.given(args))
    directory = args.out or free_directory(settings.suite)
    destination.check(directory)
    with memory_limits(settings.device):
        return join(pieces, settings, directory, console())


def read(path: Path) -> Piece:
    """One part. BenchError where there is none, or what is there is damaged."""
    return Piece(path, Part.parse(journal.settings(path).part), journal.read(path), record.read(path))


def join(pieces: Sequence[Piece], settings: RunSettings, directory: Path, out: Console) -> int:
    """Check, write, conclude: on a machine like those of the parts, because verdicts ask how its arithmetic rounds."""
    questions = prompts.load(settings.prompts, settings.limit)
    records = gathered(pieces, settings, questions)
    target = zoo.load(settings.target, settings.device, DTYPES[settings.dtype])
    here = provenance.collect(settings.published(), journal.hashes(target, questions))
    agree({str(piece.path): piece.origin for piece in pieces} | {"what is here": here})
    with Writer(directory) as writer:
        writer.append(*records)
    journal.write(directory, together([piece.origin for piece in pieces]))
    prompter = Prompter(target.tokenizer, settings.max_new_tokens, settings.raw)
    return conclude(directory, target, prompter.prompts(questions, first_answers(records)), out)


def ordered(pieces: Sequence[Piece]) -> list[Piece]:
    """One of every part, in order. BenchError where a part is missing, or there twice."""
    count, found = pieces[0].part.count, dict[Part, Piece]()
    for piece in pieces:
        if piece.part.count != count:
            raise BenchError(f"{pieces[0].path} is part {pieces[0].part}, {piece.path} is part {piece.part}: "
                             "give the parts of one run")
        if piece.part in found:
            raise BenchError(f"{found[piece.part].path} and {piece.path} are both part {piece.part}: leave one out")
        found[piece.part] = piece
    wanted = [Part(index, count) for index in range(1, count + 1)]
    if missing := [str(part) for part in wanted if part not in found]:
        raise BenchError(f"part {', '.join(missing)} is missing: give the directories of all {count}")
    return [found[part] for part in wanted]


def agree(origins: Mapping[str, Origin]) -> None:
    """BenchError unless all had the same settings, files and kind of processor."""
    (first, was), *others = origins.items()
    for name, origin in others:
        if differences := unlike([facts(was), facts(origin)]):
            raise BenchError(f"{name} does not fit {first}: {'; '.join(differences)}")


def facts(origin: Origin) -> dict[str, str]:
    """What all parts must have in common, by name."""
    settings = {spelled(name): worded(value) for name, value in origin["settings"].items() if name != "part"}
    files = {f"sha256 of the {name}": digest[:12] for name, digest in origin["files"].items()}
    return settings | files | {"processor": processor(origin, origin["settings"]["device"])}


def gathered(pieces: Sequence[Piece], settings: RunSettings, questions: Sequence[Question]) -> list[Record]:
    """All records, in the order in which one run would have measured them. BenchError for a part that has others."""
    for piece in pieces:
        complete(piece, sections(replace(settings, part=str(piece.part)), questions).keys())
    place = {key: number for number, key in enumerate(sections(settings, questions).keys())}
    return sorted((record for piece in pieces for record in piece.records), key=lambda record: place[record.key])


def complete(piece: Piece, keys: Iterable[Key]) -> None:
    """BenchError unless a part holds just the records that it should."""
    wanted, there = list(keys), {record.key for record in piece.records}
    if missing := [key for key in wanted if key not in there]:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise BenchError(f"{piece.path} lacks {'; '.join(map(named, missing[:NAMED]))}{more}: go on with  "
                         f"python -m bench run --resume {piece.path}")
    if strange := there.difference(wanted):
        raise BenchError(f"{piece.path} is part {piece.part}, but holds {named(min(strange, key=str))}: measure it "
                         "again")


def named(key: Key) -> str:
    """A record, for messages."""
    method, question, turn, repeat = key
    return f"{method} on question {question}, turn {turn}, repeat {repeat}"


def together(origins: Sequence[Origin]) -> dict[str, Any]:
    """The provenance of the whole: what all parts say alike, and under "parts" what each says by itself."""
    common = alike(origins)
    whole = common | {"settings": common["settings"] | {"part": WHOLE}}
    return whole | {"parts": [apart(origin, common) for origin in origins]}


def alike(nodes: Sequence[Origin]) -> dict[str, Any]:
    """The leaves on which all agree."""
    found = {}
    for name in (name for name in nodes[0] if all(name in node for node in nodes)):
        values = [node[name] for node in nodes]
        if all(value == values[0] for value in values):
            found[name] = values[0]
        elif all(isinstance(value, dict) for value in values) and (shared := alike(values)):
            found[name] = shared
    return found


def apart(node: Origin, common: Origin) -> dict[str, Any]:
    """The leaves of one on which not all agree."""
    found = {}
    for name, value in node.items():
        if name not in common:
            found[name] = value
        elif isinstance(value, dict) and (rest := apart(value, common[name])):
            found[name] = rest
    return found
