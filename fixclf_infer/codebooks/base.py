"""What every family shares: the codebook itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .kernel import Geometry, KernelData, parity

if TYPE_CHECKING:
    from .measure import Histogram, Report

MAX_FEATURES = 2**16
MAX_CLASSES = 2**24
MAX_MATRIX_ENTRIES = 2**28


@dataclass(frozen=True)
class Cosines:
    """Proven extremes of the cosines between two classes (see `Report` for the terms)."""

    largest: float | None
    coherence: float | None
    identical_pairs: int = 0


@dataclass(frozen=True, eq=False)
class Codebook:
    """Class vectors, one row per class, each of norm √in_features.

    Made by `codebook()`; fixed for ever by (kind, version, in_features, num_classes, seed,
    max_base), which `digest` pins. Exactly one of `kernel` (±1 families) and `dense` (other
    matrices) is set.
    """

    kind: str
    version: int
    in_features: int
    num_classes: int
    seed: int
    kernel: KernelData | None = None
    dense: NDArray[np.float32] | None = None
    reason: str = ""
    cosines: Cosines | None = field(default=None, repr=False)
    max_base: int | None = None  # as given to `codebook()`: part of the identity if set
    advice: Callable[[Codebook, float | None], str] | None = field(default=None, repr=False)

    def geometry(self, shard: range | None = None) -> Geometry:
        """The integers of a ±1 codebook, for all classes or for a shard of them.

        Raises ValueError for a dense codebook, or when the shard is no range within [0, C).
        """
        if self.kernel is None:
            raise ValueError(f"codebook is dense ({self.kind}), expected one of a ±1 family")
        return self.kernel.geometry(self.in_features, self.num_classes, shard)

    @property
    def order(self) -> int:
        """Order n of the Hadamard matrix; in_features for a dense codebook."""
        return self.in_features if self.kernel is None else self.kernel.order

    @property
    def dtype(self) -> np.dtype[Any]:
        """int8 for ±1 rows, float32 for dense or centred ones."""
        signs_only = self.kernel is not None and not self.kernel.center
        return np.dtype(np.int8 if signs_only else np.float32)

    def rows(self, ids: ArrayLike) -> NDArray[Any]:
        """The rows of the given classes, [len(ids), in_features], made on the fly."""
        index = np.asarray(ids)
        if index.ndim != 1 or not (index.size == 0 or np.issubdtype(index.dtype, np.integer)):
            raise TypeError(
                f"ids must be a one-dimensional sequence of integers, "
                f"got shape {index.shape} of {index.dtype}"
            )
        outside = (index < 0) | (index >= self.num_classes)
        if outside.any():
            raise ValueError(
                f"ids must lie in [0, {self.num_classes}), got {int(index[outside][0])}"
            )
        index = index.astype(np.int64)
        if self.kernel is None:
            assert self.dense is not None
            return np.asarray(self.dense[index])
        signs = self._signs(index)
        if not self.kernel.center:
            return signs
        scale = np.sqrt(self.num_classes / (self.num_classes - 1))
        return np.asarray(scale * (signs - self._mean), np.float32)

    def matrix(self) -> NDArray[Any]:
        """All rows, [num_classes, in_features]."""
        if self.num_classes * self.in_features > MAX_MATRIX_ENTRIES:
            raise ValueError(
                f"matrix() would hold {self.num_classes} x {self.in_features} entries, more than "
                f"{MAX_MATRIX_ENTRIES}; use rows(ids)"
            )
        return self.rows(np.arange(self.num_classes))

    def _signs(self, ids: NDArray[np.int64]) -> NDArray[np.int8]:
        """Rows of the stack, before centring."""
        data = self.kernel
        assert data is not None
        stacked = ids + data.row_offset
        block, row = np.divmod(stacked, data.order)
        odd = np.zeros(len(ids), np.uint8)
        if data.negate:
            block, odd = block >> 1, (block & 1).astype(np.uint8)
        columns = np.arange(self.in_features) + data.column_offset
        size = 1 << data.log2
        odd_bits = parity((row % size)[:, None] & (columns % size)[None, :])
        odd_bits ^= odd[:, None]
        if data.base is not None:
            base = np.unpackbits(data.base, axis=1, count=data.base_order, bitorder="little")
            odd_bits ^= base[(row // size)[:, None], (columns // size)[None, :]]
        if data.signs is not None:
            flips = np.unpackbits(data.signs[block], axis=1, count=data.order, bitorder="little")
            odd_bits ^= flips[:, columns]
        return 1 - 2 * odd_bits.view(np.int8)

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        ids = np.arange(self.num_classes)
        chunks = np.array_split(ids, max(1, self.num_classes * self.in_features >> 24))
        total = sum(self._signs(chunk).sum(axis=0, dtype=np.int64) for chunk in chunks)
        return np.asarray(total / self.num_classes, np.float64)

    def explain(self, coherence: float | None = None) -> str:
        """Why these rows: what the family does for this pair. Then, for the kinds that "auto"
        takes, the nearest width that is better, and the capacity to ask for if there will be more
        classes than these rows serve.

        coherence: of this codebook where only `report()` knows it, for the comparison of widths.
        """
        told = "" if self.advice is None else self.advice(self, coherence)
        return " ".join(filter(None, (self.reason, told)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the identity and every bit that the rows are made of."""
        parts: list[object] = [self.kind, self.version, self.in_features, self.num_classes]
        parts.append(self.seed)
        arrays: list[NDArray[Any] | None] = [self.dense]
        if self.kernel is not None:
            data = self.kernel
            parts += [data.base_order, data.log2, data.negate, data.center]
            parts += [data.row_offset, data.column_offset]
            arrays = [data.base, data.signs]
        sha = hashlib.sha256(repr(tuple(parts)).encode())
        for array in arrays:
            sha.update(b"-" if array is None else repr(array.shape).encode())
            if array is not None:
                sha.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
        return sha.hexdigest()

    def identity(self) -> dict[str, Any]:
        """What a checkpoint stores; `from_identity` rebuilds the codebook and checks the digest."""
        identity: dict[str, Any] = {
            "kind": self.kind,
            "version": self.version,
            "in_features": self.in_features,
            "num_classes": self.num_classes,
            "seed": self.seed,
            "digest": self.digest,
        }
        if self.max_base is not None:
            identity["max_base"] = self.max_base
        return identity

    def report(self) -> Report:
        """Order, cost, extremes of the cosines and the bounds on them."""
        from .measure import report

        return report(self)

    def histogram(self, bins: int = 101) -> Histogram:
        """Histogram of the cosines between pairs of classes."""
        from .measure import histogram

        return histogram(self, bins)
