"""Shared noise: one number per absolute position of a sequence, the same for every method and repeat."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.sampling import NOISE_BITS

STREAMS = ("target", "draft", "test", "residual")


@dataclass(frozen=True)
class NoiseKey:
    """What the noise of a sequence depends on."""

    seed: int
    question_id: int | str
    turn: int = 0

    def numbers(self, stream: str, length: int) -> np.ndarray:
        """`u` of the positions 0 .. length - 1 -> [length] int64 below 2^30; a longer request has the same start."""
        name = f"{self.seed}/{self.question_id}/{self.turn}/{stream}".encode()
        key = np.frombuffer(hashlib.sha256(name).digest()[:16], dtype=np.uint64)
        raw = np.random.Philox(key=key).random_raw(length)
        return (raw >> np.uint64(64 - NOISE_BITS)).astype(np.int64)


class Noise:
    """The streams of a batch, on the device. `match` reads `target`; `reject` needs the other three apart."""

    def __init__(self, batch: int, capacity: int, device: torch.device | str):
        self.streams = {s: torch.zeros(batch, capacity, dtype=torch.int64, device=device) for s in STREAMS}

    def fill(self, keys: list[NoiseKey], rows: Tensor | slice = slice(None), streams: Sequence[str] = STREAMS) -> None:
        """Draw these streams of the sequences in these rows."""
        for stream in streams:
            numbers = self.streams[stream]
            fresh = np.stack([key.numbers(stream, numbers.shape[1]) for key in keys])
            numbers[rows] = sent(torch.from_numpy(fresh), numbers.device)

    def at(self, stream: str, positions: Tensor) -> Tensor:
        """`u` at absolute positions: [B, rows] int64 -> [B, rows] int64."""
        numbers = self.streams[stream]
        return numbers.gather(1, positions.clamp(max=numbers.shape[1] - 1))


def sent(values: Tensor, device: torch.device) -> Tensor:
    """To a device, from the host, which does not wait until a CUDA device has done what it was given before."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
