"""Simplex equiangular tight frames (ETF): C vectors with every cosine −1/(C − 1).

Construction.
* C ≤ n = N: C rows of H_n, centred. The kernels transform and subtract the mean over the classes:
  z_i = √(C/(C−1)) (y_i − mean(y)). The rows are √(C/(C−1)) (w_i − mean(w)), of norm √N.
* C = N + 1, the order of a Hadamard matrix: the rows of H_C without its constant column, ±1 and
  not centred.
Row 0, all ones, costs accuracy after a ReLU. C < n: class i is row i + 1. Otherwise every row is
needed, and the columns have the signs of the first mask of `kerdock` or `search`, which leave the
cosines as they are and no row constant (N ≥ 4).

Guarantee. Every cosine is exactly −1/(C − 1), the least possible largest cosine (Rankin), as in
the dense simplex ETF √(C/(C−1)) U (I − 11ᵀ/C), UᵀU = I, of neural collapse: the Gram matrices
agree, so the two differ by a rotation.

Limits. 2 ≤ C ≤ N + 1; for C ≤ N, N must be an order (C = N = 1 has no simplex).

V. Papyan, X. Y. Han, D. L. Donoho, "Prevalence of neural collapse during the terminal phase of
deep learning training", PNAS 117 (2020) 24652–24663.
"""

from __future__ import annotations

from .base import Codebook, Cosines
from .kernel import KernelData, pack
from .orders import cover, find_order
from .search import first_mask

VERSION = 2


def build(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    if not 2 <= num_classes <= in_features + 1:
        raise ValueError(
            f"num_classes must lie in [2, {in_features + 1}] for kind='etf' with in_features="
            f"{in_features}, got {num_classes}"
        )
    simplex = num_classes == in_features + 1
    order = find_order(num_classes if simplex else in_features)
    if order is None or (simplex and order.n < 2):
        raise ValueError(_no_order(in_features, num_classes))
    mask = first_mask(order, order.n) if num_classes >= order.n else None
    signs = None if mask is None else pack([mask])
    first = int(num_classes < order.n)
    data = KernelData(
        order.base, order.log2, order.bits, signs, False, not simplex, first, int(simplex)
    )
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
