"""Fake kernels: shapes and dtypes without data, for `torch.compile` and `torch.export`. Their
checks, which the Triton operators make too, have the words of csrc/core/validate.cc."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _native
from ..codebooks.kernel import Geometry
from ..epilogue import MAX_TOPK
from .bits import HeadArguments

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
FEATURES = (*FLOATING, torch.int8, torch.uint8)
MAX_INTEGER_FEATURES = 1 << 16  # sums of more might not be exact

# What messages call them, as libtorch does.
_NAMES = {
    torch.float32: "Float",
    torch.bfloat16: "BFloat16",
    torch.float16: "Half",
    torch.float64: "Double",
    torch.int8: "Char",
    torch.uint8: "Byte",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.bool: "Bool",
}
_DEVICES = {"cpu": "the CPU", "cuda": "the CUDA device"}


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check(condition: Any, message: Callable[[], str]) -> None:
    if not condition:
        raise ValueError(message())


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_device(name: str, tensor: Tensor | None, x: Tensor) -> None:
    """That a tensor lies where x does."""
    where = _DEVICES.get(x.device.type, str(x.device))
    _check(
        tensor is None or tensor.device == x.device,
        lambda: f"{name} is not on {where}, where x is",
    )


def check_dtype(
    name: str, tensor: Tensor, expected: tuple[torch.dtype, ...], note: str = ""
) -> None:
    """That a tensor has one of these dtypes."""
    names = [_NAMES[dtype] for dtype in expected]
    listed = " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    _check(
        tensor.dtype in expected,
        lambda: f"{name} is {_NAMES.get(tensor.dtype, tensor.dtype)}, expected {listed}{note}",
    )


def check_codebook(
    base: Tensor | None, signs: Tensor | None, geometry: list[int], x: Tensor
) -> Geometry:
    """The geometry, if it and the bits are a codebook."""
    shapes = []
    for name, bits in (("base", base), ("signs", signs)):
        check_device(name, bits, x)
        if bits is not None and (bits.dtype != torch.uint8 or bits.dim() != 2):
            raise ValueError(
                f"{name} is a tensor of {bits.dim()} dimension(s) and dtype "
                f"{_NAMES.get(bits.dtype, bits.dtype)}, expected a contiguous matrix of Byte"
            )
        shapes.append((0, 0) if bits is None else (int(bits.shape[0]), int(bits.shape[1])))
    book = Geometry(*map(int, geometry))
    _native.check_codebook(book, *shapes)
    return book


def check_which(which: int) -> None:
    _check(
        0 <= which <= 15,
        lambda: (
            f"which is {which}, expected the sum of some of 1 (logsumexp), 2 (sum), 4 (squares) "
            "and 8 (softplus)"
        ),
    )


class Rows:
    """Features, a number of classes, and the checks of what operators take beside them."""

    def __init__(self, x: Tensor, classes: int) -> None:
        _check(x.dim() > 0, lambda: "x has no dimensions, expected [..., features]")
        check_dtype("x", x, FEATURES, " (packed signs)")
        self.x, self.classes = x, classes
        self.rows, self.exact = x.shape[:-1], accumulation(x.dtype)

    def empty(self, *columns: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.x.new_empty((*self.rows, *columns), dtype=dtype or self.exact)

    def check_k(self, k: int) -> None:
        most = min(self.classes, MAX_TOPK)
        _check(k >= 1, lambda: f"k is {k}, expected 1 to {most} for {self.classes} classes")
        _check(k <= most, lambda: f"k is {k}, expected 1 to {most} for {self.classes} classes")

    def check_allowed(self, allowed: Tensor | None) -> None:
        """Packed bits: [bytes] or [..., bytes]."""
        if allowed is None:
            return
        check_device("allowed", allowed, self.x)
        _check(
            allowed.dtype == torch.uint8 and allowed.dim() > 0,
            lambda: (
                f"allowed is a tensor of {allowed.dim()} dimension(s) and dtype "
                f"{_NAMES.get(allowed.dtype, allowed.dtype)}, expected packed bits: contiguous, of "
                "Byte, [bytes] or [..., bytes]"
            ),
        )
        _check(
            allowed.dim() == 1 or allowed.shape[:-1] == self.rows,
            lambda: (
                f"allowed has shape {list(allowed.shape)}, expected [bytes], or the shape of x, "
                f"{list(self.x.shape)}, with bytes for its last dimension"
            ),
        )
        count = (self.classes + 7) // 8
        _check(
            allowed.shape[-1] == count,
            lambda: (
                f"allowed has rows of {allowed.shape[-1]} bytes, expected {count} for "
                f"{self.classes} classes"
            ),
        )

    def check_ids(self, ids: Tensor, name: str, *, one_a_row: bool = False) -> None:
        """int64 [...], and without `one_a_row` also [..., M]."""
        check_device(name, ids, self.x)
        check_dtype(name, ids, (torch.int64,))
        leading = len(self.rows)
        _check(
            ids.dim() == leading or (not one_a_row and ids.dim() == leading + 1),
            lambda: self._ids_message(ids, name, one_a_row),
        )
        _check(ids.shape[:leading] == self.rows, lambda: self._ids_message(ids, name, one_a_row))

    @staticmethod
    def _ids_message(ids: Tensor, name: str, one_a_row: bool) -> str:
        return (
            f"{name} has shape {list(ids.shape)}, expected that of x without its last dimension"
            f"{'' if one_a_row else ', or with another last one'}"
        )


class Head(Rows):
    """What every head shares, checked."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = HeadArguments(*arguments)
        x, alpha, bias, base, signs, geometry, _ = self.arguments
        self.book = book = check_codebook(base, signs, geometry, x)
        super().__init__(x, book.computed)
        n = book.in_features
        if x.dtype == torch.uint8:
            _check(
                x.shape[-1] == (n + 7) // 8,
                lambda: (
                    f"x has {x.shape[-1]} bytes of packed signs in its last dimension, expected "
                    f"{(n + 7) // 8} for {n} features"
                ),
            )
        else:
            _check(
                x.shape[-1] == n,
                lambda: (
                    f"x has {x.shape[-1]} features in its last dimension, but the codebook has {n}"
                ),
            )
        _check(
            x.is_floating_point() or n <= MAX_INTEGER_FEATURES,
            lambda: (
                f"x is {_plain(x.dtype)} with {n} features, more than the limit of "
                f"{MAX_INTEGER_FEATURES} for exact sums"
            ),
        )
        check_device("alpha", alpha, x)
        _check(alpha.numel() == 1, lambda: f"alpha has {alpha.numel()} elements, expected one")
        self._check_exact("alpha", alpha)
        if bias is not None:
            self._check_bias(bias)

    def _check_exact(self, name: str, tensor: Tensor, note: str = "") -> None:
        _check(
            tensor.dtype == self.exact,
            lambda: f"{name} is {_plain(tensor.dtype)}, expected {_plain(self.exact)}{note}",
        )

    def _check_bias(self, bias: Tensor) -> None:
        check_device("bias", bias, self.x)
        _check(
            bias.dim() == 1,
            lambda: f"bias is a tensor of {bias.dim()} dimensions, expected one dimension",
        )
        _check(
            bias.shape[0] == self.classes,
            lambda: (
                f"bias has {bias.shape[0]} elements, expected one for each of {self.classes} "
                "classes"
            ),
        )
        self._check_exact("bias", bias, f" for {_plain(self.x.dtype)} features")


def _hint_at_export() -> None:
    """torch's exporter fails on operators that it does not know with a page that names none."""
    if torch.onnx.is_in_onnx_export():
        warnings.warn(
            "torch.onnx.export knows no fixed head: call fixclf_infer.onnx.export instead",
            stacklevel=2,
        )


def _shapes_of(name: str) -> Callable[[Callable[..., Any]], None]:
    """Registers `shapes(head, …)` for an operator that begins with what every head shares."""

    def register(shapes: Callable[..., Any]) -> None:
        @torch.library.register_fake(f"fixclf::{name}")
        def fake(*arguments: Any, **options: Any) -> Any:
            _hint_at_export()
            shared = len(HeadArguments._fields)
            return shapes(Head(*arguments[:shared]), *arguments[shared:], **options)

    return register


@torch.library.register_fake("fixclf::hadamard_transform")
def _(x: Tensor, scale: float = 1.0) -> Tensor:
    check_dtype("x", x, FLOATING)
    return x.new_empty(x.shape)


@_shapes_of("head")
def _(head: Head, epilogue: int, dtype: torch.dtype | None = None) -> Tensor:
    default = head.x.dtype if head.x.is_floating_point() else torch.float32
    return head.empty(head.classes, dtype=dtype or default)


@_shapes_of("head_topk")
def _(
    head: Head, k: int, log_probabilities: bool = False, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    head.check_allowed(allowed)
    head.check_k(k)
    return head.empty(k), head.empty(k, dtype=torch.int64), head.empty()


@_shapes_of("head_argmax")
def _(head: Head, allowed: Tensor | None = None) -> Tensor:
    head.check_allowed(allowed)
    return head.empty(dtype=torch.int64)


@_shapes_of("head_sample")
def _(head: Head, seeds: Tensor, allowed: Tensor | None = None) -> Tensor:
    head.check_allowed(allowed)
    head.check_ids(seeds, "seeds", one_a_row=True)
    return head.empty(dtype=torch.int64)


@_shapes_of("head_log_prob")
def _(head: Head, ids: Tensor, allowed: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    head.check_allowed(allowed)
    head.check_ids(ids, "ids")
    values = head.x.new_empty(ids.shape, dtype=head.exact)
    return values, torch.empty_like(values), head.empty()


@_shapes_of("head_nll")
def _(
    head: Head, target: Tensor, ignore_index: int = -100, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    head.check_ids(target, "target", one_a_row=True)
    _check(
        0 <= label_smoothing <= 1,
        lambda: f"label_smoothing is {label_smoothing}, expected 0 to 1",
    )
    return head.empty(), head.empty()


@_shapes_of("head_statistics")
def _(head: Head, ids: Tensor, which: int, allowed: Tensor | None = None) -> tuple[Tensor, ...]:
    head.check_allowed(allowed)
    head.check_ids(ids, "ids")
    check_which(which)
    logits = head.x.new_empty(ids.shape, dtype=head.exact)
    return logits, *(head.empty() if which >> i & 1 else logits.new_empty(0) for i in range(4))


@_shapes_of("head_reduction_backward")
def _(
    head: Head,
    ids: Tensor,
    logsumexp: Tensor | None,
    softmax_grad: Tensor | None,
    ids_grad: Tensor,
    uniform_grad: Tensor | None = None,
    allowed: Tensor | None = None,
    linear_grad: Tensor | None = None,
    sigmoid_grad: Tensor | None = None,
    others: bool = False,
) -> tuple[Tensor, Tensor]:
    head.check_allowed(allowed)
    head.check_ids(ids, "ids")
    no_bias = head.arguments.bias is None
    dbias = head.x.new_empty((0 if no_bias else head.classes,), dtype=head.exact)
    return head.empty(head.book.in_features), dbias


def check_gradient(
    g: Tensor, base: Tensor | None, signs: Tensor | None, geometry: list[int]
) -> Geometry:
    """The geometry, if g holds one value a class."""
    check_dtype("g", g, FLOATING)
    _check(g.dim() > 0, lambda: "g has no dimensions, expected [..., features]")
    book = check_codebook(base, signs, geometry, g)
    _check(
        g.shape[-1] == book.computed,
        lambda: f"g has {g.shape[-1]} classes in its last dimension, expected {book.computed}",
    )
    return book


@torch.library.register_fake("fixclf::project_adjoint")
def _(g: Tensor, base: Tensor | None, signs: Tensor | None, geometry: list[int]) -> Tensor:
    book = check_gradient(g, base, signs, geometry)
    return g.new_empty((*g.shape[:-1], book.in_features), dtype=accumulation(g.dtype))
