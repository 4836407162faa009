"""`torch.ops.fixclf.*`: loads the operators, gives them fake kernels and autograd.

    hadamard_transform(x, scale)                    y = scale · H x
    head(x, α, bias, <codebook>, normalize, epilogue, dtype)
    project_adjoint(g, <codebook>)                  u = Wᵀ g

<codebook> stands for base, signs and geometry, as `codebook_arguments` makes them. The derivatives
use the same transforms: no dense matrix appears, and every formula below is itself differentiable.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from .epilogue import Epilogue
from .loader import load_torch_library

load_torch_library()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

if TYPE_CHECKING:
    from .codebooks import Codebook

__all__ = [
    "CodebookArguments",
    "Epilogue",
    "Geometry",
    "codebook_arguments",
    "hadamard_transform",
    "head",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Geometry(NamedTuple):
    """The integers of a codebook, in the operators' order (csrc/core/codebook.h explains each)."""

    in_features: int
    base_order: int
    log2: int
    negate: int
    center: int
    row_offset: int
    column_offset: int
    num_classes: int
    class_begin: int
    class_end: int


class CodebookArguments(NamedTuple):
    """The codebook as the operators take it: bits as uint8 tensors, and the geometry."""

    base: Tensor | None
    signs: Tensor | None
    geometry: list[int]


def codebook_arguments(book: Codebook, classes: range | None = None) -> CodebookArguments:
    """Arguments for all classes of a ±1 codebook, or for the shard `classes` of them.

    Raises ValueError for a dense codebook, or when the shard is not a range within [0, C).
    """
    data = book.kernel
    if data is None:
        raise ValueError(f"codebook is dense ({book.kind}), expected one of a ±1 family")
    shard = range(book.num_classes) if classes is None else classes
    if shard.step != 1 or not 0 <= shard.start < shard.stop <= book.num_classes:
        raise ValueError(
            f"classes is {shard}, expected a non-empty range within [0, {book.num_classes})"
        )
    geometry = Geometry(
        book.in_features,
        data.base_order,
        data.log2,
        int(data.negate),
        int(data.center),
        data.row_offset,
        data.column_offset,
        book.num_classes,
        shard.start,
        shard.stop,
    )
    return CodebookArguments(
        None if data.base is None else torch.from_numpy(data.base),
        None if data.signs is None else torch.from_numpy(data.signs),
        list(geometry),
    )


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """See `fixclf_infer.hadamard_transform`."""
    result: Tensor = torch.ops.fixclf.hadamard_transform.default(x, scale)
    return result


def head(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    *,
    normalize: bool = True,
    epilogue: Epilogue = Epilogue.LOGITS,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The fused head on features x [..., N]: [..., class_end − class_begin].

    z_i = α ⟨w_i, x̂⟩ / √N + b_i with x̂ = x / max(‖x‖₂, 1e-12), or z = α W x + b without `normalize`;
    then the epilogue. Accumulates in float32 (float64 for float64 features).

    Args:
        x: float32, bfloat16, float16 or float64.
        alpha: one finite element, float32 (float64 for float64 features).
        bias: [class_end − class_begin] of alpha's dtype, or None.
        codebook: from `codebook_arguments`.
        epilogue: what to derive from the logits.
        dtype: of the result: x's (the default) or float32.

    Raises:
        ValueError: one sentence that names the argument, what it was and what was expected.
    """
    result: Tensor = torch.ops.fixclf.head.default(
        x, alpha, bias, *codebook, normalize, int(epilogue), dtype
    )
    return result


def _accumulation(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


# Fake kernels: shapes and dtypes without data.


def _check_devices(first: str, tensor: Tensor, **others: Tensor | None) -> None:
    for name, other in others.items():
        if other is not None and other.device != tensor.device:
            raise ValueError(
                f"{name} is on {other.device}, expected {tensor.device}, where {first} is"
            )


@torch.library.register_fake("fixclf::hadamard_transform")
def _(x: Tensor, scale: float = 1.0) -> Tensor:
    torch._check(x.dtype in _DTYPES, lambda: f"x is {x.dtype}, expected one of {_DTYPES}")
    return x.new_empty(x.shape)


@torch.library.register_fake("fixclf::head")
def _(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    epilogue: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    torch._check(x.dtype in _DTYPES, lambda: f"x is {x.dtype}, expected one of {_DTYPES}")
    _check_devices("x", x, alpha=alpha, bias=bias, base=base, signs=signs)
    book = Geometry(*geometry)
    torch._check(
        x.shape[-1] == book.in_features,
        lambda: f"x has {x.shape[-1]} features, but the codebook has {book.in_features}",
    )
    return x.new_empty((*x.shape[:-1], book.class_end - book.class_begin), dtype=dtype or x.dtype)


@torch.library.register_fake("fixclf::project_adjoint")
def _(
    g: Tensor,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
) -> Tensor:
    _check_devices("g", g, base=base, signs=signs)
    features = Geometry(*geometry).in_features
    return g.new_empty((*g.shape[:-1], features), dtype=_accumulation(g.dtype))


# Autograd.


def _transform_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[1]


def _transform_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    # H is symmetric.
    return hadamard_transform(grad.contiguous(), ctx.scale), None


def _grad_logits(out: Tensor, grad: Tensor, epilogue: int) -> Tensor:
    """dL/dz from dL/dout, by the epilogue's output alone, in the accumulation dtype."""
    exact = _accumulation(out.dtype)
    out, grad = out.to(exact), grad.to(exact)
    if epilogue == Epilogue.SOFTMAX:
        return out * (grad - (grad * out).sum(-1, keepdim=True))
    if epilogue == Epilogue.LOG_SOFTMAX:
        return grad - out.exp() * grad.sum(-1, keepdim=True)
    if epilogue == Epilogue.SIGMOID:
        return grad * out * (1 - out)
    return grad


def _head_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, alpha, _, base, signs, ctx.geometry, ctx.normalize, ctx.epilogue, _ = inputs
    ctx.save_for_backward(
        x, alpha, base, signs, None if ctx.epilogue == Epilogue.LOGITS else output
    )


def _head_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """With u = Wᵀ dz and s = 1/√N (or 1 without normalisation): dα = Σ s ⟨x̂, u⟩, db = Σ dz,
    dx̂ = α s u and dx = (dx̂ − x̂ ⟨x̂, dx̂⟩) / ‖x‖, or dx̂ / eps where eps replaced the norm."""
    x, alpha, base, signs, output = ctx.saved_tensors
    exact = _accumulation(x.dtype)
    if output is not None:
        grad = _grad_logits(output, grad, ctx.epilogue)
    dz = grad.to(exact).contiguous()
    features = x.to(exact)
    scale = 1 / math.sqrt(x.shape[-1]) if ctx.normalize else 1.0

    dx = dalpha = dbias = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        u = scale * torch.ops.fixclf.project_adjoint.default(dz, base, signs, ctx.geometry)
        direction = features
        if ctx.normalize:
            # The norm of the row divided by its largest element neither over- nor underflows; it
            # is at least 1 unless the row is so small that eps replaces the norm.
            top = features.detach().abs().amax(-1, keepdim=True).clamp_min(1e-30)
            length = torch.linalg.vector_norm(features / top, dim=-1, keepdim=True).clamp_min(1)
            large = top * length > 1e-12
            direction = torch.where(large, features / top / length, features / 1e-12)
        if ctx.needs_input_grad[0]:
            dx = alpha.reshape(()) * u
            if ctx.normalize:
                radial = direction * (direction * dx).sum(-1, keepdim=True)
                dx = torch.where(large, (dx - radial) / length / top, dx / 1e-12)
            dx = dx.to(x.dtype)
        if ctx.needs_input_grad[1]:
            dalpha = (direction * u).sum().reshape(alpha.shape)
    if ctx.needs_input_grad[2]:
        dbias = dz.reshape(-1, dz.shape[-1]).sum(0)
    return (dx, dalpha, dbias, *[None] * 6)


def _adjoint_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, base, signs, ctx.geometry = inputs
    ctx.dtype = g.dtype
    ctx.save_for_backward(base, signs)


def _adjoint_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    one = torch.ones((), dtype=grad.dtype, device=grad.device)
    base, signs = ctx.saved_tensors
    codebook = CodebookArguments(base, signs, ctx.geometry)
    dg = head(grad.contiguous(), one, None, codebook, normalize=False).to(ctx.dtype)
    return (dg, *[None] * 3)


torch.library.register_autograd(
    "fixclf::hadamard_transform", _transform_backward, setup_context=_transform_setup
)
torch.library.register_autograd("fixclf::head", _head_backward, setup_context=_head_setup)
torch.library.register_autograd(
    "fixclf::project_adjoint", _adjoint_backward, setup_context=_adjoint_setup
)
