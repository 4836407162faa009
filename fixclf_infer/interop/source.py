"""What every importer does: read tensors of a module or a state_dict, and build the head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..codebooks import Codebook, codebook
from ..codebooks.recognise import magnitude, recognise
from ..nn import FixedClassifier

Source = nn.Module | Mapping[str, Any]

# By how much, relatively, the norms of rows that count as equal may differ.
SPREAD = 2.0**-16


class Reader:
    """The tensors of a head: those of a state_dict under a prefix, or those of a module, plain
    attributes too (older code keeps fixed matrices in them)."""

    def __init__(self, source: Source, prefix: str) -> None:
        if not isinstance(source, nn.Module | Mapping):
            raise TypeError(f"source must be a module or a state_dict, got {type(source).__name__}")
        self.module: nn.Module | None = None
        if isinstance(source, nn.Module):
            self.module = source.get_submodule(prefix.removesuffix("."))
            source = source.state_dict()
        self.keys = list(source)
        self.values = {k.removeprefix(prefix): source[k] for k in source if k.startswith(prefix)}
        self.prefix = prefix

    def get(self, name: str) -> Tensor | None:
        """A tensor of finite numbers, or None where there is none of that name."""
        value = self.values.get(name, self.attribute(name))
        if not isinstance(value, Tensor):
            return None
        if not value.dtype.is_complex and torch.isfinite(value).all():
            return value.detach()
        raise ValueError(f"{self.prefix}{name} holds values that are not finite real numbers")

    def need(self, name: str, why: str = "") -> Tensor:
        value = self.get(name)
        if value is None:
            ends = sorted(k for k in self.keys if k.split(".")[-1] == name)
            near = f"; keys that end so: {', '.join(ends[:5])} (see prefix)" if ends else ""
            raise ValueError(f"source has no tensor {self.prefix + name!r}{why}{near}")
        return value

    def scalar(self, name: str) -> float | None:
        """A tensor whose elements are all the same, as a number."""
        value = self.get(name)
        if value is None:
            return None
        if value.numel() == 0 or (value != value.flatten()[0]).any():
            raise ValueError(
                f"{self.prefix}{name} has {value.numel()} different elements, but a fixed head has "
                "one α for all classes"
            )
        return float(value.flatten()[0])

    def vector(self, name: str, length: int) -> Tensor | None:
        value = self.get(name)
        if value is not None and value.shape != (length,):
            raise ValueError(
                f"{self.prefix}{name} has shape {list(value.shape)}, expected [{length}]"
            )
        return value

    def sizes(self, **given: int | None) -> list[int]:
        """The sizes, if all are known."""
        for name, value in given.items():
            if value is None:
                raise ValueError(f"{name} must be given: source does not say it")
        return [value for value in given.values() if value is not None]

    def attribute(self, name: str, default: Any = None) -> Any:
        """Of the module, if the source is one."""
        return default if self.module is None else getattr(self.module, name, default)


def build(
    book: Codebook, alpha: float, bias: Tensor | None, reader: Reader, like: Tensor
) -> FixedClassifier:
    """The head with this α and bias: float64 if `like` is, else float32; on its device, in the
    module's mode."""
    head = FixedClassifier(
        book.in_features,
        book.num_classes,
        bias is not None,
        like.device,
        torch.float64 if like.dtype == torch.float64 else torch.float32,
        codebook=book,
        alpha=alpha,
    )
    if bias is not None:
        assert head.bias is not None
        with torch.no_grad():
            head.bias.copy_(bias)
    return head.train(bool(reader.attribute("training", True)))


def class_rows(matrix: Tensor, name: str) -> tuple[Codebook, float]:
    """A codebook W and the α with α W / √N = matrix [C, N]: a known ±1 one, else kind "matrix".

    Raises ValueError where the rows have different norms, which one α can't give.
    """
    values: NDArray[np.float64] = matrix.detach().double().cpu().numpy()
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} has shape {list(matrix.shape)}, expected [classes, features]")
    classes, features = values.shape
    if magnitude(values) is not None:
        found = recognise(values)
        if found is not None:
            return found[0], found[1] * features**0.5
    norms = np.linalg.norm(values, axis=1)
    if norms.max() - norms.min() > SPREAD * norms.max():
        raise ValueError(
            f"{name} has rows of norms from {norms.min():.4g} to {norms.max():.4g}, but a fixed "
            "head has one α for all classes"
        )
    return codebook(features, classes, "matrix", matrix=values), float(norms.mean())
