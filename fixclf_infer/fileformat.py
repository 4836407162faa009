"""What a file says about a head, written and checked in one place: the nodes of ONNX models and the
files for devices (`edge`) hold the same integers, the same bits and the same checksum of them."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .codebooks.base import Codebook
from .codebooks.kernel import Bits, Geometry, KernelData

# 1: checksum is FNV-1a of the bits. 2: CRC-32 of the integers and the bits; scale_checksum is new.
# Every version is read, the newest is written.
FORMAT_VERSION = 2

# Of a call, not of a file.
_SHARD = ("class_begin", "class_end")
_FIRST = ("in_features", "num_classes")
_CODEBOOK = (
    "format_version",
    *_FIRST,
    *(name for name in Geometry._fields if name not in (*_FIRST, *_SHARD)),
    "has_bias",
)
# What an ONNX operator has beside the codebook.
OWN_FIELDS = {"FixedHead": ("epilogue",), "FixedHeadTopK": ("k", "log_probabilities")}

FLOATS = ("float32", "float16", "bfloat16", "float64")


def field_names(version: int, own: Iterable[str] = ()) -> tuple[str, ...]:
    """All integers of a head in that version of the format, in its order, the checksum last.

    own: a value of `OWN_FIELDS`, or nothing for a device's file.
    """
    return (*_CODEBOOK, *(["scale_checksum"] if version >= 2 else []), *own, "checksum")


def checksum(fields: Mapping[str, int], signs: Bits | None, base: Bits | None) -> int:
    """What `checksum` must be beside these fields, in their order, and bits.

    Version 1: FNV-1a (64 bits) over the bytes of signs, then of base, as a signed integer. Version
    2: CRC-32 over the other integers, 8 bytes each, little-endian, then signs, then base.
    """
    bits = [b"" if b is None else b.tobytes() for b in (signs, base)]
    if fields["format_version"] >= 2:
        integers = [value for name, value in fields.items() if name != "checksum"]
        return binascii.crc32(b"".join([np.array(integers, "<i8").tobytes(), *bits]))
    value = 0xCBF29CE484222325
    for byte in b"".join(bits):
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def scale_checksum(alpha: NDArray[Any] | None, bias: NDArray[Any] | None, has_bias: bool) -> int:
    """CRC-32 over the bytes of α, then of the bias, in float32. 0 where the model computes one of
    them (None), or where they are not float32: tools that convert models to 16 bits round them and
    leave the checksum."""
    given = [alpha, bias] if has_bias else [alpha]
    if any(array is None or array.dtype != np.float32 for array in given):
        return 0
    return binascii.crc32(b"".join(np.asarray(a, "<f4").tobytes() for a in given))


def fields_of(
    book: Codebook, has_bias: bool, own: Mapping[str, int] | None = None
) -> dict[str, int]:
    """The integers of a ±1 codebook in the newest format; its checksums are `sealed` later."""
    own = own or {}
    known = {
        **book.geometry()._asdict(),
        "format_version": FORMAT_VERSION,
        "has_bias": int(has_bias),
        "scale_checksum": 0,
        "checksum": 0,
        **own,
    }
    return {name: known[name] for name in field_names(FORMAT_VERSION, own)}


def sealed(
    fields: Mapping[str, int],
    alpha: NDArray[Any] | None,
    bias: NDArray[Any] | None,
    signs: Bits | None,
    base: Bits | None,
) -> dict[str, int]:
    """Fields of the newest format with both checksums; None for an α or bias that the model
    computes."""
    scale = scale_checksum(alpha, bias, bool(fields["has_bias"]))
    found = {**fields, "scale_checksum": scale}
    return {**found, "checksum": checksum(found, signs, base)}


def check_fields(where: str, fields: Mapping[str, int], own: Iterable[str] = ()) -> dict[str, int]:
    """The fields in the format's order. Raises ValueError for a newer format, and for a field that
    is missing or that the format does not have."""
    version = fields.get("format_version")
    if version is None:
        raise ValueError(f"{where}: attribute format_version is missing")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{where}: format_version is {version}, written by a newer fixclf_infer; this one "
            f"reads up to {FORMAT_VERSION}"
        )
    between(where, "format_version", version, 1, FORMAT_VERSION)
    names = field_names(version, own)
    for name in names:
        if name not in fields:
            raise ValueError(f"{where}: attribute {name} is missing")
    for name in fields:
        if name not in names:
            raise ValueError(f"{where}: attribute {name} is unknown, expected {', '.join(names)}")
    return {name: fields[name] for name in names}


def check_scale(
    where: str, fields: Mapping[str, int], alpha: NDArray[Any] | None, bias: NDArray[Any] | None
) -> None:
    """Raises ValueError for an alpha or a bias of a wrong type or shape, or with another checksum
    than the fields have; None, which the model computes, is not looked at."""
    classes = fields["num_classes"]
    if alpha is not None and (alpha.dtype.name not in FLOATS or alpha.size != 1 or alpha.ndim > 1):
        raise ValueError(f"{where}: alpha is {_what(alpha)}, expected one element of a float type")
    if bias is not None and (bias.dtype.name not in FLOATS or bias.shape != (classes,)):
        raise ValueError(f"{where}: bias is {_what(bias)}, expected floats [{classes}]")
    recorded = fields.get("scale_checksum", 0)
    found = scale_checksum(alpha, bias, bool(fields["has_bias"]))
    if recorded and found and recorded != found:
        raise ValueError(
            f"{where}: alpha or the bias was changed: their checksum is not the one that is "
            "recorded"
        )


def read_codebook(
    where: str, fields: Mapping[str, int], signs: NDArray[Any] | None, base: NDArray[Any] | None
) -> Codebook:
    """The codebook that the fields of `check_fields` and bits describe.

    where: how errors name the node or file.

    Raises ValueError, one sentence, for fields out of range, bits that are missing or of a wrong
    type or shape, and bits that do not have the checksum.
    """
    n, c = fields["in_features"], fields["num_classes"]
    shapes = []
    for name, bits in (("base", base), ("signs", signs)):
        if bits is not None and (bits.dtype != np.uint8 or bits.ndim != 2):
            raise ValueError(f"{where}: {name} is {_what(bits)}, expected a matrix of uint8")
        shapes.append((0, 0) if bits is None else bits.shape)
    integers = {name: fields[name] for name in Geometry._fields if name not in _SHARD}
    book = Geometry(**integers, class_begin=0, class_end=c)
    try:
        _native.check_codebook(book, *shapes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    data = KernelData(
        book.base_order,
        book.log2,
        base,
        signs,
        bool(book.negate),
        bool(book.center),
        book.row_offset,
        book.column_offset,
    )
    if fields["checksum"] != checksum(fields, data.signs, data.base):
        also = "an attribute, " if fields["format_version"] >= 2 else ""
        raise ValueError(
            f"{where}: {also}the sign masks or the base matrix were changed: their checksum is not "
            "the one that is recorded"
        )
    return Codebook("file", 1, n, c, 0, data)


def renamed(where: str, op_type: str) -> str:
    """The message for a node that a prefix was put before."""
    return (
        f"{where} has a node {op_type}, expected one of {', '.join(OWN_FIELDS)}: a tool put a "
        "prefix before the names of functions (fixclf_infer.onnx.merge_models keeps them)"
    )


def between(where: str, name: str, value: int, low: int, high: int) -> None:
    """Raises ValueError unless low ≤ value ≤ high."""
    if not low <= value <= high:
        raise ValueError(f"{where}: {name} is {value}, expected {low} to {high}")


def _what(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
