"""A head out of an ONNX model, by a reader of the few messages that it needs.

onnx and protobuf take 30 MB on a device. The wire format is simple (protobuf.dev, "Encoding"), and
the numbers of the fields below are fixed for ever (onnx.proto3 of github.com/onnx/onnx).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .contents import Contents

_DOMAIN = "ai.fixclf"
_HEADS = ("FixedHead", "FixedHeadTopK")
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_INPUT, _NODE_OUTPUT, _NODE_NAME, _NODE_OP_TYPE, _NODE_ATTRIBUTE, _NODE_DOMAIN = (
    1,
    2,
    3,
    4,
    5,
    7,
)
_ATTRIBUTE_NAME, _ATTRIBUTE_INT, _ATTRIBUTE_TENSOR, _ATTRIBUTE_TYPE = 1, 3, 5, 20
_ATTRIBUTE_TYPE_INT = 2
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_INTS = 1, 2, 4, 5
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_LOCATION = 8, 9, 14
_DTYPES = {1: "<f4", 2: "u1"}  # float and uint8: all that a head's inputs may be

Array = NDArray[Any]
Message = memoryview
Field = tuple[int, "int | memoryview"]


def read(content: bytes, where: str, name: str | None = None) -> Contents:
    """The head of that node name, or the only one.

    Raises ValueError when the content is no ONNX model, has no such head, or several and no name is
    given, and for tensors that are not in the file.
    """
    try:
        return _read(memoryview(content), where, name)
    except (IndexError, UnicodeDecodeError, _NoMessage):
        raise ValueError(
            f"{where} is neither an ONNX model nor a file that FixedHead.save wrote, or is damaged"
        ) from None


class _NoMessage(Exception):
    """Bytes that are not a protobuf message of the expected shape."""


def _read(model: Message, where: str, name: str | None) -> Contents:
    nodes, tensors = _graph(model)
    heads = {_text(node, _NODE_NAME) or _texts(node, _NODE_OUTPUT)[0]: node for node in nodes}
    listed = ", ".join(map(repr, heads)) or "none"
    if name is None and len(heads) != 1:
        raise ValueError(
            f"{where} has {len(heads)} fixed heads, expected one"
            + (f", or a name out of {listed}" if heads else "")
        )
    if name is not None and name not in heads:
        raise ValueError(f"name is {name!r}, expected a fixed head of {where}: {listed}")
    name = name or next(iter(heads))
    node = heads[name]
    where = f"{where}: {_text(node, _NODE_OP_TYPE)} {name!r}"
    fields = {}
    for attribute in _messages(node, _NODE_ATTRIBUTE):
        if _integer(attribute, _ATTRIBUTE_TYPE) == _ATTRIBUTE_TYPE_INT:
            fields[_text(attribute, _ATTRIBUTE_NAME)] = _integer(attribute, _ATTRIBUTE_INT)
    arrays: list[Array | None] = []
    inputs = [*_texts(node, _NODE_INPUT)[1:], "", "", "", ""]
    for argument, source in zip(("alpha", "bias", "signs", "base"), inputs, strict=False):
        if source and source not in tensors:
            raise ValueError(f"{where}: {argument} is computed, expected an initialiser")
        arrays.append(_array(tensors[source], f"{where}: {argument}") if source else None)
    alpha, bias, signs, base = arrays
    if alpha is None:
        raise ValueError(f"{where}: alpha is missing")
    return Contents(where, fields, alpha, bias, signs, base)


def _graph(model: Message) -> tuple[list[Message], dict[str, Message]]:
    """The heads, and the tensors by name."""
    heads, tensors = [], {}
    for graph in _messages(model, _MODEL_GRAPH):
        for tensor in _messages(graph, _GRAPH_INITIALIZER):
            tensors[_text(tensor, _TENSOR_NAME)] = tensor
        for node in _messages(graph, _GRAPH_NODE):
            op_type, domain = _text(node, _NODE_OP_TYPE), _text(node, _NODE_DOMAIN)
            if op_type in _HEADS and f"{domain}.".startswith(f"{_DOMAIN}."):
                heads.append(node)
            if op_type == "Constant" and not domain:
                for attribute in _messages(node, _NODE_ATTRIBUTE):
                    for tensor in _messages(attribute, _ATTRIBUTE_TENSOR):
                        tensors[_texts(node, _NODE_OUTPUT)[0]] = tensor
    return heads, tensors


def _array(tensor: Message, what: str) -> Array:
    shape: list[int] = []
    for value in _values(tensor, _TENSOR_DIMS):
        shape += [value] if isinstance(value, int) else list(_varints(value))
    element = _integer(tensor, _TENSOR_TYPE)
    if element not in _DTYPES:
        raise ValueError(f"{what} has the element type {element}, expected 1 (float) or 2 (uint8)")
    if _integer(tensor, _TENSOR_LOCATION):
        raise ValueError(f"{what} is in another file, expected it in this one")
    dtype = np.dtype(_DTYPES[element])
    values: Array = np.frombuffer(b"".join(_messages(tensor, _TENSOR_RAW)), np.uint8)
    if not values.size and element == 1:
        values = np.frombuffer(b"".join(_messages(tensor, _TENSOR_FLOATS)), np.uint8)
    elif not values.size:
        packed = [i for part in _messages(tensor, _TENSOR_INTS) for i in _varints(part)]
        values = np.asarray(packed, np.uint8)
    if min(shape, default=0) < 0 or values.size != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{what} has {values.size} bytes, expected {dtype} of shape {shape}")
    return values.view(dtype).reshape(shape)


# The wire format: a field is a key, number << 3 | type, and then a varint (type 0), 8 bytes (1), a
# length and as many bytes (2), or 4 bytes (5).


def _varint(data: Message, at: int) -> tuple[int, int]:
    """A varint and the position behind it; negative numbers are 64-bit two's complement."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value - (1 << 64) if value >> 63 else value), at
    raise _NoMessage


def _varints(data: Message) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at)
        yield value


def _fields(message: Message) -> Iterator[Field]:
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise _NoMessage
        size, at = _varint(message, at) if kind == 2 else (8 if kind == 1 else 4, at)
        if not 0 <= size <= len(message) - at:
            raise _NoMessage
        yield key >> 3, message[at : at + size]
        at += size


def _values(message: Message, number: int) -> Iterator[int | Message]:
    return (value for field, value in _fields(message) if field == number)


def _messages(message: Message, number: int) -> Iterator[Message]:
    for value in _values(message, number):
        if isinstance(value, int):
            raise _NoMessage
        yield value


def _texts(message: Message, number: int) -> list[str]:
    return [str(text, "utf-8") for text in _messages(message, number)]


def _text(message: Message, number: int) -> str:
    return "".join(_texts(message, number)[-1:])


def _integer(message: Message, number: int) -> int:
    value = 0
    for value_ in _values(message, number):
        if not isinstance(value_, int):
            raise _NoMessage
        value = value_
    return value
