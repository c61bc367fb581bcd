"""Where a run comes from: code, versions, machine and settings, without a trace of who ran it or where it lies.

No host name, user name, absolute path or index address is collected, and what the settings bring of them is removed.
torch is not imported: its version is read from the installed package's metadata.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import pynvml

PACKAGES = (
    *("ptp-bench", "torch", "triton", "transformers", "tokenizers", "safetensors", "gguf"),
    *("lm-eval", "numpy", "scipy", "pandas"),
)
ROOMS = ("bench", "baselines", "ptp")  # where this package's code lies
SESSIONS = ("parts", "resumed")  # lists of what was not as it says elsewhere in the provenance
ADDRESS = re.compile(r"\b\w+://[^\s,;]*?([^\s,;/]*)/*(?=$|[\s,;])")
ABSOLUTE = re.compile(r"(?<![\w.~-])(?:~|[A-Za-z]:)?[/\\](?:[^,;:=/\\]+[/\\])*([^,;:=/\\]*)")
HIDDEN = "…"


def collect(settings: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Provenance of a run that starts now, ready for JSON.

    `settings` are the suite, seeds, options and the device; `files` maps a name (model, prompts, checkpoint ...) to the
    sha256 of its content. `card` and `card_before` are None without an NVIDIA GPU.
    """
    device = settings.get("device", "")
    return {
        "schema": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": _anonymous(settings),
        "files": _anonymous(files),
        "git": _git(),
        "sources": sources(),
        "versions": dict(_versions()),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": {"model": _cpu_model(), "cores": _cores()},
        "card": card(device),
        "card_before": card_state(device),
    }


def _anonymous(value: Any) -> Any:
    """The value with addresses and absolute paths cut to their last part, and the user's and host's name hidden."""
    if isinstance(value, Mapping):
        return {_anonymous(key): _anonymous(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_anonymous(entry) for entry in value]
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return _anonymous_text(value) if isinstance(value, str) else value


def _anonymous_text(text: str) -> str:
    host = socket.gethostname()
    names = {host, host.split(".")[0]}
    if re.search(r"[/\\@]", text):  # elsewhere a user's name may well be an honest word, like "tiny"
        names.add(getpass.getuser())
    text = ABSOLUTE.sub(r"\1", ADDRESS.sub(r"\1", text))
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", HIDDEN, text, flags=re.IGNORECASE)
    return text


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the repository that tracks this very file; None where it is installed otherwise."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def sources() -> str:
    """sha256 of this package's Python files and their names: what code ran, whatever git knows of it."""
    root, whole = Path(__file__).parents[1], hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (root / room).rglob("*.py")):
        whole.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return whole.hexdigest()


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def _cpu_model() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def _cores() -> int:
    """Cores that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _handle(device: str) -> Iterator[Any]:
    """The NVML handle of `cuda:N`, of the GPUs that this process may see, else of the first; None where there is none.

    Machines whose cards are of several kinds need CUDA_DEVICE_ORDER=PCI_BUS_ID, or torch counts them otherwise.
    """
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield _found(int(device.partition(":")[2] or 0))
    finally:
        pynvml.nvmlShutdown()


def _found(number: int) -> Any:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = str(number) if visible is None else "".join(visible.split(",")[number : number + 1]).strip()
    try:
        if name.isdecimal():
            return pynvml.nvmlDeviceGetHandleByIndex(int(name))
        return pynvml.nvmlDeviceGetHandleByUUID(name) if name else None
    except pynvml.NVMLError:
        return None


def card(device: str = "") -> dict[str, Any] | None:
    """The GPU that `device` means; None without one.

    Its name, an anonymous id of the very card (the start of its UUID's sha256), driver, memory, limits.
    """
    with _handle(device) as handle:
        if handle is None:
            return None
        uuid = str(pynvml.nvmlDeviceGetUUID(handle))
        return {
            "name": str(pynvml.nvmlDeviceGetName(handle)),
            "id": hashlib.sha256(uuid.encode()).hexdigest()[:12],
            "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "memory_mib": _ask(lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20),
            "power_limit_w": _ask(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
            "max_sm_mhz": _ask(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "max_memory_mhz": _ask(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
        }


def card_state(device: str = "") -> dict[str, Any] | None:
    """The GPU's clocks, power and temperature now: taken before and after a run. None without a GPU."""
    with _handle(device) as handle:
        if handle is None:
            return None
        return {
            "sm_mhz": _ask(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "memory_mhz": _ask(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
            "power_w": _ask(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
            "temperature_c": _ask(lambda: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
        }


def cards(origin: Mapping[str, Any]) -> set[str]:
    """Ids of the cards that a run was measured on, whether in parts or resumed; from its provenance."""
    others = [session for name in SESSIONS for session in origin.get(name, ())]
    own = (origin.get("card") or {}).get("id")
    return ({own} if own else set()).union(*map(cards, others))


def _ask(question: Callable[[], float]) -> float | None:
    """The answer, or None where this card or driver does not tell."""
    try:
        return question()
    except pynvml.NVMLError:
        return None
