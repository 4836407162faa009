"""The fixed head at every position of a feature map: a drop-in for a 1×1 convolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor

from .classifier import FixedClassifier


# One node of a graph that torch.fx traces, which can't follow questions about shapes.
@torch.fx.wrap
def _channels_last(x: Tensor) -> Tensor:
    if x.dim() not in (3, 4):
        raise ValueError(f"x has shape {list(x.shape)}, expected [B, N, H, W] or [N, H, W]")
    return x.movedim(-3, -1)


def _channels_first(z: Tensor) -> Tensor:
    return z.movedim(-1, -3)


class FixedClassifier2d(FixedClassifier):
    """z[:, i, h, w] = α ⟨w_i, x̂[:, :, h, w]⟩ / √N + b_i: `FixedClassifier` where
    `torch.nn.Conv2d(N, C, 1)` stands, as in fully convolutional classifiers and in segmentation.

    The channels of a position are its features, and are normalised there. Arguments, state and
    codebooks are those of `FixedClassifier`.

    Shape: x [B, N, H, W] → logits [B, C, H, W] of the dtype of x, or [N, H, W] → [C, H, W];
    ValueError for other numbers of dimensions. Logits are in the channels_last memory format, and
    feature maps in it are not copied. In every other method, too, channels come before height and
    width, and what has one value a position is [B, H, W].
    """

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C, H, W] for features x [B, N, H, W]."""
        return _channels_first(super().forward(_channels_last(x)))

    def predict_proba(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Softmax over classes, [B, C, H, W], computed in float32; dtype: x's or float32."""
        return _channels_first(super().predict_proba(_channels_last(x), dtype))

    def predict_log_proba(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Log-softmax over classes, [B, C, H, W], computed in float32; dtype: x's or float32."""
        return _channels_first(super().predict_log_proba(_channels_last(x), dtype))

    def topk(
        self,
        x: Tensor,
        k: int,
        *,
        log_probabilities: bool = False,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k best classes of each position: values [B, k, H, W], classes [B, k, H, W], logsumexp
        [B, H, W]. allowed: bool [C] or [B, C, H, W]."""
        values, classes, logsumexp = super().topk(
            _channels_last(x), k, log_probabilities=log_probabilities, allowed=_mask(allowed)
        )
        return _channels_first(values), _channels_first(classes), logsumexp

    def argmax(self, x: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """The class of the largest logit of each position, [B, H, W]; the lowest on ties."""
        return super().argmax(_channels_last(x), allowed=_mask(allowed))

    def log_prob(self, x: Tensor, ids: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """Log-probabilities at the classes ids, int64 [B, H, W] or [B, M, H, W]."""
        x, allowed = _channels_last(x), _mask(allowed)
        if ids.dim() < x.dim():
            return super().log_prob(x, ids, allowed=allowed)
        return _channels_first(super().log_prob(x, _channels_last(ids), allowed=allowed))

    def sample(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """One class of each position, [B, H, W], drawn from its softmax."""
        return super().sample(_channels_last(x), generator, allowed=_mask(allowed))

    def loss(self, x: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
        """As `FixedClassifier.loss`, with the classes target int64 [B, H, W]: cross-entropy over
        positions, without logits."""
        return super().loss(_channels_last(x), target, *args, **options)


def _mask(allowed: Tensor | None) -> Tensor | None:
    """Classes last; what has one dimension is a mask for all positions."""
    return allowed if allowed is None or allowed.dim() == 1 else _channels_last(allowed)
