"""Which codebook a dense matrix holds: what importers of other packages' heads ask."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import FAMILIES, codebook
from .base import Codebook
from .kernel import KernelData


def magnitude(matrix: ArrayLike) -> float | None:
    """m if every entry of the matrix is m or −m, m > 0; else None."""
    values = np.abs(np.asarray(matrix))
    m = float(values.flat[0]) if values.size else 0.0
    return m if 0 < m < np.inf and np.all(values == values.flat[0]) else None


def recognise(matrix: ArrayLike) -> tuple[Codebook, float] | None:
    """The codebook W and the factor f with matrix = f W, [C, N], entries ±|f|, f of either sign.

    Compared with every ±1 family and with Sylvester's matrix from row and column 0 or 1 (kind
    "sylvester", which `from_identity` does not rebuild). None where none has these rows.
    """
    values = np.asarray(matrix)
    m = magnitude(values)
    if m is None or values.ndim != 2:
        return None
    positive = values > 0
    classes, features = positive.shape
    for book in _known(features, classes):
        differs = [(book.rows([i])[0] > 0) ^ positive[i] for i in (0, classes - 1)]
        if any(d.any() and not d.all() for d in differs):
            continue
        whole: NDArray[np.bool_] = (book.matrix() > 0) ^ positive
        if whole.all() or not whole.any():
            return book, -m if whole.all() else m
    return None


def _known(features: int, classes: int) -> Iterator[Codebook]:
    """Every ±1 codebook of these sizes."""
    for kind in (k for k in FAMILIES if k != "orthonormal"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows that are identical
            try:
                book = codebook(features, classes, kind)
            except ValueError:  # the family has no such size
                continue
        if book.dtype == np.int8:
            yield book
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        narrow = (column + features - 1).bit_length()
        tall = (max(column + features, row + classes) - 1).bit_length()
        for log2, negate in ((tall, False), (narrow, True)):
            data = KernelData(1, log2, None, None, negate, False, row, column)
            if row + classes <= data.rows:
                yield Codebook("sylvester", 1, features, classes, 0, data)
