"""Which Hadamard matrix H_n = P_b ⊗ H_{2^k} a codebook uses.

The transform costs b − 1 + k additions per feature, so b is the smallest base order whose matrix
is known: b = 1 for powers of two (Sylvester), otherwise b = 2^j t with t the odd part of n and
P_b from `paley` or `goethals_seidel`. Kronecker products of two such bases would add nothing:
P_{4s} ⊗ P_{4t} has order 16 s t ≤ 512 only for s t ≤ 32, where 4 s t itself is available.

J. J. Sylvester, "Thoughts on inverse orthogonal matrices", Phil. Mag. 34 (1867) 461–475.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .base import Bits, pack
from .goethals_seidel import goethals_seidel
from .paley import paley

MAX_BASE = 512


@dataclass(frozen=True)
class Order:
    """n = base · 2^log2, the order of the Hadamard matrix P_base ⊗ H_{2^log2}."""

    base: int
    log2: int

    @property
    def n(self) -> int:
        return self.base << self.log2

    @property
    def bits(self) -> Bits | None:
        """P_base as the kernels read it."""
        return None if self.base == 1 else pack(base_matrix(self.base) < 0)


@cache
def base_matrix(order: int) -> NDArray[np.int8]:
    """P_b, normalised: first row and first column all ones (so are those of H_n)."""
    if order == 1:
        return np.ones((1, 1), np.int8)
    matrix = paley(order)
    if matrix is None:
        matrix = goethals_seidel(order)
    if matrix is None:
        raise ValueError(f"order must be one with a known base matrix, got {order}")
    matrix = matrix * matrix[:, :1]
    return matrix * matrix[:1]


@cache
def find_order(n: int) -> Order | None:
    """The factorisation of n with the smallest base, or None if there is no construction."""
    log2 = (n & -n).bit_length() - 1
    odd = n >> log2
    if odd == 1:
        return Order(1, log2)
    for j in range(2, log2 + 1):
        base = odd << j
        if base > MAX_BASE:
            return None
        if paley(base) is not None or goethals_seidel(base) is not None:
            return Order(base, log2 - j)
    return None


def cover(in_features: int, exact: bool = False) -> Order:
    """The smallest order n ≥ in_features; with `exact`, in_features itself or an error."""
    order = find_order(in_features)
    if order is None and exact:
        raise ValueError(
            f"in_features must be a Hadamard order that is built in with exact=True, got "
            f"{in_features}; the next such order is {cover(in_features).n}"
        )
    n = in_features
    while order is None:
        n += 1
        order = find_order(n)
    return order


def dropped(order: Order, in_features: int) -> str:
    """What the explanation says about columns that are not used."""
    count = order.n - in_features
    return f" ({count} of {order.n} columns are dropped, which adds to it)" if count else ""
