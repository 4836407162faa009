"""Fake kernels: shapes and dtypes without data, for `torch.compile` and `torch.export`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .bits import Geometry

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FEATURE_DTYPES = (*_DTYPES, torch.int8, torch.uint8)


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_devices(first: str, tensor: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(
                f"{name} is on {other.device}, expected {tensor.device}, where {first} is"
            )


def _hint_at_export() -> None:
    """torch's exporter fails on operators that it does not know with a page that names none."""
    if torch.onnx.is_in_onnx_export():
        warnings.warn(
            "torch.onnx.export knows no fixed head: call fixclf_infer.onnx.export instead",
            stacklevel=2,
        )


class _Head:
    """What every head shares, checked."""

    def __init__(
        self,
        x: Tensor,
        alpha: Tensor,
        bias: Tensor | None,
        base: Tensor | None,
        signs: Tensor | None,
        geometry: list[int],
        normalize: bool,
    ) -> None:
        _hint_at_export()
        torch._check(
            x.dtype in _FEATURE_DTYPES, lambda: f"x is {x.dtype}, expected one of {_FEATURE_DTYPES}"
        )
        _check_devices("x", x, alpha=alpha, bias=bias, base=base, signs=signs)
        book = Geometry(*geometry)
        packed = x.dtype == torch.uint8
        torch._check(
            x.shape[-1] == ((book.in_features + 7) // 8 if packed else book.in_features),
            lambda: (
                f"x has {x.shape[-1]} {'bytes' if packed else 'features'}, but the codebook has "
                f"{book.in_features} features"
            ),
        )
        self.x, self.bias, self.features = x, bias, book.in_features
        self.classes = book.class_end - book.class_begin
        torch._check(
            bias is None or tuple(bias.shape) == (self.classes,),
            lambda: (
                f"bias has {0 if bias is None else bias.numel()} elements, expected one for each "
                f"of {self.classes} classes"
            ),
        )
        self.rows = x.shape[:-1]
        self.exact = accumulation(x.dtype)

    def empty(self, *columns: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.x.new_empty((*self.rows, *columns), dtype=dtype or self.exact)

    def check_allowed(self, allowed: Tensor | None) -> None:
        if allowed is None:
            return
        _check_devices("x", self.x, allowed=allowed)
        count = (self.classes + 7) // 8
        torch._check(
            allowed.shape[-1] == count,
            lambda: (
                f"allowed has rows of {allowed.shape[-1]} bytes, expected {count} for {self.classes} "
                "classes"
            ),
        )

    def check_rows(self, tensor: Tensor, name: str, *, each: bool = False) -> None:
        """int64 [...], or with `each` also [..., M]."""
        _check_devices("x", self.x, **{name: tensor})
        torch._check(
            tensor.dtype == torch.int64, lambda: f"{name} is {tensor.dtype}, expected torch.int64"
        )
        dims = (len(self.rows), len(self.rows) + 1) if each else (len(self.rows),)
        torch._check(
            tensor.dim() in dims,
            lambda: (
                f"{name} has shape {list(tensor.shape)}, expected that of x without its last "
                f"dimension{', or with another last one' if each else ''}"
            ),
        )


def _shapes_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers `shapes(head, …)` for an operator that begins with what every head shares."""

    def register(shapes: Callable[..., Any]) -> None:
        @torch.library.register_fake(f"fixclf::{name}")
        def fake(
            x: Tensor,
            alpha: Tensor,
            bias: Tensor | None,
            base: Tensor | None,
            signs: Tensor | None,
            geometry: list[int],
            normalize: bool,
            *others: Any,
            **options: Any,
        ) -> Any:
            head = _Head(x, alpha, bias, base, signs, geometry, normalize)
            return shapes(head, *others, **options)

    return register


@torch.library.register_fake("fixclf::hadamard_transform")
def _(x: Tensor, scale: float = 1.0) -> Tensor:
    torch._check(x.dtype in _DTYPES, lambda: f"x is {x.dtype}, expected one of {_DTYPES}")
    return x.new_empty(x.shape)


@_shapes_of("head")
def _(head: _Head, epilogue: int, dtype: torch.dtype | None = None) -> Tensor:
    default = head.x.dtype if head.x.is_floating_point() else torch.float32
    return head.empty(head.classes, dtype=dtype or default)


@_shapes_of("head_topk")
def _(
    head: _Head, k: int, log_probabilities: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    head.check_allowed(allowed)
    most = min(head.classes, 1024)
    torch._check(1 <= k <= most, lambda: f"k is {k}, expected 1 to {most}")
    return head.empty(k), head.empty(k, dtype=torch.int64), head.empty()


@_shapes_of("head_argmax")
def _(head: _Head, allowed: Tensor | None = None) -> Tensor:
    head.check_allowed(allowed)
    return head.empty(dtype=torch.int64)


@_shapes_of("head_sample")
def _(head: _Head, seeds: Tensor, allowed: Tensor | None = None) -> Tensor:
    head.check_rows(seeds, "seeds")
    head.check_allowed(allowed)
    return head.empty(dtype=torch.int64)


@_shapes_of("head_log_prob")
def _(head: _Head, ids: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    head.check_rows(ids, "ids", each=True)
    head.check_allowed(allowed)
    values = head.x.new_empty(ids.shape, dtype=head.exact)
    return values, torch.empty_like(values), head.empty()


@_shapes_of("head_nll")
def _(
    head: _Head, target: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    head.check_rows(target, "target")
    return head.empty(), head.empty()


@torch.library.register_fake("fixclf::head_reduction_backward")
def _(
    softmax_grad: Tensor,
    ids_grad: Tensor,
    uniform_grad: Tensor | None,
    logsumexp: Tensor,
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    ids: Tensor,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    head = _Head(x, alpha, bias, base, signs, geometry, normalize)
    head.check_rows(ids, "ids", each=True)
    head.check_allowed(allowed)
    dbias = x.new_empty((0 if bias is None else head.classes,), dtype=head.exact)
    return head.empty(head.features), dbias


@torch.library.register_fake("fixclf::project_adjoint")
def _(g: Tensor, base: Tensor | None, signs: Tensor | None, geometry: list[int]) -> Tensor:
    _check_devices("g", g, base=base, signs=signs)
    features = Geometry(*geometry).in_features
    return g.new_empty((*g.shape[:-1], features), dtype=accumulation(g.dtype))
