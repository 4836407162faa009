"""α and norms of a model's heads along a training."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from ..nn import FixedClassifier


class HeadCurves:
    """Records what heads do: call record(step) as often as you like, then rows or save(path).

    A row is a dict of step, head (its name), alpha and bias_norm (‖b‖₂, 0 without a bias). For a
    dense head named in `names`, a torch.nn.Linear, alpha is the mean norm of its weight's rows,
    which plays the part of α. With `features` [rows, N], feature_norm is their mean norm.

    Args:
        model: with at least one FixedClassifier, or names.
        names: the heads' names in model.named_modules(); by default all FixedClassifiers.
    """

    def __init__(self, model: nn.Module, names: Iterable[str] | None = None) -> None:
        found = dict(model.named_modules())
        if names is None:
            names = [name for name, m in found.items() if isinstance(m, FixedClassifier)]
        self.heads: dict[str, FixedClassifier | nn.Linear] = {}
        for name in names:
            head = found.get(name)
            if not isinstance(head, FixedClassifier | nn.Linear):
                kind = "nothing" if head is None else f"a {type(head).__name__}"
                raise ValueError(
                    f"names must be FixedClassifier or Linear modules, got {name!r}, {kind}"
                )
            self.heads[name] = head
        if not self.heads:
            raise ValueError("model must have a FixedClassifier, or names must name a head")
        self.rows: list[dict[str, float | int | str]] = []

    def record(self, step: int, features: Tensor | None = None) -> None:
        """A row for each head."""
        for name, head in self.heads.items():
            if isinstance(head, FixedClassifier):
                alpha = float(head.alpha.detach())
            else:
                alpha = float(head.weight.detach().norm(dim=1).mean())
            bias = 0.0 if head.bias is None else float(head.bias.detach().norm())
            row: dict[str, float | int | str] = {
                "step": step,
                "head": name,
                "alpha": alpha,
                "bias_norm": bias,
            }
            if features is not None:
                row["feature_norm"] = float(features.detach().norm(dim=-1).mean())
            self.rows.append(row)

    def save(self, path: str | Path) -> None:
        """The rows as CSV."""
        names = ["step", "head", "alpha", "bias_norm", "feature_norm"]
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows)
