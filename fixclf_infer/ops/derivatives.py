"""Derivatives of the operators, in reverse and in forward mode, and under `torch.func`.

Each differentiable operator has a `torch.autograd.Function` here, whose first argument is the
namespace that its derivatives take their operators from (`torch.ops.fixclf`, or another backend's),
followed by the operator's own. A call of the operator itself arrives here by its Autograd key, one
of `calls` under a transform of `torch.func` directly.

With x̂ = x / max(‖x‖, 1e-12), s = 1/√N (without normalisation x̂ = x, s = 1) and z = α s W x̂ + b:

    backward  u = s Wᵀ dz,  dα = Σ ⟨x̂, u⟩,  db = Σ dz,  dx = J α u,  J = (I − x̂ x̂ᵀ) / ‖x‖
    forward   ż = s W (α J ẋ + α̇ x̂) + ḃ

No dense matrix appears; what a reduction derives needs no array of [B, C] either, except in forward
mode ḃ and the statistics. `head` and the transform can be differentiated any number of times,
reductions once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ..codebooks.kernel import Geometry
from ..epilogue import Epilogue
from .bits import HeadArguments, unpack_signs
from .shapes import accumulation

Gradients = tuple[Tensor | None, ...]


def under_transforms() -> bool:
    """Whether a transform of `torch.func` is active: an operator's own call would miss it."""
    return bool(torch._C._are_functorch_transforms_active())


def _run(operator: Any, *arguments: Any) -> Any:
    """The operator without its derivative."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.default(*arguments)


def _vmap(call: Any, rows: tuple[int, ...], info: Any, in_dims: Any, arguments: Any) -> Any:
    """The rule of `torch.vmap`. `rows`: places of tensors [..., columns], whose dimensions but the
    last are rows: one more of them is no work. A mapped α or bias takes a loop."""
    mapped = [i for i, dim in enumerate(in_dims) if isinstance(dim, int)]
    if all(i in rows for i in mapped):
        whole = list(arguments)
        for i in rows:
            if i in mapped:
                whole[i] = arguments[i].movedim(in_dims[i], 0).contiguous()
            elif isinstance(arguments[i], Tensor):
                whole[i] = arguments[i].expand(info.batch_size, *arguments[i].shape).contiguous()
        result = call(*whole)
    else:
        each = [
            call(
                *(
                    argument.select(dim, i) if isinstance(dim, int) else argument
                    for argument, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(each[0], Tensor):
            result = torch.stack(each)
        else:
            result = tuple(map(torch.stack, zip(*each, strict=True)))
    return result, 0 if isinstance(result, Tensor) else (0,) * len(result)


def _mapped(call: Any, rows: tuple[int, ...], info: Any, in_dims: Any, *arguments: Any) -> Any:
    # The dispatcher leaves out what equals its default.
    given = tuple(i for i in rows if i < len(arguments))
    return _vmap(call, given, info, in_dims, arguments)


def _places(name: str, *names: str) -> tuple[int, ...]:
    """Where arguments of these names stand in an operator's schema."""
    schema = getattr(torch.ops.fixclf, name).default._schema
    all_names = [argument.name for argument in schema.arguments]
    return tuple(map(all_names.index, names))


# Operator → its Function.
FUNCTIONS: dict[str, Any] = {}


def _operator(name: str, *rows: str) -> Callable[[Any], Any]:
    """The Function of an operator, whose arguments follow the namespace of operators. `rows`: those
    of them that are tensors whose leading dimensions are rows."""

    def register(function: Any) -> Any:
        def forward(operators: Any, *arguments: Any) -> Any:
            return _run(getattr(operators, name), *arguments)

        def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
            places = tuple(place + 1 for place in _places(name, *rows))
            return _vmap(function.apply, places, info, in_dims, arguments)

        function.forward = staticmethod(forward)
        if function.vmap is Function.vmap:
            function.vmap = staticmethod(vmap)
        FUNCTIONS[name] = function
        return function

    return register


def _gradients(ctx: Any, *found: Tensor | None) -> Gradients:
    """Of an operator's first arguments; the namespace before them and the others have none."""
    others = len(ctx.needs_input_grad) - 1 - len(found)
    return (None, *found, *[None] * others)


def _split(inputs: tuple[Any, ...]) -> tuple[Any, HeadArguments, tuple[Any, ...]]:
    """Of a head's inputs: the namespace, what every head shares, and the operator's own."""
    shared = 1 + len(HeadArguments._fields)
    return inputs[0], HeadArguments(*inputs[1:shared]), inputs[shared:]


class _Directions:
    """x̂ of features x, [..., N] in the accumulation dtype, and J, which is symmetric: the same
    product takes a tangent forward and a gradient back."""

    def __init__(self, x: Tensor, geometry: list[int], normalize: bool) -> None:
        features = Geometry(*geometry).in_features
        exact = accumulation(x.dtype)
        self.normalize = normalize
        self.scale = 1 / math.sqrt(features) if normalize else 1.0
        self.unit = unpack_signs(x, features) if x.dtype == torch.uint8 else x.to(exact)
        if normalize:
            # The norm of the row divided by its largest element neither over- nor underflows; it
            # is at least 1 unless the row is so small that eps replaces the norm.
            self.top = self.unit.detach().abs().amax(-1, keepdim=True).clamp_min(1e-30)
            scaled = self.unit / self.top
            self.length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(1)
            self.large = self.top * self.length > 1e-12
            self.unit = torch.where(self.large, scaled / self.length, self.unit / 1e-12)

    def jacobian(self, v: Tensor) -> Tensor:
        if not self.normalize:
            return v
        radial = self.unit * (self.unit * v).sum(-1, keepdim=True)
        return torch.where(self.large, (v - radial) / self.length / self.top, v / 1e-12)

    def tangent(self, alpha: Tensor, dx: Tensor | None, dalpha: Tensor | None) -> Tensor:
        """v with ż = s W v + ḃ."""
        v = torch.zeros_like(self.unit)
        if dx is not None:
            v = v + alpha.reshape(()) * self.jacobian(dx.to(v.dtype))
        if dalpha is not None:
            v = v + dalpha.reshape(()) * self.unit
        return v


def _input_gradients(
    x: Tensor, alpha: Tensor, projected: Tensor, geometry: list[int], normalize: bool, wanted: Any
) -> tuple[Tensor | None, Tensor | None]:
    """dx and dα (where wanted[0], wanted[1]) from Wᵀ dz."""
    directions = _Directions(x, geometry, normalize)
    u = projected * directions.scale
    dx = dalpha = None
    if wanted[0]:
        dx = directions.jacobian(alpha.reshape(()) * u).to(x.dtype)
    if wanted[1]:
        dalpha = (directions.unit * u).sum().reshape(alpha.shape)
    return dx, dalpha


@_operator("hadamard_transform", "x")
class Transform(Function):
    """H is symmetric and the transform linear."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, _, ctx.scale = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        return _gradients(ctx, Transform.apply(ctx.operators, grad.contiguous(), ctx.scale))

    @staticmethod
    def jvp(ctx: Any, _: None, dx: Tensor, *others: None) -> Tensor:
        result: Tensor = Transform.apply(ctx.operators, dx.contiguous(), ctx.scale)
        return result


@_operator("project_adjoint", "g")
class Adjoint(Function):
    """Linear in g; the adjoint of the adjoint is the projection."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, g, base, signs, ctx.geometry = inputs
        ctx.dtype = g.dtype
        ctx.save_for_backward(base, signs)
        ctx.save_for_forward(base, signs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        base, signs = ctx.saved_tensors
        dg = _product(ctx.operators, grad, 1.0, base, signs, ctx.geometry)
        return _gradients(ctx, dg.to(ctx.dtype))

    @staticmethod
    def jvp(ctx: Any, _: None, dg: Tensor, *others: None) -> Tensor:
        base, signs = ctx.saved_tensors
        result: Tensor = Adjoint.apply(ctx.operators, dg.contiguous(), base, signs, ctx.geometry)
        return result


def _product(
    operators: Any,
    v: Tensor,
    scale: float,
    base: Tensor | None,
    signs: Tensor | None,
    geometry: list[int],
) -> Tensor:
    """scale · W v, differentiable."""
    alpha = torch.full((), scale, dtype=v.dtype, device=v.device)
    result: Tensor = Head.apply(
        operators, v.contiguous(), alpha, None, base, signs, geometry, False, _LOGITS, None
    )
    return result


_LOGITS = int(Epilogue.LOGITS)


def _along_classes(out: Tensor, tangent: Tensor, epilogue: int) -> Tensor:
    """The derivative of an epilogue with output `out` in the direction of logits `tangent`, in the
    accumulation dtype."""
    exact = accumulation(out.dtype)
    out, tangent = out.to(exact), tangent.to(exact)
    if epilogue == Epilogue.SOFTMAX:
        return out * (tangent - (tangent * out).sum(-1, keepdim=True))
    if epilogue == Epilogue.LOG_SOFTMAX:
        return tangent - (tangent * out.exp()).sum(-1, keepdim=True)
    if epilogue == Epilogue.SIGMOID:
        return tangent * out * (1 - out)
    if epilogue == Epilogue.LOGITS:
        return tangent
    raise NotImplementedError(f"{Epilogue(epilogue).name.lower()} has no derivative")


def _back_to_logits(out: Tensor, grad: Tensor, epilogue: int) -> Tensor:
    """The transpose of `_along_classes`, which only log-softmax's differs from."""
    if epilogue == Epilogue.LOG_SOFTMAX:
        exact = accumulation(out.dtype)
        out, grad = out.to(exact), grad.to(exact)
        return grad - out.exp() * grad.sum(-1, keepdim=True)
    return _along_classes(out, grad, epilogue)


@_operator("head", "x")
class Head(Function):
    """One value a class; the derivative of the epilogue needs its output only."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.operators, head, (ctx.epilogue, _) = _split(inputs)
        ctx.geometry, ctx.normalize = head.geometry, head.normalize
        kept = None if ctx.epilogue == Epilogue.LOGITS else output
        saved = (head.x, head.alpha, head.base, head.signs, kept)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)
        ctx.dtype = output.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        x, alpha, base, signs, output = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:4]
        if output is not None:
            grad = _back_to_logits(output, grad, ctx.epilogue)
        dz = grad.to(accumulation(x.dtype)).contiguous()
        dx = dalpha = dbias = None
        if wanted[0] or wanted[1]:
            projected = Adjoint.apply(ctx.operators, dz, base, signs, ctx.geometry)
            dx, dalpha = _input_gradients(x, alpha, projected, ctx.geometry, ctx.normalize, wanted)
        if wanted[2]:
            dbias = dz.reshape(-1, dz.shape[-1]).sum(0)
        return _gradients(ctx, dx, dalpha, dbias)

    @staticmethod
    def jvp(
        ctx: Any,
        _: None,
        dx: Tensor | None,
        dalpha: Tensor | None,
        dbias: Tensor | None,
        *others: None,
    ) -> Tensor:
        x, alpha, base, signs, output = ctx.saved_tensors
        directions = _Directions(x, ctx.geometry, ctx.normalize)
        v = directions.tangent(alpha, dx, dalpha)
        dz = _product(ctx.operators, v, directions.scale, base, signs, ctx.geometry)
        if dbias is not None:
            dz = dz + dbias
        if output is not None:
            dz = _along_classes(output, dz, ctx.epilogue)
        return dz.to(ctx.dtype)


_BACKWARD_ROWS = (
    "x",
    "ids",
    "logsumexp",
    "softmax_grad",
    "ids_grad",
    "uniform_grad",
    "allowed",
    "linear_grad",
    "sigmoid_grad",
)


@_operator("head_reduction_backward")
class ReductionBackward(Function):
    """The backward pass of a reduction, which has no derivative of its own."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "top-k, log-probabilities and the loss have no second derivative; use head and torch's "
            "own functions of its logits"
        )

    jvp = backward

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        # The gradient of the bias is a sum over the rows, which with a bias must stay apart.
        names = () if _split(arguments)[1].bias is not None else _BACKWARD_ROWS
        rows = tuple(place + 1 for place in _places("head_reduction_backward", *names))
        (projected, bias), dims = _vmap(ReductionBackward.apply, rows, info, in_dims, arguments)
        if rows:
            bias = bias.expand(info.batch_size, *bias.shape)
        return (projected, bias), dims


class _Reduction:
    """What a reduction saves, and its derivatives from those of the values at ids, of the logsumexp
    and of the sum of the logits."""

    def __init__(self, ctx: Any) -> None:
        x, alpha, bias, base, signs, self.ids, self.logsumexp, self.allowed = ctx.saved_tensors
        self.head = HeadArguments(x, alpha, bias, base, signs, ctx.geometry, ctx.normalize)
        self.operators, self.wanted = ctx.operators, ctx.needs_input_grad[1:4]
        self.classes = self.head.book.computed

    @staticmethod
    def save(
        ctx: Any,
        operators: Any,
        head: HeadArguments,
        ids: Tensor,
        allowed: Tensor | None,
        logsumexp: Tensor | None,
    ) -> None:
        ctx.operators, ctx.geometry, ctx.normalize = operators, head.geometry, head.normalize
        saved = (head.x, head.alpha, head.bias, head.base, head.signs, ids, logsumexp, allowed)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    def _backward(
        self,
        softmax: Tensor | None,
        at_ids: Tensor,
        uniform: Tensor | None = None,
        linear: Tensor | None = None,
        sigmoid: Tensor | None = None,
        *,
        left_out: bool = False,
    ) -> Any:
        grads = [None if g is None else g.contiguous() for g in (softmax, at_ids, uniform)]
        others = [None if g is None else g.contiguous() for g in (linear, sigmoid)]
        head = (self.operators, *self.head, self.ids, self.logsumexp)
        return ReductionBackward.apply(*head, *grads, self.allowed, *others, left_out)

    def gradients(
        self, softmax: Tensor | None, at_ids: Tensor, *others: Tensor | None, left_out: bool = False
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of x, α and the bias for dz_i = softmax p_i + Σ_{ids_m = i} at_ids_m + uniform + linear
        z_i + sigmoid σ(z_i), the `others` in this order; with `left_out` only at_ids reaches the
        ids."""
        projected, dbias = self._backward(softmax, at_ids, *others, left_out=left_out)
        if under_transforms():
            dx, dalpha = self._inputs(self.head.x, projected)
        else:
            dx, dalpha = self._in_parts(projected)
        return (
            dx if self.wanted[0] else None,
            dalpha if self.wanted[1] else None,
            dbias if self.wanted[2] else None,
        )

    def _inputs(self, x: Tensor, projected: Tensor) -> tuple[Tensor | None, Tensor | None]:
        _, alpha, *_, geometry, normalize = self.head
        return _input_gradients(x, alpha, projected, geometry, normalize, self.wanted)

    def _in_parts(self, projected: Tensor) -> tuple[Tensor, Tensor]:
        """A few rows at a time, and dx in the place of the projection: the temporaries of a whole
        batch would outweigh all else. Many classes take so long a row that calls for few rows do
        not count; a GPU waits for each call."""
        x = self.head.x
        total = torch.zeros_like(self.head.alpha)
        features = x.reshape(-1, x.shape[-1])
        parts = projected.view(-1, projected.shape[-1])
        least = 16 if x.device.type == "cpu" else 1024
        step = max(least, 2**19 // self.classes)
        for i in range(0, len(parts), step):
            part = parts[i : i + step]
            dx, dalpha = self._inputs(features[i : i + step], part)
            if dx is not None:
                part.copy_(dx)
            if dalpha is not None:
                total = total + dalpha
        return projected.to(x.dtype), total

    def tangents(
        self, dx: Tensor | None, dalpha: Tensor | None, dbias: Tensor | None, mean: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of the logits at ids (0 where they are forbidden), of the logsumexp, and of the mean of
        the logits if asked for."""
        x, alpha, _, *book, normalize = self.head
        directions = _Directions(x, self.head.geometry, normalize)
        v = directions.tangent(alpha, dx, dalpha).contiguous()
        s = torch.full((), directions.scale, dtype=v.dtype, device=v.device)
        inside = self.ids.clamp(0, self.classes - 1)
        forward = LogProb.apply(self.operators, v, s, None, *book, False, inside, None)
        at_ids = forward[1]
        # ⟨p, W v⟩ = ⟨Wᵀ p, v⟩
        assert self.logsumexp is not None
        one, none = torch.ones_like(self.logsumexp), torch.zeros_like(at_ids)
        projected, _ = self._backward(one, none)
        lse = directions.scale * (projected * v).sum(-1)
        if dbias is not None:
            at_ids = at_ids + dbias[inside]
            p = (self.logits() - self.logsumexp.unsqueeze(-1)).exp()
            lse = lse + (p if self.allowed is None else p * self._allowed()) @ dbias
        if self.allowed is not None:
            rows = x.shape[:-1]
            at_ids = at_ids * self._allowed().expand(*rows, -1).gather(
                -1, inside.reshape(*rows, -1)
            ).reshape(at_ids.shape)
        average = None
        if mean:
            ones = torch.full((1, self.classes), 1 / self.classes, dtype=v.dtype, device=v.device)
            column = Adjoint.apply(self.operators, ones, *book)[0]
            average = directions.scale * (v @ column)
            if dbias is not None:
                average = average + dbias.mean()
        return at_ids, lse, average

    def logits(self) -> Tensor:
        """[..., C], for what knows no way around them."""
        dtype = accumulation(self.head.x.dtype) if self.head.x.is_floating_point() else None
        result: Tensor = Head.apply(self.operators, *self.head, _LOGITS, dtype)
        return result

    def logits_tangent(
        self, dx: Tensor | None, dalpha: Tensor | None, dbias: Tensor | None
    ) -> Tensor:
        """ż [..., C], 0 where it is forbidden."""
        head = self.head
        directions = _Directions(head.x, head.geometry, head.normalize)
        v = directions.tangent(head.alpha, dx, dalpha)
        book = (head.base, head.signs, head.geometry)
        dz = _product(self.operators, v, directions.scale, *book)
        if dbias is not None:
            dz = dz + dbias
        return dz if self.allowed is None else dz * self._allowed()

    def _allowed(self) -> Tensor:
        """1 for the classes that take part, else 0: [C] or [..., C]."""
        assert self.allowed is not None
        dtype = accumulation(self.head.x.dtype)
        return (1 - unpack_signs(self.allowed, self.classes, dtype)) / 2


def _sum(grad: Tensor, like: Tensor) -> Tensor:
    """Of the values of a row: over the last dimension, if there is one beyond the rows'."""
    return grad.sum(-1) if grad.dim() > like.dim() else grad


@_operator("head_topk", "x", "allowed")
class TopK(Function):
    """Values are logits, or log-probabilities, at the classes that were found."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        operators, head, (_, ctx.log, allowed) = _split(inputs)
        _, indices, logsumexp = output
        _Reduction.save(ctx, operators, head, indices, allowed, logsumexp)
        ctx.mark_non_differentiable(indices)

    @staticmethod
    def backward(ctx: Any, dvalues: Tensor, _: Tensor, dlse: Tensor) -> Gradients:
        softmax = dlse - dvalues.sum(-1) if ctx.log else dlse
        return _gradients(ctx, *_Reduction(ctx).gradients(softmax, dvalues))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor, None, Tensor]:
        values, lse, _mean = _Reduction(ctx).tangents(*tangents[:3])
        return values - lse.unsqueeze(-1) if ctx.log else values, None, lse


@_operator("head_log_prob", "x", "ids", "allowed")
class LogProb(Function):
    """Log-probabilities and logits at ids, and logsumexp."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        operators, head, (ids, allowed) = _split(inputs)
        _Reduction.save(ctx, operators, head, ids, allowed, output[2])

    @staticmethod
    def backward(ctx: Any, dlog_probs: Tensor, dlogits: Tensor, dlse: Tensor) -> Gradients:
        softmax = dlse - _sum(dlog_probs, dlse)
        return _gradients(ctx, *_Reduction(ctx).gradients(softmax, dlog_probs + dlogits))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor, Tensor, Tensor]:
        values, lse, _mean = _Reduction(ctx).tangents(*tangents[:3])
        return values - (lse.unsqueeze(-1) if values.dim() > lse.dim() else lse), values, lse


@_operator("head_nll", "x", "target")
class Nll(Function):
    """loss = logsumexp − (1 − ε) z_target − ε mean(z); both results are 0 for an ignored target."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        operators, head, (target, ctx.ignored, ctx.smoothing) = _split(inputs)
        _Reduction.save(ctx, operators, head, target, None, output[1])

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, dlse: Tensor) -> Gradients:
        reduction = _Reduction(ctx)
        counts = reduction.ids != ctx.ignored
        dloss = torch.where(counts, dloss, 0)
        uniform = -ctx.smoothing / reduction.classes * dloss if ctx.smoothing else None
        softmax = dloss + torch.where(counts, dlse, 0)
        target = (ctx.smoothing - 1) * dloss
        return _gradients(ctx, *reduction.gradients(softmax, target, uniform))

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor, Tensor]:
        reduction = _Reduction(ctx)
        dx, dalpha, dbias = tangents[:3]
        hit, lse, mean = reduction.tangents(dx, dalpha, dbias, mean=bool(ctx.smoothing))
        loss = lse - (1 - ctx.smoothing) * hit
        if mean is not None:
            loss = loss - ctx.smoothing * mean
        counts = reduction.ids != ctx.ignored
        return torch.where(counts, loss, 0), torch.where(counts, lse, 0)


@_operator("head_statistics", "x", "ids", "allowed")
class Statistics(Function):
    """Logits at ids, and over the other classes log Σ exp(z), Σ z, Σ z², Σ log(1 + exp(z))."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        operators, head, (ids, which, allowed) = _split(inputs)
        ctx.wanted = [bool(which >> i & 1) for i in range(4)]
        logsumexp = output[1] if ctx.wanted[0] else None
        _Reduction.save(ctx, operators, head, ids, allowed, logsumexp)
        sums = zip(output[1:], ctx.wanted, strict=True)
        ctx.mark_non_differentiable(*[each for each, wanted in sums if not wanted])

    @staticmethod
    def backward(ctx: Any, dlogits: Tensor, *dsums: Tensor) -> Gradients:
        sums = zip(dsums, ctx.wanted, strict=True)
        dlse, dsum, dsquares, dsoftplus = (each if wanted else None for each, wanted in sums)
        linear = None if dsquares is None else 2 * dsquares
        found = _Reduction(ctx).gradients(dlse, dlogits, dsum, linear, dsoftplus, left_out=True)
        return _gradients(ctx, *found)

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Any) -> tuple[Tensor | None, ...]:
        reduction = _Reduction(ctx)
        z, dz = reduction.logits(), reduction.logits_tangent(*tangents[:3])
        ids = reduction.ids.reshape(*z.shape[:-1], -1)
        at_ids = dz.gather(-1, ids).reshape(reduction.ids.shape)
        others = dz.scatter(-1, ids, 0)

        def p() -> Any:
            assert reduction.logsumexp is not None
            # Of the ids, which do not count, it might be infinite.
            return (z - reduction.logsumexp.unsqueeze(-1)).clamp_max(0).exp()

        slopes: tuple[Callable[[], Any], ...] = (p, lambda: 1, lambda: 2 * z, z.sigmoid)
        return at_ids, *(
            (slope() * others).sum(-1) if wanted else None
            for slope, wanted in zip(slopes, ctx.wanted, strict=True)
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *arguments: Any) -> Any:
        places = (place + 1 for place in _places("head_statistics", "x", "ids", "allowed"))
        found, _ = _vmap(Statistics.apply, tuple(places), info, in_dims, arguments)
        _, _, (_, which, _) = _split(arguments)
        # What was not asked for is empty, with the mapped dimension or without.
        wanted = (True, *(which >> i & 1 for i in range(4)))
        found = tuple(v if keep else v.flatten() for v, keep in zip(found, wanted, strict=True))
        return found, tuple(0 if keep else None for keep in wanted)


# Operators without a derivative → tensors whose leading dimensions are rows.
_CLASSES = {"head_argmax": ("x", "allowed"), "head_sample": ("x", "seeds", "allowed")}

_registered: list[Any] = []  # a torch.library.Library unregisters when it is collected


def _kernel(namespace: str, name: str, function: Any) -> Callable[..., Any]:
    """What the Autograd key of an operator runs."""
    operators = getattr(torch.ops, namespace)
    operator = getattr(operators, name)
    defaults = [a.default_value for a in operator.default._schema.arguments]

    def run(*arguments: Any) -> Any:
        tracked = torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)
        if not tracked and forward_ad._current_level < 0:
            with torch._C._AutoDispatchBelowAutograd():
                return operator.default(*arguments)
        if under_transforms():
            raise NotImplementedError(
                f"torch.ops.{namespace}.{name} has no derivative under torch.func; call "
                f"fixclf_infer.ops.{name}"
            )
        # The dispatcher leaves out what equals its default.
        return function.apply(operators, *arguments, *defaults[len(arguments) :])

    return run


def register(namespace: str) -> None:
    """Gives the operators of torch.ops.<namespace>, which may lack some, their derivatives, by its
    own operators."""
    operators = getattr(torch.ops, namespace)
    library = torch.library.Library(namespace, "FRAGMENT")
    for name, function in FUNCTIONS.items():
        if hasattr(operators, name):
            kernel = _kernel(namespace, name, function)
            with warnings.catch_warnings():
                # A Triton operator has a kernel there already, without a derivative.
                warnings.simplefilter("ignore")
                library.impl(name, kernel, "Autograd", allow_override=True)
    for name, rows in _CLASSES.items():
        if hasattr(operators, name):
            rule = partial(_mapped, getattr(operators, name).default, _places(name, *rows))
            torch.library.register_vmap(f"{namespace}::{name}", rule, lib=library)
    _registered.append(library)
