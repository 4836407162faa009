"""A codebook, masks of classes and ±1 features as the operators take them: bits and integers."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..codebooks.kernel import Geometry

if TYPE_CHECKING:
    from ..codebooks import Codebook


class CodebookArguments(NamedTuple):
    """The codebook as the operators take it: bits as uint8 tensors, and the geometry."""

    base: Tensor | None
    signs: Tensor | None
    geometry: list[int]


def codebook_arguments(book: Codebook, classes: range | None = None) -> CodebookArguments:
    """Arguments for all classes of a ±1 codebook, or for the shard `classes` of them.

    Raises ValueError for a dense codebook, or when the shard is not a range within [0, C).
    """
    geometry, data = book.geometry(classes), book.kernel
    assert data is not None
    return CodebookArguments(
        None if data.base is None else torch.from_numpy(data.base),
        None if data.signs is None else torch.from_numpy(data.signs),
        list(geometry),
    )


class HeadArguments(NamedTuple):
    """What every head takes first."""

    x: Tensor
    alpha: Tensor
    bias: Tensor | None
    base: Tensor | None
    signs: Tensor | None
    geometry: list[int]
    normalize: bool

    @property
    def book(self) -> Geometry:
        return Geometry(*self.geometry)


def _pack(bits: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8))
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    eights: Tensor = bits.unflatten(-1, (-1, 8))
    # By name and summed as int32, for ONNX.
    shifted = torch.bitwise_left_shift(eights, places)
    return shifted.sum(-1, dtype=torch.int32).to(torch.uint8)


def pack_allowed(allowed: Tensor) -> Tensor:
    """A bool allowed [..., C] (True: the class takes part) as bits: uint8 [..., ⌈C/8⌉]."""
    if allowed.dtype != torch.bool or allowed.dim() == 0:
        raise ValueError(
            f"allowed is {allowed.dtype} of {allowed.dim()} dimension(s), "
            "expected torch.bool [..., classes]"
        )
    return _pack(allowed)


def pack_signs(x: Tensor) -> Tensor:
    """The signs of features [..., N] as bits, set where x < 0: uint8 [..., ⌈N/8⌉]."""
    return _pack(x < 0)


def unpack_signs(packed: Tensor, in_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """±1 features [..., N] of packed signs."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> places & 1).flatten(-2)[..., :in_features]
    signs: Tensor = 1 - 2 * bits.to(dtype)
    return signs
