"""Checks that the measures share."""

from __future__ import annotations

import torch
from torch import Tensor


def matrix(name: str, value: Tensor) -> Tensor:
    """Features [rows, N] in float64."""
    if value.dim() != 2 or value.shape[1] == 0:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected [rows, features]")
    if not torch.isfinite(value).all():
        raise ValueError(f"{name} holds values that are not finite")
    return value.detach().double()


def labels(name: str, value: Tensor, rows: int, num_classes: int | None = None) -> Tensor:
    """Classes, int64 [rows]."""
    if value.shape != (rows,):
        raise ValueError(f"{name} has shape {list(value.shape)}, expected [{rows}]")
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got {value.dtype}")
    ids = value.detach().long()
    least, most = (int(ids.min()), int(ids.max())) if rows else (0, 0)
    if least < 0 or (rows and num_classes is not None and most >= num_classes):
        end = "" if num_classes is None else f" below {num_classes}"
        raise ValueError(f"{name} must be classes from 0{end}, got {least} to {most}")
    return ids


def unit(values: Tensor) -> Tensor:
    """Rows divided by their norm; a row of zeros stays."""
    return torch.nn.functional.normalize(values, dim=1)
