"""The Hadamard transform of many orders, for torch tensors and NumPy arrays."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from . import _transform

if TYPE_CHECKING:
    import torch

    Array = np.ndarray[Any, np.dtype[Any]]


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
        y = _transform.transform(x if last else np.moveaxis(x, dim, -1), scale, order)
        return y if last else np.moveaxis(y, -1, dim)
    from . import _torch_transform

    z = _torch_transform.transform(x if last else x.movedim(dim, -1), scale, order)
    return z if last else z.movedim(-1, dim)
