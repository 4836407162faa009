"""`torch.ops.fixclf.*`: loads the operators, gives them fake kernels and autograd.

    hadamard_transform(x, scale)                    y = scale · H x
    head(<head>, epilogue, dtype)                   [..., C]: logits, softmax, …
    head_topk(<head>, k, log_probabilities, mask)   values, indices, logsumexp
    head_argmax(<head>, mask)                       indices
    head_sample(<head>, seeds, mask)                indices drawn from the softmax
    head_logprob(<head>, ids, mask)                 log-probabilities, logits, logsumexp
    head_nll(<head>, target, …)                     losses, logsumexp
    project_adjoint(g, <codebook>)                  u = Wᵀ g

<head> stands for x, α, bias, <codebook>, normalize; <codebook> for base, signs and geometry, as
`codebook_arguments` makes them. All but the first keep no [..., C] array, neither forward nor
backward. The derivatives use the same transforms: no dense matrix appears.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from . import backends
from .epilogue import Epilogue
from .loader import load_torch_library

load_torch_library()
backends.register_operators()

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
    "head_argmax",
    "head_logprob",
    "head_nll",
    "head_sample",
    "head_topk",
    "pack_mask",
    "pack_signs",
    "unpack_signs",
]

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FEATURE_DTYPES = (*_DTYPES, torch.int8, torch.uint8)


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
    result: Tensor = backends.operators.hadamard_transform.default(x, scale)
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
        x: float32, bfloat16, float16 or float64; int8, whose sums are exact, so that the result
            does not depend on a quantisation scale (N ≤ 65536); or uint8 [..., ⌈N/8⌉], ±1 features
            from `pack_signs`.
        alpha: one finite element, float32 (float64 for float64 features).
        bias: [class_end − class_begin] of alpha's dtype, or None.
        codebook: from `codebook_arguments`.
        epilogue: what to derive from the logits.
        dtype: of the result: x's (the default) or float32; float32 for integers.

    Raises:
        ValueError: one sentence that names the argument, what it was and what was expected.
    """
    result: Tensor = backends.operators.head.default(
        x, alpha, bias, *codebook, normalize, int(epilogue), dtype
    )
    return result


def head_topk(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    k: int,
    *,
    log_probabilities: bool = False,
    mask: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits: values [..., k], indices [..., k] (int64), logsumexp [...].

    Sorted, descending; equal values by class, lowest first. Indices count from class_begin. Needs
    neither a weight matrix nor a logits tensor: memory does not grow with C. See `head` for the
    other arguments.

    Args:
        k: 1 to min(C, 1024).
        log_probabilities: values are z − logsumexp(z).
        mask: from `pack_mask`, [⌈C/8⌉] or [..., ⌈C/8⌉]: forbidden classes have the logit −∞.

    Raises:
        ValueError: one sentence that names the argument, what it was and what was expected.
    """
    result: tuple[Tensor, Tensor, Tensor] = backends.operators.head_topk.default(
        x, alpha, bias, *codebook, normalize, k, log_probabilities, mask
    )
    return result


def head_argmax(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    *,
    mask: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """The class of the largest logit [...] (int64), the lowest on ties; no exponential."""
    result: Tensor = backends.operators.head_argmax.default(
        x, alpha, bias, *codebook, normalize, mask
    )
    return result


def head_sample(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    seeds: Tensor,
    *,
    mask: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """One class [...] (int64) drawn from the softmax of each row, by Gumbel-max in one pass.

    seeds: int64 [...], one a row. A row's sample depends on its features and its seed alone.
    """
    result: Tensor = backends.operators.head_sample.default(
        x, alpha, bias, *codebook, normalize, seeds, mask
    )
    return result


def head_logprob(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    ids: Tensor,
    *,
    mask: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """At the classes ids, int64 [...] or [..., M]: log-probabilities and logits of that shape, and
    logsumexp [...]. ValueError names the first id outside [0, C)."""
    result: tuple[Tensor, Tensor, Tensor] = backends.operators.head_logprob.default(
        x, alpha, bias, *codebook, normalize, ids, mask
    )
    return result


def head_nll(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """Losses [...] and logsumexp [...] (0 for both where the target is ignore_index):

    loss = logsumexp(z) − (1 − ε) z_target − ε mean(z), ε = label_smoothing, as
    `torch.nn.functional.cross_entropy` has it. The losses have derivatives with respect to x, alpha
    and bias (once); the backward pass computes the logits again.
    """
    result: tuple[Tensor, Tensor] = backends.operators.head_nll.default(
        x, alpha, bias, *codebook, normalize, target, ignore_index, label_smoothing
    )
    return result


def _pack(bits: Tensor) -> Tensor:
    bits = torch.nn.functional.pad(bits.to(torch.uint8), (0, -bits.shape[-1] % 8))
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    eights: Tensor = bits.unflatten(-1, (-1, 8))
    return (eights << places).sum(-1, dtype=torch.uint8)


def pack_mask(allowed: Tensor) -> Tensor:
    """A bool mask [..., C] (True: the class takes part) as bits: uint8 [..., ⌈C/8⌉]."""
    if allowed.dtype != torch.bool or allowed.dim() == 0:
        raise ValueError(
            f"allowed is {allowed.dtype} of {allowed.dim()} dimension(s), "
            "expected torch.bool [..., classes]"
        )
    return _pack(allowed)


def pack_signs(x: Tensor) -> Tensor:
    """The signs of features [..., N] as bits, set where x < 0: uint8 [..., ⌈N/8⌉]."""
    return _pack(x < 0)


def unpack_signs(packed: Tensor, in_features: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """±1 features [..., N] of packed signs."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(-1) >> places & 1).flatten(-2)[..., :in_features]
    signs: Tensor = 1 - 2 * bits.to(dtype)
    return signs


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


def _check_head(x: Tensor, geometry: list[int], **others: Tensor | None) -> int:
    """Checks what every head shares; returns the number of classes."""
    torch._check(
        x.dtype in _FEATURE_DTYPES, lambda: f"x is {x.dtype}, expected one of {_FEATURE_DTYPES}"
    )
    _check_devices("x", x, **others)
    book = Geometry(*geometry)
    packed = x.dtype == torch.uint8
    torch._check(
        x.shape[-1] == ((book.in_features + 7) // 8 if packed else book.in_features),
        lambda: (
            f"x has {x.shape[-1]} {'bytes' if packed else 'features'}, but the codebook has "
            f"{book.in_features} features"
        ),
    )
    return book.class_end - book.class_begin


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
    classes = _check_head(x, geometry, alpha=alpha, bias=bias, base=base, signs=signs)
    default = x.dtype if x.is_floating_point() else torch.float32
    return x.new_empty((*x.shape[:-1], classes), dtype=dtype or default)


@torch.library.register_fake("fixclf::head_topk")
def _(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    k: int,
    log_probabilities: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    classes = _check_head(x, geometry, alpha=alpha, bias=bias, base=base, signs=signs, mask=mask)
    torch._check(
        1 <= k <= min(classes, 1024), lambda: f"k is {k}, expected 1 to {min(classes, 1024)}"
    )
    rows, exact = x.shape[:-1], _accumulation(x.dtype)
    return (
        x.new_empty((*rows, k), dtype=exact),
        x.new_empty((*rows, k), dtype=torch.int64),
        x.new_empty(rows, dtype=exact),
    )


@torch.library.register_fake("fixclf::head_argmax")
def _(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    mask: Tensor | None = None,
) -> Tensor:
    _check_head(x, geometry, alpha=alpha, bias=bias, base=base, signs=signs, mask=mask)
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("fixclf::head_sample")
def _(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    seeds: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    others = {"alpha": alpha, "bias": bias, "base": base, "signs": signs, "mask": mask}
    _check_head(x, geometry, seeds=seeds, **others)
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


@torch.library.register_fake("fixclf::head_logprob")
def _(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    ids: Tensor,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    others = {"alpha": alpha, "bias": bias, "base": base, "signs": signs, "mask": mask}
    _check_head(x, geometry, ids=ids, **others)
    exact = _accumulation(x.dtype)
    values = x.new_empty(ids.shape, dtype=exact)
    return values, torch.empty_like(values), x.new_empty(x.shape[:-1], dtype=exact)


@torch.library.register_fake("fixclf::head_nll")
def _(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    target: Tensor,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    _check_head(x, geometry, alpha=alpha, bias=bias, base=base, signs=signs, target=target)
    losses = x.new_empty(x.shape[:-1], dtype=_accumulation(x.dtype))
    return losses, torch.empty_like(losses)


@torch.library.register_fake("fixclf::head_nll_backward")
def _(
    grad: Tensor,
    logsumexp: Tensor,
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
    normalize: bool,
    target: Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    classes = _check_head(x, geometry, alpha=alpha, bias=bias, base=base, signs=signs)
    exact = _accumulation(x.dtype)
    return (
        x.new_empty((*x.shape[:-1], Geometry(*geometry).in_features), dtype=exact),
        x.new_empty((0 if bias is None else classes,), dtype=exact),
    )


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


def _input_gradients(
    x: Tensor, alpha: Tensor, projected: Tensor, in_features: int, normalize: bool, wanted: Any
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dα (where wanted[0], wanted[1]) from u = s Wᵀ dz with s = 1/√N (or 1 without
    normalisation): dα = Σ ⟨x̂, u⟩, dx̂ = α u and dx = (dx̂ − x̂ ⟨x̂, dx̂⟩) / ‖x‖, or dx̂ / eps where
    eps replaced the norm."""
    dx = dalpha = None
    features = (
        unpack_signs(x, in_features) if x.dtype == torch.uint8 else x.to(_accumulation(x.dtype))
    )
    u = projected / math.sqrt(in_features) if normalize else projected
    direction = features
    if normalize:
        # The norm of the row divided by its largest element neither over- nor underflows; it
        # is at least 1 unless the row is so small that eps replaces the norm.
        top = features.detach().abs().amax(-1, keepdim=True).clamp_min(1e-30)
        length = torch.linalg.vector_norm(features / top, dim=-1, keepdim=True).clamp_min(1)
        large = top * length > 1e-12
        direction = torch.where(large, features / top / length, features / 1e-12)
    if wanted[0]:
        dx = alpha.reshape(()) * u
        if normalize:
            radial = direction * (direction * dx).sum(-1, keepdim=True)
            dx = torch.where(large, (dx - radial) / length / top, dx / 1e-12)
        dx = dx.to(x.dtype)
    if wanted[1]:
        dalpha = (direction * u).sum().reshape(alpha.shape)
    return dx, dalpha


def _head_backward(adjoint: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, alpha, base, signs, output = ctx.saved_tensors
    if output is not None:
        grad = _grad_logits(output, grad, ctx.epilogue)
    dz = grad.to(_accumulation(x.dtype)).contiguous()
    dx = dalpha = dbias = None
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        projected = adjoint(dz, base, signs, ctx.geometry)
        dx, dalpha = _input_gradients(
            x, alpha, projected, ctx.geometry[0], ctx.normalize, ctx.needs_input_grad
        )
    if ctx.needs_input_grad[2]:
        dbias = dz.reshape(-1, dz.shape[-1]).sum(0)
    return (dx, dalpha, dbias, *[None] * 6)


def _nll_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, alpha, bias, base, signs, ctx.geometry, ctx.normalize, target, *ctx.options = inputs
    ctx.save_for_backward(x, alpha, bias, base, signs, target, output[1])
    ctx.mark_non_differentiable(output[1])


def _nll_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    x, alpha, bias, base, signs, target, logsumexp = ctx.saved_tensors
    projected, dbias = torch.ops.fixclf.head_nll_backward.default(
        grad.contiguous(),
        logsumexp,
        x,
        alpha,
        bias,
        base,
        signs,
        ctx.geometry,
        ctx.normalize,
        target,
        *ctx.options,
    )
    # A few rows at a time, and dx in the place of the projection: the temporaries of a whole batch
    # would outweigh all else. Many classes take so long a row that calls for few rows do not count;
    # a GPU waits for each call.
    total = torch.zeros_like(alpha)
    features, parts = x.reshape(-1, x.shape[-1]), projected.view(-1, projected.shape[-1])
    book = Geometry(*ctx.geometry)
    least = 16 if x.device.type == "cpu" else 1024
    step = max(least, 2**19 // (book.class_end - book.class_begin))
    for i in range(0, len(parts), step):
        part = parts[i : i + step]
        dx, dalpha = _input_gradients(
            features[i : i + step],
            alpha,
            part,
            ctx.geometry[0],
            ctx.normalize,
            ctx.needs_input_grad,
        )
        if dx is not None:
            part.copy_(dx)
        if dalpha is not None:
            total = total + dalpha
    return (
        projected.to(x.dtype) if ctx.needs_input_grad[0] else None,
        total if ctx.needs_input_grad[1] else None,
        dbias if ctx.needs_input_grad[2] else None,
        *[None] * 7,
    )


def _no_second_derivative(ctx: Any, *grads: Tensor) -> Any:
    raise NotImplementedError(
        "head_nll has no second derivative; use head and torch.nn.functional.cross_entropy"
    )


def _adjoint_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    g, base, signs, ctx.geometry = inputs
    ctx.dtype = g.dtype
    ctx.save_for_backward(base, signs)


def _adjoint_backward(operator: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    one = torch.ones((), dtype=grad.dtype, device=grad.device)
    base, signs = ctx.saved_tensors
    dg = operator(grad.contiguous(), one, None, base, signs, ctx.geometry, False, Epilogue.LOGITS)
    return (dg.to(ctx.dtype), *[None] * 3)


def register_derivatives(namespace: str) -> None:
    """Derivatives of torch.ops.<namespace>'s hadamard_transform, head and project_adjoint, by these
    operators themselves."""
    operators = getattr(torch.ops, namespace)
    transform = operators.hadamard_transform.default
    adjoint, logits = operators.project_adjoint.default, operators.head.default

    def transform_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        # H is symmetric.
        return transform(grad.contiguous(), ctx.scale), None

    register = torch.library.register_autograd
    register(f"{namespace}::hadamard_transform", transform_backward, setup_context=_transform_setup)
    register(f"{namespace}::head", partial(_head_backward, adjoint), setup_context=_head_setup)
    register(
        f"{namespace}::project_adjoint",
        partial(_adjoint_backward, logits),
        setup_context=_adjoint_setup,
    )


register_derivatives("fixclf")
torch.library.register_autograd("fixclf::head_nll", _nll_backward, setup_context=_nll_setup)
torch.library.register_autograd("fixclf::head_nll_backward", _no_second_derivative)
