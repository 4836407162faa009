"""A `torch.nn.Linear` whose weight is fixed: ±m entries, or rows of one norm.

A Linear does not divide its features by their norm. Where the model does that before it, the head
is a FixedClassifier; where it does not, it is a FixedLinear.
"""

from __future__ import annotations

import torch

from ..codebooks.recognise import recognise
from ..nn import FixedClassifier
from .fixed_linear import FixedLinear
from .source import Reader, Source, build, class_rows


def from_linear(
    source: Source, *, normalized: bool, prefix: str = ""
) -> FixedClassifier | FixedLinear:
    """A Linear with a fixed weight [C, N] as a fixed head, the same bias.

    normalized=True: the model divides the features by their norm before the layer. A
    FixedClassifier: of a known ±1 codebook where the weight is m times one, in which case the
    logits differ by at most 2⁻²¹ (|α| + max|b|) from W x + b for ‖x‖ = 1 (float32); else of kind
    "matrix", a dense product, at most 2⁻¹⁵ |α| + 2⁻²¹ max|b|.

    normalized=False: a FixedLinear, for ±m weights that are a known codebook: at most
    2⁻²¹ (m √N ‖x‖ + max|b|) from W x + b.

    Raises:
        ValueError: weight is missing; its rows have different norms; or, without normalisation, it
            is no known ±1 codebook, which a fixed head has no use for.
    """
    reader = Reader(source, prefix)
    weight = reader.need("weight")
    if weight.dim() != 2:
        raise ValueError(
            f"{prefix}weight has shape {list(weight.shape)}, expected [classes, features]"
        )
    bias = reader.vector("bias", len(weight))
    if normalized:
        book, alpha = class_rows(weight, f"{prefix}weight")
        return build(book, alpha, bias, reader, weight)
    found = recognise(weight.double().cpu().numpy())
    if found is None:
        raise ValueError(
            f"{prefix}weight is no known ±m codebook, and features that are not normalised leave a "
            "dense weight as it is"
        )
    head = FixedLinear(
        weight.shape[1],
        len(weight),
        bias is not None,
        weight.device,
        torch.float64 if weight.dtype == torch.float64 else torch.float32,
        codebook=found[0],
        alpha=found[1],
    )
    if bias is not None:
        assert head.bias is not None
        with torch.no_grad():
            head.bias.copy_(bias)
    return head.train(bool(reader.attribute("training", True)))
