"""Host memory that the device writes to."""

import numpy as np
import pytest
import torch

from bench.mapped import Mapped, mapped


def test_a_cpu_needs_no_other_tensor():
    host = torch.zeros(3, 2, dtype=torch.bool)
    assert mapped(host, torch.device("cpu")) is host


def test_the_interface_describes_the_memory():
    """numpy's array interface, which CUDA's has its fields from, finds the same flags at the same place."""
    host = torch.zeros(3, 2, dtype=torch.bool)

    class Seen:
        __array_interface__ = Mapped(host).__cuda_array_interface__

    seen = np.asarray(Seen())
    seen[1, 0] = True
    assert seen.dtype == bool
    assert host.tolist() == [[False, False], [True, False], [False, False]]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_a_kernel_writes_is_there_after_its_event():
    host = torch.zeros(4, 2, dtype=torch.bool, pin_memory=True)
    seen, step = mapped(host, torch.device("cuda", 0)), torch.zeros(2, dtype=torch.int64, device="cuda")
    done = torch.tensor([False, True], device="cuda")

    def work() -> None:
        seen[step, torch.arange(2, device="cuda")] = done
        step.add_(1)

    compiled, event = torch.compile(work), torch.cuda.Event()
    for row in range(4):
        compiled()
        event.record()
        event.synchronize()
        assert host.tolist() == [[False, True]] * (row + 1) + [[False, False]] * (3 - row)
