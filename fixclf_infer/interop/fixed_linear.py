"""A linear layer with a fixed ±1 matrix, without normalisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..codebooks import Codebook, codebook
from ..nn import identity


class FixedLinear(nn.Module):
    """z = α W x + b with a fixed ±1 codebook W [C, N]: `FixedClassifier` without the norm.

    Only α, of shape [1], and b are parameters; W is made of additions and subtractions.

    Args:
        in_features: N.
        num_classes: C.
        bias: whether b is there (it starts at 0).
        device, dtype: of α and b; float32 by default. The kernel accumulates in float32 (float64
            for float64 features) whatever the dtype of the features.
        codebook: a kind for `fixclf_infer.codebook`, or a `Codebook` of this N and C; ±1 only.
        alpha: initial α; 1/√N when None, with which the rows of α W have norm 1.

    Shape: x [..., N] → [..., C] of the dtype of x.
    """

    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        codebook: str | Codebook = "auto",
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        book = _book(codebook, in_features, num_classes)
        start = 1 / math.sqrt(in_features) if alpha is None else float(alpha)
        if not math.isfinite(start):
            raise ValueError(f"alpha must be finite, got {alpha}")
        kind: dict[str, Any] = {"device": device, "dtype": dtype or torch.float32}
        self.alpha = nn.Parameter(torch.full((1,), start, **kind))
        self.register_parameter(
            "bias", nn.Parameter(torch.zeros(num_classes, **kind)) if bias else None
        )
        self._set_codebook(book)

    def _set_codebook(self, book: Codebook) -> None:
        self.codebook = book
        self._arguments = ops.codebook_arguments(book)
        self._place()

    def _place(self) -> None:
        """The codebook's bits are no state: they follow α."""
        device, (base, signs, geometry) = self.alpha.device, self._arguments
        if device.type != "meta":
            base, signs = (None if b is None else b.to(device) for b in (base, signs))
            self._arguments = ops.CodebookArguments(base, signs, geometry)

    def _apply(self, fn: Any, recurse: bool = True) -> FixedLinear:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._place()
        return self

    @property
    def in_features(self) -> int:
        """N."""
        return self.codebook.in_features

    @property
    def out_features(self) -> int:
        """C."""
        return self.codebook.num_classes

    def forward(self, x: Tensor) -> Tensor:
        """α W x + b, [..., C]."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        bias = None if self.bias is None else self.bias.to(exact)
        return ops.head(x, self.alpha.to(exact), bias, self._arguments, normalize=False)

    def get_extra_state(self) -> Tensor:
        return identity.written(self.codebook)

    def set_extra_state(self, state: Tensor) -> None:
        book = identity.read(state, self.codebook, "FixedLinear")
        if book is not self.codebook:
            self._set_codebook(book)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.out_features}, "
            f"codebook={self.codebook.kind!r}, bias={self.bias is not None}"
        )


def _book(kind: str | Codebook, in_features: int, num_classes: int) -> Codebook:
    book = codebook(in_features, num_classes, kind) if isinstance(kind, str) else kind
    if (book.in_features, book.num_classes) != (in_features, num_classes):
        raise ValueError(
            f"codebook is for in_features={book.in_features}, num_classes={book.num_classes}, "
            f"expected {in_features} and {num_classes}"
        )
    return book
