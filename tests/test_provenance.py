"""Provenance: complete, and without a trace of who ran it or where it lies."""

import getpass
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import provenance
from bench.provenance import card, card_state, collect

SETTINGS = {
    "suite": "standard",
    "target": "smollm2-135m",
    "methods": ["prompt_lookup:k=8", "draft_model:draft=hf:org/name"],
    "temperature": 0.7,
    "seed": 3,
    "raw": False,
    "prompts": None,
}


def leaky():
    """Settings with everything that must not get out."""
    home, here, host, user = Path.home(), Path.cwd(), socket.gethostname(), getpass.getuser()
    return {
        "out": str(home / "runs" / "one"),
        "prompts": here / "questions.jsonl",
        "methods": [f"draft_model:draft={home}/models/small,k=4", f"ptp:path={here}/a b/student.pt"],
        "index": f"https://{user}:secret@{host}.example.org/simple/pkg/",
        "mirror": "index https://pypi.example.org/simple, then more",
        "place": f"{user}@{host}:runs",
        "relative": f"../{user}/q.jsonl",
        "short": "~/q.jsonl",
        str(home): {"nested": (str(here),)},
    }


def assert_anonymous(text, host, user, home, here):
    assert not re.search(rf"\b{re.escape(host)}\b", text)
    assert not re.search(rf"\b{re.escape(user)}\b", text)
    for path in (home, here, os.path.realpath(here)):
        assert str(path) not in text
    for fragment in ("secret", "example.org", "simple/pkg", "://", '"/', "=/", "~/", "/home"):
        assert fragment not in text


def test_nobody_is_named_here():
    text = json.dumps(collect(leaky(), {f"{Path.home()}/model": "0" * 64}))
    assert_anonymous(text, socket.gethostname(), getpass.getuser(), Path.home(), Path.cwd())
    assert sys.prefix not in text


def test_nobody_is_named_elsewhere(monkeypatch, tmp_path):
    """With names that occur nowhere by accident, in another directory."""
    monkeypatch.setattr(socket, "gethostname", lambda: "tiger.lab")
    monkeypatch.setattr(getpass, "getuser", lambda: "alice")
    monkeypatch.setenv("HOME", "/home/alice")
    monkeypatch.chdir(tmp_path)
    found = collect(leaky(), {})
    text = json.dumps(found)
    assert_anonymous(text, "tiger", "alice", "/home/alice", tmp_path)
    assert "alice" not in text
    assert "tiger" not in text
    settings = found["settings"]
    assert settings["out"] == "one"
    assert settings["prompts"] == "questions.jsonl"
    assert settings["methods"] == ["draft_model:draft=small,k=4", "ptp:path=student.pt"]
    assert settings["index"] == "pkg"
    assert settings["mirror"] == "index simple, then more"
    assert settings["short"] == "q.jsonl"
    assert settings["relative"] == "../…/q.jsonl"
    assert settings["…"] == {"nested": [tmp_path.name]}


def test_honest_settings_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(getpass, "getuser", lambda: "standard")
    assert collect(SETTINGS, {"model": "a" * 64})["settings"] == SETTINGS


def test_what_is_in_it():
    files = {"model": "a" * 64, "prompts": "b" * 64}
    found = collect(SETTINGS, files)
    assert json.loads(json.dumps(found)) == found
    assert found["files"] == files
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["date"])
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cpu"]["model"]
    assert found["cpu"]["cores"] >= 1
    assert {"card", "card_before"} <= set(found)


def test_git(tmp_path, monkeypatch):
    """A repository of its own: clean, dirty, not tracking the file, and none at all."""

    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    module = tmp_path / "provenance.py"
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert collect({}, {})["git"] is None
    git("init")
    assert collect({}, {})["git"] is None
    git("add", "provenance.py")
    git("commit", "-m", "one")
    found = collect({}, {})["git"]
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    assert found["dirty"] is False
    module.write_text("changed")
    assert collect({}, {})["git"] == {"commit": found["commit"], "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert collect({}, {})["git"] is None


def test_no_torch():
    code = "import sys; from bench.provenance import collect; collect({}, {}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def driver(monkeypatch):
    """A stand-in for the driver: two cards, one of which does not tell its power."""
    nvml = provenance.pynvml
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def power(handle):
        if handle == "GPU-b":
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
        return 123_400

    def by_uuid(uuid):
        if uuid not in {"GPU-a", "GPU-b"}:
            raise nvml.NVMLError(nvml.NVML_ERROR_NOT_FOUND)
        return uuid

    closed = []
    fakes = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: closed.append(True),
        "nvmlDeviceGetHandleByIndex": lambda index: ("GPU-a", "GPU-b")[index],
        "nvmlDeviceGetHandleByUUID": by_uuid,
        "nvmlDeviceGetUUID": lambda handle: handle,
        "nvmlDeviceGetName": lambda handle: "NVIDIA H200",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=143 << 30),
        "nvmlDeviceGetEnforcedPowerLimit": lambda handle: 700_000,
        "nvmlDeviceGetMaxClockInfo": lambda handle, kind: {nvml.NVML_CLOCK_SM: 1980, nvml.NVML_CLOCK_MEM: 3201}[kind],
        "nvmlDeviceGetClockInfo": lambda handle, kind: {nvml.NVML_CLOCK_SM: 345, nvml.NVML_CLOCK_MEM: 2619}[kind],
        "nvmlDeviceGetPowerUsage": power,
        "nvmlDeviceGetTemperature": lambda handle, kind: 31,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(nvml, name, fake)
    yield
    assert closed


def test_a_card(driver, monkeypatch):
    first = card()
    assert first == {
        "name": "NVIDIA H200", "id": hashlib.sha256(b"GPU-a").hexdigest()[:12], "driver": "580.1",
        "memory_mib": 143 << 10, "power_limit_w": 700.0, "max_sm_mhz": 1980, "max_memory_mhz": 3201,
    }  # fmt: skip
    assert card_state() == {"sm_mhz": 345, "memory_mhz": 2619, "power_w": 123.4, "temperature_c": 31}
    for second in ("1", "1,0", "GPU-b"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", second)
        found, state = card(), card_state()
        assert found
        assert found["id"] == hashlib.sha256(b"GPU-b").hexdigest()[:12]
        assert state == {"sm_mhz": 345, "memory_mhz": 2619, "power_w": None, "temperature_c": 31}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert card("cuda") != card("cuda:1") == first
    assert card("cuda:2") is None
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert card("cuda:0") == first != card("cuda:1")
    for nothing in ("", "GPU-c"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert card() is None
        assert card_state() is None
    assert "GPU-" not in json.dumps(first)


def test_no_card(monkeypatch):
    def missing():
        raise provenance.pynvml.NVMLError(provenance.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(provenance.pynvml, "nvmlInit", missing)
    assert card() is None
    assert card_state() is None


def test_sources_are_told_apart(tmp_path, monkeypatch):
    """By what they contain and by their names; what is no code of this package says nothing."""
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "bench" / "provenance.py"))
    seen = []
    for name, text in (("bench/a.py", "x"), ("bench/a.py", "y"), ("ptp/b.py", "y"), ("ptp/b.txt", "z")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
        seen.append(provenance.sources())
    (tmp_path / "bench" / "a.py").rename(tmp_path / "bench" / "c.py")
    seen.append(provenance.sources())
    assert len(set(seen)) == 4
    assert seen[2] == seen[3]
    assert seen[4] == collect({}, {})["sources"]
