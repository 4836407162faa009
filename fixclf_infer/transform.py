"""The Walsh–Hadamard transform for torch tensors and NumPy arrays."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]


@overload
def hadamard_transform(x: torch.Tensor, scale: float = 1.0) -> torch.Tensor: ...
@overload
def hadamard_transform(x: Array, scale: float = 1.0) -> Array: ...


def hadamard_transform(x: Any, scale: float = 1.0) -> Any:
    """Walsh–Hadamard transform along the last dimension, in natural order.

    y[..., i] = scale · Σ_j (−1)^popcount(i & j) x[..., j] for n = x.shape[-1] = 2^k, k ≤ 20.
    scale = n^−½ makes it orthonormal and its own inverse. n·k additions a row.

    Args:
        x: torch tensor or NumPy array [..., n] of float32, bfloat16, float16 (float32 accumulation)
            or float64. Tensors take part in autograd and `torch.compile`.
        scale: factor of the result.

    Returns:
        A tensor or array of the shape and dtype of x.

    Raises:
        ValueError: n is not a power of two up to 2^20, or another dtype of a tensor.
        TypeError: another dtype of an array, or neither tensor nor array.
    """
    if isinstance(x, np.ndarray):
        from . import _native

        return _native.hadamard_transform(x, scale)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        from . import ops

        return ops.hadamard_transform(x, scale)
    raise TypeError(f"x is a {type(x).__name__}, expected a torch.Tensor or a numpy.ndarray")
