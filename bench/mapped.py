"""Host memory that the device writes to: what the host must learn of every step needs no copy of its own."""

import torch
from torch import Tensor


class Mapped:
    """Pinned flags as CUDA finds them, by the CUDA array interface (version 3)."""

    def __init__(self, host: Tensor):
        self.host = host  # lives as long as what is made of this
        self.__cuda_array_interface__ = {"shape": tuple(host.shape), "typestr": "|b1", "version": 3,
                                         "data": (host.data_ptr(), False)}


def mapped(host: Tensor, device: torch.device) -> Tensor:
    """The same memory as a tensor of the device. `host`: contiguous bool; for CUDA it must be pinned.

    What a kernel writes there the host may read once it has waited for an event behind that kernel.
    """
    if device.type != "cuda":
        return host
    seen = torch.as_tensor(Mapped(host), device=device)
    assert seen.data_ptr() == host.data_ptr(), "a copy would never tell the host"
    return seen
