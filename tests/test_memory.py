"""Memory that runs out ends in one line, and the limit is gone afterwards."""

import resource
from types import SimpleNamespace

import psutil
import pytest
import torch

from bench.memory import OutOfMemoryError, memory_limits


def test_an_allocation_beyond_what_is_free_is_one_line(monkeypatch):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=200 << 20))
    with memory_limits("cpu"):
        torch.zeros(50 << 20, dtype=torch.uint8)
        with pytest.raises(RuntimeError):
            torch.zeros(400 << 20, dtype=torch.uint8)
    with pytest.raises(OutOfMemoryError, match="out of memory on cpu: lower --batch") as caught, memory_limits("cpu"):
        torch.zeros(400 << 20, dtype=torch.uint8)
    assert "\n" not in str(caught.value)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    torch.zeros(400 << 20, dtype=torch.uint8)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="a bug"), memory_limits("cuda"):
        raise RuntimeError("a bug")
