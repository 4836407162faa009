"""What the kernels share: each step of the algorithm once.

A *tile* is a two-dimensional tensor, a row of features to a row of the tile. Sizes are powers of
two. No function mixes two rows, and no sum depends on its order: within a row they are of integers,
or of elements in a sequence that the codebook determines. So neither the batch, nor the number of
warps, nor the layout that the compiler picks can change a bit.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

# Below every key of `sort_key`, with room above it for the empty places of a list.
EMPTY = tl.constexpr(-(2**63))
PINNED = tl.constexpr(2**63 - 1)

MOST = tl.constexpr(3.4028234663852886e38)  # float32's largest number

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


# Transform.


@triton.jit
def stages(x, COUNT: tl.constexpr, LOG2: tl.constexpr, FIRST: tl.constexpr, BITS: tl.constexpr):
    """BITS stages of butterflies (u, v) → (u + v, u − v), from that of bit FIRST of the index on.

    The digit of these bits becomes the last axis, which a thread then holds: one exchange of data
    between threads for all of its stages. Each stage takes the digit's upper bit and puts it last,
    so that after BITS of them it is as it was.
    """
    LOW: tl.constexpr = 1 << FIRST
    DIGIT: tl.constexpr = 1 << BITS
    HIGH: tl.constexpr = COUNT << (LOG2 - FIRST - BITS)
    x = tl.permute(tl.reshape(x, [HIGH, DIGIT, LOW]), (0, 2, 1))
    for _ in tl.static_range(BITS):
        u, v = tl.split(tl.permute(tl.reshape(x, [HIGH * LOW, 2, DIGIT // 2]), (0, 2, 1)))
        x = tl.join(u + v, u - v)
    x = tl.permute(tl.reshape(x, [HIGH, LOW, DIGIT]), (0, 2, 1))
    return tl.reshape(x, [COUNT, 1 << LOG2])


@triton.jit
def butterfly(x, COUNT: tl.constexpr, LOG2: tl.constexpr):
    """H x for each row of x [COUNT, 2^LOG2], in natural order: LOG2 additions an element.

    Reshape, split and join move nothing where a thread holds both halves of a pair; elsewhere the
    compiler exchanges them, by shuffles within a warp, by shared memory among warps.
    """
    for pair in tl.static_range(LOG2 // 2):
        x = stages(x, COUNT, LOG2, 2 * pair, 2)
    if LOG2 % 2 == 1:
        x = stages(x, COUNT, LOG2, LOG2 - 1, 1)
    return x


@triton.jit
def store_rounded(ptr, x, mask):
    """Stores float32 x as the pointer's dtype, rounded to nearest."""
    if INTERPRETED and ptr.dtype.element_ty == tl.bfloat16:
        # Triton's interpreter cuts bits off, whatever rounding it is asked for: round before it.
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    tl.store(ptr, x, mask=mask)


# Reductions of a row.


@triton.jit
def exact_sum(x, LOG2_SCALE: tl.constexpr):
    """Σ over each row of the tile x, in fixed point: integers add up the same in any order.

    A float sum would depend on which thread holds what, and so on the number of warps and of rows.
    |Σ x| must stay below 2^(63 − LOG2_SCALE); terms are cut at 2^−LOG2_SCALE.
    """
    scale: tl.constexpr = 2.0**LOG2_SCALE
    return tl.sum((x * scale).to(tl.int64), 1).to(tl.float32) * (1.0 / scale)


@triton.jit
def ordered(x):
    """int32 in the order of the floats x, with NaN above all; its own inverse on bits."""
    bits = tl.where(x == x, x.to(tl.int32, bitcast=True), 0x7FFFFFFF)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def from_ordered(i):
    """The float of `ordered`."""
    return (i ^ ((i >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def row_max(x):
    """The largest of each row, NaN if one is NaN. GPUs reduce integers faster than floats."""
    return from_ordered(tl.max(ordered(x), 1))


# What kernels take apart into these and pass on. A tuple keeps its constants only while it is an
# argument, so kernels make it where they call.


class Features(NamedTuple):
    """A tile's rows of x: their offsets, which of them exist, and where features stand in H."""

    x_ptr: tl.tensor
    starts: tl.tensor
    valid: tl.tensor
    IN_FEATURES: tl.constexpr
    COLUMN_OFFSET: tl.constexpr
    PACKED: tl.constexpr  # eight signs to a byte, set = −1


class Blocks(NamedTuple):
    """The stack [B_0; B_1; …], B_j = H_n D_j, in slots of 2^LOG2_WIDTH rows (see `slot_values`)."""

    base_ptr: tl.tensor
    signs_ptr: tl.tensor
    count: tl.tensor
    BASE_ORDER: tl.constexpr
    SPLIT: tl.constexpr
    HAS_SIGNS: tl.constexpr
    NEGATE: tl.constexpr
    CENTER_FROM: tl.constexpr
    CENTER_OVER: tl.constexpr  # classes whose mean is subtracted; 0: of none
    ROWS: tl.constexpr
    SLOTS: tl.constexpr
    LOG2_WIDTH: tl.constexpr
    LOG2_TILE: tl.constexpr


class Classes(NamedTuple):
    """Which rows of the stack are classes, and what joins their cosines."""

    first_row: tl.tensor
    count: tl.tensor
    bias_ptr: tl.tensor
    allowed_ptr: tl.tensor
    allowed_stride: tl.tensor
    rows: tl.tensor  # of the mask
    HAS_BIAS: tl.constexpr
    HAS_ALLOWED: tl.constexpr


# Features.


@triton.jit
def load_features(features, columns):
    """The features at columns of H as float32 [rows, columns]; 0 where there is none."""
    feature = columns - features.COLUMN_OFFSET
    inside = (feature >= 0) & (feature < features.IN_FEATURES)
    inside = features.valid[:, None] & inside[None, :]
    if features.PACKED:
        places = features.x_ptr + features.starts[:, None] + (feature // 8)[None, :]
        byte = tl.load(places, mask=inside, other=0).to(tl.int32)
        odd = (byte >> (feature % 8)[None, :]) & 1
        x = tl.where(inside, 1 - 2 * odd, 0).to(tl.float32)
    else:
        places = features.x_ptr + features.starts[:, None] + feature[None, :]
        x = tl.load(places, mask=inside, other=0).to(tl.float32)
    return x


@triton.jit
def row_scale(
    features,
    alpha_ptr,
    ORDER: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROWS: tl.constexpr,
    LOG2_BLOCK: tl.constexpr,
):
    """factor, scale [ROWS] with α ⟨w, x̂⟩ / √N = scale ⟨w, factor x⟩, x̂ = x / max(‖x‖₂, 1e-12), or
    α ⟨w, x⟩ = scale · lift(factor) ⟨w, factor x⟩ without normalisation.

    factor is the power of two that brings the largest |x| of the row to [1, 4), so that no square
    overflows and none that matters underflows. A row with a NaN or an infinity has scale NaN. Reads
    the row twice, the second time from the L1 cache or, where it is one block, from registers.
    """
    column = tl.arange(0, 1 << LOG2_BLOCK)
    top = tl.zeros([ROWS, 1 << LOG2_BLOCK], tl.int32)
    for begin in range(0, ORDER, 1 << LOG2_BLOCK):
        bits = load_features(features, begin + column).to(tl.int32, bitcast=True)
        top = tl.maximum(top, bits & 0x7FFFFFFF)
    exponent = tl.max(top, 1) >> 23
    factor = tl.minimum(tl.maximum(254 - exponent, 1), 253) << 23
    factor = factor.to(tl.float32, bitcast=True)

    # Squares are below 16, and at most 2^14 of them: their sum is below 2^18.
    squares = tl.zeros([ROWS], tl.float32)
    for begin in range(0, ORDER, 1 << LOG2_BLOCK):
        x = load_features(features, begin + column) * factor[:, None]
        squares += exact_sum(x * x, 44)
    alpha = tl.load(alpha_ptr) + tl.zeros([ROWS], tl.float32)
    if NORMALIZE:
        root = tl.sqrt_rn(tl.full([ROWS], features.IN_FEATURES, tl.float32))
        norm = tl.maximum(tl.sqrt_rn(squares), 1e-12 * factor)
        scale = tl.div_rn(alpha, norm * root)
    else:
        # Where the scale is cut off, logits that are no mere rounding errors are beyond the range.
        scale = tl.div_rn(alpha, factor * lift(factor))
        cut = tl.minimum(tl.maximum(scale, -MOST), MOST)
        scale = tl.where(tl.abs(alpha) <= MOST, cut, scale)
    return factor, tl.where(exponent < 255, scale, float("nan"))


@triton.jit
def lift(factor):
    """Without normalisation: what sums of a huge row, factor x, are multiplied by before `scale`,
    which alone might be beyond the range."""
    return tl.where(factor < 2.0**-60, 2.0**40, 1.0)


# Codebook.


@triton.jit
def flip(x, odd):
    """−x where odd is 1, x where it is 0."""
    return (x.to(tl.int32, bitcast=True) ^ (odd << 31)).to(tl.float32, bitcast=True)


@triton.jit
def bit_at(ptr, row, index, stride, mask):
    """Bit `index` of a row of packed bits, little-endian within bytes; 0 where mask is False."""
    byte = tl.load(ptr + row * stride + index // 8, mask=mask, other=0)
    return (byte.to(tl.int32) >> (index % 8)) & 1


@triton.jit
def left_sign(base_ptr, i, j, BASE_ORDER: tl.constexpr, SPLIT: tl.constexpr):
    """Whether entry (i, j) of P_b ⊗ H_SPLIT is −1; i: a vector, j: a number."""
    both = (i % SPLIT) & (j % SPLIT)
    odd = both ^ (both >> 8)
    odd = odd ^ (odd >> 4)
    odd = odd ^ (odd >> 2)
    odd = (odd ^ (odd >> 1)) & 1
    if BASE_ORDER > 1:
        column = j // SPLIT + tl.zeros_like(i)
        inside = column < BASE_ORDER
        odd = odd ^ bit_at(base_ptr, i // SPLIT, column, (BASE_ORDER + 7) // 8, inside)
    return odd


@triton.jit
def slot_values(features, factor, blocks, first_slot):
    """⟨w, factor x⟩ for the rows w of SLOTS slots: [ROWS, SLOTS · WIDTH].

    H_n = L ⊗ H_WIDTH with L = P_b ⊗ H_SPLIT: a slot is what one row of L makes of a block, WIDTH
    consecutive rows of the stack. First its columns are mixed, Σ_j L[i, j] (d x)[j WIDTH + ·], with
    x from memory (the row stays in the L1 cache), then one butterfly of WIDTH follows. Cost of a
    slot: n + WIDTH log2 WIDTH additions. Few rows of a large order (folding), the rows of one block
    spread over programs, and base matrices are all this one loop.
    """
    ROWS: tl.constexpr = blocks.ROWS
    SLOTS: tl.constexpr = blocks.SLOTS
    WIDTH: tl.constexpr = 1 << blocks.LOG2_WIDTH
    LEFT: tl.constexpr = blocks.BASE_ORDER * blocks.SPLIT
    UNROLL: tl.constexpr = LEFT if LEFT < 4 else 4
    SIGN_STRIDE: tl.constexpr = (LEFT * WIDTH + 7) // 8
    slot = first_slot + tl.arange(0, SLOTS)
    block, i = slot // LEFT, slot % LEFT
    within = tl.arange(0, WIDTH)
    total = tl.zeros([ROWS, SLOTS, WIDTH], tl.float32)
    for begin in range(0, LEFT, UNROLL):
        # A few at a time, summed on their own: a long row of like values keeps its precision.
        part = tl.zeros([ROWS, SLOTS, WIDTH], tl.float32)
        for step in tl.static_range(0, UNROLL):
            j = begin + step
            columns = j * WIDTH + within
            x = load_features(features, columns) * factor[:, None]
            x = tl.broadcast_to(x[:, None, :], [ROWS, SLOTS, WIDTH])
            if LEFT > 1:
                odd = left_sign(blocks.base_ptr, i, j, blocks.BASE_ORDER, blocks.SPLIT)
                x = flip(x, odd[None, :, None])
            if blocks.HAS_SIGNS:
                inside = (block < blocks.count)[:, None] & (columns < LEFT * WIDTH)[None, :]
                odd = bit_at(
                    blocks.signs_ptr, block[:, None], columns[None, :], SIGN_STRIDE, inside
                )
                x = flip(x, odd[None, :, :])
            part += x
        total += part
    y = butterfly(tl.reshape(total, [ROWS * SLOTS, WIDTH]), ROWS * SLOTS, blocks.LOG2_WIDTH)
    return tl.reshape(y, [ROWS, SLOTS * WIDTH])


@triton.jit
def logits_tile(features, factor, scale, blocks, classes, first_slot, NORMALIZE: tl.constexpr):
    """The logits of the classes in SLOTS slots: z [ROWS, 2^LOG2_TILE], −∞ where a class is
    forbidden or is none of those asked for; index and exists, vectors, one element a class.

    With NEGATE a slot stands for two runs of classes, those of y and of −y, and the second half of
    the tile is the negation of the first.
    """
    ROWS: tl.constexpr = blocks.ROWS
    WIDTH: tl.constexpr = 1 << blocks.LOG2_WIDTH
    POSITIVE: tl.constexpr = blocks.SLOTS * WIDTH
    LEFT: tl.constexpr = blocks.BASE_ORDER * blocks.SPLIT
    y = slot_values(features, factor, blocks, first_slot)
    slot = first_slot + tl.arange(0, blocks.SLOTS)
    row = (slot // LEFT) * (LEFT * WIDTH * (1 + blocks.NEGATE)) + (slot % LEFT) * WIDTH
    row = tl.reshape(row[:, None] + tl.arange(0, WIDTH)[None, :], [POSITIVE])
    if blocks.CENTER_OVER > 0:
        # The simplex ETF: y → √(C / (C − 1)) (y − mean of y over all classes, of any shard).
        member = (row >= blocks.CENTER_FROM) & (row < blocks.CENTER_FROM + blocks.CENTER_OVER)
        # |y| < 2^16, as |factor x| < 4, and there are at most 2^14 of them.
        mean = exact_sum(tl.where(member[None, :], y, 0.0), 32)
        y = y - (mean / blocks.CENTER_OVER)[:, None]
        ratio: tl.constexpr = blocks.CENTER_OVER / (blocks.CENTER_OVER - 1)
        scale = scale * tl.sqrt_rn(tl.full([ROWS], ratio, tl.float32))
    if blocks.NEGATE:
        y = tl.reshape(tl.permute(tl.join(y, -y), (0, 2, 1)), [ROWS, 2 * POSITIVE])
        row = tl.join(row, row + LEFT * WIDTH)
        row = tl.reshape(tl.permute(row, (1, 0)), [2 * POSITIVE])
    index = row - classes.first_row
    exists = (index >= 0) & (index < classes.count)
    if not NORMALIZE:
        y = y * lift(factor)[:, None]
    z = y * scale[:, None]
    if classes.HAS_BIAS:
        bias = tl.load(classes.bias_ptr + index, mask=exists, other=0)
        z += bias[None, :]
    allowed = features.valid[:, None] & exists[None, :]
    if classes.HAS_ALLOWED:
        rows = classes.rows[:, None]
        bits = bit_at(classes.allowed_ptr, rows, index[None, :], classes.allowed_stride, allowed)
        # A row with a NaN among its features has no other logit.
        allowed = allowed & ((bits == 1) | (scale != scale)[:, None])
    return tl.where(allowed, z, float("-inf")), index, exists


# Softmax.


@triton.jit
def join_statistics(top, total, tops, totals, LOG2_SCALE: tl.constexpr):
    """Adds Σ_i totals_i exp(tops_i) of a tile [rows, ·] to total · exp(top): the online softmax.

    Of logits with totals 1, or of partial results. top = −∞ stands for no term at all; a NaN makes
    top NaN; +∞ as the top makes total 0 or NaN. totals are at most 2^(62 − LOG2_SCALE) in sum.
    """
    higher = tl.maximum(top, row_max(tops), propagate_nan=tl.PropagateNan.ALL)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    terms = totals * tl.exp(tops - shift[:, None])
    terms = tl.where(terms == terms, terms, 0.0)
    total = total * tl.exp(top - shift) + exact_sum(terms, LOG2_SCALE)
    return higher, total


@triton.jit
def add_logits(top, total, z):
    """`join_statistics` of a tile of logits: at most 2^14 terms of at most 1."""
    return join_statistics(top, total, z, 1.0, 46)


@triton.jit
def merged_statistics(tops_ptr, totals_ptr, rows, valid, CHUNKS: tl.constexpr, LOG2: tl.constexpr):
    """The statistics of whole rows from those of their chunks [·, CHUNKS]; at most 2^30 classes."""
    chunk = tl.arange(0, 1 << LOG2)
    inside = valid[:, None] & (chunk < CHUNKS)[None, :]
    places = rows[:, None] * CHUNKS + chunk[None, :]
    tops = tl.load(tops_ptr + places, mask=inside, other=float("-inf"))
    totals = tl.load(totals_ptr + places, mask=inside, other=0)
    none = tl.zeros_like(rows).to(tl.float32)
    return join_statistics(none + float("-inf"), none, tops, totals, 32)


@triton.jit
def log_of_sum(top, total):
    """logsumexp of statistics: −∞ for no term, +∞ if a logit is."""
    return tl.where(top == float("inf"), top, top + tl.log(total))


@triton.jit
def log_probability(z, top, total):
    """z − logsumexp, precise where |z| is so large that it swallows the logarithm; z [rows, ·]."""
    return (z - top[:, None]) - tl.log(total)[:, None]


# Top-k.


@triton.jit
def sort_key(z, index, exists):
    """int64 keys: the larger of two logits has the larger key, of equal ones the lower index.

    NaN is larger than any number; −0 counts as 0. Where exists is False: EMPTY, below every key.
    """
    high = ordered(z + 0.0).to(tl.int64) << 32
    return tl.where(exists, high | (0x7FFFFFFF - index).to(tl.int64), EMPTY)


@triton.jit
def from_sort_key(key):
    """Logit and index of a key."""
    return from_ordered((key >> 32).to(tl.int32)), 0x7FFFFFFF - (key & 0x7FFFFFFF)


@triton.jit
def empty_list(k, ROWS: tl.constexpr, PLACES: tl.constexpr):
    """A list of the k best of no keys: [ROWS, PLACES], PLACES a power of two from k on.

    Empty places differ, so that `insert` can replace one of them. In a short list the places from k
    on are pinned: what it drops is then the k-th best key, not one of those that nobody asked for.
    """
    place = tl.broadcast_to(tl.arange(0, PLACES)[None, :], [ROWS, PLACES])
    keys = EMPTY + (PLACES - place).to(tl.int64)
    if PLACES <= 16:
        keys = tl.where(place < k, keys, PINNED)
    return keys


@triton.jit
def insert(best, keys):
    """The list `best` [ROWS, PLACES] with the tile `keys` [ROWS, ≥ PLACES] taken in.

    Most tiles hold nothing that beats the worst of the list: they cost one maximum. Short lists
    take the largest key while it does, each by one pass over the tile. Long lists are kept sorted,
    descending: the tile's own best, reversed, against them leave the best of both in bitonic order.
    """
    PLACES: tl.constexpr = best.shape[1]
    high, low = tl.max(keys, 1), tl.min(best, 1)
    if PLACES <= 16:
        while tl.max((high > low).to(tl.int32), 0) > 0:
            replaced = (high > low)[:, None] & (best == low[:, None])
            best = tl.where(replaced, high[:, None], best)
            keys = tl.where(keys == high[:, None], EMPTY, keys)
            high, low = tl.max(keys, 1), tl.min(best, 1)
    else:
        if tl.max((high > low).to(tl.int32), 0) > 0:
            candidates = tl.flip(tl.topk(keys, PLACES), 1)
            best = tl.bitonic_merge(tl.maximum(best, candidates), descending=True)
    return best


@triton.jit
def unpinned(best):
    """The list without its pinned places."""
    return tl.where(best == PINNED, EMPTY, best)
