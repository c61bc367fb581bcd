"""Triton kernels that draw a token from a law of few ids: same results as `pick` and `Landing.of` with `law(logits)`.

To draw takes two launches: the largest logit of every crowd of neighbours, then one program per row, which looks at
the best crowds alone, as `bench.sampling.largest` does, and draws.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.blur import Held
from bench.sampling import CROWD, MASS_BITS, MAX_VOCAB, NOISE_BITS, Landing, Law

CROWDS = 64  # per program of the first launch
MOST = 64  # largest top-k served here


@triton.jit
def ordered(logits):
    """Integers in (0, 2^32) in the order of the floats; 0 is left for what is not there."""
    bits = (logits + 0.0).to(tl.int32, bitcast=True)  # + 0.0 turns -0.0 into 0.0
    return (bits ^ ((bits >> 31) | -2147483648)).to(tl.uint32, bitcast=True)


@triton.jit
def best(order, K: tl.constexpr, WIDTH: tl.constexpr):
    """Which entries are the K largest; of equals the first. Entries of 0 are not there.

    Bisects for a number that K entries are above: to compare all with one costs three barriers, so few rounds count.
    The first guess: each of WIDTH groups has an entry above it, so, most often, K entries are.
    """
    SIZE: tl.constexpr = order.shape[0]
    GROUP: tl.constexpr = SIZE // WIDTH if SIZE > WIDTH else 1
    key = order.to(tl.int64) * SIZE - tl.arange(0, SIZE)  # no two are equal
    if K == 1:
        return key == tl.max(key, 0)
    tops = tl.max(tl.reshape(order, [SIZE // GROUP, GROUP]), 1)
    middle = (tl.min(tl.where(tops > 0, tops, 4294967295), 0).to(tl.int64) - 1) * SIZE
    low, high, count = tl.full([], 0, tl.int64), tl.max(tops, 0).to(tl.int64) * SIZE, tl.full([], SIZE, tl.int32)
    while (count != K) & (low < high):
        above = tl.sum((key > middle).to(tl.int32), 0)
        if above < K:
            high = middle
        else:
            low, count = middle, above
        middle = (low + high) // 2
    return key > low


@triton.jit
def packed(ids, chosen, room, end, K: tl.constexpr, WIDTH: tl.constexpr):
    """The chosen of ids below `end`, K or all there are, in order; then `end` -> [WIDTH], by way of `room` [WIDTH]."""
    if WIDTH == 1:
        return tl.sum(tl.where(chosen, ids, 0), 0, keep_dims=True)
    flag = chosen.to(tl.int32)  # as the mask too: or else a compiler moves the keys of all ids between threads
    tl.store(room + tl.cumsum(flag, 0) - 1, ids, flag > 0)
    tl.debug_barrier()
    lane = tl.arange(0, WIDTH)
    return tl.load(room + lane, lane < tl.minimum(K, end), end)


@triton.jit
def crowd_kernel(logits, tops, vocab, crowds, CROWD: tl.constexpr, CROWDS: tl.constexpr):
    """The largest of every crowd, `ordered` -> tops [rows, crowds] uint32."""
    row, crowd = tl.program_id(0).to(tl.int64), tl.program_id(1) * CROWDS + tl.arange(0, CROWDS)
    token = crowd[:, None] * CROWD + tl.arange(0, CROWD)[None, :]
    order = tl.where(token < vocab, ordered(tl.load(logits + row * vocab + token, token < vocab, 0.0)), 0)
    tl.store(tops + row * crowds + crowd, tl.max(order, 1), crowd < crowds)


@triton.jit
def largest_of(logits, tops, room, vocab, crowds, row, K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
               CROWD: tl.constexpr):
    """The K largest ids of a row, ascending, then `vocab` -> [WIDTH]; `room` [rows, 2, WIDTH] int32.

    Only the K best crowds are looked at: an id of any other has K ids before it.
    """
    crowd, room = tl.arange(0, BLOCK), room + row * 2 * WIDTH
    chosen = best(tl.load(tops + row * crowds + crowd, crowd < crowds, 0), K, WIDTH)
    crowd = packed(crowd, chosen, room, crowds, K, WIDTH)
    token = tl.reshape(crowd[:, None] * CROWD + tl.arange(0, CROWD)[None, :], [WIDTH * CROWD])
    there = token < vocab
    order = tl.where(there, ordered(tl.load(logits + row * vocab + token, there, 0.0)), 0)
    return packed(token, best(order, K, WIDTH), room + WIDTH, vocab, K, WIDTH)


@triton.jit
def largest_kernel(logits, tops, room, vocab, crowds, out, K: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
                   CROWD: tl.constexpr):
    """The K largest ids of each row, ascending -> out [rows, K] int64."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    ids = largest_of(logits, tops, room, vocab, crowds, row, K, WIDTH, BLOCK, CROWD)
    tl.store(out + row * K + lane, ids.to(tl.int64), lane < K)


@triton.jit
def draw_kernel(logits, tops, room, vocab, crowds, noise, out, sure, blur, TEMPERATURE: tl.constexpr, K: tl.constexpr,
                WIDTH: tl.constexpr, BLOCK: tl.constexpr, CROWD: tl.constexpr, MASS_BITS: tl.constexpr,
                NOISE_BITS: tl.constexpr):
    """The token of each row -> out [rows] int64; its margin, or with a blur its share, -> sure [rows] float64 or None.

    `blur`: the width of the bump around u, or None.
    """
    row = tl.program_id(0).to(tl.int64)
    ids = largest_of(logits, tops, room, vocab, crowds, row, K, WIDTH, BLOCK, CROWD)
    if K == 1 and sure is None:  # no number decides
        tl.store(out + row, tl.min(ids, 0).to(tl.int64))
        return
    u = tl.load(noise + row)
    value = tl.load(logits + row * vocab + ids, ids < vocab, -float("inf")).to(tl.float64)
    below = value - tl.max(value, 0)
    weight = (tl.exp(below / TEMPERATURE) * 1099511627776.0).to(tl.int64)
    share = weight.to(tl.float64) / tl.sum(weight, 0).to(tl.float64)
    half_even = 4503599627370496.0  # 2^52: adding it rounds to an integer
    mass = ((share * (1 << MASS_BITS) + half_even) - half_even).to(tl.int64)
    total, edges = tl.sum(mass, 0), tl.cumsum(mass, 0) << NOISE_BITS
    bar = u * total
    whole, passed = (total << NOISE_BITS).to(tl.float64), edges - bar
    if blur is None:
        here = passed > 0
        # of all edges those of u's own bin are nearest
        level = tl.minimum(bar, tl.min(tl.abs(passed), 0)).to(tl.float64) / whole
    else:
        upper, lower = passed.to(tl.float64) - 0.5, (passed - (mass << NOISE_BITS)).to(tl.float64) - 0.5
        held = tl.sigmoid(upper / (whole * blur)) - tl.sigmoid(lower / (whole * blur))
        most = tl.max(held, 0)
        here, level = held == most, most / tl.sum(held, 0)
    tl.store(out + row, tl.min(tl.where(here, ids, vocab), 0).to(tl.int64))
    if sure is not None:
        tl.store(sure + row, level)


def serves(law: Law, logits: Tensor) -> bool:
    """Whether `draw` can be used for this law."""
    few = law.temperature == 0 or (0 < law.top_k <= MOST and law.top_p == 1)
    return logits.is_cuda and few and logits.shape[-1] < MAX_VOCAB


def ranked(logits: Tensor, k: int) -> tuple[list[Any], dict[str, int]]:
    """The first launch, on logits [rows, vocab] -> what every kernel of the second takes first, and by name."""
    rows, vocab = logits.shape
    crowds, width = triton.cdiv(vocab, CROWD), triton.next_power_of_2(k)
    tops = torch.empty(rows, crowds, dtype=torch.uint32, device=logits.device)
    room = torch.empty(rows, 2, width, dtype=torch.int32, device=logits.device)
    crowd_kernel[(rows, triton.cdiv(crowds, CROWDS))](logits, tops, vocab, crowds, CROWD=CROWD, CROWDS=CROWDS)
    block = triton.next_power_of_2(crowds)
    return [logits, tops, room, vocab, crowds], {"K": k, "WIDTH": width, "BLOCK": block, "CROWD": CROWD,
                                                 "num_warps": 8 if block > 1024 else 4}


def largest(logits: Tensor, k: int) -> Tensor:
    """What `bench.sampling.largest` gives: [.., vocab] float32 -> [.., k] int64; k less than the vocabulary."""
    flat = logits.flatten(0, -2).contiguous()
    out = torch.empty(len(flat), k, dtype=torch.int64, device=logits.device)
    first, shape = ranked(flat, k)
    largest_kernel[(len(flat),)](*first, out, **shape)
    return out.view(*logits.shape[:-1], k)


def land(noise: Tensor, logits: Tensor, law: Law) -> Landing:
    """noise [..] int64, logits [.., vocab] float32 -> ids and margins [..]."""
    margin = torch.empty(noise.shape, dtype=torch.float64, device=logits.device)
    return Landing(draw(noise, logits, law, margin), margin)


def hold(noise: Tensor, logits: Tensor, law: Law, width: float) -> Held:
    """noise [..] int64, logits [.., vocab] float32 -> ids of the blurred pick and their shares [..]."""
    share = torch.empty(noise.shape, dtype=torch.float64, device=logits.device)
    return Held(draw(noise, logits, law, share, width), share)


def draw(noise: Tensor, logits: Tensor, law: Law, sure: Tensor | None = None, blur: float | None = None) -> Tensor:
    """noise [..] int64, logits [.., vocab] float32 -> ids [..] int64; fills `sure` [..] float64 where it is given:

    with margins, or where there is a `blur`, the width of the bump, with shares.
    """
    flat = logits.flatten(0, -2).contiguous()
    out = torch.empty(noise.shape, dtype=torch.int64, device=logits.device)
    first, shape = ranked(flat, 1 if law.temperature == 0 else law.top_k)
    draw_kernel[(len(flat),)](*first, noise.contiguous(), out, sure, blur, law.temperature or 1.0, **shape,
                              MASS_BITS=MASS_BITS, NOISE_BITS=NOISE_BITS)
    return out
