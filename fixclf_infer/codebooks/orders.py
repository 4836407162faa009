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
from itertools import count
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from .goethals_seidel import goethals_seidel
from .kernel import Bits, pack
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
    def additions(self) -> int:
        """Of one whole transform."""
        return self.n * (self.base - 1 + self.log2)

    def __str__(self) -> str:
        return f"{self.n} = {self.base} * 2^{self.log2}"

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


def cover(in_features: int, max_base: int = MAX_BASE) -> Order:
    """The smallest order n ≥ in_features whose base is at most max_base."""
    for n in count(in_features):
        order = find_order(n)
        if order is not None and order.base <= max_base:
            return order
    raise AssertionError("powers of two are orders")


def power_of_two(in_features: int) -> Order:
    """The smallest power of two that is at least in_features."""
    return Order(1, (in_features - 1).bit_length())


def tolerance(in_features: int) -> int:
    """How many columns may disturb orthogonality to save additions: √N and N/16 at most, so that
    no cosine exceeds 1/16 and 1/√N, that of a pair of random rows (root of the mean square)."""
    return min(isqrt(in_features), in_features // 16)


@cache
def economical(in_features: int) -> Order:
    """The order that is taken unless max_base says otherwise.

    The smallest order n ≥ N, unless a larger one costs half as many additions or less and drops no
    more columns than `tolerance`. The cheapest of these, the smallest of equals.
    """
    smallest = cover(in_features)
    largest = min(in_features + tolerance(in_features), power_of_two(in_features).n)
    orders = filter(None, map(find_order, range(smallest.n, largest + 1)))
    cheapest = min(orders, key=lambda order: order.additions, default=smallest)
    return cheapest if 2 * cheapest.additions <= smallest.additions else smallest


def choose_order(in_features: int, max_base: int | None) -> Order:
    """`economical`, or the smallest order with a base of at most max_base."""
    return economical(in_features) if max_base is None else cover(in_features, max_base)


def prices(order: Order, in_features: int, left: int | None = None) -> str:
    """What the explanation says about the price of an order and of others.

    left: how many columns may add to an inner product, if not all that are dropped.
    """
    dropped = order.n - in_features
    parts = [f"{order.additions:,} additions a transform"]
    if dropped:
        left = dropped if left is None else left
        adds = f", which adds at most {left}/{in_features} to a cosine" if left else ""
        parts.append(f"{dropped} of {order.n} columns are dropped{adds}")
    for other in dict.fromkeys((cover(in_features), power_of_two(in_features))):
        if other != order:
            more = other.n - in_features
            parts.append(
                f"the order {other} would cost {other.additions:,}"
                + (f" and drop {more} columns" if more else "")
            )
    return f" ({'; '.join(parts)})"
