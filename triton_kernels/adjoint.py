"""Wᵀ g, for the backward pass: the same transform, with the sums around it in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fixclf_infer.ops import Geometry, unpack_signs


def project(
    g: Tensor,
    base: Tensor | None,
    signs: Tensor | None,
    book: Geometry,
    transform: Callable[[Tensor], Tensor],
) -> Tensor:
    """Σ_j D_j H_nᵀ g_j over the blocks, [..., N] in float32, with temporaries of the size of g.

    H_nᵀ = P_bᵀ ⊗ H_{2^k}. A centred codebook's rows have the mean taken out, so g has as well.
    """
    blocks = 1 if signs is None else signs.shape[0]
    size, order = 1 << book.log2, book.order
    values = g.float()
    before = book.class_begin
    rows_after = book.num_classes - book.class_end
    if book.center:
        values = torch.nn.functional.pad(values, (before, rows_after))
        before = rows_after = 0
        mean = values.sum(-1, keepdim=True) / book.num_classes
        values = math.sqrt(book.num_classes / (book.num_classes - 1)) * (values - mean)
    halves = 2 if book.negate else 1
    stack = blocks * halves * order
    begin = book.row_offset + before
    values = torch.nn.functional.pad(values, (begin, stack - begin - values.shape[-1]))
    values = values.reshape(-1, blocks, halves, order)
    values = values[:, :, 0] - values[:, :, 1] if book.negate else values[:, :, 0]
    values = transform(values.reshape(-1, blocks, book.base_order, size))
    if base is not None:
        matrix = unpack_signs(base, book.base_order)
        values = (matrix.T @ values.reshape(-1, book.base_order, size)).view(values.shape)
    values = values.reshape(-1, blocks, order)
    if signs is not None:
        values = values * unpack_signs(signs, order)
    values = values.sum(1)[:, book.column_offset : book.column_offset + book.in_features]
    return values.reshape(*g.shape[:-1], book.in_features)
