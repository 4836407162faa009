"""The device's own file: NumPy's .npz with the entries

head    JSON: the integers of `fileformat.field_names`, and the codebook's kind, version, seed
alpha   float32
bias    float32 [C], if there is one
signs   uint8 [blocks, ⌈n/8⌉], if there are sign masks
base    uint8 [b, ⌈b/8⌉], if the base matrix is not [1]
"""

from __future__ import annotations

import io
import json
import zipfile
from os import PathLike
from typing import Any

import numpy as np

from .contents import Array, Contents

_ORIGIN = {"kind": str, "version": int, "seed": int}
_ARRAYS = ("alpha", "bias", "signs", "base")


def is_npz(content: bytes) -> bool:
    """Whether these bytes begin as a zip file does."""
    return content[:4] == b"PK\x03\x04"


def write(path: str | PathLike[str], contents: Contents) -> None:
    head = {**contents.fields, **{name: getattr(contents, name) for name in _ORIGIN}}
    arrays: dict[str, Any] = {name: getattr(contents, name) for name in _ARRAYS}
    with open(path, "wb") as file:  # given a name, NumPy would append a suffix to it
        np.savez_compressed(
            file, head=json.dumps(head), **{k: v for k, v in arrays.items() if v is not None}
        )


def read(content: bytes, where: str) -> Contents:
    """Raises ValueError when these bytes are no such file."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            names = {name for name in ("head", *_ARRAYS) if f"{name}.npy" in file.namelist()}
            entries = {name: _array(file.read(f"{name}.npy")) for name in names}
        head = dict(json.loads(str(entries["head"])))
        alpha = entries["alpha"]
        origin = {name: kind(head.pop(name)) for name, kind in _ORIGIN.items()}
    except Exception:  # damaged zip files and headers raise a dozen kinds
        raise ValueError(
            f"{where} is not a file that FixedHead.save wrote, or is damaged"
        ) from None
    for name, value in head.items():
        if type(value) is not int:
            raise ValueError(f"{where}: {name} is {value!r}, expected an integer")
    bias, signs, base = map(entries.get, ("bias", "signs", "base"))
    return Contents(where, head, alpha, bias, signs, base, **origin)


def _array(entry: bytes) -> Array:
    """As np.load has it, but nothing of a wrong size is allocated."""
    file = io.BytesIO(entry)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
    values: Array = np.frombuffer(entry, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran else "C")
