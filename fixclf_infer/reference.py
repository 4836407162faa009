"""The oracle: every result of the package, dense and in float64. Slow, short, and NumPy only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .codebooks import Codebook
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


def codebook_logits(
    x: ArrayLike, book: Codebook, alpha: float = 1.0, bias: ArrayLike | None = None
) -> F64:
    """`logits` for the rows of a codebook, 2^22 entries of W at a time: a million classes fit."""
    step = max(1, 2**22 // book.in_features)
    parts = []
    for begin in range(0, book.num_classes, step):
        ids = np.arange(begin, min(begin + step, book.num_classes))
        b = None if bias is None else np.asarray(bias)[ids]
        parts.append(logits(x, book.rows(ids), alpha, b))
    return np.concatenate(parts, axis=-1)


def logsumexp(z: F64) -> F64:
    """log Σ_i exp(z_i) along the last dimension, kept as a dimension of 1; +∞ if a z_i is, −∞ if
    all are, NaN if one is."""
    top: F64 = z.max(axis=-1, keepdims=True)
    shift = np.where(np.isfinite(top), top, 0)
    with np.errstate(divide="ignore"):
        return np.asarray(shift + np.log(np.exp(z - shift).sum(axis=-1, keepdims=True)))


def log_softmax(z: F64) -> F64:
    """(z − max z) − log Σ_i exp(z_i − max z): precise at any size of z. Only NaN where max z is
    infinite, as in torch."""
    with np.errstate(invalid="ignore"):
        below: F64 = z - z.max(axis=-1, keepdims=True)
        return np.asarray(below - np.log(np.exp(below).sum(axis=-1, keepdims=True)))


def unpack_signs(packed: ArrayLike, in_features: int) -> F64:
    """±1 features [..., N] of packed signs [..., ⌈N/8⌉]: little-endian bits, set = −1."""
    bits = np.unpackbits(
        np.asarray(packed, np.uint8), axis=-1, count=in_features, bitorder="little"
    )
    return np.asarray(1.0 - 2.0 * bits, np.float64)


def masked(z: F64, allowed: ArrayLike | None) -> F64:
    """−∞ where `allowed`, bool [C] or [..., C], is False."""
    return z if allowed is None else np.where(np.asarray(allowed, bool), z, -np.inf)


def topk(z: F64, k: int) -> tuple[F64, NDArray[np.int64]]:
    """The k largest of z along the last dimension, sorted, the lowest index first on ties; NaN is
    larger than any number, as for `numpy.argmax` and in torch."""
    order = np.lexsort((-z, ~np.isnan(z)), axis=-1)[..., :k]
    return np.take_along_axis(z, order, -1), order


def nll(z: F64, target: ArrayLike, ignore_index: int = -100, label_smoothing: float = 0.0) -> F64:
    """logsumexp(z) − (1 − ε) z_target − ε mean(z) along the last dimension; 0 where ignored."""
    index = np.asarray(target, np.int64)
    ignored = index == ignore_index
    log_p = log_softmax(z)
    picked = np.take_along_axis(log_p, np.where(ignored, 0, index)[..., None], -1)
    losses = (label_smoothing - 1) * picked
    if label_smoothing > 0:
        losses -= label_smoothing * log_p.mean(axis=-1, keepdims=True)
    return np.where(ignored, 0, losses[..., 0])


def nll_gradient(
    z: F64, target: ArrayLike, ignore_index: int = -100, label_smoothing: float = 0.0
) -> F64:
    """d nll / d z: softmax(z) − (1 − ε) [i = target] − ε / C; 0 where ignored."""
    index = np.asarray(target, np.int64)
    ignored = index == ignore_index
    hit = np.arange(z.shape[-1]) == index[..., None]
    dz = np.exp(log_softmax(z)) - (1 - label_smoothing) * hit - label_smoothing / z.shape[-1]
    return np.where(ignored[..., None], 0, dz)


def _mix(x: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """triple32 (Wellons 2018)."""
    for shift, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
        x = (x ^ x >> np.uint32(shift)) * np.uint32(factor)
    return x ^ x >> np.uint32(14)


def gumbel(seeds: ArrayLike, num_classes: int) -> F64:
    """The noise [..., C] that `sample` adds to the logits: −log E_i, E_i = −log(1 − U_i), with U_i
    a hash of the row's seed and i."""
    x = np.asarray(seeds, np.int64).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    low, high = x & np.uint64(0xFFFFFFFF), x >> np.uint64(32)
    ids = np.arange(num_classes, dtype=np.uint32)
    hashed = _mix(ids ^ low.astype(np.uint32)[..., None])
    hashed = _mix(hashed + high.astype(np.uint32)[..., None])
    u = ((hashed >> np.uint32(1)) + 0.5) * 2.0**-31
    return np.asarray(-np.log(-np.log1p(-u)), np.float64)


def sample(z: F64, seeds: ArrayLike) -> NDArray[np.int64]:
    """One index a row, distributed as softmax(z): argmax z_i + Gumbel noise."""
    best: NDArray[np.int64] = np.argmax(z + gumbel(seeds, z.shape[-1]), axis=-1)
    return best


def apply_epilogue(z: F64, epilogue: Epilogue) -> F64:
    """What the head derives from the logits z."""
    if epilogue is Epilogue.LOGITS:
        return z
    if epilogue is Epilogue.SOFTMAX:
        return np.exp(log_softmax(z))
    if epilogue is Epilogue.LOG_SOFTMAX:
        return log_softmax(z)
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
