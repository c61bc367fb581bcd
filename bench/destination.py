"""Directories that results go to: whether they can be written, asked before anything is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from bench.errors import BenchError


def check(directory: Path) -> None:
    """BenchError unless files can be made in `directory` or, where that is new, above it. Leaves no trace."""
    with _refusing(directory):
        nearest = next(path for path in (directory, *directory.parents) if path.exists())
        TemporaryFile(dir=nearest).close()


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Make `directory` for the block that writes into it. BenchError where either fails."""
    with _refusing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        yield


def put(path: Path, text: str) -> None:
    """Replace a file in one go, and make its directory for it. BenchError where either fails."""
    fresh = path.with_name(f".{path.name}")
    with writing(path.parent):
        fresh.write_text(text, encoding="utf-8")
        fresh.replace(path)


@contextmanager
def _refusing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BenchError(f"cannot write to {directory} ({error.strerror}): choose another --out") from error
