"""The k largest logits of a row, sorted, the lowest class first on ties, and logsumexp(z), without
an array of logits.

`topk_kernel`: a program takes ROWS rows and one chunk of the classes, TILES_PER_CHUNK tiles one
after the other, and keeps the list of its best keys (`sort_key`, `insert`) and (max, Σ exp). Grid:
row tiles × chunks; chunks depend on the codebook and k alone, so that one row is enough to fill a
GPU, and a batch changes no bit of it.
Bytes moved: N in a row (from the L2 cache for all chunks but one), 8 PLACES + 8 out a chunk; n/8
bytes of signs a block, which is all that is ever stored of W.

`topk_merge_kernel`: takes the lists of a row in, chunk by chunk, sorts, and writes. The k largest
of distinct keys are the same in whatever order they come.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import (
    EMPTY,
    Blocks,
    Classes,
    Features,
    add_logits,
    empty_list,
    from_sort_key,
    insert,
    log_of_sum,
    log_probability,
    logits_tile,
    merged_statistics,
    row_scale,
    sort_key,
    unpinned,
)


@triton.jit(do_not_specialize=["batch"])
def topk_kernel(
    x_ptr,
    alpha_ptr,
    bias_ptr,
    base_ptr,
    signs_ptr,
    allowed_ptr,
    keys_ptr,
    tops_ptr,
    totals_ptr,
    batch,
    x_stride,
    allowed_stride,
    block_count,
    first_row,
    class_count,
    first_slot,
    IN_FEATURES: tl.constexpr,
    COLUMN_OFFSET: tl.constexpr,
    PACKED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BASE_ORDER: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_SIGNS: tl.constexpr,
    NEGATE: tl.constexpr,
    CENTER_FROM: tl.constexpr,
    CENTER_OVER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    STATISTICS: tl.constexpr,
    CHUNKS: tl.constexpr,
    TILES_PER_CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    LOG2_WIDTH: tl.constexpr,
    LOG2_TILE: tl.constexpr,
    LOG2_BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    chunk = program % CHUNKS
    rows = (program // CHUNKS) * ROWS + tl.arange(0, ROWS)
    valid = rows < batch
    rows = rows.to(tl.int64)
    starts = rows * x_stride
    ORDER: tl.constexpr = (BASE_ORDER * SPLIT) << LOG2_WIDTH
    factor, scale = row_scale(
        Features(x_ptr, starts, valid, IN_FEATURES, COLUMN_OFFSET, PACKED),
        alpha_ptr,
        ORDER,
        NORMALIZE,
        ROWS,
        LOG2_BLOCK,
    )
    best = empty_list(K, ROWS, PLACES)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for tile in range(0, TILES_PER_CHUNK):
        z, index, exists = logits_tile(
            Features(x_ptr, starts, valid, IN_FEATURES, COLUMN_OFFSET, PACKED),
            factor,
            scale,
            Blocks(
                base_ptr,
                signs_ptr,
                block_count,
                BASE_ORDER,
                SPLIT,
                HAS_SIGNS,
                NEGATE,
                CENTER_FROM,
                CENTER_OVER,
                ROWS,
                SLOTS,
                LOG2_WIDTH,
                LOG2_TILE,
            ),
            Classes(
                first_row,
                class_count,
                bias_ptr,
                allowed_ptr,
                allowed_stride,
                rows,
                HAS_BIAS,
                HAS_ALLOWED,
            ),
            first_slot + (chunk * TILES_PER_CHUNK + tile) * SLOTS,
            NORMALIZE,
        )
        if STATISTICS:
            top, total = add_logits(top, total, z)
        best = insert(best, sort_key(z, index[None, :], exists[None, :]))
    place = tl.arange(0, PLACES)
    keys = (rows * CHUNKS + chunk)[:, None] * PLACES + place[None, :]
    tl.store(keys_ptr + keys, unpinned(best), mask=valid[:, None])
    if STATISTICS:
        tl.store(tops_ptr + rows * CHUNKS + chunk, top, mask=valid)
        tl.store(totals_ptr + rows * CHUNKS + chunk, total, mask=valid)


@triton.jit
def topk_merge_kernel(
    keys_ptr,
    tops_ptr,
    totals_ptr,
    values_ptr,
    indices_ptr,
    logsumexp_ptr,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    STATISTICS: tl.constexpr,
    LOG_PROBABILITIES: tl.constexpr,
    CHUNKS: tl.constexpr,
    LOG2_CHUNKS: tl.constexpr,
    LOG2_TILE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best = empty_list(K, 1, PLACES)
    for begin in range(0, CHUNKS * PLACES, 1 << LOG2_TILE):
        i = begin + tl.arange(0, 1 << LOG2_TILE)
        keys = tl.load(
            keys_ptr + row * (CHUNKS * PLACES) + i, mask=i < CHUNKS * PLACES, other=EMPTY
        )
        best = insert(best, keys[None, :])
    if PLACES > 1:
        best = tl.sort(unpinned(best), descending=True)
    values, indices = from_sort_key(best)

    place = tl.arange(0, PLACES)[None, :]
    inside = place < K
    if STATISTICS:
        rows = row + tl.arange(0, 1)
        top, total = merged_statistics(tops_ptr, totals_ptr, rows, rows >= 0, CHUNKS, LOG2_CHUNKS)
        tl.store(logsumexp_ptr + rows, log_of_sum(top, total))
        if LOG_PROBABILITIES:
            values = log_probability(values, top, total)
        tl.store(values_ptr + row * K + place, values, mask=inside)
    tl.store(indices_ptr + row * K + place, indices, mask=inside)
