"""Triton kernels of the decoding forward: few rows, many weights, five launches a layer.

Every output element is summed in an order that does not depend on how many rows are computed with it: products run
over their inputs in one order with one accumulator, keys are grouped by absolute position, and sums of squares are
taken in float64, where squares of bf16 numbers add up without rounding. A row therefore gets the same bits in a
step of 1 row and in a step of 64, and chain drafts keep the baseline's text even in bf16.

PDL (programmatic dependent launch): a kernel starts while the one before it still runs, asks for the weights of the
next product but one, so that they wait in the L2 cache when their turn comes, and only then waits for its input.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def prefetch(pointers):
    """Ask for the cache lines at these addresses; nothing waits for them."""
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [pointers], tl.int32, False, 1)


@triton.jit
def wait_early(weight, slot_weight, is_slot, is_first, SIZE: tl.constexpr, PATIENT: tl.constexpr):
    """Fetch a share of a later product's weights, if of the first tile, and wait; PATIENT: what follows waits, too."""
    if not PATIENT:
        gdc_launch_dependents()
    if SIZE > 0:
        share = tl.cdiv(SIZE, tl.num_programs(0))
        line = tl.program_id(0) * share + tl.minimum(tl.arange(0, 1024) * 64, share)
        if is_first:
            prefetch((slot_weight if is_slot else weight) + tl.minimum(line, SIZE - 1))
    gdc_wait()
    if PATIENT:
        gdc_launch_dependents()


@triton.jit
def fetch_own(weight, n, N: tl.constexpr, K: tl.constexpr, SWIGLU: tl.constexpr):
    """Ask for the first 256 elements of the weight rows `n`."""
    at = weight + tl.minimum(n, N - 1)[:, None] * K + (tl.arange(0, 4) * 64)[None, :]
    prefetch(at)
    if SWIGLU:
        prefetch(at + N * K)


@triton.jit
def block(at, inside, WHOLE: tl.constexpr):
    """Of a weight; 0 outside."""
    return tl.load(at) if WHOLE else tl.load(at, inside, 0.0)


@triton.jit
def fetch_kept(keys, values, first, root, D: tl.constexpr, SIZE: tl.constexpr):
    """Ask for so many elements of a head's keys and values in the cache, from the `first` key up to the root."""
    line = tl.minimum(first * D + tl.arange(0, SIZE // 64) * 64, root * D)
    prefetch(keys + line)
    prefetch(values + line)


@triton.jit
def embed_kernel(tokens, slots, embedding, gain, out, scaled, squares, token_rows,
                 K: tl.constexpr, BLOCK: tl.constexpr, SLOTS: tl.constexpr):
    """Row i of `out` is the embedding of token i, or slot i - token_rows; also what the first norm needs."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    at = embedding + tl.load(tokens + row, row < token_rows, 0) * K
    if SLOTS:
        at = at if row < token_rows else slots + (row - token_rows) * K
    x = tl.load(at + k, k < K, 0.0)
    tl.store(out + row * K + k, x, k < K)
    wide = x.to(tl.float32)
    tl.store(scaled + row * K + k, (wide * tl.load(gain + k, k < K, 0.0).to(tl.float32)).to(x.dtype), k < K)
    tl.store(squares + row, tl.sum((wide * wide).to(tl.float64), 0))


@triton.jit
def linear_kernel(x, squares, weight, slot_weight, ahead, slot_ahead, bias, residual, gain, out, scaled, out_squares,
                  token_rows, rows, eps, N: tl.constexpr, K: tl.constexpr, PARTS: tl.constexpr,
                  PART_BLOCK: tl.constexpr, AHEAD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
                  BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SWIGLU: tl.constexpr, WHOLE: tl.constexpr,
                  PDL: tl.constexpr):
    """out [rows, N] = act(x [rows, K] @ weight [N or 2N, K]^T / rms + bias) + residual.

    Rows from `token_rows` on are multiplied with `slot_weight`. PARTS > 0: x is already multiplied with the gain of
    its RMS norm, and `squares` [rows, PARTS] holds the sums of squares of its parts. RESIDUAL: also emits the sum
    multiplied with the `gain` of the norm that comes next, and its squares, one part per program.
    SWIGLU: the weight holds gate above up. WHOLE: no block reaches past the weight. PDL: 1 early, as above; 2 late:
    first it asks for the beginnings of its own weights, and lets what follows start when all are read; 3 patient.
    """
    tile, token_tiles = tl.program_id(1), tl.cdiv(token_rows, BM)
    is_slot = tile >= token_tiles
    start = tl.where(is_slot, token_rows + (tile - token_tiles) * BM, tile * BM)
    end = tl.where(is_slot, rows, token_rows)
    w = slot_weight if is_slot else weight
    m = start + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    in_m, in_n = (m < end)[:, None], (n < N)[:, None]
    place, inside = m[:, None] * N + n[None, :], in_m & (n < N)[None, :]
    if PDL == 1 or PDL == 3:
        wait_early(ahead, slot_ahead, is_slot, (tile == 0) | (tile == token_tiles), AHEAD, PDL == 3)
    if PDL == 2:
        fetch_own(w, n, N, K, SWIGLU)
        gdc_wait()
    acc, up = tl.zeros([BM, BN], tl.float32), tl.zeros([BM, BN], tl.float32)
    x_at, w_at = x + m[:, None] * K, w + n[:, None] * K
    for first in range(0, K, BK):
        k = (first + tl.arange(0, BK))[None, :]
        rows_x = tl.load(x_at + k, in_m & (k < K), 0.0)
        acc = tl.dot(rows_x, block(w_at + k, in_n & (k < K), WHOLE).T, acc)
        if SWIGLU:
            up = tl.dot(rows_x, block(w_at + N * K + k, in_n & (k < K), WHOLE).T, up)
    if PDL == 2:
        gdc_launch_dependents()
    if PARTS > 0:
        part = tl.arange(0, PART_BLOCK)
        in_part = in_m & (part < PARTS)[None, :]
        total = tl.sum(tl.load(squares + m[:, None] * PARTS + part[None, :], in_part, 0.0), 1).to(tl.float32)
        scale = tl.rsqrt(total / K + eps)[:, None]
        acc, up = acc * scale, up * scale
    if BIAS:
        acc += tl.load(bias + n, n < N, 0.0).to(tl.float32)[None, :]
    if SWIGLU:
        acc = acc * tl.sigmoid(acc) * up
    if RESIDUAL:
        acc = (acc + tl.load(residual + place, inside, 0.0).to(tl.float32)).to(out.dtype.element_ty).to(tl.float32)
        ahead = acc * tl.load(gain + n, n < N, 0.0).to(tl.float32)[None, :]
        tl.store(scaled + place, ahead.to(scaled.dtype.element_ty), inside)
        parts = tl.num_programs(0)
        tl.store(out_squares + m * parts + tl.program_id(0), tl.sum((acc * acc).to(tl.float64), 1), m < end)
    tl.store(out + place, acc.to(out.dtype.element_ty), inside)


@triton.jit
def rotated(base, at, half, inside, cos, sin, norm, eps, D: tl.constexpr, QK_NORM: tl.constexpr):
    """Load rows of one head as two halves [rows, HALF], normed if asked, and rotate them."""
    a = tl.load(base + at + half[None, :], inside, 0.0).to(tl.float32)
    b = tl.load(base + at + half[None, :] + D // 2, inside, 0.0).to(tl.float32)
    if QK_NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        narrow = base.dtype.element_ty
        a = (a * scale * tl.load(norm + half, half < D // 2, 0.0).to(tl.float32)[None, :]).to(narrow).to(tl.float32)
        b = (b * scale * tl.load(norm + half + D // 2, half < D // 2, 0.0).to(tl.float32)[None, :]).to(narrow)
        b = b.to(tl.float32)
    return (a * cos - b * sin).to(base.dtype.element_ty), (b * cos + a * sin).to(base.dtype.element_ty)


@triton.jit
def row_index(i, sequence, batch, n, m):
    """Where row i of a sequence lies: all token rows come first, then all slot rows."""
    return tl.where(i < n, sequence * n + i, batch * n + sequence * m + i - n)


@triton.jit
def angles(rope, position, half, inside, D: tl.constexpr):
    """Cosines and sines of some positions, [rows, HALF] each."""
    at = rope + position[:, None] * D + half[None, :]
    return tl.load(at, inside, 0.0), tl.load(at + D // 2, inside, 0.0)


@triton.jit
def attention_kernel(qkv, keys, values, rope, positions, ancestors, paths, roots, q_norm, k_norm, out, partial, stats,
                     arrived, batch, n, m, capacity, eps, scale, HEADS: tl.constexpr, KV_HEADS: tl.constexpr,
                     D: tl.constexpr, HALF: tl.constexpr, FULL: tl.constexpr, BQ: tl.constexpr, SPLIT: tl.constexpr,
                     BLOCK: tl.constexpr, SPLITS: tl.constexpr, TREE: tl.constexpr, QK_NORM: tl.constexpr,
                     PDL: tl.constexpr):
    """Tree attention to `SPLIT` keys of one sequence and key head; the last program to arrive adds the parts up.

    qkv [rows, (HEADS + 2 KV_HEADS) D]; keys, values [batch, KV_HEADS, capacity, D]; ancestors [batch, n + m, n + m];
    paths [batch, n + m, n + m + 1] if TREE; positions [batch, n + m]; roots [batch]; out [rows, HEADS D]. Rotates
    queries and keys and fills the cache at root + row. All but `qkv` was made before the last launch that nothing
    overlapped, hence read before the wait. BLOCK: so many keys at a time, or all SPLIT at once, before the wait.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    ROWS: tl.constexpr = BQ // GROUP  # of a tile: the queries of a row stay together
    WIDTH: tl.constexpr = (HEADS + 2 * KV_HEADS) * D
    sequence, head = tl.program_id(2) // KV_HEADS, tl.program_id(2) % KV_HEADS
    rows, root = n + m, tl.load(roots + sequence).to(tl.int32)
    split, first, own = share(root, rows, ROWS, SPLIT, SPLITS, TREE)
    if split * SPLIT >= root + rows:
        return
    half, full, query = tl.arange(0, HALF), tl.arange(0, FULL), tl.arange(0, BQ)  # query: row-major over (row, head)
    in_half, in_full = (half < D // 2)[None, :], (full < D)[None, :]
    in_q, q_head = ((query < own * GROUP) & (first + query // GROUP < rows))[:, None], head * GROUP + query % GROUP
    q_row = tl.minimum(first + query // GROUP, rows - 1)
    q_line = row_index(q_row, sequence, batch, n, m)
    cos, sin = angles(rope, tl.load(positions + sequence * rows + q_row), half, in_half, D)
    cache = (sequence * KV_HEADS + head).to(tl.int64) * capacity * D
    k_at, v_at = keys + cache + half[None, :], values + cache + full[None, :]
    if BLOCK == SPLIT:
        index = split * SPLIT + tl.arange(0, BLOCK)
        k_a, k_b, v = stored(k_at, v_at, index, root, in_half, in_full, D)
        row, position, visible = seen(ancestors, paths, positions, sequence, rows, root, q_row, first, index, TREE)
    else:
        fetch_kept(keys + cache, values + cache, split * SPLIT, root, D, SPLIT * FULL)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()  # before, the product that follows would take room from programs of this launch
    q_at = (q_line * WIDTH + q_head * D)[:, None]
    q_a, q_b = rotated(qkv, q_at, half, in_q & in_half, cos, sin, q_norm, eps, D, QK_NORM)
    top, total, acc = none_attended(BQ, FULL)
    stop = SPLIT if BLOCK == SPLIT else tl.minimum(root + first + own - split * SPLIT, SPLIT)  # no row sees more
    for block in range(0, stop, BLOCK):
        if BLOCK < SPLIT:
            index = split * SPLIT + block + tl.arange(0, BLOCK)
            k_a, k_b, v = stored(k_at, v_at, index, root, in_half, in_full, D)
            row, position, visible = seen(ancestors, paths, positions, sequence, rows, root, q_row, first, index, TREE)
        if split * SPLIT + block + BLOCK > root:  # to treat all blocks so would cost Llama-7B 0.25 ms of 4.3
            k_row = (row_index(row, sequence, batch, n, m) * WIDTH + (HEADS + head) * D)[:, None]
            new_a, new_b, new_v = made(qkv, k_row, rope, position, half, full, row, k_norm, eps, KV_HEADS, D, QK_NORM)
            fresh, mine = (row >= 0)[:, None], ((row >= first) & (row < first + own))[:, None]
            k_a, k_b, v = tl.where(fresh, new_a, k_a), tl.where(fresh, new_b, k_b), tl.where(fresh, new_v, v)
            store(k_at, v_at, root + row, new_a, new_b, new_v, mine & in_half, mine & in_full, D)
        score = tl.where(visible, tl.dot(q_b, k_b.T, tl.dot(q_a, k_a.T)) * scale, float("-inf"))
        top, total, acc = attended(score, v, top, total, acc, BLOCK == SPLIT)
    if root + rows <= SPLIT:
        finish(out + (q_line * HEADS + q_head)[:, None] * D + full[None, :], total, acc, in_q & in_full)
    else:
        hand_in(partial, stats, arrived, out, in_q, top, total, acc, split, first, rows, root, batch, n, m,
                HEADS, KV_HEADS, D, SPLIT, SPLITS, TREE)


@triton.jit
def share(root, rows, ROWS: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr, TREE: tl.constexpr):
    """This program's split, its first row and the number of its rows; split SPLITS where it has nothing to do.

    TREE: rows are no chain, but each adds its keys up as if its ancestors were one. So where a split holds keys of this
    step, a row has a program of its own; `paths` says what it sees.
    """
    split, first, own = tl.program_id(0), tl.program_id(1) * ROWS, ROWS
    if TREE:
        tiled = SPLITS * tl.cdiv(rows, ROWS)  # programs of whole tiles, for splits without keys of this step
        split, tile, alone = tl.program_id(0) % SPLITS, tl.program_id(0) // SPLITS, tl.program_id(0) - tiled
        split = tl.where(split * SPLIT + SPLIT > root, SPLITS, split)
        split = tl.where(alone < 0, split, root // SPLIT + alone // rows)
        first, own = tl.where(alone < 0, tile * ROWS, alone % rows), tl.where(alone < 0, ROWS, 1)
    return split, first, own


@triton.jit
def seen(ancestors, paths, positions, sequence, rows, root, q_row, first, index, TREE: tl.constexpr):
    """The row of this step at each place `index` of the cache, -1 for none, and its position; what the queries see."""
    sees, fresh = ancestors + (sequence * rows + q_row) * rows, (index >= root) & (index < root + rows)
    visible = (tl.load(sees) != 0)[:, None] & (index < root)[None, :]  # who descends from the root sees the prefix
    if TREE:
        row = tl.load(paths + (sequence * rows + first) * (rows + 1) + index - root, fresh, -1)
        visible |= (row >= 0)[None, :]
    else:
        row = tl.where(fresh, index - root, -1)
        visible |= tl.load(sees[:, None] + row[None, :], fresh[None, :], 0) != 0
    return row, tl.load(positions + sequence * rows + row, row >= 0, 0), visible


@triton.jit
def stored(k_at, v_at, index, root, in_half, in_full, D: tl.constexpr):
    """Keys as two halves and values at the places `index` of a head's cache, 0 from the root on."""
    place, old = index[:, None] * D, (index < root)[:, None]
    k_a, k_b = tl.load(k_at + place, old & in_half, 0.0), tl.load(k_at + place + D // 2, old & in_half, 0.0)
    return k_a, k_b, tl.load(v_at + place, old & in_full, 0.0)


@triton.jit
def made(qkv, at, rope, position, half, full, row, norm, eps, KV_HEADS: tl.constexpr, D: tl.constexpr,
         QK_NORM: tl.constexpr):
    """Keys as two rotated halves and values of this step's rows, from `at` on."""
    in_half, in_full = (row >= 0)[:, None] & (half < D // 2)[None, :], (row >= 0)[:, None] & (full < D)[None, :]
    cos, sin = angles(rope, position, half, in_half, D)
    k_a, k_b = rotated(qkv, at, half, in_half, cos, sin, norm, eps, D, QK_NORM)
    return k_a, k_b, tl.load(qkv + at + KV_HEADS * D + full[None, :], in_full, 0.0)


@triton.jit
def store(k_at, v_at, index, k_a, k_b, v, in_half, in_full, D: tl.constexpr):
    """Put keys and values at such places."""
    place = index[:, None] * D
    tl.store(k_at + place, k_a, in_half)
    tl.store(k_at + place + D // 2, k_b, in_half)
    tl.store(v_at + place, v, in_full)


@triton.jit
def none_attended(BQ: tl.constexpr, FULL: tl.constexpr):
    """What is `attended` of no keys."""
    return tl.full([BQ], float("-inf"), tl.float32), tl.zeros([BQ], tl.float32), tl.zeros([BQ, FULL], tl.float32)


@triton.jit
def attended(score, v, top, total, acc, ONLY: tl.constexpr):
    """Maximum and sum of the softmax, and the weighted values, not yet divided by the sum; added to those before."""
    part_top = tl.max(score, 1)
    weight = tl.exp(score - tl.where(part_top == float("-inf"), 0.0, part_top)[:, None])
    part_total, part = tl.sum(weight, 1), tl.dot(weight.to(v.dtype), v)
    if ONLY:
        return part_top, part_total, part
    return added(top, total, acc, part_top, part_total, part)


@triton.jit
def added(top, total, acc, part_top, part_total, part):
    """Maximum, sum and weighted values over two sets of keys."""
    peak = tl.maximum(top, part_top)
    anchor = tl.where(peak == float("-inf"), 0.0, peak)
    old, new = tl.exp(top - anchor), tl.exp(part_top - anchor)
    return peak, total * old + part_total * new, acc * old[:, None] + part * new[:, None]


@triton.jit
def hand_in(partial, stats, arrived, out, in_q, top, total, acc, split, first, rows, root, batch, n, m,
            HEADS: tl.constexpr, KV_HEADS: tl.constexpr, D: tl.constexpr, SPLIT: tl.constexpr, SPLITS: tl.constexpr,
            TREE: tl.constexpr):
    """Store the part of the queries from row `first` on; who is the last of a tile's programs adds all parts up."""
    BQ: tl.constexpr = acc.shape[0]
    FULL: tl.constexpr = acc.shape[1]
    GROUP: tl.constexpr = HEADS // KV_HEADS
    ROWS: tl.constexpr = BQ // GROUP
    full, query, splits, tile = tl.arange(0, FULL), tl.arange(0, BQ), tl.cdiv(root + rows, SPLIT), first // ROWS
    group = tl.program_id(2) * tl.cdiv(rows, ROWS) + tile
    slot = ((group * SPLITS + split) * BQ + (first - tile * ROWS) * GROUP + query)[:, None]
    tl.store(partial + slot * FULL + full[None, :], acc, in_q)
    tl.store(stats + slot * 2, top[:, None], in_q)
    tl.store(stats + slot * 2 + 1, total[:, None], in_q)
    tl.debug_barrier()
    shared = root // SPLIT if TREE else splits  # splits that have one program for all rows of the tile
    parts = shared + (splits - shared) * tl.minimum(ROWS, rows - tile * ROWS)
    if tl.atomic_add(arrived + group, 1, sem="acq_rel") == parts - 1:
        tl.store(arrived + group, 0)
        row, head = tile * ROWS + query // GROUP, tl.program_id(2) % KV_HEADS * GROUP + query % GROUP
        line = row_index(row, tl.program_id(2) // KV_HEADS, batch, n, m) * HEADS + head
        inside = ((query < ROWS * GROUP) & (row < rows))[:, None] & (full < D)[None, :]
        combine(partial, stats, out + line[:, None] * D + full[None, :], inside, group * SPLITS, splits, FULL, BQ)


@triton.jit
def combine(partial, stats, out, inside, first, parts, FULL: tl.constexpr, BQ: tl.constexpr):
    """Add the parts of all splits, in the order of the splits, and store [BQ, FULL] at the pointers `out`."""
    full = tl.arange(0, FULL)
    top, total, acc = none_attended(BQ, FULL)
    for split in tl.range(0, parts, loop_unroll_factor=4):
        slot = (first + split) * BQ + tl.arange(0, BQ)
        part_top = tl.load(stats + slot * 2, cache_modifier=".cg")
        part_total = tl.load(stats + slot * 2 + 1, cache_modifier=".cg")
        part = tl.load(partial + slot[:, None] * FULL + full[None, :], cache_modifier=".cg")
        top, total, acc = added(top, total, acc, part_top, part_total, part)
    finish(out, total, acc, inside)


@triton.jit
def finish(out, total, acc, inside):
    """Store the attended values [BQ, FULL] at the pointers `out`."""
    tl.store(out, (acc / tl.where(total > 0, total, 1.0)[:, None]).to(out.dtype.element_ty), inside)
