"""The rows of a dense head: how far apart they are, and which were never trained apart.

A class without training examples is only ever pushed away, by gradients that all such classes
share but for their own probability. Their rows end nearly identical: twins, which no input can tell
apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import checks

CHUNK = 2**24  # entries of a temporary


@dataclass(frozen=True)
class Coherence:
    """Cosines between different rows."""

    largest_cosine: float
    coherence: float  # the largest magnitude
    pair: tuple[int, int]  # the rows of the largest cosine, the first such pair


@dataclass(frozen=True)
class Twins:
    """Rows whose cosine with another one is at least the threshold."""

    threshold: float
    classes: Tensor  # int64, ascending: every row that has a twin
    pairs: int
    groups: list[list[int]]  # rows connected by such pairs, each ascending, by their first row

    @property
    def redundant(self) -> int:
        """Rows beyond the first of each group: what the head could do without."""
        return len(self.classes) - len(self.groups)


def coherence(weight: Tensor) -> Coherence:
    """Of the rows of weight [C, N], C ≥ 2, in C² N multiplications and without a [C, C] array."""
    rows = _unit(weight)
    largest, magnitude, pair = -2.0, 0.0, (0, 1)
    for start, cosines in _blocks(rows):
        magnitude = max(magnitude, float(cosines.abs().nan_to_num(0).max()))
        best = float(cosines.nan_to_num(-2).max())
        if best > largest:
            largest = best
            i, j = divmod(int(cosines.nan_to_num(-2).argmax()), cosines.shape[1])
            pair = (start + i, j)
    return Coherence(largest, magnitude, pair)


def twins(weight: Tensor, threshold: float = 0.999) -> Twins:
    """The census of rows of weight [C, N] that are nearly identical in direction.

    threshold: the least cosine of twins, in (0, 1]. A head whose bias or norms differ for such rows
        still orders them the same for every input.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    rows = _unit(weight)
    least = threshold - 1e-12
    pairs, first = 0, torch.arange(len(rows), device=rows.device)
    has = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    for start, cosines in _blocks(rows):
        near = cosines >= least  # a pair once: the diagonal and what is below are NaN
        pairs += int(near.sum())
        has[start : start + len(near)] |= near.any(1)
        has |= near.any(0)
    some = has.nonzero().flatten()
    # Components: every row takes the least label among its twins until nothing changes.
    label, chosen = first[some], rows[some]
    step = max(1, CHUNK // max(1, len(some)))
    while len(some):
        before = label.clone()
        for start in range(0, len(some), step):
            near = chosen[start : start + step] @ chosen.T >= least
            near[:, start : start + len(near)].fill_diagonal_(True)
            least_label = torch.where(near, label, len(rows)).amin(1)
            label[start : start + len(near)] = least_label
        if torch.equal(label, before):
            break
    groups: dict[int, list[int]] = {}
    for row, root in zip(some.tolist(), label.tolist(), strict=True):
        groups.setdefault(root, []).append(row)
    return Twins(threshold, some, pairs, list(groups.values()))


def _unit(weight: Tensor) -> Tensor:
    rows = checks.matrix("weight", weight)
    if len(rows) < 2:
        raise ValueError(f"weight must have at least 2 rows, got {len(rows)}")
    zero = (rows == 0).all(1).nonzero()
    if len(zero):
        raise ValueError(f"weight must have no row of zeros, got row {int(zero[0])}")
    return checks.unit(rows)


def _blocks(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The cosines of some rows with all, NaN at and below the diagonal: each pair once."""
    step = max(1, CHUNK // len(rows))
    for start in range(0, len(rows) - 1, step):
        cosines = rows[start : start + step] @ rows.T
        below = torch.ones_like(cosines, dtype=torch.bool).tril(start)
        yield start, cosines.masked_fill_(below, float("nan"))
