"""What a file of either format holds, before and after it is checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..codebooks.base import Codebook
from ..fileformat import check_fields, check_scale, fields_of, read_codebook, sealed

Array = NDArray[Any]


@dataclass(frozen=True)
class Contents:
    """where: how errors name the file or node. own: the names of an ONNX operator's own fields.
    kind, version, seed: where the codebook came from, for those who read; the bits are what
    counts."""

    where: str
    fields: dict[str, int]
    alpha: Array
    bias: Array | None
    signs: Array | None
    base: Array | None
    own: tuple[str, ...] = ()
    kind: str = "file"
    version: int = 1
    seed: int = 0

    @classmethod
    def of(cls, book: Codebook, alpha: float, bias: Array | None) -> Contents:
        data = book.kernel
        assert data is not None
        arrays = (np.asarray(alpha, np.float32), bias, data.signs, data.base)
        fields = sealed(fields_of(book, bias is not None), *arrays)
        return cls("", fields, *arrays, (), book.kind, book.version, book.seed)

    def codebook(self) -> Codebook:
        """The codebook. Raises ValueError for what is missing, out of range or changed."""
        fields = check_fields(self.where, self.fields, self.own)
        if (self.bias is not None) != bool(fields["has_bias"]):
            what = "bias is missing" if self.bias is None else "a bias is given"
            raise ValueError(f"{self.where}: {what}, but has_bias is {fields['has_bias']}")
        book = read_codebook(self.where, fields, self.signs, self.base)
        check_scale(self.where, fields, self.alpha, self.bias)
        return replace(book, kind=self.kind, version=self.version, seed=self.seed)
