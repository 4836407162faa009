"""logsumexp(z), and z and log p = z − logsumexp(z) at given ids, without an array of logits.

`statistics_kernel`: a program takes ROWS rows and one chunk of the classes, TILES_PER_CHUNK tiles
one after the other, and keeps (max, Σ exp(z − max)); of the ids it writes the logits of those that
lie among its classes. Grid: row tiles × chunks. Chunks depend on the codebook alone, so that one
row is enough to fill a GPU and a batch changes no bit of it.
Bytes moved: N in a row (from the L2 cache for all chunks but one), 8 out a chunk; n/8 bytes of
signs a block.

`log_prob_kernel`: merges the chunks of a row and subtracts. 8 bytes a chunk, 16 an id.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import (
    Blocks,
    Classes,
    Features,
    add_logits,
    log_of_sum,
    log_probability,
    logits_tile,
    merged_statistics,
    row_scale,
)


@triton.jit(do_not_specialize=["batch"])
def statistics_kernel(
    x_ptr,
    alpha_ptr,
    bias_ptr,
    base_ptr,
    signs_ptr,
    allowed_ptr,
    ids_ptr,
    tops_ptr,
    totals_ptr,
    logits_ptr,
    batch,
    x_stride,
    allowed_stride,
    IDS_PER_ROW: tl.constexpr,
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
    HAS_IDS: tl.constexpr,
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
        top, total = add_logits(top, total, z)
        if HAS_IDS:
            for i in range(0, IDS_PER_ROW):
                place = rows * IDS_PER_ROW + i
                wanted = tl.load(ids_ptr + place, mask=valid, other=-1)
                wanted = tl.where((wanted >= 0) & (wanted < class_count), wanted, -1)
                hit = wanted.to(tl.int32)[:, None] == tl.where(exists, index, -2)[None, :]
                found = tl.max(hit.to(tl.int32), 1) == 1
                # The one logit that is there, whatever its value; no other term is added to it.
                logit = tl.sum(tl.where(hit, z, 0.0), 1)
                tl.store(logits_ptr + place, logit, mask=valid & found)
    tl.store(tops_ptr + rows * CHUNKS + chunk, top, mask=valid)
    tl.store(totals_ptr + rows * CHUNKS + chunk, total, mask=valid)


@triton.jit
def log_prob_kernel(
    tops_ptr,
    totals_ptr,
    ids_ptr,
    logits_ptr,
    log_probs_ptr,
    logsumexp_ptr,
    IDS_PER_ROW: tl.constexpr,
    class_count,
    CHUNKS: tl.constexpr,
    LOG2_CHUNKS: tl.constexpr,
    IDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    rows = row + tl.arange(0, 1)
    top, total = merged_statistics(tops_ptr, totals_ptr, rows, rows >= 0, CHUNKS, LOG2_CHUNKS)
    tl.store(logsumexp_ptr + rows, log_of_sum(top, total))
    for begin in range(0, IDS_PER_ROW, IDS):
        i = begin + tl.arange(0, IDS)
        inside = i < IDS_PER_ROW
        places = row * IDS_PER_ROW + i
        wanted = tl.load(ids_ptr + places, mask=inside, other=-1)
        known = (wanted >= 0) & (wanted < class_count)
        logits = tl.load(logits_ptr + places, mask=inside & known, other=float("nan"))
        tl.store(logits_ptr + places, logits, mask=inside)
        log_probs = tl.reshape(log_probability(logits[None, :], top, total), [IDS])
        tl.store(log_probs_ptr + places, log_probs, mask=inside)
