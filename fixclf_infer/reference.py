"""The oracle: every result of the package, dense and in float64. Slow, short, and NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .epilogue import Epilogue

F64 = NDArray[np.float64]


def hadamard_matrix(order: int) -> F64:
    """H[i, j] = (−1)^popcount(i & j), [order, order], order a power of two (Sylvester 1867)."""
    matrix = np.ones((1, 1))
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def hadamard_transform(x: ArrayLike, scale: float = 1.0) -> F64:
    """scale · H x along the last dimension."""
    values: F64 = np.asarray(x, np.float64)
    return scale * (values @ hadamard_matrix(values.shape[-1]))


def normalize(x: ArrayLike, eps: float = 1e-12) -> F64:
    """x / max(‖x‖₂, eps) along the last dimension."""
    values = np.asarray(x, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        # The norm of the row divided by its largest element can't overflow.
        top = np.maximum(np.abs(values).max(axis=-1, keepdims=True, initial=0), 1e-300)
        length = np.sqrt(np.square(values / top).sum(axis=-1, keepdims=True))
        large = top * np.maximum(length, 1) > eps
        return np.where(large, values / top / np.maximum(length, 1), values / eps)


def logits(
    x: ArrayLike, matrix: ArrayLike, alpha: float = 1.0, bias: ArrayLike | None = None
) -> F64:
    """z_i = α ⟨w_i, x̂⟩ / √N + b_i for features x [..., N] and rows w_i of matrix [C, N].

    A row with a NaN or an infinity has only NaN logits.
    """
    w = np.asarray(matrix, np.float64)
    values = np.asarray(x, np.float64)
    valid = np.isfinite(values).all(axis=-1, keepdims=True)
    cosines = normalize(np.where(valid, values, 0)) @ w.T / np.sqrt(w.shape[1])
    z = alpha * cosines + (0 if bias is None else np.asarray(bias, np.float64))
    return np.where(valid, z, np.nan)


def logsumexp(z: F64) -> F64:
    """log Σ_i exp(z_i) along the last dimension, kept as a dimension of 1."""
    top: F64 = z.max(axis=-1, keepdims=True)
    total: F64 = np.exp(z - top).sum(axis=-1, keepdims=True)
    return np.asarray(top + np.log(total))


def apply_epilogue(z: F64, epilogue: Epilogue) -> F64:
    """What the head derives from the logits z."""
    if epilogue is Epilogue.LOGITS:
        return z
    if epilogue is Epilogue.SOFTMAX:
        return np.exp(z - logsumexp(z))
    if epilogue is Epilogue.LOG_SOFTMAX:
        return z - logsumexp(z)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-z))


def head(
    x: ArrayLike,
    matrix: ArrayLike,
    alpha: float = 1.0,
    bias: ArrayLike | None = None,
    epilogue: Epilogue = Epilogue.LOGITS,
) -> F64:
    """The fixed head on a dense codebook matrix [C, N]."""
    return apply_epilogue(logits(x, matrix, alpha, bias), epilogue)


def project_adjoint(g: ArrayLike, matrix: ArrayLike) -> F64:
    """Wᵀ g along the last dimension."""
    result: NDArray[Any] = np.asarray(g, np.float64) @ np.asarray(matrix, np.float64)
    return result
