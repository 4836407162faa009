"""The codebooks of versions before the present one, bit for bit: what stored identities rebuild.

Version 2 of `hadamard`, `orthoplex`, `kerdock`, `delsarte_goethals` and `search`, and version 1 of
`etf`, have the masks of today's families and mask 0, no flips, before them: class i is row i + 1,
or row i where C needs every row of the stack. So with C ≥ n one class is the row of −1, which can
never win for features ≥ 0; with C = 2n another is the row of +1, which always does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import kerdock, search
from .base import Codebook
from .kernel import KernelData, pack
from .orders import Order, cover, find_order

Build = Callable[[int, int, int], Codebook]


def hadamard(in_features: int, num_classes: int, seed: int) -> Codebook:
    order = cover(in_features)
    _check(num_classes <= order.n, "hadamard", in_features, num_classes)
    data = KernelData(order.base, order.log2, order.bits, None, num_classes == order.n, False, 1, 0)
    return _book("hadamard", 2, in_features, num_classes, seed, data)


def orthoplex(in_features: int, num_classes: int, seed: int) -> Codebook:
    order = cover(in_features)
    _check(num_classes <= 2 * order.n, "orthoplex", in_features, num_classes)
    first = int(num_classes < 2 * order.n)
    data = KernelData(order.base, order.log2, order.bits, None, True, False, first, 0)
    return _book("orthoplex", 2, in_features, num_classes, seed, data)


def kerdock_set(in_features: int, num_classes: int, seed: int) -> Codebook:
    return _forms("kerdock", cover(in_features), in_features, num_classes, seed, [1])


def delsarte_goethals(in_features: int, num_classes: int, seed: int) -> Codebook:
    order = cover(in_features)
    digits = [d for d in range(1, order.log2 // 2 + 1) if _capacity(order, in_features, d)]
    return _forms("delsarte_goethals", order, in_features, num_classes, seed, digits)


def masks_found_by_search(in_features: int, num_classes: int, seed: int) -> Codebook:
    order = cover(in_features)
    count = -(-(num_classes + 1) // (2 * order.n))
    reach = search.reach(order, in_features)
    q = min(count, 1 << kerdock.field_degree(order.log2) if reach < in_features else 1)
    words = search.code(order, seed, q)
    masks = (words[:q, :, None] ^ search.kerdock_masks(order, q)).reshape(q, -1)
    if count > q:
        masks = search.extend(masks, order, in_features, count, seed)
    rows = 2 * order.n * len(masks)
    _check(num_classes <= rows, "search", in_features, num_classes)
    first = int(num_classes < rows)
    data = KernelData(order.base, order.log2, order.bits, pack(masks), True, False, first, 0)
    return _book("search", 2, in_features, num_classes, seed, data)


def etf(in_features: int, num_classes: int, seed: int) -> Codebook:
    simplex = num_classes == in_features + 1
    order = find_order(num_classes if simplex else in_features)
    served = order is not None and 2 <= num_classes <= order.n
    _check(served, "etf", in_features, num_classes)
    assert order is not None
    data = KernelData(order.base, order.log2, order.bits, None, False, not simplex, 0, int(simplex))
    return _book("etf", 1, in_features, num_classes, seed, data)


EARLIER: dict[tuple[str, int], Build] = {
    ("hadamard", 2): hadamard,
    ("orthoplex", 2): orthoplex,
    ("kerdock", 2): kerdock_set,
    ("delsarte_goethals", 2): delsarte_goethals,
    ("search", 2): masks_found_by_search,
    ("etf", 1): etf,
}


def _forms(
    kind: str, order: Order, in_features: int, num_classes: int, seed: int, digits: list[int]
) -> Codebook:
    """Masks 0, 1, … of `kerdock.forms`, of so few digits as the classes need."""
    limits = [_capacity(order, in_features, d) for d in digits]
    most = max(limits, default=0)
    _check(num_classes <= most, kind, in_features, num_classes)
    capacity = next(limit for limit in limits if min(num_classes + 1, most) <= limit)
    first = int(num_classes < capacity)
    masks = kerdock.forms(order.log2, np.arange(-(-(num_classes + first) // (2 * order.n))))
    data = KernelData(1, order.log2, None, pack(masks), True, False, first, 0)
    return _book(kind, 2, in_features, num_classes, seed, data)


def _capacity(order: Order, in_features: int, digits: int) -> int:
    m = order.log2
    if order.base > 1 or m < 2 or not 1 <= digits <= m // 2:
        return 0
    if kerdock.coherence(m, digits) * order.n + (order.n - in_features) >= in_features:
        return 0
    return 2 * order.n << digits * kerdock.field_degree(m)


def _book(
    kind: str, version: int, in_features: int, num_classes: int, seed: int, data: KernelData
) -> Codebook:
    reason = f"Version {version} of {kind!r}, for existing models: see version2.py."
    return Codebook(kind, version, in_features, num_classes, seed, data, None, reason)


def _check(served: bool, kind: str, in_features: int, num_classes: int) -> None:
    if not served:
        raise ValueError(
            f"in_features and num_classes must be a pair that kind={kind!r} served in that "
            f"version, got {in_features} and {num_classes}"
        )
