"""Fixed class vectors for every number of features and classes.

`codebook(in_features, num_classes)` chooses a family and says why. A family is one file with a
`build` function and one line in `FAMILIES`; kernels see its `KernelData` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import ArrayLike

from . import delsarte_goethals, etf, hadamard, kerdock, orthoplex, search
from .base import MAX_CLASSES, MAX_FEATURES, Codebook, KernelData, integer
from .dense import orthonormal, user_matrix
from .hoffer import brevitas, hoffer
from .kerdock import capacity
from .orders import cover

__all__ = ["FAMILIES", "Codebook", "KernelData", "codebook", "from_identity"]


class Build(Protocol):
    def __call__(self, in_features: int, num_classes: int, seed: int, exact: bool) -> Codebook: ...


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


def codebook(
    in_features: int,
    num_classes: int,
    kind: str = "auto",
    *,
    seed: int = 0,
    exact: bool = False,
    matrix: ArrayLike | None = None,
) -> Codebook:
    """The codebook of a kind for N = in_features and C = num_classes.

    kind: a name in `FAMILIES`; "auto" (see `choose`); "matrix" for the rows of `matrix`.
    seed: of the random choices in "search" and "orthonormal"; part of every identity.
    exact: require that in_features is itself the order of a Hadamard matrix, instead of dropping
        columns of the next one.
    """
    in_features = integer("in_features", in_features, 1, MAX_FEATURES)
    num_classes = integer("num_classes", num_classes, 1, MAX_CLASSES)
    seed = integer("seed", seed, 0, 2**63 - 1)
    if (matrix is None) == (kind == "matrix"):
        given = "none" if matrix is None else "one"
        raise ValueError(f"matrix must be given with kind='matrix' only, got {given} and {kind!r}")
    if matrix is not None:
        return user_matrix(in_features, num_classes, matrix, seed)
    if kind == "auto":
        kind = choose(in_features, num_classes)
    if kind not in FAMILIES:
        names = ", ".join(["auto", *FAMILIES, "matrix"])
        raise ValueError(f"kind must be one of {names}, got {kind!r}")
    return FAMILIES[kind](in_features, num_classes, seed, exact)


def choose(in_features: int, num_classes: int) -> str:
    """The kind that "auto" stands for: the first of these that reaches num_classes.

    All of them begin with the same rows, so a class keeps its row when the kind changes. They skip
    row 0, all ones, where non-negative features have a cosine near the maximum for every input. If
    none but "search" reaches num_classes without it, one whose rows are exactly num_classes is
    taken with it.
    """
    if in_features < 64 and num_classes > 1 << in_features:
        raise ValueError(
            f"num_classes must be at most 2^in_features = {1 << in_features} for in_features="
            f"{in_features}, which has no more different ±1 rows, got {num_classes}"
        )
    order = cover(in_features)
    if num_classes <= order.n:
        return "hadamard"
    rows = {
        "orthoplex": 2 * order.n,
        "kerdock": capacity(order, in_features, 1),
        "delsarte_goethals": delsarte_goethals.limit(order, in_features),
    }
    skipping = [kind for kind, count in rows.items() if num_classes < count]
    filled = [kind for kind, count in rows.items() if num_classes == count]
    return [*skipping, *filled, "search"][0]


def from_identity(identity: Mapping[str, Any], matrix: ArrayLike | None = None) -> Codebook:
    """Rebuild a codebook from `Codebook.identity()`, checking its version and digest.

    matrix: the rows again, for kind "matrix", whose identity only holds their digest.
    """
    expected = ["kind", "version", "in_features", "num_classes", "seed", "digest"]
    missing = [key for key in expected if key not in identity]
    if missing:
        raise ValueError(f"identity must hold {', '.join(expected)}, got none of {missing}")
    rebuilt = codebook(
        identity["in_features"],
        identity["num_classes"],
        identity["kind"],
        seed=identity["seed"],
        matrix=matrix,
    )
    for key in ("version", "digest"):
        if identity[key] != getattr(rebuilt, key):
            raise ValueError(
                f"identity must have the {key} that kind={rebuilt.kind!r} has here, "
                f"{getattr(rebuilt, key)}, got {identity[key]}"
            )
    return rebuilt
