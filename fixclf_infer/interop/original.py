"""The implementation of "Fix your classifier", github.com/eladhoffer/fix_your_classifier.

`HadamardProj`: out = −s · W x / (‖x‖ + 1e-8) + b, with W the first C rows and N columns of
Sylvester's matrix of order 2^⌈log2 max(C, N)⌉ and one number s, 1/√C at first and of either sign
after training. So α = −s √N, codebook "hoffer". A state_dict holds `scale` [1] and `bias` [C]; the
matrix and a `fixed_scale` are plain attributes and not in it.

`Proj`: out = s · P x / ‖x‖ + b, with P [C, N] random and orthogonal. It has `weight` [1] (s) and
`bias` [C] in its state_dict, but not P.

E. Hoffer, I. Hubara, D. Soudry, "Fix your classifier: the marginal value of training the last
weight layer", ICLR 2018.
"""

from __future__ import annotations

import numpy as np

from ..codebooks import codebook
from ..nn import FixedClassifier
from .source import Reader, Source, build, class_rows


def from_hadamard_proj(
    source: Source,
    in_features: int | None = None,
    num_classes: int | None = None,
    *,
    prefix: str = "",
) -> FixedClassifier:
    """A `HadamardProj` as a FixedClassifier: kind "hoffer", α = −scale · √N, the same bias.

    Logits differ by at most |α| (10⁻⁸ / ‖x‖ + 2⁻²¹) + 2⁻²¹ max|b| from the formula in exact
    arithmetic (float32): the original adds 10⁻⁸ to the norm.

    Args:
        source: the module or a state_dict.
        in_features: N, which a state_dict does not hold.
        num_classes: C, needed where a state_dict has no bias.
        prefix: of the head's keys in the state_dict of a whole model, "fc." for example.

    Raises:
        ValueError: a key is missing, a size is unknown or does not fit, or the matrix is no
            Hadamard matrix any more (trained with fixed_weights=False).
    """
    reader = Reader(source, prefix)
    scale = reader.need("scale", " (a fixed_scale is only in the module, not in its state_dict)")
    value = reader.scalar("scale")
    assert value is not None
    bias = reader.get("bias")
    known = None if bias is None else bias.numel()
    n, c = reader.sizes(
        in_features=in_features or reader.attribute("input_size"),
        num_classes=num_classes or reader.attribute("output_size", known),
    )
    bias = reader.vector("bias", c)
    book = codebook(n, c, "hoffer")
    proj = reader.get("proj")
    if proj is not None:
        if proj.dim() != 2 or proj.shape[0] < c or proj.shape[1] < n:
            raise ValueError(
                f"{prefix}proj has shape {list(proj.shape)}, expected [{c}, {n}] or more"
            )
        if not np.array_equal(proj[:c, :n].double().cpu().numpy(), book.matrix()):
            raise ValueError(f"{prefix}proj is not Sylvester's matrix: it was trained, not fixed")
    return build(book, -value * n**0.5, bias, reader, scale)


def from_proj(source: Source, *, prefix: str = "") -> FixedClassifier:
    """A `Proj` as a FixedClassifier of kind "matrix" (a dense product), rows P, α = weight · ‖row‖.

    Logits differ by at most 2⁻¹⁵ |α| + 2⁻²¹ max|b| from the formula (float32); for x = 0 the
    original gives NaN.

    Raises:
        ValueError: proj is missing, as in every state_dict, which does not hold it: give the
            module; or its rows have different norms (C > N).
    """
    reader = Reader(source, prefix)
    proj = reader.need("proj", ", which a state_dict of Proj does not hold: give the module")
    book, alpha = class_rows(proj, f"{prefix}proj")
    value = reader.scalar("weight")
    bias = reader.vector("bias", book.num_classes)
    return build(book, alpha * (1.0 if value is None else value), bias, reader, proj)
