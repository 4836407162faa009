"""`hadamard_transform` of arrays, and what that of tensors needs as well."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from . import _native
from .codebooks.kernel import Geometry
from .codebooks.orders import Order, cover, find_order

Array = np.ndarray[Any, np.dtype[Any]]

MAX_ORDER = 1 << 22


def factor(size: int, order: int | None) -> Order:
    """The order of H for `size` elements; ValueError where there is none."""
    n = size if order is None else order
    if n < size or size < 1:
        raise ValueError(f"order is {n}, expected at least the {size} elements of x, and 1")
    if n > MAX_ORDER:
        raise ValueError(f"order is {n}, expected at most {MAX_ORDER}")
    found = find_order(n)
    if found is None:
        raise ValueError(
            f"order is {n}{' (the size of x)' if order is None else ''}, of which no Hadamard "
            f"matrix is built in; order={cover(n).n} is the next one, and pads x with zeros"
        )
    return found


def fits(scale: float) -> bool:
    """Whether α = scale loses neither range nor precision in float32."""
    return not math.isfinite(scale) or scale == 0 or 2.0**-126 <= abs(scale) < 2.0**128


def transform(x: Array, scale: float, order: int | None) -> Array:
    """Along the last dimension."""
    found = factor(x.shape[-1], order)
    if found.base == 1:
        if found.n > x.shape[-1]:
            x = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, found.n - x.shape[-1])])
        return _native.hadamard_transform(x, scale)
    if x.dtype.kind in "iub":
        raise TypeError(f"x is {x.dtype}, expected float32, bfloat16, float16 or float64")
    head = _native.Head(
        1.0 if not fits(scale) else scale,
        None,
        bits_of(found),
        None,
        Geometry(x.shape[-1], found.base, found.log2, 0, 0, 0, 0, found.n, 0, found.n),
        normalize=False,
    )
    y = head.map(x, 0)
    return y if fits(scale) else (y.astype(np.float64) * scale).astype(x.dtype)


@lru_cache
def bits_of(order: Order) -> Array:
    bits = order.bits
    assert bits is not None
    return bits
