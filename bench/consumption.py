"""What a process and its card take: memory by the allocator's or the system's word, energy by the driver's."""

import resource
import sys
import time
from typing import Any

import pynvml
import torch

from bench.timing import synchronize

COPIED = 1 << 28  # bytes: several times what any cache holds
COPIES = 5


class Meter:
    """Peak memory since it was made, energy since `start`."""

    def __init__(self, device: torch.device):
        self.device, self.card = device, None
        self.before: int | None = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.card = card(device)

    def start(self) -> None:
        """Begin to count energy."""
        self.before = self.total_mj()

    def energy_mj(self) -> float | None:
        """Millijoules of the whole card since `start`; None where nothing counts them, or the counter stands still."""
        now = self.total_mj()
        return None if now is None or self.before is None else (now - self.before) or None

    def total_mj(self) -> int | None:
        """The driver's counter: mJ since it was loaded (Volta and later); None where there is none."""
        if self.card is None:
            return None
        synchronize(self.device)
        try:
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.card))
        except pynvml.NVMLError:
            return None

    def peak_bytes(self) -> int:
        """CUDA: most that tensors held since the meter was made, or since phases were last compiled: captures included.

        CPU: most that the process ever had resident, its libraries and the loading of the model included.
        """
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def card(device: torch.device) -> Any:
    """The driver's handle of a CUDA device; None where it gives none."""
    uuid = torch.cuda.get_device_properties(device).uuid  # torch and the driver may count cards differently
    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def copied_bytes_per_s(device: torch.device) -> float:
    """Copy bandwidth: bytes read and written per second, the best of several copies that no cache can hold."""
    source = torch.zeros(COPIED // 4, dtype=torch.float32, device=device)
    goal = torch.empty_like(source)
    return 2 * COPIED / min(copy_seconds(source, goal) for _ in range(COPIES))


def copy_seconds(source: torch.Tensor, goal: torch.Tensor) -> float:
    """One copy, on the device's own clock if it has one."""
    if not source.is_cuda:
        begin = time.perf_counter()
        goal.copy_(source)
        return time.perf_counter() - begin
    begin_event, end_event = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin_event.record()
    goal.copy_(source)
    end_event.record()
    end_event.synchronize()
    return begin_event.elapsed_time(end_event) / 1000
