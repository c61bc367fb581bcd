"""Rows times a weight: the one place where a transformer multiplies by a matrix.

A CPU multiplies few rows in about half the time once a weight lies as oneDNN's kernels read it. Beside that, such a
product gives a row the same bits whatever the number of rows, so that texts of different methods stay the same.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

LEAST_ROWS = 4  # fewer take oneDNN as long or longer, and a single one is added up in another order


@dataclass(frozen=True)
class Layout:
    """A copy of a weight as oneDNN reads it."""

    copy: Tensor  # [out, in], opaque
    state: tuple[int, int]  # of the weight when it was copied: how often it was written to before, and where it lay


def served() -> frozenset[torch.dtype]:
    """What oneDNN multiplies on this machine."""
    if not torch.backends.mkldnn.is_available():
        return frozenset()
    return frozenset({torch.float32} | ({torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set()))


SERVED = served()
LAYOUTS = WeakTensorKeyDictionary()  # weight -> its Layout, for as long as there is the weight


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [.., in] @ weight [out, in]^T, in the dtype of x."""
    if x.is_cuda or torch.is_grad_enabled() or x.dtype not in SERVED:
        return F.linear(x, weight.to(x.dtype), bias)
    flat = x.reshape(-1, x.shape[-1])
    rows = len(flat)
    if rows < LEAST_ROWS:
        flat = F.pad(flat, (0, 0, 0, LEAST_ROWS - rows))
    y = torch.ops.mkldnn._linear_pointwise(flat, laid_out(weight, x.dtype), bias, "none", [], "")
    return y[:rows].view(*x.shape[:-1], len(weight))


def laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as oneDNN reads it. The copy is made when it is first asked for, and again after a training step."""
    layout, state = LAYOUTS.get(weight), (0 if weight.is_inference() else weight._version, weight.data_ptr())
    if layout is None or layout.state != state or layout.copy.dtype != dtype:
        layout = Layout(torch.ops.mkldnn._reorder_linear_weight(weight.to(dtype)), state)
        LAYOUTS[weight] = layout
    return layout.copy
