"""A Hadamard matrix and its negation: up to 2n classes for one transform.

Construction. [H D; −H D], H the matrix of `hadamard` and D the first mask of `kerdock` (b = 1) or
`search` (b > 1), which does not depend on the seed. Without D, rows 0 and n would be all ones and
all −1: with non-negative features the one always wins and the other never does. With D every row is
nearly balanced; for n = 2^m its sum is ±√n (m even) or 0 or ±√(2n) (m odd). Below N = 4 every
[H D; −H D] has a constant row: there it is [H; −H'] without row 0, H' the rows of H in reverse.

Guarantee. Where n = N, the cosines are 0 and −1: the largest is 0 for C ≥ 3, the least possible for
C > N + 1 vectors (Rankin). Otherwise n − N columns are dropped and no cosine between different
lines exceeds (n − N)/N in magnitude.

Limits. C ≤ 2n; C ≤ 2n − 2 for N ≤ 3. These classes are the first of `kerdock` and `search`.

R. A. Rankin, "The closest packing of spherical caps in n dimensions", Proc. Glasgow Math. Assoc. 2
(1955) 139–144.
"""

from __future__ import annotations

import numpy as np

from .base import Codebook, Cosines
from .kernel import KernelData, pack
from .orders import Order, choose_order, prices
from .search import first_mask, last_row

VERSION = 3


def build(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    order = choose_order(in_features, max_base)
    most = limit(order, in_features)
    if num_classes > most:
        raise ValueError(
            f"num_classes must be at most {most} for kind='orthoplex' with in_features="
            f"{in_features} (order {order}), got {num_classes}"
        )
    mask = first_mask(order, in_features)
    if mask is None:
        signs = pack([np.zeros(order.n, np.uint8), 1 ^ last_row(order)])
        data = KernelData(order.base, order.log2, order.bits, signs, False, False, 1, 0)
    else:
        data = KernelData(order.base, order.log2, order.bits, pack([mask]), True, False, 0, 0)
    cosines = None
    if order.n == in_features and num_classes > 1:
        cosines = Cosines(0.0, 0.0) if order.n > 2 else Cosines(-1.0, None)
    return Codebook(
        kind="orthoplex",
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        kernel=data,
        reason=f"C = {num_classes} fits the order {order} twice: one transform serves a class and "
        f"its opposite, and the largest cosine is 0{prices(order, in_features)}.",
        cosines=cosines,
        max_base=max_base,
    )


def limit(order: Order, in_features: int) -> int:
    """Number of classes that the family reaches."""
    return 2 * order.n - (2 if in_features <= 3 else 0)
