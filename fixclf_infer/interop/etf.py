"""Simplex (ETF) heads of neural-collapse code: a dense buffer that is never trained.

M = √(C/(C−1)) P (I − 11ᵀ/C) with P [N, C], PᵀP = I: the columns of M are C vectors of norm 1 with
every cosine −1/(C−1). Heads divide the features by their norm and take x̂ M. They call the buffer
`etf_vec` (mmpretrain's ETFHead and what follows it), `ori_M` (Yang et al.) or `proto`; some keep
Mᵀ as a `weight`. Orthogonal P without centring is taken as well.

V. Papyan, X. Y. Han, D. L. Donoho, "Prevalence of neural collapse during the terminal phase of deep
learning training", PNAS 117 (2020) 24652–24663. Y. Yang et al., "Inducing neural collapse in
imbalanced learning: do we really need a learnable classifier at the end of deep neural network?",
NeurIPS 2022.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn import FixedClassifier
from .source import Reader, Source, build, class_rows

_KEYS = ("etf_vec", "ori_M", "proto", "weight")
TOLERANCE = 1e-4  # of the cosines


def from_etf(
    source: Source, *, key: str | None = None, scale: float | None = None, prefix: str = ""
) -> FixedClassifier:
    """An ETF head as a FixedClassifier of kind "matrix" without bias: logits scale · x̂ M.

    Logits differ by at most 2⁻¹⁵ |α| from that (float32). It runs as a dense product, because M is
    a rotation of the rows of our `etf` kind; `convert_linear_pair` takes that rotation into a
    linear layer before the head, where there is one. A batch norm of the features (`BN_H`) is not
    part of the head and stays where it is.

    Args:
        source: the module or a state_dict.
        key: the matrix's name; by default etf_vec, ori_M, proto or weight, whichever is there.
        scale: what the head multiplies its cosines by; by default the source's `logit_scale`, or 1.
        prefix: of the head's keys in the state_dict of a whole model.

    Raises:
        ValueError: no or several such matrices, neither a simplex nor orthogonal, or norms of
            classes that were learned (`learned_norm`).
    """
    reader = Reader(source, prefix)
    found = [k for k in _KEYS if reader.get(k) is not None] if key is None else [key]
    if len(found) != 1:
        what = f"several of them ({', '.join(found)})" if found else "none of them"
        raise ValueError(f"source must have one of {', '.join(_KEYS)}, or key, got {what}")
    name = found[0]
    matrix = reader.need(name)
    if reader.get("learned_norm") is not None and reader.scalar("learned_norm") != 1:
        raise ValueError(f"{prefix}learned_norm is not 1, but a fixed head has no norms of classes")
    rows = _classes(matrix, prefix + name)
    book, alpha = class_rows(rows, prefix + name)
    if scale is None:
        learned = reader.scalar("logit_scale")
        scale = 1.0 if learned is None else learned
    return build(book, alpha * scale, None, reader, matrix)


def _classes(matrix: Tensor, name: str) -> Tensor:
    """[C, N]: the columns, else the rows, that are a simplex or orthogonal."""
    if matrix.dim() != 2:
        raise ValueError(f"{name} has {matrix.dim()} dimensions, expected 2")
    errors = []
    for rows in (matrix.T.double(), matrix.double()):
        error = unevenness(rows)
        if error <= TOLERANCE:
            return rows
        errors.append(error)
    raise ValueError(
        f"{name} must have columns or rows with one cosine, 0 or −1/(C−1), between all of them, "
        f"but their cosines are up to {min(errors):.2g} away"
    )


def unevenness(rows: Tensor) -> float:
    """How far the cosines of rows [C, N] are from all 0 or all −1/(C−1): 0 for an orthogonal set
    or a simplex."""
    count = len(rows)
    unit = rows / rows.norm(dim=1, keepdim=True)
    gram = unit @ unit.T
    off = gram[~torch.eye(count, dtype=torch.bool, device=gram.device)]
    if not torch.isfinite(gram).all():
        return float("inf")
    if count < 2:
        return 0.0
    return min(float((off - value).abs().max()) for value in (0.0, -1 / (count - 1)))
