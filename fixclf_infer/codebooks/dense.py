"""Dense matrices: the baselines. They run as matrix products and store 4 C N bytes.

`orthonormal`. The random orthonormal matrix of Hoffer et al., §2.2: Q of a Gaussian matrix, with
the signs that make R's diagonal positive, its rows scaled to norm √N. C ≤ N: orthogonal rows;
C > N: orthogonal columns, then rows scaled. Gaussians come from SHAKE-128 of (N, C, seed) by Box
and Muller. Entries are rounded to multiples of 2^−12, so that the bits do not hang on the last
digits of a LAPACK: rows are orthogonal, and of norm √N, to 1e-4. A row depends on all of C: this
family is not prefix-stable.

`matrix`. The user's own fixed matrix (word vectors, Hoffer et al., §3.3), its rows scaled to norm
√N, so that a class score is a cosine as everywhere else.

E. Hoffer, I. Hubara, D. Soudry, "Fix your classifier: the marginal value of training the last
weight layer", ICLR 2018. F. Mezzadri, "How to generate random matrices from the classical compact
groups", Notices AMS 54 (2007) 592–604.
"""

from __future__ import annotations

from hashlib import shake_128

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .base import MAX_MATRIX_ENTRIES, Codebook

VERSION = 1


def orthonormal(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    if in_features * num_classes > MAX_MATRIX_ENTRIES:
        raise ValueError(
            f"num_classes must be at most {MAX_MATRIX_ENTRIES // in_features} for the dense "
            f"kind='orthonormal' with in_features={in_features}, got {num_classes}"
        )
    tag = f"orthonormal {in_features} {num_classes} {seed}"
    gaussian = _gaussian(tag, (max(in_features, num_classes), min(in_features, num_classes)))
    q, r = np.linalg.qr(gaussian)
    q *= np.sign(np.diag(r))
    rows = _scaled(q if num_classes > in_features else q.T)
    return Codebook(
        kind="orthonormal",
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        dense=(np.rint(rows * 2**12) / 2**12).astype(np.float32),
        reason="A random orthonormal matrix, run as a dense product: a baseline.",
    )


def user_matrix(in_features: int, num_classes: int, matrix: ArrayLike, seed: int) -> Codebook:
    values = np.asarray(matrix)
    if values.shape != (num_classes, in_features):
        raise ValueError(
            f"matrix must have shape (num_classes, in_features) = ({num_classes}, {in_features}), "
            f"got {values.shape}"
        )
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise TypeError(f"matrix must hold real numbers, got dtype {values.dtype}")
    values = values.astype(np.float64)
    norms = np.abs(values).max(axis=1)
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ValueError(f"matrix must have finite, nonzero rows, got row {bad[0]} otherwise")
    rows = _scaled(values / norms[:, None]).astype(np.float32)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    if counts.max() > 1:
        pairs = int((counts * (counts - 1) // 2).sum())
        raise ValueError(f"matrix must have rows of different directions, got {pairs} equal pairs")
    return Codebook(
        kind="matrix",
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        dense=rows,
        reason="The given matrix, its rows scaled to norm √N, run as a dense product.",
    )


def _scaled(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / norms * np.sqrt(rows.shape[1]), np.float64)


def _gaussian(tag: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    half = -(-shape[0] * shape[1] // 2)
    words = np.frombuffer(shake_128(tag.encode()).digest(16 * half), "<u8")
    uniform = ((words >> np.uint64(11)) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    pairs = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return pairs[: shape[0] * shape[1]].reshape(shape)
