"""Brevitas' `HadamardClassifier` (github.com/Xilinx/brevitas, brevitas.nn).

out = −s · W x / (‖X‖_F + 1e-8), with W as in `original` and no bias. ‖X‖_F is the norm of the whole
batch X, not of the row x: a row's logits depend on the rows beside it, and for B rows of one size
they are √B times smaller than alone. No head of one row at a time can give that. What holds: for a
batch of one row the norms are the same, and in any batch each row's classes are in the same order,
since a positive number divides all its logits. A state_dict holds `scale` only.
"""

from __future__ import annotations

import numpy as np

from ..codebooks import codebook
from ..nn import FixedClassifier
from .source import Reader, Source, build


def from_brevitas(
    source: Source,
    in_features: int | None = None,
    num_classes: int | None = None,
    *,
    batch_size: int,
    prefix: str = "",
) -> FixedClassifier:
    """A `HadamardClassifier` as a FixedClassifier: kind "brevitas", α = −scale · √N, no bias.

    Logits differ by at most |α| (10⁻⁸ / ‖x‖ + 2⁻²¹) from those that Brevitas gives for the row
    alone (float32). For a row of a larger batch they are ‖X‖_F / ‖x‖ times Brevitas' ones: the same
    ranking, other probabilities.

    Args:
        source: the module or a state_dict, which needs both sizes.
        in_features, num_classes: N and C.
        batch_size: the rows of each batch whose logits shall be the same: 1, or it is an error.
        prefix: of the head's keys in the state_dict of a whole model.

    Raises:
        ValueError: batch_size is not 1, a key is missing, sizes are unknown, scales differ between
            classes (versions before the first release), or a running norm is used.
    """
    if batch_size != 1:
        raise ValueError(
            f"batch_size must be 1: Brevitas divides by the norm of the whole batch, so that a "
            f"row's logits depend on the other rows, got {batch_size}"
        )
    reader = Reader(source, prefix)
    scale = reader.need("scale")
    value = reader.scalar("scale")
    assert value is not None
    if reader.get("running_norm") is not None:
        raise ValueError(
            f"{prefix}running_norm is there: such a head divides by one number, not by a row's norm"
        )
    n, c = reader.sizes(
        in_features=in_features or reader.attribute("in_channels"),
        num_classes=num_classes or reader.attribute("out_channels"),
    )
    book = codebook(n, c, "brevitas")
    proj = reader.get("proj")
    if proj is not None and not np.array_equal(proj[:c, :n].double().cpu().numpy(), book.matrix()):
        raise ValueError(f"{prefix}proj is not Sylvester's matrix of {c} classes, {n} features")
    sign = reader.attribute("sign", -1)  # early versions have it
    return build(book, sign * value * n**0.5, None, reader, scale)
