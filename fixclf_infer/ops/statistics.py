"""Statistics of a row of logits: the logits at some classes, and sums over the others."""

from __future__ import annotations

import math
from enum import IntFlag
from typing import NamedTuple

import torch
from torch import Tensor


class Sums(IntFlag):
    """Sums over classes; the numbers are those of the operator's `which`."""

    LOGSUMEXP = 1  # log Σ exp(z)
    SUM = 2  # Σ z
    SQUARES = 4  # Σ z²
    SOFTPLUS = 8  # Σ log(1 + exp(z))


class Statistics(NamedTuple):
    """Of logits z [..., C] and classes ids, [...] or [..., M]: z at the ids, and sums over the
    others, the classes that are not among them. A sum that was not asked for is an empty tensor."""

    logits: Tensor  # of the shape of ids
    logsumexp: Tensor  # [...], as are the following; −∞ where there are no others
    sum: Tensor
    squares: Tensor
    softplus: Tensor


def softplus(z: Tensor) -> Tensor:
    """log(1 + exp(z)), to the last digits: torch's own is z from 20 on."""
    return torch.logaddexp(z, torch.zeros_like(z))


def of_logits(z: Tensor, ids: Tensor, which: int) -> Statistics:
    """The statistics of logits that are there; −∞ stands for a class that takes no part."""
    wide = ids if ids.dim() == z.dim() else ids.unsqueeze(-1)
    left_out = torch.zeros_like(z, dtype=torch.bool).scatter(-1, wide, True)
    below = z.masked_fill(left_out, -math.inf)
    zero = z.masked_fill(left_out | (z == -math.inf), 0)
    none = z.new_empty(0)
    return Statistics(
        z.gather(-1, wide).reshape(ids.shape),
        below.logsumexp(-1) if which & Sums.LOGSUMEXP else none,
        zero.sum(-1) if which & Sums.SUM else none.clone(),
        zero.square().sum(-1) if which & Sums.SQUARES else none.clone(),
        softplus(below).sum(-1) if which & Sums.SOFTPLUS else none.clone(),
    )
