"""What the head derives from its logits. Importing this compares what Python spells again of the
kernels' interface with what they were compiled with."""

from __future__ import annotations

from enum import IntEnum

from . import _native
from .codebooks.kernel import Geometry

MAX_TOPK = _native.MAX_TOPK


class Epilogue(IntEnum):
    """One value a class, from logits z; the numbers are those of csrc/core/epilogue.def, whose
    reductions (top-k and so on) have operators of their own."""

    LOGITS = 0  # z
    SOFTMAX = 1  # exp(z_i) / Σ_j exp(z_j)
    LOG_SOFTMAX = 2  # z_i − log Σ_j exp(z_j)
    SIGMOID = 3  # 1 / (1 + exp(−z_i))


if {e.name.lower(): int(e) for e in Epilogue} != _native.EPILOGUES or (
    Geometry._fields != _native.GEOMETRY
):
    raise ImportError(
        f"{_native.__file__} was compiled from other sources than fixclf_infer's: its epilogues "
        f"are {_native.EPILOGUES} and its geometry {_native.GEOMETRY}; build it again"
    )
