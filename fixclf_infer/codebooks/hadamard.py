"""Rows of one Hadamard matrix: exactly orthogonal classes, C < n.

Construction. H_n = P_b ⊗ H_{2^k}, from `orders`: Sylvester, Paley I and II, Goethals–Seidel.
Class i is row i + 1: row 0, all ones, has a cosine near the maximum for every non-negative input.
All other rows are balanced, and no signs are flipped: kernels read the features once.

Guarantee. Where n = N, every cosine is exactly 0. Otherwise n − N columns are dropped and no cosine
exceeds (n − N)/N in magnitude; with b = 1 and C < 2^r the columns repeat every 2^r, and it is
(N mod 2^r)/N: exactly 0 if 2^r divides N. Rows stay distinct and none is constant, because n < 2N
and each has n/2 entries of −1, none of them in column 0.

Limits. C ≤ n − 1; `orthoplex` has n and more classes.

J. Hadamard, "Résolution d'une question relative aux déterminants", Bull. Sci. Math. 17 (1893)
240–246; the constructions are cited in `orders`, `paley` and `goethals_seidel`.
"""

from __future__ import annotations

from .base import Codebook, Cosines
from .kernel import KernelData
from .orders import Order, choose_order, prices

VERSION = 3


def build(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    order = choose_order(in_features, max_base)
    if num_classes >= order.n:
        raise ValueError(
            f"num_classes must be at most {order.n - 1} for kind='hadamard' with in_features="
            f"{in_features}, whose order {order} has one constant row, got {num_classes}; "
            "kind='orthoplex' has more"
        )
    left = repeats(order, in_features, num_classes)
    if left == 0 and order.n == in_features:
        how = f"C = {num_classes} < N = {in_features}, the order {order}: exactly orthogonal rows"
    elif left == 0:
        how = (
            f"C = {num_classes} rows of the order {order}, whose columns repeat every "
            f"{1 << num_classes.bit_length()}, a divisor of N = {in_features}: exactly orthogonal"
        )
    else:
        how = f"C = {num_classes} rows of the order {order}"
    data = KernelData(order.base, order.log2, order.bits, None, False, False, 1, 0)
    return Codebook(
        kind="hadamard",
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        kernel=data,
        reason=f"{how}{prices(order, in_features, left)}.",
        cosines=Cosines(0.0, 0.0) if left == 0 and num_classes > 1 else None,
        max_base=max_base,
    )


def repeats(order: Order, in_features: int, num_classes: int) -> int:
    """How many columns are left beside whole orthogonal matrices: no larger is an inner product
    of two of the first rows."""
    if order.n == in_features:
        return 0
    if order.base == 1:
        return min(order.n - in_features, in_features % (1 << num_classes.bit_length()))
    return order.n - in_features
