"""The families, and the one that a codebook of kind "auto" is of."""

from __future__ import annotations

import sys
from typing import Protocol

from . import delsarte_goethals, etf, hadamard, kerdock, orthoplex, search, version2
from .base import Codebook
from .dense import orthonormal
from .hoffer import brevitas, hoffer
from .kernel import KernelData
from .measure import additions
from .orders import Order, choose_order, power_of_two, tolerance


class Build(Protocol):
    def __call__(
        self, in_features: int, num_classes: int, seed: int, max_base: int | None
    ) -> Codebook: ...


FAMILIES: dict[str, Build] = {
    "hadamard": hadamard.build,
    "orthoplex": orthoplex.build,
    "kerdock": kerdock.build,
    "delsarte_goethals": delsarte_goethals.build,
    "search": search.build,
    "etf": etf.build,
    "orthonormal": orthonormal,
    "hoffer": hoffer,
    "brevitas": brevitas,
}
"""Kind → the function that builds it."""


def choose(
    in_features: int, num_classes: int, max_base: int | None = None
) -> tuple[str, int | None]:
    """The kind, and its max_base, that "auto" stands for; docs/codebooks.md has the reasons.

    * "hadamard" below n classes, n the order (`orders.choose_order`). Where few classes make the
      columns of the next power of two repeat, so that they are as good as orthogonal, it is that
      order (max_base 1), if it costs at most half.
    * "orthoplex" up to 2n.
    * "kerdock", then "delsarte_goethals", where n is a power of two, or drops an eighth of its
      columns at most in favour of N.
    * "search" else.
    """
    if in_features < 64 and num_classes > 1 << in_features:
        raise ValueError(
            f"num_classes must be at most 2^in_features = {1 << in_features} for in_features="
            f"{in_features}, which has no more different ±1 rows, got {num_classes}"
        )
    order, power = choose_order(in_features, max_base), power_of_two(in_features)
    if num_classes < order.n:
        left = hadamard.repeats(power, in_features, num_classes)
        folds = max_base is None and left <= tolerance(in_features)
        cheap, usual = (few(o, in_features, num_classes) for o in (power, order))
        if folds and 2 * cheap <= usual:
            return "hadamard", None if order == power else 1
        return "hadamard", max_base
    if num_classes <= orthoplex.limit(order, in_features):
        return "orthoplex", max_base
    if order == power or (max_base is None and 8 * in_features >= 7 * power.n):
        for kind, most in (
            ("kerdock", kerdock.capacity(power, in_features, 1)),
            ("delsarte_goethals", delsarte_goethals.limit(in_features)),
        ):
            if num_classes <= most:
                return kind, None
    return "search", max_base


def few(order: Order, in_features: int, num_classes: int) -> int:
    """Additions for so many rows of one block."""
    data = KernelData(order.base, order.log2, None, None, False, False, 1, 0)
    return additions(data, num_classes, in_features)


def versions(kind: str) -> list[int]:
    """The versions of a kind that `from_identity` rebuilds, the present one last."""
    earlier = sorted(version for name, version in version2.EARLIER if name == kind)
    return [*earlier, sys.modules[FAMILIES[kind].__module__].VERSION]
