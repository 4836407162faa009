"""What the head derives from its logits."""

from __future__ import annotations

from enum import IntEnum


class Epilogue(IntEnum):
    """One value a class, from logits z; the numbers are those of csrc/core/epilogue.def, whose
    reductions (top-k and so on) have operators of their own."""

    LOGITS = 0  # z
    SOFTMAX = 1  # exp(z_i) / Σ_j exp(z_j)
    LOG_SOFTMAX = 2  # z_i − log Σ_j exp(z_j)
    SIGMOID = 3  # 1 / (1 + exp(−z_i))
