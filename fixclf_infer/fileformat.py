"""What a file says about a head, written and checked in one place: the nodes of ONNX models and the
files for devices (`edge`) hold the same integers, the same bits and the same checksum of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codebooks.base import Bits, Codebook, KernelData

FORMAT_VERSION = 1

CODEBOOK_FIELDS = (
    "format_version",
    "in_features",
    "num_classes",
    "base_order",
    "log2",
    "negate",
    "center",
    "row_offset",
    "column_offset",
    "has_bias",
    "checksum",
)


def checksum(signs: Bits | None, base: Bits | None) -> int:
    """FNV-1a (64 bits) over the bytes of signs, then of base, as a signed integer."""
    value = 0xCBF29CE484222325
    for bits in (signs, base):
        for byte in b"" if bits is None else bits.tobytes():
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def fields_of(book: Codebook, has_bias: bool) -> dict[str, int]:
    """`CODEBOOK_FIELDS` of a ±1 codebook."""
    data = book.kernel
    assert data is not None
    return {
        "format_version": FORMAT_VERSION,
        "in_features": book.in_features,
        "num_classes": book.num_classes,
        "base_order": data.base_order,
        "log2": data.log2,
        "negate": int(data.negate),
        "center": int(data.center),
        "row_offset": data.row_offset,
        "column_offset": data.column_offset,
        "has_bias": int(has_bias),
        "checksum": checksum(data.signs, data.base),
    }


def check_fields(
    where: str, fields: Mapping[str, int], names: tuple[str, ...] = CODEBOOK_FIELDS
) -> None:
    """Raises ValueError for one of the names that is missing, or a newer format."""
    for name in names:
        if name not in fields:
            raise ValueError(f"{where}: attribute {name} is missing")
    if fields["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{where}: format_version is {fields['format_version']}, written by a newer "
            f"fixclf_infer; this one reads up to {FORMAT_VERSION}"
        )


def check_scale(
    where: str, alpha: NDArray[Any] | None, bias: NDArray[Any] | None, num_classes: int
) -> None:
    """Raises ValueError for an alpha or a bias of a wrong type or shape; None is not looked at."""
    if alpha is not None and (alpha.dtype != np.float32 or alpha.size != 1 or alpha.ndim > 1):
        raise ValueError(f"{where}: alpha is {_what(alpha)}, expected one element of float32")
    if bias is not None and (bias.dtype != np.float32 or bias.shape != (num_classes,)):
        raise ValueError(f"{where}: bias is {_what(bias)}, expected float32 [{num_classes}]")


def read_codebook(
    where: str, fields: Mapping[str, int], signs: NDArray[Any] | None, base: NDArray[Any] | None
) -> Codebook:
    """The codebook that checked fields (`check_fields`) and bits describe.

    where: how errors name the node or file.

    Raises ValueError, one sentence, for fields out of range, bits that are missing or of a wrong
    type or shape, and bits that do not have the checksum.
    """
    n, c = fields["in_features"], fields["num_classes"]
    b, log2 = fields["base_order"], fields["log2"]
    between(where, "base_order", b, 1, 512)
    between(where, "log2", log2, 0, 20)
    order = b << log2
    between(where, "in_features", n, 1, order)
    between(where, "column_offset", fields["column_offset"], 0, min(1, order - n))
    blocks = len(signs) if signs is not None and signs.ndim else 1
    if (base is not None) != (b > 1):
        has = "missing" if base is None else "given"
        raise ValueError(f"{where}: base is {has}, but base_order is {b}")
    for name, bits, shape in (
        ("signs", signs, (blocks, -(-order // 8))),
        ("base", base, (b, -(-b // 8))),
    ):
        if bits is not None and (bits.dtype != np.uint8 or bits.shape != shape):
            raise ValueError(f"{where}: {name} is {_what(bits)}, expected uint8 {list(shape)}")
    data = KernelData(
        b,
        log2,
        base,
        signs,
        bool(fields["negate"]),
        bool(fields["center"]),
        fields["row_offset"],
        fields["column_offset"],
    )
    between(where, "row_offset", data.row_offset, 0, data.rows - 1)
    between(where, "num_classes", c, 1, data.rows - data.row_offset)
    if data.center and (data.blocks > 1 or data.negate or c < 2):
        raise ValueError(f"{where}: center is 1, which needs one block and 2 classes or more")
    if fields["checksum"] != checksum(data.signs, data.base):
        raise ValueError(
            f"{where}: the sign masks or the base matrix were changed: their checksum is not the "
            "one that is recorded"
        )
    return Codebook("file", 1, n, c, 0, data)


def between(where: str, name: str, value: int, low: int, high: int) -> None:
    """Raises ValueError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{where}: {name} is {value}, expected {low} to {high}")


def _what(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
