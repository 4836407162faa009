"""Simplex equiangular tight frames (ETF): C vectors with every cosine −1/(C − 1).

Construction.
* C ≤ n = N: the first C rows of H_n (from row 0, since C may be n), centred. The kernels transform
  and subtract the mean over the classes: z_i = √(C/(C−1)) (y_i − mean(y)). The rows are
  √(C/(C−1)) (w_i − mean(w)), of norm √N.
* C = N + 1, the order of a Hadamard matrix: the rows of H_C without its constant column, ±1 and
  not centred.

Guarantee. Every cosine is exactly −1/(C − 1), the least possible largest cosine (Rankin), as in
the dense simplex ETF √(C/(C−1)) U (I − 11ᵀ/C), UᵀU = I, of neural collapse: the Gram matrices
agree, so the two differ by a rotation.

Limits. 2 ≤ C ≤ N + 1; for C ≤ N, N must be an order (C = N = 1 has no simplex).

V. Papyan, X. Y. Han, D. L. Donoho, "Prevalence of neural collapse during the terminal phase of
deep learning training", PNAS 117 (2020) 24652–24663.
"""

from __future__ import annotations

from .base import Codebook, Cosines, KernelData
from .orders import cover, find_order

VERSION = 1


def build(in_features: int, num_classes: int, seed: int, exact: bool) -> Codebook:
    if not 2 <= num_classes <= in_features + 1:
        raise ValueError(
            f"num_classes must lie in [2, {in_features + 1}] for kind='etf' with in_features="
            f"{in_features}, got {num_classes}"
        )
    simplex = num_classes == in_features + 1
    order = find_order(num_classes if simplex else in_features)
    if order is None or (simplex and order.n < 2):
        raise ValueError(_no_order(in_features, num_classes))
    data = KernelData(order.base, order.log2, order.bits, None, False, not simplex, 0, int(simplex))
    how = (
        f"the rows of the order {order.n} without its constant column"
        if simplex
        else f"{num_classes} orthogonal rows of the order {order.n} minus their mean"
    )
    value = 1 / (num_classes - 1)
    return Codebook(
        kind="etf",
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        kernel=data,
        reason=f"Simplex ETF: {how}; every cosine is {-value:.4g}.",
        cosines=Cosines(-value, value if num_classes > 2 else None),
    )


def _no_order(in_features: int, num_classes: int) -> str:
    below, above = in_features - 1, cover(in_features)
    while find_order(below) is None:
        below -= 1
    return (
        f"in_features, or in_features + 1 = num_classes, must be a Hadamard order that is built in "
        f"for kind='etf', got in_features={in_features}, num_classes={num_classes}; the nearest "
        f"orders are {below} and {above.n}"
    )
