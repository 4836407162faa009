"""The kernels' view of a codebook: integers and bits. Everything else here builds on this."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

Bits = NDArray[np.uint8]


class Geometry(NamedTuple):
    """The integers of a codebook, named and ordered as in csrc/core/codebook.def."""

    in_features: int
    base_order: int
    log2: int
    negate: int
    center: int
    row_offset: int
    column_offset: int
    num_classes: int
    class_begin: int
    class_end: int

    @property
    def order(self) -> int:
        """n = b · 2^k."""
        return self.base_order << self.log2

    @property
    def computed(self) -> int:
        """Classes of the shard [class_begin, class_end)."""
        return self.class_end - self.class_begin


@dataclass(frozen=True)
class KernelData:
    """A ±1 codebook as the kernels read it.

    Block j is `B_j = H_n D_j` with `H_n = P_b ⊗ H_{2^k}` and `D_j` a diagonal of signs. The stack
    `[B_0; B_1; …]`, or `[B_0; −B_0; B_1; −B_1; …]` with `negate`, is cut to the classes' rows and
    the features' columns.
    """

    base_order: int  # b, 1 for Sylvester
    log2: int  # k; the order is n = b · 2^k
    base: Bits | None  # P_b as uint8 [b, ⌈b/8⌉], little-endian bits, set = −1; None if b = 1
    signs: Bits | None  # D_j as uint8 [blocks, ⌈n/8⌉], same bits; None = one block without flips
    negate: bool  # every block is followed by its negation
    center: bool  # simplex ETF: y → √(C/(C−1)) · (y − mean over the C classes)
    row_offset: int  # class i is row i + row_offset of the stack
    column_offset: int  # feature j is column j + column_offset of H_n

    @property
    def order(self) -> int:
        """n = b · 2^k."""
        return self.base_order << self.log2

    @property
    def blocks(self) -> int:
        """How many blocks B_j there are, negations not counted."""
        return 1 if self.signs is None else len(self.signs)

    @property
    def rows(self) -> int:
        """Rows of the whole stack."""
        return self.order * self.blocks * (2 if self.negate else 1)

    def geometry(self, in_features: int, num_classes: int, shard: range | None = None) -> Geometry:
        """The integers for all classes, or for the shard of them.

        Raises ValueError unless shard is a non-empty range within [0, num_classes).
        """
        classes = range(num_classes) if shard is None else shard
        if classes.step != 1 or not 0 <= classes.start < classes.stop <= num_classes:
            raise ValueError(
                f"classes is {classes}, expected a non-empty range within [0, {num_classes})"
            )
        return Geometry(
            in_features,
            self.base_order,
            self.log2,
            int(self.negate),
            int(self.center),
            self.row_offset,
            self.column_offset,
            num_classes,
            classes.start,
            classes.stop,
        )


def parity(values: NDArray[np.int64]) -> Bits:
    """popcount(values) mod 2, for values in [0, 2^32)."""
    values = values.astype(np.uint32)
    for shift in (16, 8, 4, 2, 1):
        values ^= values >> np.uint32(shift)
    return (values & np.uint32(1)).astype(np.uint8)


def pack(bits: ArrayLike) -> Bits:
    """Rows of 0/1 (1 = −1) to little-endian bytes."""
    return np.packbits(np.asarray(bits, np.uint8), axis=-1, bitorder="little")


def integer(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """`value` as an int in [low, high], or one clear error."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    number = operator.index(value)
    if not low <= number <= high:
        raise ValueError(f"{name} must lie in [{low}, {high}], got {number}")
    return number
