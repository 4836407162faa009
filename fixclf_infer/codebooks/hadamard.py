"""Rows of one Hadamard matrix: exactly orthogonal classes, C ≤ n.

Construction. H_n = P_b ⊗ H_{2^k}, from `orders`: Sylvester, Paley I and II, Goethals–Seidel. Row
and column 0 are all ones. Class i is row i + 1, since with non-negative features the cosine of the
all-ones row is near the maximum for every input; if C = n, the last class is −row 0, as in
`orthoplex`.

Guarantee. n = N whenever N is such an order: every cosine is exactly 0. Otherwise n is the next
order and n − N columns are dropped: no cosine exceeds (n − N)/N in magnitude, and rows stay
distinct because n < 2N.

Limits. C ≤ n.

J. Hadamard, "Résolution d'une question relative aux déterminants", Bull. Sci. Math. 17 (1893)
240–246; the constructions are cited in `orders`, `paley` and `goethals_seidel`.
"""

from __future__ import annotations

from .base import Codebook, Cosines, KernelData
from .orders import cover

VERSION = 2


def build(in_features: int, num_classes: int, seed: int, exact: bool) -> Codebook:
    order = cover(in_features, exact)
    if num_classes > order.n:
        raise ValueError(
            f"num_classes must be at most {order.n} for kind='hadamard' with in_features="
            f"{in_features}, got {num_classes}"
        )
    negate = num_classes == order.n  # row n of the stack is −row 0
    data = KernelData(order.base, order.log2, order.bits, None, negate, False, 1, 0)
    count = order.n - in_features
    if count:
        reason = (
            f"N = {in_features} is no Hadamard order that is built in: C = {num_classes} rows of "
            f"the next order {order.n}, {count} columns dropped, so cosines may reach "
            f"{count}/{in_features} instead of 0."
        )
    else:
        reason = (
            f"C = {num_classes} ≤ N = {in_features}, the order of a Hadamard matrix "
            f"({order.base} * 2^{order.log2}): its rows are exactly orthogonal."
        )
    cosines = None if count or num_classes == 1 else Cosines(0.0, 0.0)
    return Codebook(
        "hadamard", VERSION, in_features, num_classes, seed, data, None, reason, cosines
    )
