"""Matrices in 4 bits: every 32 numbers share a scale, and each of them is one of 16 levels.

Or in 8 bits, a scale per row: matrices for which 4 do not do, those of odd width, which two numbers to a byte do not
fit, and those in older files.
"""

import torch
from torch import Tensor

GROUP = 32  # numbers with one scale, row after row
UPPER = [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]
# The 16 levels that lose least of normal numbers (Max, 1960, table I). Weights are nearly normal.
LEVELS = torch.tensor([*(-level for level in reversed(UPPER)), *UPPER])
BORDERS = (LEVELS[1:] + LEVELS[:-1]) / 2
# Scales to try, relative to that which makes the top level a group's largest number. With all of these that number
# takes the top level, so what comes back finds its scale again at 1: packing twice loses nothing more.
SHARES = torch.linspace(0.7, 1.1, 17)


def pack(matrix: Tensor, fine: bool = False) -> tuple[Tensor, Tensor]:
    """[out, in] float32 -> (codes [out, in / 2] uint8, scales [groups] bfloat16).

    With 8 bits, if it is to be `fine` or `in` is odd: (codes [out, in] int8, scales [out, 1] float32).
    """
    if fine or matrix.shape[1] % 2:
        scales = (matrix.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
        return (matrix / scales).round().to(torch.int8), scales
    numbers = matrix.flatten()
    groups = torch.cat([numbers, numbers[-1:].expand(-len(numbers) % GROUP)]).view(-1, GROUP)
    scales = best_scales(groups)
    codes = codes_of(groups, scales).flatten()[: len(numbers)].view(len(matrix), -1, 2)
    return codes[..., 0] | codes[..., 1] << 4, scales.flatten()


def unpack(codes: Tensor, scales: Tensor) -> Tensor:
    """What `pack` has kept, [out, in] float32."""
    if codes.dtype == torch.int8:
        return codes.float() * scales
    levels = LEVELS[torch.stack([codes & 15, codes >> 4], -1).long()].flatten(1)  # [out, in]
    return levels * scales.float().repeat_interleave(GROUP)[: levels.numel()].view_as(levels)


def best_scales(groups: Tensor) -> Tensor:
    """Of the scales to try that with the least squared error: [groups, GROUP] -> [groups, 1] bfloat16."""
    whole = groups.abs().amax(1, keepdim=True) / LEVELS[-1]
    tried = (whole * SHARES).bfloat16()  # [groups, shares]
    errors = [(LEVELS[codes_of(groups, scales).long()] * scales - groups).square().sum(1)
              for scales in tried.split(1, 1)]
    return tried.gather(1, torch.stack(errors, 1).argmin(1, keepdim=True))


def codes_of(groups: Tensor, scales: Tensor) -> Tensor:
    """The nearest levels, [groups, GROUP] uint8; `scales` [groups, 1]."""
    nonzero = scales.float().clamp(min=torch.finfo(torch.float32).tiny)
    return torch.bucketize(groups / nonzero, BORDERS).to(torch.uint8)
