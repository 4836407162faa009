"""The heads that are compared. A head is a function (N, C, seed) → module, or None where the family
has no codebook for the pair."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from torch import nn

from fixclf_infer import codebook
from fixclf_infer.nn import FixedClassifier

from ..codebooks import before as earlier

Head = Callable[[int, int, int], nn.Module | None]


def dense(in_features: int, num_classes: int, seed: int) -> nn.Module:
    """Learned `nn.Linear`."""
    return nn.Linear(in_features, num_classes)


def fixed(kind: str) -> Head:
    """FixedClassifier of a kind; α and bias are learned, as for all fixed heads here."""

    def head(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # hoffer counts its identical classes
            try:
                book = codebook(in_features, num_classes, kind, seed=seed)
            except ValueError:
                return None
        return FixedClassifier(in_features, num_classes, codebook=book)

    return head


def random_signs(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
    """Independent random ±1 rows, drawn anew for each seed until all differ."""
    generator = np.random.default_rng(seed)
    for _ in range(100):
        signs = generator.choice([-1.0, 1.0], (num_classes, in_features))
        if len(np.unique(signs, axis=0)) == num_classes:
            book = codebook(in_features, num_classes, "matrix", matrix=signs)
            return FixedClassifier(in_features, num_classes, codebook=book)
    return None


def before(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
    """What "auto" took in version 2: with C ≥ n, the row of −1 is a class."""
    return FixedClassifier(in_features, num_classes, codebook=earlier(in_features, num_classes))


def shuffled(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
    """The rows of "auto" in random order: whether it matters which class gets which row."""
    rows = codebook(in_features, num_classes).matrix()
    order = np.random.default_rng(seed).permutation(num_classes)
    book = codebook(in_features, num_classes, "matrix", matrix=rows[order])
    return FixedClassifier(in_features, num_classes, codebook=book)


AUTO = "ours (auto)"
HEADS: dict[str, Head] = {
    "dense, learned": dense,
    "hoffer (legacy)": fixed("hoffer"),
    "random signs": random_signs,
    "orthonormal": fixed("orthonormal"),
    "etf": fixed("etf"),
    AUTO: fixed("auto"),
}
# What became of "auto": with the row of −1, without it, and with its rows in random order.
ROWS: dict[str, Head] = {"version 2": before, AUTO: fixed("auto"), "auto, shuffled": shuffled}
