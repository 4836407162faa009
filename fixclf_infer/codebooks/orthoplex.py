"""A Hadamard matrix and its negation: up to 2n classes for one transform.

Construction. [H; −H], H the matrix of `hadamard`. Class i is row i + 1, since with non-negative
features the cosine of row 0, all ones, is near the maximum for every input; C = 2n needs all rows,
and class i is row i.

Guarantee. Where N is an order, the cosines are 0 and −1: the largest is 0 for C ≥ 3, the least
possible for C > N + 1 vectors (Rankin). Otherwise n − N columns are dropped and no cosine between
different lines exceeds (n − N)/N in magnitude.

Limits. C ≤ 2n; "auto" takes `kerdock` for C = 2n if that reaches it.

R. A. Rankin, "The closest packing of spherical caps in n dimensions", Proc. Glasgow Math. Assoc. 2
(1955) 139–144.
"""

from __future__ import annotations

from .base import Codebook, Cosines, KernelData, first_row
from .orders import cover, dropped

VERSION = 2


def build(in_features: int, num_classes: int, seed: int, exact: bool) -> Codebook:
    order = cover(in_features, exact)
    if num_classes > 2 * order.n:
        raise ValueError(
            f"num_classes must be at most {2 * order.n} for kind='orthoplex' with in_features="
            f"{in_features}, got {num_classes}"
        )
    first = first_row(2 * order.n, num_classes)
    data = KernelData(order.base, order.log2, order.bits, None, True, False, first, 0)
    every = "" if first else "; every row is needed, the all-ones row too"
    reason = (
        f"C = {num_classes} fits the order {order.n} = {order.base} * 2^{order.log2} twice: one "
        f"transform serves a class and its opposite, and the largest cosine is 0"
        f"{dropped(order, in_features)}{every}."
    )
    cosines = None
    if order.n == in_features and num_classes > 1:
        cosines = Cosines(0.0, 0.0) if order.n > 1 else Cosines(-1.0, None)
    return Codebook(
        "orthoplex", VERSION, in_features, num_classes, seed, data, None, reason, cosines
    )
