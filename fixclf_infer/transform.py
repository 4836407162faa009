"""The Hadamard transform of many orders, for torch tensors and NumPy arrays."""

from __future__ import annotations

import math
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from .codebooks.kernel import Geometry
from .codebooks.orders import Order, cover, find_order

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]

MAX_ORDER = 1 << 22


@overload
def hadamard_transform(
    x: torch.Tensor,
    scale: float = 1.0,
    dim: int = -1,
    *,
    order: int | None = None,
    axis: int | None = None,
) -> torch.Tensor: ...
@overload
def hadamard_transform(
    x: Array,
    scale: float = 1.0,
    dim: int = -1,
    *,
    order: int | None = None,
    axis: int | None = None,
) -> Array: ...


def hadamard_transform(
    x: Any,
    scale: float = 1.0,
    dim: int = -1,
    *,
    order: int | None = None,
    axis: int | None = None,
) -> Any:
    """The Hadamard transform along one dimension: y = scale · H_n [x; 0].

    n = 2^k: y_i = scale · Σ_j (−1)^popcount(i & j) x_j (Sylvester's H_n, natural order; symmetric),
    in n·k additions. n = b · 2^k: H_n = P_b ⊗ H_{2^k}, P_b the matrix of
    `fixclf_infer.codebooks.orders.base_matrix(b)`, with b = 12, 20, 28, 36, … the smallest that is
    known for n; about n (b/4 + k) additions on the CPU. H_n H_nᵀ = n I: scale = n^−½ makes it
    orthonormal. Finite x gives finite or infinite results, never NaN.

    Args:
        x: torch tensor or NumPy array [..., N, ...] of float32, bfloat16, float16 (float32
            accumulation) or float64. Tensors take part in autograd and `torch.compile`.
        scale: factor of the result.
        dim: the dimension of N.
        order: n ≥ N: x is padded with zeros to it. None: n = N.
            `hadamard_transform(x, order=1 << (N - 1).bit_length())[..., :N]` is what
            fast_hadamard_transform returns.
        axis: NumPy's name of dim, if given.

    Returns:
        A tensor or array of x's dtype, and of its shape but for n in the place of N.

    Raises:
        ValueError: no Hadamard matrix of order n is built in (the message names the next one), n is
            over 2^22 (2^15 on CUDA, 2^14 in Triton), or another dtype of a tensor.
        TypeError: another dtype of an array, or neither tensor nor array.
    """
    torch = sys.modules.get("torch")
    is_tensor = torch is not None and isinstance(x, torch.Tensor)
    if not is_tensor and not isinstance(x, np.ndarray):
        raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor or a numpy.ndarray")
    dim = dim if axis is None else axis
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim is {dim}, expected one of the {x.ndim} dimension(s) of x")
    last = dim in (-1, x.ndim - 1)
    if not is_tensor:
        y = _numpy(x if last else np.moveaxis(x, dim, -1), scale, order)
        return y if last else np.moveaxis(y, -1, dim)
    from . import _torch_transform

    z = _torch_transform.transform(x if last else x.movedim(dim, -1), scale, order)
    return z if last else z.movedim(-1, dim)


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


def _numpy(x: Array, scale: float, order: int | None) -> Array:
    from . import _native

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
