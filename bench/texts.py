"""Teacher text on disk: shards of token ids in safetensors files, each of which says what wrote it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from bench import destination
from bench.errors import BenchError
from bench.sampling import Law

HELD_OUT = 32  # one text of so many is never trained on


Span = tuple[int, int]  # from which id up to which


@dataclass(frozen=True)
class Text:
    """One conversation; its last turn is a question and an answer to it."""

    ids: np.ndarray  # int32
    question: Span  # what is asked, by the target or by a prompt of ours; empty where nobody asks
    answer: int  # where the answer begins
    earlier: tuple[Span, ...] = ()  # question, answer, question, ... of the turns before
    greedy: bool = False  # answered at temperature 0

    @property
    def answers(self) -> list[Span]:
        """All that the target says in the shard's law for certain."""
        return [*self.earlier[1::2], (self.answer, len(self.ids))]

    @property
    def questions(self) -> list[Span]:
        """All that is asked; one for each answer."""
        return [*self.earlier[::2], self.question]

    def digest(self) -> bytes:
        """Equal for equal ids."""
        return hashlib.sha256(self.ids.astype("<i4").tobytes()).digest()[:16]

    @property
    def is_held_out(self) -> bool:
        """Decided by the ids alone: more shards move no text from one side to the other."""
        return self.digest()[0] % HELD_OUT == 0


@dataclass(frozen=True)
class Origin:
    """What wrote a shard. Shards of one directory share all but the kind of text and the greedy variant of the law."""

    target: str  # name
    checksum: str  # of the target's weights; its name if they are random
    law: Law  # of the answers
    settings: dict[str, Any]  # of the command that wrote it


@dataclass
class Shard:
    """The texts of one batch."""

    texts: list[Text]
    origin: Origin
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> texts

    def save(self, path: Path) -> None:
        """Write the file in one go. `ids` int32 [all tokens]; `places` int32 [texts, 4 + 4 turns]: length,
        question, answer, then question and answer of each turn before the last, 0 where there is none.
        """
        empty = np.zeros(0, np.int32)
        places = [(len(t.ids), *t.question, t.answer, *chain(*t.earlier)) for t in self.texts]
        width = max(map(len, places), default=4)
        tensors = {"ids": np.concatenate([t.ids for t in self.texts] or [empty]).astype(np.int32),
                   "places": np.array([p + (0,) * (width - len(p)) for p in places], np.int32).reshape(-1, width)}
        about = {"origin": asdict(self.origin), "dropped": self.dropped}
        with destination.replacing(path) as fresh:
            save_file(tensors, fresh, metadata={"shard": json.dumps(about)})

    @staticmethod
    def load(path: Path) -> "Shard":
        """Read what `save` wrote. BenchError for any other file."""
        try:
            with safe_open(path, "np") as file:
                about = json.loads((file.metadata() or {})["shard"])
                ids, places = file.get_tensor("ids"), file.get_tensor("places")
        except (OSError, SafetensorError, KeyError) as error:
            raise BenchError(f"{path} is no shard of teacher text ({error}): delete it and write it again") from error
        origin = Origin(**{**about["origin"], "law": Law(**about["origin"]["law"])})
        parts = np.split(ids, np.cumsum(places[:, 0]))[:-1]
        texts = [Text(part, (begin, end), answer, tuple(span for span in spans(earlier) if any(span)),
                      origin.law == Law())
                 for part, (_, begin, end, answer, *earlier) in zip(parts, places.tolist(), strict=True)]
        return Shard(texts, origin, about["dropped"])


def spans(places: list[int]) -> Iterator[Span]:
    """[0, 3, 5, 9] -> (0, 3), (5, 9)."""
    return zip(places[::2], places[1::2], strict=True)


def shard_path(directory: Path, number: int) -> Path:
    """Where shard `number` lies."""
    return directory / f"shard-{number:05}.safetensors"


def shards(directory: Path) -> Iterator[Shard]:
    """All shards of a directory, in order. BenchError where there is none."""
    paths = sorted(directory.glob("shard-*.safetensors"))
    if not paths:
        raise BenchError(f"{directory} holds no teacher text: write some with  python -m bench data --out {directory}")
    return map(Shard.load, paths)


@dataclass(frozen=True)
class Corpus:
    """What a drafter is trained on."""

    seen: list[Text]
    held_out: list[Text]
    law: Law
    digest: str  # of all its texts

    @property
    def greedy(self) -> float:
        """Share of the texts that were answered greedily."""
        return sum(text.greedy for text in self.seen) / len(self.seen)

    @staticmethod
    def read(directory: Path, checksum: str, greedy: bool) -> "Corpus":
        """Sampled and greedy answers, or the greedy ones alone, which are for another law.

        BenchError when the texts are another target's, of several laws, or too few.
        """
        texts, laws, whole = [], set(), hashlib.sha256()
        for shard in shards(directory):
            if shard.origin.checksum != checksum:
                raise BenchError(f"{directory} was written by another target ({shard.origin.target}): write text with "
                                 "this one, or name that one with --target")
            if shard.origin.law == Law() or not greedy:
                laws.add(shard.origin.law)
                texts += shard.texts
        sampled = laws - {Law()}
        if len(sampled) > 1:
            raise BenchError(f"{directory} holds texts of {len(sampled)} laws: give each law a directory of its own")
        for text in texts:
            whole.update(text.digest())
        held_out = sorted((text for text in texts if text.is_held_out), key=Text.digest)  # all kinds from the first on
        if not held_out or len(held_out) == len(texts):
            raise BenchError(f"{directory} holds {len(texts)} texts of the wanted law, too few to hold any out: write "
                             "more with  python -m bench data")
        law = next(iter(sampled or {Law()}))
        return Corpus([text for text in texts if not text.is_held_out], held_out, law, whole.hexdigest())
