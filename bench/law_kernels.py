"""Triton kernels that draw a token from a law of few ids: same results as `pick` and `Landing.of` with `law(logits)`.

To draw takes two launches: chunks of a row find their own best ids, then one program per row finds the best of those
and draws.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.sampling import MASS_BITS, MAX_VOCAB, NOISE_BITS, Landing, Law

CHUNK = 1024  # logits per program of the first launch
MOST = 64  # largest top-k served here


@triton.jit
def ordered(logits):
    """Integers in [0, 2^32) in the order of the floats."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0.0 into 0.0
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64) + 2147483648


@triton.jit
def best(order, k):
    """Which entries are the k largest; of equals the first. Entries below 0 do not count."""
    bar = tl.zeros([1], tl.int64)
    for bit in range(32):
        higher = bar | (tl.full([1], 1, tl.int64) << (31 - bit))
        bar = tl.where(tl.sum((order >= higher).to(tl.int32), 0) >= k, higher, bar)
    above, equal = order > bar, order == bar
    room = k - tl.sum(above.to(tl.int32), 0)
    return above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= room))


@triton.jit
def largest_kernel(scores, out, n, K: tl.constexpr, BLOCK: tl.constexpr):
    """Where the K largest of each row of `scores` [rows, n] are, ascending -> out [rows, K] int64."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    chosen = best(tl.where(at < n, ordered(tl.load(scores + row * n + at, at < n, 0.0)), -1), K)
    tl.store(out + row * K + tl.cumsum(chosen.to(tl.int32), 0) - 1, at, chosen)


@triton.jit
def chunk_kernel(logits, orders, ids, vocab, chunks, K: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """The K best of a chunk, in order of their ids -> orders, ids [rows, chunks, WIDTH]; -1 where there are fewer."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    order = tl.where(token < vocab, ordered(tl.load(logits + row * vocab + token, token < vocab, 0.0)), -1)
    base = (row * chunks + chunk) * WIDTH
    if K == 1:
        top = tl.max(order, 0)
        tl.store(orders + base, top)
        tl.store(ids + base, tl.min(tl.where(order == top, token, vocab), 0))
    else:
        chosen = best(order, K) & (token < vocab)
        place = tl.cumsum(chosen.to(tl.int32), 0) - 1
        tl.store(orders + base + place, order, chosen)
        tl.store(ids + base + place, token, chosen)
        rest = tl.arange(0, WIDTH)
        tl.store(orders + base + rest, tl.full([WIDTH], -1, tl.int64), rest >= tl.sum(chosen.to(tl.int32), 0))


@triton.jit
def draw_kernel(orders, ids, noise, out, margin, candidates, TEMPERATURE: tl.constexpr, K: tl.constexpr,
                BLOCK: tl.constexpr, MASS_BITS: tl.constexpr, NOISE_BITS: tl.constexpr):
    """The token of each row among its candidates -> out [rows] int64; its margin [rows] float64 if there is room."""
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    u = tl.load(noise + row)
    order = tl.load(orders + row * candidates + at, at < candidates, -1)
    top = tl.max(order, 0)
    if K == 1:
        index = tl.min(tl.where(order == top, at, BLOCK), 0)
        inside = tl.minimum(u, (1 << NOISE_BITS) - u).to(tl.float64) / (1 << NOISE_BITS)
    else:
        chosen = best(order, K) & (order >= 0)
        signed = (order - 2147483648).to(tl.int32)
        value = (signed ^ ((signed >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True).to(tl.float64)
        below = value - tl.max(tl.where(chosen, value, -float("inf")), 0)
        weight = tl.where(chosen, (tl.exp(tl.where(chosen, below / TEMPERATURE, 0.0)) * 1099511627776.0), 0.0)
        weight = weight.to(tl.int64)
        share = weight.to(tl.float64) / tl.sum(weight, 0).to(tl.float64)
        half_even = 4503599627370496.0  # 2^52: adding it rounds to an integer
        mass = ((share * (1 << MASS_BITS) + half_even) - half_even).to(tl.int64)
        total, edges = tl.sum(mass, 0), tl.cumsum(mass, 0) << NOISE_BITS
        bar = u * total
        index = tl.sum((edges <= bar).to(tl.int32), 0)
        near = tl.minimum(bar, tl.min(tl.abs(edges - bar), 0))  # of all edges those of u's own bin are nearest
        inside = near.to(tl.float64) / (total << NOISE_BITS).to(tl.float64)
    tl.store(out + row, tl.load(ids + row * candidates + index))
    if margin is not None:
        tl.store(margin + row, inside)


def serves(law: Law, logits: Tensor) -> bool:
    """Whether `draw` can be used for this law."""
    few = law.temperature == 0 or (0 < law.top_k <= MOST and law.top_p == 1)
    return logits.is_cuda and few and logits.shape[-1] < MAX_VOCAB


def largest(scores: Tensor, k: int) -> Tensor:
    """What `bench.sampling.best` gives, in one launch: [.., n] float32 -> [.., k] int64; k at most n."""
    flat = scores.flatten(0, -2).contiguous()
    rows, n = flat.shape
    out = torch.empty(rows, k, dtype=torch.int64, device=scores.device)
    block = triton.next_power_of_2(n)
    largest_kernel[(rows,)](flat, out, n, K=k, BLOCK=block, num_warps=8 if block > 1024 else 4)
    return out.view(*scores.shape[:-1], k)


def land(noise: Tensor, logits: Tensor, law: Law) -> Landing:
    """noise [..] int64, logits [.., vocab] float32 -> ids and margins [..]."""
    margin = torch.empty(noise.shape, dtype=torch.float64, device=logits.device)
    return Landing(draw(noise, logits, law, margin), margin)


def draw(noise: Tensor, logits: Tensor, law: Law, margin: Tensor | None = None) -> Tensor:
    """noise [..] int64, logits [.., vocab] float32 -> ids [..] int64; fills `margin` [..] float64 where it is given."""
    k = 1 if law.temperature == 0 else law.top_k
    flat = logits.flatten(0, -2).contiguous()
    rows, vocab = flat.shape
    chunks, width = triton.cdiv(vocab, CHUNK), triton.next_power_of_2(k)
    orders, ids = torch.empty(2, rows, chunks * width, dtype=torch.int64, device=logits.device)
    out = torch.empty(noise.shape, dtype=torch.int64, device=logits.device)
    chunk_kernel[(rows, chunks)](flat, orders, ids, vocab, chunks, K=k, WIDTH=width, CHUNK=CHUNK)
    block = triton.next_power_of_2(chunks * width)
    draw_kernel[(rows,)](orders, ids, noise.contiguous(), out, margin, chunks * width, float(law.temperature), K=k,
                         BLOCK=block, MASS_BITS=MASS_BITS, NOISE_BITS=NOISE_BITS, num_warps=8 if block > 1024 else 4)
    return out
