"""Class separation R² (Kornblith et al. 2021, equation 11).

R² = 1 − d_within / d_total, with cosine distance 1 − ⟨x̂, ŷ⟩ and, for K classes with N_k examples,

    d_within = Σ_k Σ_m Σ_n (1 − ⟨x̂_km, x̂_kn⟩) / (K N_k²)
    d_total  = Σ_j Σ_k Σ_m Σ_n (1 − ⟨x̂_jm, x̂_kn⟩) / (K² N_j N_k).

With μ_k the mean of class k's unit vectors and μ the mean of the μ_k, the sums over pairs are
d_within = 1 − mean_k ‖μ_k‖² and d_total = 1 − ‖μ‖²: one pass, K vectors.

S. Kornblith, T. Chen, H. Lee, M. Norouzi, "Why do better loss functions lead to less transferable
features?", NeurIPS 2021.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks


class ClassSeparation:
    """R² over batches: update(features, labels) for each, then compute().

    Classes without examples do not count. A row of zeros counts with its length 0, as a vector at
    distance 1 from everything.
    """

    def __init__(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.sums: Tensor | None = None  # of unit vectors, [K, N]

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Features [rows, N] and their classes, integers [rows]."""
        x = checks.unit(checks.matrix("features", features))
        ids = checks.labels("labels", labels, len(x), self.num_classes).to(x.device)
        if self.sums is None:
            self.sums = x.new_zeros(self.num_classes, x.shape[1])
            self.counts = self.counts.to(x.device)
        if x.shape[1] != self.sums.shape[1]:
            raise ValueError(
                f"features has {x.shape[1]} columns, expected {self.sums.shape[1]} as before"
            )
        self.sums.index_add_(0, ids, x)
        self.counts += torch.bincount(ids, minlength=self.num_classes)

    def compute(self) -> float:
        """R². ValueError with fewer than two classes, or if all features have one direction."""
        seen = self.counts > 0
        if self.sums is None or int(seen.sum()) < 2:
            raise ValueError(f"at least 2 classes must have examples, got {int(seen.sum())}")
        means = self.sums[seen] / self.counts[seen, None]
        within = 1 - means.square().sum(1).mean()
        total = 1 - means.mean(0).square().sum()
        if float(total) <= 1e-12:
            raise ValueError("features must not all have one direction, which have no R²")
        return float(1 - within / total)


def class_separation(features: Tensor, labels: Tensor) -> float:
    """R² of features [rows, N] with classes labels [rows]; see the file's formula."""
    ids = checks.labels("labels", labels, len(features))
    separation = ClassSeparation(max(2, int(ids.max()) + 1) if len(ids) else 2)
    separation.update(features, labels)
    return separation.compute()
