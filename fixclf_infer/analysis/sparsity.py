"""Zeros among activations (Kornblith et al. 2021, §3.3, compare losses by them)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Sparsity:
    """Counts over batches: update(activations [rows, …]) for each.

    zeros: the fraction of activations that are 0. dead: the fraction of units (elements of one row)
    that are 0 in every row. Both NaN before the first batch.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._active: Tensor | None = None  # rows in which a unit is not 0

    def update(self, activations: Tensor) -> None:
        """Counts activations [rows, …].

        Raises ValueError for fewer than two dimensions, or another number of units than before.
        """
        if activations.dim() < 2:
            raise ValueError(
                f"activations has {activations.dim()} dimension(s), expected [rows, …]"
            )
        active = (activations.detach() != 0).flatten(1).sum(0)
        if self._active is not None and self._active.shape != active.shape:
            raise ValueError(
                f"activations has {len(active)} units a row, expected {len(self._active)} as before"
            )
        self._active = active if self._active is None else self._active + active
        self.rows += len(activations)

    @property
    def zeros(self) -> float:
        """The fraction of activations that are 0."""
        if self._active is None or self.rows == 0:
            return float("nan")
        return 1 - float(self._active.double().mean()) / self.rows

    @property
    def dead(self) -> float:
        """The fraction of units that are 0 in every row."""
        if self._active is None or self.rows == 0:
            return float("nan")
        return float((self._active == 0).double().mean())

    def __repr__(self) -> str:
        return f"Sparsity(zeros={self.zeros:.4g}, dead={self.dead:.4g}, rows={self.rows})"


@contextmanager
def record_sparsity(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Sparsity]]:
    """While it lasts, the outputs of these modules of the model are counted, by name.

    Raises ValueError for a name that the model does not have; TypeError in the forward pass of a
    module whose output is no tensor.
    """
    found = dict(model.named_modules())
    counted = {name: Sparsity() for name in names}
    missing = [name for name in counted if name not in found]
    if missing:
        raise ValueError(f"names must be modules of the model, got {missing[0]!r}")
    handles = []
    for name, sparsity in counted.items():

        def hook(
            _: nn.Module, __: Any, output: Any, to: Sparsity = sparsity, at: str = name
        ) -> None:
            if not isinstance(output, torch.Tensor):
                raise TypeError(f"{at!r} must give a tensor, got {type(output).__name__}")
            to.update(output)

        handles.append(found[name].register_forward_hook(hook))
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()
