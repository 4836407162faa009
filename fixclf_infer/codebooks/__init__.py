"""Fixed class vectors for every number of features and classes.

`codebook(in_features, num_classes)` chooses a family and says why. A family is one file with a
`build` function and one line in `choice.FAMILIES`; kernels see its `KernelData` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import ArrayLike

from . import version2
from .advice import explain
from .base import MAX_CLASSES, MAX_FEATURES, Codebook
from .choice import FAMILIES, choose, versions
from .dense import user_matrix
from .kernel import KernelData, integer
from .orders import MAX_BASE, cover, find_order

__all__ = ["FAMILIES", "Codebook", "KernelData", "codebook", "from_identity", "versions"]


def codebook(
    in_features: int,
    num_classes: int,
    kind: str = "auto",
    *,
    seed: int = 0,
    exact: bool = False,
    max_base: int | None = None,
    capacity: int | None = None,
    matrix: ArrayLike | None = None,
) -> Codebook:
    """The codebook of a kind for N = in_features and C = num_classes.

    kind: a name in `FAMILIES`; "auto" (see `choose`); "matrix" for the rows of `matrix`.
    seed: of the random choices in "search" and "orthonormal"; part of every identity.
    exact: require that in_features is itself the order n = b · 2^k of a Hadamard matrix and take
        it, whatever its additions, instead of dropping columns of a larger one.
    max_base: take the smallest order whose base b is at most this, instead of weighing additions
        against cosines (`orders.economical`); 1 for powers of two. Part of the identity.
    capacity: with kind="auto", the number of classes that it may grow to: the kind is the one for
        that many, so that no class changes its row on the way.
    """
    in_features = integer("in_features", in_features, 1, MAX_FEATURES)
    num_classes = integer("num_classes", num_classes, 1, MAX_CLASSES)
    seed = integer("seed", seed, 0, 2**63 - 1)
    if max_base is not None:
        max_base = integer("max_base", max_base, 1, MAX_BASE)
    if capacity is not None:
        capacity = integer("capacity", capacity, num_classes, MAX_CLASSES)
    if (matrix is None) == (kind == "matrix"):
        given = "none" if matrix is None else "one"
        raise ValueError(f"matrix must be given with kind='matrix' only, got {given} and {kind!r}")
    if matrix is not None:
        return user_matrix(in_features, num_classes, matrix, seed)
    if exact:
        if find_order(in_features) is None or max_base is not None:
            raise ValueError(
                f"in_features must be a Hadamard order that is built in with exact=True, and "
                f"max_base None, got {in_features} and {max_base}; the next such order is "
                f"{cover(in_features).n}"
            )
        max_base = MAX_BASE
    if kind == "auto":
        kind, max_base = choose(in_features, capacity or num_classes, max_base)
    if kind not in FAMILIES:
        names = ", ".join(["auto", *FAMILIES, "matrix"])
        raise ValueError(f"kind must be one of {names}, got {kind!r}")
    made = FAMILIES[kind](in_features, num_classes, seed, max_base)
    return replace(made, advice=explain)


def from_identity(identity: Mapping[str, Any], matrix: ArrayLike | None = None) -> Codebook:
    """Rebuild a codebook from `Codebook.identity()`, of this version or an earlier one, checking
    its version and digest.

    matrix: the rows again, for kind "matrix", whose identity only holds their digest.
    """
    expected = ["kind", "version", "in_features", "num_classes", "seed", "digest"]
    missing = [key for key in expected if key not in identity]
    if missing:
        raise ValueError(f"identity must hold {', '.join(expected)}, got none of {missing}")
    n, c, seed = (identity[key] for key in ("in_features", "num_classes", "seed"))
    earlier = version2.EARLIER.get((identity["kind"], identity["version"]))
    if earlier is not None:
        n = integer("in_features", n, 1, MAX_FEATURES)
        c = integer("num_classes", c, 1, MAX_CLASSES)
        rebuilt = earlier(n, c, integer("seed", seed, 0, 2**63 - 1))
    else:
        max_base = identity.get("max_base")
        rebuilt = codebook(n, c, identity["kind"], seed=seed, max_base=max_base, matrix=matrix)
    for key in ("version", "digest"):
        if identity[key] != getattr(rebuilt, key):
            raise ValueError(
                f"identity must have the {key} that kind={rebuilt.kind!r} has here, "
                f"{getattr(rebuilt, key)}, got {identity[key]}"
            )
    return rebuilt
