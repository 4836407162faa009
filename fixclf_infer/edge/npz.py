"""The device's own file: NumPy's .npz with the entries

head    JSON: the integers of `fileformat.CODEBOOK_FIELDS`, and the codebook's kind, version, seed
alpha   float32
bias    float32 [C], if there is one
signs   uint8 [blocks, ⌈n/8⌉], if there are sign masks
base    uint8 [b, ⌈b/8⌉], if the base matrix is not [1]
"""

from __future__ import annotations

import io
import json
from os import PathLike
from typing import Any

import numpy as np

from .contents import Contents

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
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            entries = {name: file[name] for name in ("head", *_ARRAYS) if name in file}
        head = dict(json.loads(str(entries["head"])))
        alpha = entries["alpha"]
    except Exception:  # damaged zip files and headers raise a dozen kinds
        raise ValueError(
            f"{where} is not a file that FixedHead.save wrote, or is damaged"
        ) from None
    fields = {k: v for k, v in head.items() if type(v) is int and k not in _ORIGIN}
    origin = {k: head[k] for k, kind in _ORIGIN.items() if type(head.get(k)) is kind}
    bias, signs, base = map(entries.get, ("bias", "signs", "base"))
    return Contents(where, fields, alpha, bias, signs, base, **origin)
