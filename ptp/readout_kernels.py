"""Triton kernels of drafts that are drawn one after the other: three launches each, for bf16 and fp16 on CUDA.

Compiled, a draft is about a dozen small kernels, and most of its time lies between them. These start early (see
`bench.kernels`): while one runs, the next two already hold their weights.
"""

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from bench.fused import overlaps
from bench.shortlist import Head
from ptp import draft
from ptp.sequential import SequentialReadout

NARROWED, WIDENED, LISTED = 4, 4, 16  # rows of each weight per program
ROWS = 2  # most that are served: every row reads the weights for itself, and four took as long as compiled
WIDEST = 1024  # most elements of a head input: 576 were measured; 16 rows of 4096 do not fit into registers
LONGEST = 1 << 16  # most rows of a head: who adds up the parts of 2 ** 17 takes all registers
EDGE = tl.constexpr(draft.EDGE)
EPS = tl.constexpr(torch.finfo(torch.float32).eps)  # of `rms_norm` without one, for half precision too


@triton.jit
def narrow_kernel(hidden, before, embedding, weight, out, SIZE: tl.constexpr, SPAN: tl.constexpr, WIDTH: tl.constexpr,
                  BN: tl.constexpr, PDL: tl.constexpr):
    """out [rows, WIDTH] = silu(weight [WIDTH, 2 SIZE] @ (normed hidden, normed embedding of the token before))."""
    row, n, k = tl.program_id(1), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, SPAN)
    at, inside = weight + n[:, None] * (2 * SIZE) + k[None, :], (n < WIDTH)[:, None] & (k < SIZE)[None, :]
    if PDL:
        gdc_launch_dependents()
    of_hidden, of_before = tl.load(at, inside, 0.0), tl.load(at + SIZE, inside, 0.0)
    if PDL:
        gdc_wait()
    y = tl.sum(of_hidden * normed(hidden + row * SIZE, k, SIZE), 1)
    y += tl.sum(of_before * normed(embedding + tl.load(before + row) * SIZE, k, SIZE), 1)
    tl.store(out + row * WIDTH + n, (y * tl.sigmoid(y)).to(out.dtype.element_ty), n < WIDTH)


@triton.jit
def normed(x, k, SIZE: tl.constexpr):
    """A row over its root mean square, [1, SPAN] float32."""
    wide = tl.load(x + k, k < SIZE, 0.0).to(tl.float32)
    return (wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + EPS))[None, :]


@triton.jit
def widen_kernel(hidden, x, weight, out, SIZE: tl.constexpr, WIDTH: tl.constexpr, SPAN: tl.constexpr,
                 BN: tl.constexpr, PDL: tl.constexpr):
    """out [rows, SIZE] = hidden + weight [SIZE, WIDTH] @ x."""
    row, n, k = tl.program_id(1), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, SPAN)
    if PDL:
        gdc_launch_dependents()
    of_x = tl.load(weight + n[:, None] * WIDTH + k[None, :], (n < SIZE)[:, None] & (k < WIDTH)[None, :], 0.0)
    if PDL:
        gdc_wait()
    y = tl.sum(of_x * tl.load(x + row * WIDTH + k, k < WIDTH, 0.0).to(tl.float32)[None, :], 1)
    y += tl.load(hidden + row * SIZE + n, n < SIZE, 0.0).to(tl.float32)
    tl.store(out + row * SIZE + n, y.to(out.dtype.element_ty), n < SIZE)


@triton.jit
def likeliest_kernel(x, weight, ids, tops, totals, firsts, arrived, tokens, scores, SIZE: tl.constexpr,
                     SPAN: tl.constexpr, LISTED: tl.constexpr, TILES: tl.constexpr, BN: tl.constexpr,
                     PDL: tl.constexpr):
    """The likeliest id of weight [LISTED, SIZE] @ x and the log-odds of its chance -> tokens, scores [rows].

    Every program leaves the maximum of its logits, the first row of the weight that has it and the sum of their
    exponentials in tops, firsts and totals [rows, programs]; the last to arrive adds them up. `ids` [LISTED]: whose
    the rows of the weight are.
    """
    row, n, k = tl.program_id(1), tl.program_id(0) * BN + tl.arange(0, BN), tl.arange(0, SPAN)
    if PDL:
        gdc_launch_dependents()
    of_x = tl.load(weight + n[:, None] * SIZE + k[None, :], (n < LISTED)[:, None] & (k < SIZE)[None, :], 0.0)
    if PDL:
        gdc_wait()
    logits = tl.sum(of_x * tl.load(x + row * SIZE + k, k < SIZE, 0.0).to(tl.float32)[None, :], 1)
    logits = tl.where(n < LISTED, logits, float("-inf"))
    top, at = tl.max(logits, 0), row * tl.num_programs(0) + tl.program_id(0)
    tl.store(tops + at, top)
    tl.store(firsts + at, tl.min(tl.where(logits == top, n, LISTED), 0))
    tl.store(totals + at, tl.sum(tl.exp(logits - top), 0))
    tl.debug_barrier()
    if tl.atomic_add(arrived + row, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(arrived + row, 0)
        tile = tl.arange(0, TILES)
        parts, there = row * tl.num_programs(0) + tile, tile < tl.num_programs(0)
        each = tl.load(tops + parts, there, float("-inf"), cache_modifier=".cg")
        peak = tl.max(each, 0)
        first = tl.min(tl.load(firsts + parts, there & (each == peak), LISTED, cache_modifier=".cg"), 0)
        first = tl.minimum(first, LISTED - 1)  # no logit equals the highest if all are NaN
        total = tl.sum(tl.exp(each - peak) * tl.load(totals + parts, there, 0.0, cache_modifier=".cg"), 0)
        chance = tl.minimum(tl.maximum(1 / total, EDGE), 1 - EDGE)
        tl.store(tokens + row, first.to(tl.int64) if ids is None else tl.load(ids + first))
        tl.store(scores + row, tl.log(chance / (1 - chance)))


def serves(hidden: Tensor, weight: Tensor) -> bool:
    """Whether head inputs [.., hidden] and the weight [rows, ..] that they meet first can be served."""
    half = hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16)
    small = hidden.shape[-1] <= WIDEST and len(weight) <= LONGEST
    return half and small and hidden.numel() <= ROWS * hidden.shape[-1]


@torch.compiler.disable
def corrected(readout: SequentialReadout, embedding: Tensor, hidden: Tensor, before: Tensor) -> Tensor:
    """As `readout` of the embeddings of the tokens `before` [..] int64; hidden [.., hidden]."""
    rows, size, width = before.numel(), hidden.shape[-1], len(readout.narrow)
    hidden, narrowed = hidden.contiguous(), hidden.new_empty(rows, width)
    out = torch.empty_like(hidden)
    narrow_kernel[(triton.cdiv(width, NARROWED), rows)](
        hidden, before.contiguous(), embedding, readout.narrow, narrowed, SIZE=size, WIDTH=width, BN=NARROWED,
        **options(size, hidden.device))
    widen_kernel[(triton.cdiv(size, WIDENED), rows)](
        hidden, narrowed, readout.widen, out, SIZE=size, WIDTH=width, BN=WIDENED, **options(width, hidden.device))
    return out


@torch.compiler.disable
def likeliest(hidden: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Head inputs [.., hidden] -> the likeliest ids [..] int64 and the log-odds of their chances [..] float32."""
    rows, size, listed = hidden[..., 0].numel(), hidden.shape[-1], len(head.weight)
    programs, device = triton.cdiv(listed, LISTED), hidden.device
    tops, totals = torch.empty(2, rows, programs, device=device)
    firsts = torch.empty(rows, programs, dtype=torch.int32, device=device)
    tokens = torch.empty(hidden.shape[:-1], dtype=torch.int64, device=device)
    scores = torch.empty(hidden.shape[:-1], device=device)
    likeliest_kernel[(programs, rows)](
        hidden.contiguous(), head.weight, head.ids, tops, totals, firsts, arrived(device), tokens, scores, SIZE=size,
        LISTED=listed, TILES=triton.next_power_of_2(programs), BN=LISTED, **options(size, device))
    return tokens, scores


def options(inner: int, device: torch.device) -> dict[str, int | bool]:
    """What all three take; `inner`: elements of a weight's row. A program holds its rows in registers meanwhile."""
    early = {"PDL": True, "launch_pdl": True} if overlaps(device) else {"PDL": False}
    return {"SPAN": triton.next_power_of_2(inner), "num_warps": 4, **early}


@cache
def arrived(device: torch.device) -> Tensor:
    """How many programs have left their part, per row; every launch leaves it at zero, and one runs at a time."""
    return torch.zeros(ROWS, dtype=torch.int32, device=device)
