"""Compatibility of two models' embeddings: a gallery of the old model, queries of the new one.

Two networks trained apart with the same fixed codebook aim at the same class vectors, so that a
gallery need not be embedded again when the model changes. Top-1: the class of the nearest gallery
row by cosine. Shen et al. call a new model compatible where cross > old.

Y. Shen, Y. Xiong, W. Xia, S. Soatto, "Towards backward-compatible representation learning", CVPR
2020.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import checks
from .transfer import knn_predict


@dataclass(frozen=True)
class Compatibility:
    """Top-1 accuracies of queries in a gallery."""

    cross: float  # new queries, old gallery
    old: float | None  # old queries, old gallery
    new: float | None  # new queries, new gallery

    @property
    def compatible(self) -> bool | None:
        """cross > old; None without old queries."""
        return None if self.old is None else self.cross > self.old


def compatibility(
    old_gallery: Tensor,
    gallery_labels: Tensor,
    new_queries: Tensor,
    query_labels: Tensor,
    *,
    old_queries: Tensor | None = None,
    new_gallery: Tensor | None = None,
) -> Compatibility:
    """Top-1 of new queries [queries, N] in a gallery [rows, N] that the old model embedded.

    old_queries and new_gallery are the same inputs as new_queries and old_gallery, embedded by the
    other model: what each model reaches alone. Both models have N features.
    """

    def top1(gallery: Tensor, queries: Tensor) -> float:
        ids = checks.labels("query_labels", query_labels, len(queries))
        found = knn_predict(queries, gallery, gallery_labels)
        return float((found == ids.to(found.device)).double().mean())

    return Compatibility(
        top1(old_gallery, new_queries),
        None if old_queries is None else top1(old_gallery, old_queries),
        None if new_gallery is None else top1(new_gallery, new_queries),
    )
