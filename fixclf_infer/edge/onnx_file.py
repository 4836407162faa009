"""A head out of an ONNX model, by a reader of the few messages that it needs.

onnx and protobuf take 30 MB on a device. The wire format is simple (protobuf.dev, "Encoding"), and
the numbers of the fields below are fixed for ever (onnx.proto3 of github.com/onnx/onnx).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..fileformat import OWN_FIELDS, renamed
from .contents import Contents

_DOMAIN = "ai.fixclf"
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
_TENSOR_TYPE_FLOAT = 1
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_FLOATS, _TENSOR_INTS, _TENSOR_DOUBLES = 1, 2, 4, 5, 10
_TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 8, 9, 13, 14
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_BFLOAT16 = 16
# All that a head's inputs may be: the bytes of an element, and the field for values that are not
# raw. bfloat16 is read as integers.
_DTYPES = {
    1: ("<f4", _TENSOR_FLOATS),
    2: ("u1", _TENSOR_INTS),
    10: ("<f2", _TENSOR_INTS),
    11: ("<f8", _TENSOR_DOUBLES),
    _BFLOAT16: ("<u2", _TENSOR_INTS),
}

Array = NDArray[Any]
Message = memoryview
Field = tuple[int, "int | memoryview"]


def read(content: bytes, path: Path, name: str | None = None) -> Contents:
    """The head of that node name, or the only one.

    path: of the file; tensors may be in other files of its folder.

    Raises ValueError when the content is no ONNX model, has no such head, or several and no name is
    given, and for tensors that are not there.
    """
    if content[4:8] == b"ORTM":
        raise ValueError(
            f"{path} is in ONNX Runtime's own format, expected the ONNX file that it was made of, "
            "or a file that FixedHead.save wrote"
        )
    try:
        return _read(memoryview(content), path, name)
    except (IndexError, UnicodeDecodeError, _NoMessage):
        raise ValueError(
            f"{path} is neither an ONNX model nor a file that FixedHead.save wrote, or is damaged"
        ) from None


class _NoMessage(Exception):
    """Bytes that are not a protobuf message of the expected shape."""


def _read(model: Message, path: Path, name: str | None) -> Contents:
    where = str(path)
    nodes, tensors = _graph(model, where)
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
    op_type = _text(node, _NODE_OP_TYPE)
    where = f"{where}: {op_type} {name!r}"
    fields = {}
    for attribute in _messages(node, _NODE_ATTRIBUTE):
        named = _text(attribute, _ATTRIBUTE_NAME)
        if _integer(attribute, _ATTRIBUTE_TYPE) != _ATTRIBUTE_TYPE_INT:
            raise ValueError(f"{where}: attribute {named} is no integer")
        fields[named] = _integer(attribute, _ATTRIBUTE_INT)
    arrays: list[Array | None] = []
    inputs = [*_texts(node, _NODE_INPUT)[1:], "", "", "", ""]
    for argument, source in zip(("alpha", "bias", "signs", "base"), inputs, strict=False):
        if source and source not in tensors:
            raise ValueError(f"{where}: {argument} is computed, expected an initialiser")
        what = f"{where}: {argument}"
        arrays.append(_array(tensors[source], what, path.parent) if source else None)
    alpha, bias, signs, base = arrays
    if alpha is None:
        raise ValueError(f"{where}: alpha is missing")
    return Contents(where, fields, alpha, bias, signs, base, OWN_FIELDS[op_type])


def _graph(model: Message, where: str) -> tuple[list[Message], dict[str, Message]]:
    """The heads, and the tensors by name; a Cast to float32, which tools put before heads that they
    leave out of a conversion, gives its input's."""
    heads, tensors, casts = [], {}, {}
    for graph in _messages(model, _MODEL_GRAPH):
        for tensor in _messages(graph, _GRAPH_INITIALIZER):
            tensors[_text(tensor, _TENSOR_NAME)] = tensor
        for node in _messages(graph, _GRAPH_NODE):
            op_type, domain = _text(node, _NODE_OP_TYPE), _text(node, _NODE_DOMAIN)
            if f"{domain}.".startswith(f"{_DOMAIN}."):
                if op_type in OWN_FIELDS:
                    heads.append(node)
                elif op_type.endswith(tuple(OWN_FIELDS)):
                    raise ValueError(renamed(where, op_type))
            if op_type not in ("Constant", "Cast") or domain:
                continue
            for attribute in _messages(node, _NODE_ATTRIBUTE):
                for tensor in _messages(attribute, _ATTRIBUTE_TENSOR):
                    tensors[_texts(node, _NODE_OUTPUT)[0]] = tensor
                if op_type == "Cast" and _integer(attribute, _ATTRIBUTE_INT) == _TENSOR_TYPE_FLOAT:
                    casts[_texts(node, _NODE_OUTPUT)[0]] = _texts(node, _NODE_INPUT)[0]
    tensors.update({name: tensors[of] for name, of in casts.items() if of in tensors})
    return heads, tensors


def _array(tensor: Message, what: str, folder: Path) -> Array:
    shape: list[int] = []
    for value in _values(tensor, _TENSOR_DIMS):
        shape += [value] if isinstance(value, int) else list(_varints(value))
    element = _integer(tensor, _TENSOR_TYPE)
    if element not in _DTYPES:
        raise ValueError(
            f"{what} has the element type {element}, expected one of {', '.join(map(str, _DTYPES))}"
        )
    dtype, field = np.dtype(_DTYPES[element][0]), _DTYPES[element][1]
    if min(shape, default=0) < 0:
        raise ValueError(f"{what} has the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    if _integer(tensor, _TENSOR_LOCATION):
        raw = _external(tensor, what, folder, size)
    else:
        raw = b"".join(_messages(tensor, _TENSOR_RAW))
    if not raw and field == _TENSOR_INTS:
        packed = [i for part in _messages(tensor, field) for i in _varints(part)]
        raw = np.asarray(packed, np.int64).astype(dtype.str.replace("f", "u")).tobytes()
    elif not raw:
        raw = b"".join(_messages(tensor, field))
    if len(raw) != size:
        raise ValueError(f"{what} has {len(raw)} bytes, expected {dtype} of shape {shape}")
    values: Array = np.frombuffer(raw, dtype).reshape(shape)
    if element == _BFLOAT16:
        values = (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values


def _external(tensor: Message, what: str, folder: Path, size: int) -> bytes:
    """A tensor's bytes in another file, which must lie in the model's folder."""
    entries = {
        _text(entry, _ENTRY_KEY): _text(entry, _ENTRY_VALUE)
        for entry in _messages(tensor, _TENSOR_EXTERNAL)
    }
    location, offset = entries.get("location", ""), entries.get("offset", "0")
    folder = folder.resolve()
    try:
        path = (folder / location).resolve()
    except ValueError:  # a zero in a name
        raise _NoMessage from None
    if not path.is_relative_to(folder) or not path.is_file():
        raise ValueError(f"{what} is in {location!r}, expected a file in the folder of the model")
    if not offset.isdecimal() or entries.get("length", str(size)) != str(size):
        raise ValueError(f"{what} is at {entries}, expected {size} bytes at an offset")
    if int(offset) + size > path.stat().st_size:
        raise ValueError(f"{what} is at {entries}, behind the end of that file")
    with open(path, "rb") as file:
        file.seek(int(offset))
        return file.read(size)


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
