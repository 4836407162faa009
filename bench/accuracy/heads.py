"""The heads that are compared. A head is a function (N, C, seed) → module, or None where the family
has no codebook for the pair."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable

import numpy as np
from torch import nn

from fixclf_infer import Codebook, codebook
from fixclf_infer.nn import FixedClassifier

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


def plain(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
    """The stack from its first row, the all-ones one: row_offset = 0."""
    return _edited(in_features, num_classes, lambda book: _with(book, row_offset=0))


def skip_ones(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
    """The stack without its first row, the all-ones one: row_offset = 1."""
    return _edited(in_features, num_classes, lambda book: _with(book, row_offset=1))


def flipped(in_features: int, num_classes: int, seed: int) -> nn.Module | None:
    """One random diagonal of signs D_0 before everything, row_offset = 0: no cosine between two
    classes changes, but the all-ones row becomes one of random signs."""

    def edit(book: Codebook) -> Codebook | None:
        data = book.kernel
        assert data is not None
        size = -(-data.order // 8)
        bits = np.random.default_rng(seed).integers(0, 256, (1, size), np.uint8)
        bits &= np.packbits(np.arange(8 * size) < data.order, bitorder="little")
        signs = bits if data.signs is None else data.signs ^ bits
        return _with(book, signs=np.ascontiguousarray(signs), row_offset=0)

    return _edited(in_features, num_classes, edit)


def _with(book: Codebook, **changes: object) -> Codebook | None:
    assert book.kernel is not None
    data = dataclasses.replace(book.kernel, **changes)  # type: ignore[arg-type]
    if book.num_classes + data.row_offset > data.rows:
        return None
    return dataclasses.replace(book, kernel=data)


def _edited(
    in_features: int, num_classes: int, edit: Callable[[Codebook], Codebook | None]
) -> nn.Module | None:
    book = edit(codebook(in_features, num_classes))
    if book is None:
        return None
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
# The question of the all-ones row: the codebook that "auto" takes, three ways.
ROWS: dict[str, Head] = {
    "rows from 0": plain,
    "rows from 1": skip_ones,
    "rows from 0, random D_0": flipped,
}


def _auto_rows() -> str:
    """Which of ROWS "auto" is."""
    data = codebook(16, 8).kernel
    assert data is not None
    return "rows from 1" if data.row_offset else "rows from 0"


AUTO_ROWS = _auto_rows()
