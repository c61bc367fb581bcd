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


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Where the block writes what then replaces a file in one go. Makes its directory; BenchError where that fails."""
    fresh = path.with_name(f".{path.name}")
    with writing(path.parent):
        yield fresh
        fresh.replace(path)


def put(path: Path, text: str) -> None:
    """Replace a file by a text."""
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


@contextmanager
def _refusing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BenchError(f"cannot write to {directory} ({error.strerror}): choose another --out") from error
