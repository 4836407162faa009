"""y = scale · H x, H the Sylvester–Hadamard matrix of order n = 2^k ≤ 2^14.

Tile: [ROWS, n], a program for each, where ROWS · n is about 2048 for small n and ROWS is 1 from
2048 on. Bytes moved: n in and n out a row, in the dtype of x; nothing else, which makes a copy the
floor. n log2 n additions in float32, in registers, see `butterfly`.
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
    ROWS: tl.constexpr,
    LOG2_TILE: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, 1 << LOG2_TILE)
    valid = (rows < batch)[:, None]
    rows = rows.to(tl.int64)[:, None]
    x = tl.load(x_ptr + rows * x_stride + column[None, :], mask=valid, other=0).to(tl.float32)
    y = butterfly(x, ROWS, LOG2_TILE) * scale
    store_rounded(y_ptr + (rows << LOG2_TILE) + column[None, :], y, valid)
