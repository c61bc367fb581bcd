"""Memory: what libraries may keep for themselves, and running out of it as one clear line."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from bench.errors import BenchError

SHARE = 0.9  # of the memory that is free when the run begins
WORKSPACE = ":4096:2:16:8"  # 2 x 4 MiB and 8 x 16 KiB; what cuBLAS takes by itself on Hopper is 32 MiB


class OutOfMemoryError(BenchError):
    """The device or the machine has no memory left."""


def small_workspace() -> None:
    """What cuBLAS, which reads the prompts, keeps for itself from its first product in this process on."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)


@contextmanager
def memory_limits(device: str) -> Iterator[None]:
    """Turn the ways in which memory runs out within the block into a BenchError.

    A process that takes more memory than there is gets killed without a word; one with a limit is told in time.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (lower(psutil.virtual_memory().available, before), before[1]))
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and "allocate memory" not in str(error):
            raise
        raise OutOfMemoryError(f"out of memory on {device}: lower --batch or --max-new-tokens, or take a smaller "
                               "--target") from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def lower(available: int, before: tuple[int, int]) -> int:
    """Most bytes that the process may have: what is free now, unless a limit holds already."""
    own = psutil.Process().memory_info()
    wanted = getattr(own, "data", own.rss) + int(SHARE * available)
    limits = [limit for limit in before if limit != resource.RLIM_INFINITY]
    return min([wanted, *limits])
