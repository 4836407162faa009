"""Linear centred kernel alignment of two representations of the same inputs.

`cka`: ‖Ỹᵀ X̃‖_F² / (‖X̃ᵀ X̃‖_F ‖Ỹᵀ Ỹ‖_F), columns centred (Kornblith et al. 2019). It needs all rows
at once, and is too large where rows are few beside features.

`MinibatchCKA` (Kornblith et al. 2021, equation 10; Nguyen et al. 2021): over batches X_i, Y_i of n
rows each, with K = X_i X_iᵀ and L = Y_i Y_iᵀ,

    mean_i HSIC₁(K, L) / √(mean_i HSIC₁(K, K) · mean_i HSIC₁(L, L)),

HSIC₁ the unbiased estimator of Song et al. (2012): with the diagonals of K and L set to 0,
(tr(KL) + 1ᵀK1 1ᵀL1 / ((n−1)(n−2)) − 2/(n−2) 1ᵀKL1) / (n(n−3)). So the size of the batches biases
neither mean.

S. Kornblith, M. Norouzi, H. Lee, G. Hinton, "Similarity of neural network representations
revisited", ICML 2019. S. Kornblith, T. Chen, H. Lee, M. Norouzi, "Why do better loss functions lead
to less transferable features?", NeurIPS 2021. T. Nguyen, M. Raghu, S. Kornblith, "Do wide and deep
networks learn the same things?", ICLR 2021. L. Song et al., "Feature selection via dependence
maximization", JMLR 13 (2012) 1393–1434.
"""

from __future__ import annotations

import math

from torch import Tensor

from . import checks


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of x [rows, N] and y [rows, M], in [0, 1]; 0 where one of them is constant."""
    a, b = _pair(x, y)
    a, b = a - a.mean(0), b - b.mean(0)
    if len(a) < max(a.shape[1], b.shape[1]):  # the same products between rows
        k, ell = a @ a.T, b @ b.T
        cross, one, two = float((k * ell).sum()), float(k.norm()), float(ell.norm())
    else:
        cross = float((b.T @ a).square().sum())
        one, two = float((a.T @ a).norm()), float((b.T @ b).norm())
    return cross / (one * two) if one * two > 0 else 0.0


def hsic(k: Tensor, ell: Tensor) -> float:
    """HSIC₁ of two symmetric matrices [n, n], n ≥ 4; their diagonals do not matter."""
    n = len(k)
    k, ell = (m - m.diag().diag() for m in (k, ell))
    ones_k, ones_l = k.sum(0), ell.sum(0)
    total = (k * ell).sum()
    total = total + ones_k.sum() * ones_l.sum() / ((n - 1) * (n - 2))
    total = total - 2 / (n - 2) * (ones_k @ ones_l)
    return float(total) / (n * (n - 3))


class MinibatchCKA:
    """update(x, y) for each batch, then compute()."""

    def __init__(self) -> None:
        self.sums = [0.0, 0.0, 0.0]  # HSIC₁ of (K, L), (K, K), (L, L)
        self.batches = 0

    def update(self, x: Tensor, y: Tensor) -> None:
        """Both representations of one batch, [n, N] and [n, M], n ≥ 4. Each batch counts the same
        whatever its n."""
        a, b = _pair(x, y)
        if len(a) < 4:
            raise ValueError(f"x must have at least 4 rows, got {len(a)}")
        k, ell = a @ a.T, b @ b.T
        for i, pair in enumerate(((k, ell), (k, k), (ell, ell))):
            self.sums[i] += hsic(*pair)
        self.batches += 1

    def compute(self) -> float:
        """The CKA; it may lie a little outside [0, 1], as unbiased estimates do. ValueError where a
        representation is constant, as far as the batches show."""
        cross, one, two = self.sums
        if self.batches == 0 or one <= 0 or two <= 0:
            raise ValueError(
                f"both representations must vary over the batches, got {self.batches} batches with "
                f"HSIC {one:.3g} and {two:.3g}"
            )
        return cross / math.sqrt(one * two)


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    a, b = checks.matrix("x", x), checks.matrix("y", y)
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"x and y must have the same rows, 2 or more, got {len(a)} and {len(b)}")
    return a, b
