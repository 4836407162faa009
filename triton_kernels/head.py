"""Maps of the logits, one value a class: out[b, i] = f(z_i), z_i = α ⟨w_i, x̂⟩ / √N + b_i.

A program computes one tile of classes for ROWS rows: [ROWS, 2^LOG2_TILE] logits (`logits_tile`),
then the epilogue, and writes them. Grid: row tiles × class tiles, the class tiles innermost, so
that neighbours read the same rows of x.

Softmax needs a sum over all classes. Where these are one tile it is a reduction of the tile; where
they are several, `statistics_kernel` (log_prob.py) has left the (max, sum) of each chunk of them,
and every program merges these and computes its own logits again: two transforms cost less than
writing and reading the logits.

Bytes moved: N in and C out a row, in their dtypes; n/8 bytes of signs a block, 4 a bias. One tile:
n log2 n additions, so that the head costs what a copy of its input and output costs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fixclf_infer.epilogue import Epilogue

from .device import (
    Blocks,
    Classes,
    Features,
    add_logits,
    log_probability,
    logits_tile,
    merged_statistics,
    row_scale,
    store_rounded,
)

LOGITS = tl.constexpr(int(Epilogue.LOGITS))
SOFTMAX = tl.constexpr(int(Epilogue.SOFTMAX))
LOG_SOFTMAX = tl.constexpr(int(Epilogue.LOG_SOFTMAX))
SIGMOID = tl.constexpr(int(Epilogue.SIGMOID))
# Those that `epilogue` has.
EPILOGUES = (Epilogue.LOGITS, Epilogue.SOFTMAX, Epilogue.LOG_SOFTMAX, Epilogue.SIGMOID)


@triton.jit
def epilogue(z, top, total, EPILOGUE: tl.constexpr):
    """f of a tile of logits, float32; Σ_j exp(z_j) = total · exp(top) where f needs it."""
    if EPILOGUE == SOFTMAX:
        z = tl.exp(z - top[:, None]) * (1.0 / total)[:, None]
    elif EPILOGUE == LOG_SOFTMAX:
        z = log_probability(z, top, total)
    elif EPILOGUE == SIGMOID:
        z = 1.0 / (1.0 + tl.exp(-z))
    return z


@triton.jit(do_not_specialize=["batch"])
def map_kernel(
    x_ptr,
    alpha_ptr,
    bias_ptr,
    base_ptr,
    signs_ptr,
    tops_ptr,
    totals_ptr,
    out_ptr,
    batch,
    x_stride,
    block_count,
    first_row,
    class_count,
    first_slot,
    tiles,
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
    EPILOGUE: tl.constexpr,
    CHUNKS: tl.constexpr,
    LOG2_CHUNKS: tl.constexpr,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    LOG2_WIDTH: tl.constexpr,
    LOG2_TILE: tl.constexpr,
    LOG2_BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    rows = (program // tiles) * ROWS + tl.arange(0, ROWS)
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
        Classes(first_row, class_count, bias_ptr, bias_ptr, 0, rows, HAS_BIAS, False),
        first_slot + (program % tiles) * SLOTS,
        NORMALIZE,
    )
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if EPILOGUE == SOFTMAX or EPILOGUE == LOG_SOFTMAX:  # noqa: SIM109
        if CHUNKS == 0:
            top, total = add_logits(top, total, z)
        else:
            top, total = merged_statistics(tops_ptr, totals_ptr, rows, valid, CHUNKS, LOG2_CHUNKS)
    store_rounded(
        out_ptr + rows[:, None] * class_count + index[None, :],
        epilogue(z, top, total, EPILOGUE),
        valid[:, None] & exists[None, :],
    )
