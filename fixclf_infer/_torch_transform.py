"""`hadamard_transform` of tensors."""

from __future__ import annotations

from operator import index

import torch
from torch import Tensor

from . import ops
from ._transform import MAX_ORDER, bits_of, factor, fits


def transform(x: Tensor, scale: float, order: int | None) -> Tensor:
    """Along the last dimension."""
    size = x.shape[-1]
    n = size if order is None else order
    if n < 1 or n & (n - 1) or not size <= n <= MAX_ORDER:
        return _composite(x, scale, size, n, order is None)
    if n > size:
        x = torch.nn.functional.pad(x, (0, n - size))
    return ops.hadamard_transform(x, scale)


def _composite(x: Tensor, scale: float, size: int, n: int, whole: bool) -> Tensor:
    """The head of that codebook: its first rows are all rows, missing features are zeros."""
    size, n = index(size), index(n)  # a graph for each order
    base, bits = _base_matrix(size, None if whole else n, x.device)
    if not x.is_floating_point():
        raise ValueError(f"x is {x.dtype}, expected float32, bfloat16, float16 or float64")
    log2 = (n // base).bit_length() - 1
    geometry = ops.Geometry(size, base, log2, 0, 0, 0, 0, n, 0, n)
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    alpha = torch.full((), scale if fits(scale) else 1.0, dtype=exact, device=x.device)
    y = ops.head(x, alpha, None, ops.CodebookArguments(bits, None, list(geometry)), normalize=False)
    return y if fits(scale) else (y.double() * scale).to(x.dtype)


_placed: dict[tuple[int, torch.device], Tensor] = {}


@torch.compiler.assume_constant_result
def _base_matrix(size: int, order: int | None, device: torch.device) -> tuple[int, Tensor]:
    """b and P_b on the device, copied there once."""
    found = factor(size, order)
    key = found.base, device
    if key not in _placed:
        _placed[key] = torch.from_numpy(bits_of(found)).to(device)
    return found.base, _placed[key]
