"""Triton kernels of the forward of many rows: all that lies between its products."""

import triton
import triton.language as tl

from bench.kernels import angles, finish, rotated, store, stored


@triton.jit
def norm_kernel(x, added, gain, out, eps, N: tl.constexpr, BLOCK: tl.constexpr):
    """x [rows, N] += added, in place, if something is; out [rows, N] = x / rms(x) * gain."""
    row, n = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    at, inside = row * N + n, n < N
    total = tl.load(x + at, inside, 0.0)
    if added is not None:
        total = (total.to(tl.float32) + tl.load(added + at, inside, 0.0).to(tl.float32)).to(total.dtype)
        tl.store(x + at, total, inside)
    wide = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / N + eps)
    normed = wide * scale * tl.load(gain + n, inside, 0.0).to(tl.float32)
    tl.store(out + at, normed.to(total.dtype), inside)


@triton.jit
def swiglu_kernel(x, out, N: tl.constexpr, BLOCK: tl.constexpr):
    """x [rows, 2 N], gates before values -> out [rows, N]."""
    row, n = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(x + row * 2 * N + n, n < N, 0.0).to(tl.float32)
    value = tl.load(x + row * 2 * N + N + n, n < N, 0.0).to(tl.float32)
    tl.store(out + row * N + n, (gate * tl.sigmoid(gate) * value).to(out.dtype.element_ty), n < N)


@triton.jit(do_not_specialize=["length"])  # whatever the prompts, one program
def rotate_kernel(qkv, keys, values, rope, q_norm, k_norm, length, eps, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
                  D: tl.constexpr, Q_BLOCK: tl.constexpr, KV_BLOCK: tl.constexpr, HALF: tl.constexpr,
                  FULL: tl.constexpr, QK_NORM: tl.constexpr):
    """Row i of qkv [rows, (HEADS + 2 KV_HEADS) D] lies at position i % length of sequence i // length.

    Rotates its queries in place and its keys into keys [batch, KV_HEADS, length, D], and copies its values.
    """
    row = tl.program_id(0).to(tl.int64)
    sequence, position = row // length, row % length
    half, full, query, head = tl.arange(0, HALF), tl.arange(0, FULL), tl.arange(0, Q_BLOCK), tl.arange(0, KV_BLOCK)
    in_half, in_full, in_kv = (half < D // 2)[None, :], (full < D)[None, :], (head < KV_HEADS)[:, None]
    cos, sin = angles(rope, position + tl.zeros([1], tl.int64), half, in_half, D)
    line = row * (HEADS + 2 * KV_HEADS)
    q_at, k_at = (line + query)[:, None] * D, (line + HEADS + head)[:, None] * D
    in_q, in_k = (query < HEADS)[:, None] & in_half, in_kv & in_half
    q_a, q_b = rotated(qkv, q_at, half, in_q, cos, sin, q_norm, eps, D, QK_NORM)
    k_a, k_b = rotated(qkv, k_at, half, in_k, cos, sin, k_norm, eps, D, QK_NORM)
    v = tl.load(qkv + k_at + KV_HEADS * D + full[None, :], in_kv & in_full, 0.0)
    tl.store(qkv + q_at + half[None, :], q_a, in_q)
    tl.store(qkv + q_at + half[None, :] + D // 2, q_b, in_q)
    place = (sequence * KV_HEADS + head) * length + position
    store(keys + half[None, :], values + full[None, :], place, k_a, k_b, v, in_k, in_kv & in_full, D)


@triton.jit
def single_kernel(qkv, keys, values, rope, roots, q_norm, k_norm, out, capacity, eps, scale, HEADS: tl.constexpr,
                  KV_HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr, BQ: tl.constexpr,
                  BLOCK: tl.constexpr, QK_NORM: tl.constexpr):
    """Attention of sequences of one row each: a program walks through all keys of one sequence and key head.

    Many sequences keep the device busy, so nothing is split and nothing added up later: few registers, and blocks of
    keys are fetched ahead. The softmax is taken as it goes (Milakov and Gimelshein, 2018, algorithm 3).
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    sequence, head = tl.program_id(0) // KV_HEADS, tl.program_id(0) % KV_HEADS
    root, one = tl.load(roots + sequence).to(tl.int32), tl.zeros([1], tl.int32)
    half, full, query = tl.arange(0, HALF), tl.arange(0, FULL), tl.arange(0, BQ)
    in_half, in_full = (half < D // 2)[None, :], (full < D)[None, :]
    in_q = (query < GROUP)[:, None]  # the query heads of this key head
    cos, sin = angles(rope, root + one, half, in_half, D)
    cache, line = tl.program_id(0).to(tl.int64) * capacity * D, sequence * (HEADS + 2 * KV_HEADS)
    k_at, v_at = keys + cache + half[None, :], values + cache + full[None, :]
    q_at, own = (line + head * GROUP + query)[:, None] * D, (line + HEADS + head + one)[:, None] * D
    q_a, q_b = rotated(qkv, q_at, half, in_q & in_half, cos, sin, q_norm, eps, D, QK_NORM)
    own_a, own_b = rotated(qkv, own, half, in_half, cos, sin, k_norm, eps, D, QK_NORM)
    own_v = tl.load(qkv + own + KV_HEADS * D + full[None, :], in_full, 0.0)
    store(k_at, v_at, root + one, own_a, own_b, own_v, in_half, in_full, D)
    top = tl.sum(q_a.to(tl.float32) * own_a.to(tl.float32) + q_b.to(tl.float32) * own_b.to(tl.float32), 1) * scale
    total, acc = tl.full([BQ], 1.0, tl.float32), tl.zeros([BQ, FULL], tl.float32) + own_v.to(tl.float32)
    for first in range(0, root, BLOCK):
        index = first + tl.arange(0, BLOCK)
        k_a, k_b, v = stored(k_at, v_at, index, root, in_half, in_full, D)
        score = tl.dot(q_b, k_b.T, tl.dot(q_a, k_a.T)) * scale
        score = tl.where((index < root)[None, :], score, float("-inf"))
        peak = tl.maximum(top, tl.max(score, 1))
        weight, shrink = tl.exp(score - peak[:, None]), tl.exp(top - peak)
        total, top = total * shrink + tl.sum(weight, 1), peak
        acc = tl.dot(weight.to(v.dtype), v, acc * shrink[:, None])
    finish(out + (sequence * HEADS + head * GROUP + query)[:, None] * D + full[None, :], total, acc, in_q & in_full)
