"""y = scale · H x, H the Sylvester–Hadamard matrix of order n = 2^k ≤ 2^14.

Tile: [ROWS, n], a program for each, where ROWS · n is about 2048 for small n and ROWS is 1 from
2048 on. Bytes moved: n in and n out a row, in the dtype of x; nothing else, which makes a copy the
floor. n log2 n additions in float32, in registers, see `butterfly`. The factor is scale, times
more² if WIDE: for one beyond the range of float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import butterfly, store_rounded


@triton.jit(do_not_specialize=["batch"])
def transform_kernel(
    x_ptr,
    y_ptr,
    batch,
    x_stride,
    scale,
    more,
    ROWS: tl.constexpr,
    LOG2_TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, 1 << LOG2_TILE)
    valid = (rows < batch)[:, None]
    rows = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + rows * x_stride + column[None, :], mask=valid, other=0).to(tl.float32)
    # A row whose sums might overflow is made smaller, and larger again: after a scale that makes it
    # smaller, before one that makes it larger.
    exponent = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, 1) >> 23
    shift = tl.minimum(tl.maximum(exponent + LOG2_TILE - 252, 0), 126)
    factor = ((127 - shift) << 23).to(tl.float32, bitcast=True)[:, None]
    back = ((127 + shift) << 23).to(tl.float32, bitcast=True)[:, None]
    last = tl.abs(scale) < 1
    y = butterfly(x * factor, ROWS, LOG2_TILE) * tl.where(last, 1.0, back) * scale
    if WIDE:
        y = y * more * more
    y = y * tl.where(last, back, 1.0)
    store_rounded(y_ptr + (rows << LOG2_TILE) + column[None, :], y, valid)
