"""`torch.ops.fixclf_triton.*`: the operators of `torch.ops.fixclf` that have Triton kernels, with
the same arguments; `torch.compile` sees the kernels in them.

    hadamard_transform, head, head_topk, head_argmax, head_log_prob, head_reduction_backward,
    project_adjoint

Differences, all because nothing here waits for the device: an alpha that is not finite gives NaN or
infinite results instead of an error; an id outside [0, C) gives NaN; a mask that allows no class of
a row gives logsumexp −∞. No float64; orders up to 2^14.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import torch
import triton
from torch import Tensor

from fixclf_infer import ops
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.ops import derivatives, shapes
from fixclf_infer.ops.bits import HeadArguments

from . import adjoint
from .head import EPILOGUES, map_kernel
from .launch import launch
from .log_prob import log_prob_kernel, statistics_kernel
from .problem import (
    FLOATING,
    Head,
    allowed_of,
    check_order,
    check_x,
    fail,
    ids_of,
    log2,
    power_of_two,
    rows_of,
    rows_per_program,
)
from .topk import topk_kernel, topk_merge_kernel
from .transform import transform_kernel

_TYPES: dict[str, Any] = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "Optional[ScalarType]": torch.dtype | None,
    "List[int]": list[int],
    "int": int,
    "float": float,
    "bool": bool,
}


def _operator(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers torch.ops.fixclf_triton.<name> with the schema of torch.ops.fixclf.<name>; its fake
    kernel is the function itself, traced. One that begins with what every head shares gets this
    checked, as one argument."""
    name = function.__name__
    schema = getattr(torch.ops.fixclf, name).default._schema
    shared = len(HeadArguments._fields)
    is_head = [a.name for a in schema.arguments[:shared]] == list(HeadArguments._fields)

    def run(*arguments: Any) -> Any:
        if not is_head:
            return function(*arguments)
        return function(shapes.Head(*arguments[:shared]), *arguments[shared:])

    # triton_op reads a signature, and refuses *arguments.
    run.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(
                a.name,
                Parameter.POSITIONAL_OR_KEYWORD,
                annotation=_TYPES[str(a.real_type)],
                default=a.default_value if a.has_default_value() else Parameter.empty,
            )
            for a in schema.arguments
        ],
        return_annotation=(
            Tensor
            if len(schema.returns) == 1
            else tuple.__class_getitem__((Tensor,) * len(schema.returns))
        ),
    )
    torch.library.triton_op(f"fixclf_triton::{name}", run, mutates_args=())
    return run


@_operator
def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """y = scale · H x along the last dimension."""
    shapes.check_dtype("x", x, FLOATING)
    check_x("x", x)
    n = x.shape[-1] if x.dim() else 0
    if n < 1 or n & (n - 1):
        fail(f"x has {n} elements in its last dimension, expected a power of two")
    check_order(n, "the last dimension of x")
    rows = rows_of(x)
    batch = rows.shape[0]
    y = torch.empty((batch, n), dtype=x.dtype, device=x.device)
    each = rows_per_program(n, batch)
    if batch > 0:
        wide = math.isfinite(scale) and scale != 0 and not 2.0**-126 <= abs(scale) < 2.0**127
        part, more = scale, 1.0
        if wide:
            # Three factors; beyond 2^±300 every result is infinite or zero anyway.
            significand, exponent = math.frexp(scale)
            exponent = min(max(exponent, -300), 300)
            more = 2.0 ** (exponent // 3)
            part = math.ldexp(significand, exponent - 2 * (exponent // 3))
        launch(
            transform_kernel,
            triton.cdiv(batch, each),
            x_ptr=rows,
            y_ptr=y,
            batch=batch,
            x_stride=rows.stride(0),
            scale=part,
            more=more,
            WIDE=wide,
            ROWS=each,
            LOG2_TILE=log2(n),
        )
    return y.view(x.shape)


class _Statistics:
    """(max, Σ exp(z − max)) of each chunk of the classes, [batch, chunks]."""

    def __init__(self, head: Head, places: int = 1, needed: bool = True) -> None:
        self.chunks, self.tiles = head.chunks(places)
        shape = (self.chunks,) if needed else (0,)
        self.tops = head.empty(*shape, dtype=torch.float32)
        self.totals = torch.empty_like(self.tops)

    def arguments(self) -> dict[str, Any]:
        return {
            "tops_ptr": self.tops,
            "totals_ptr": self.totals,
            "CHUNKS": self.chunks,
            "LOG2_CHUNKS": log2(power_of_two(self.chunks)),
        }


def _statistics(
    head: Head, allowed: dict[str, Any], ids: Tensor | None = None, logits: Tensor | None = None
) -> _Statistics:
    """The statistics of every chunk; the logits at ids go to `logits`."""
    statistics = _Statistics(head)
    launch(
        statistics_kernel,
        triton.cdiv(head.batch, head.rows) * statistics.chunks,
        **head.data(),
        **head.constants(),
        **allowed,
        ids_ptr=head.alpha if ids is None else ids,
        logits_ptr=head.alpha if logits is None else logits,
        IDS_PER_ROW=0 if ids is None else ids.shape[1],
        tops_ptr=statistics.tops,
        totals_ptr=statistics.totals,
        HAS_IDS=ids is not None,
        CHUNKS=statistics.chunks,
        TILES_PER_CHUNK=statistics.tiles,
    )
    return statistics


@_operator
def head(checked: shapes.Head, epilogue: int, dtype: torch.dtype | None = None) -> Tensor:
    """One value a class: logits, softmax, log-softmax or sigmoid."""
    problem, x = Head.of(checked), checked.x
    default = x.dtype if x.is_floating_point() else torch.float32
    if dtype not in (None, torch.float32, default):
        fail(f"dtype is {dtype}, expected torch.float32 or the dtype of x, {x.dtype}")
    if epilogue not in EPILOGUES:
        listed = ", ".join(f"{int(e)} ({e.name.lower()})" for e in EPILOGUES)
        fail(f"epilogue is {epilogue}, expected one of {listed}")
    out = problem.empty(problem.classes, dtype=dtype or default)
    if problem.batch > 0:
        sums: dict[str, Any] = {
            "tops_ptr": problem.alpha,
            "totals_ptr": problem.alpha,
            "CHUNKS": 0,
            "LOG2_CHUNKS": 0,
        }
        if problem.split.tiles > 1 and epilogue in (Epilogue.SOFTMAX, Epilogue.LOG_SOFTMAX):
            sums = _statistics(problem, allowed_of(problem, None)).arguments()
        launch(
            map_kernel,
            triton.cdiv(problem.batch, problem.rows) * problem.split.tiles,
            **problem.data(),
            **problem.constants(),
            **sums,
            out_ptr=out,
            tiles=problem.split.tiles,
            EPILOGUE=epilogue,
        )
    return out.view(*problem.leading, problem.classes)


def _topk(
    problem: Head, k: int, log_probabilities: bool, allowed: Tensor | None, statistics: bool
) -> tuple[Tensor, Tensor, Tensor]:
    places = power_of_two(k)
    arguments = allowed_of(problem, allowed)
    sums = _Statistics(problem, places, statistics)
    keys = problem.empty(sums.chunks, places, dtype=torch.int64)
    values = problem.empty(k if statistics else 0, dtype=torch.float32)
    indices = problem.empty(k, dtype=torch.int64)
    logsumexp = problem.empty(*([] if statistics else [0]), dtype=torch.float32)
    if problem.batch > 0:
        shared = {"keys_ptr": keys, "K": k, "PLACES": places, "STATISTICS": statistics}
        launch(
            topk_kernel,
            triton.cdiv(problem.batch, problem.rows) * sums.chunks,
            **problem.data(),
            **problem.constants(),
            **arguments,
            **shared,
            tops_ptr=sums.tops,
            totals_ptr=sums.totals,
            CHUNKS=sums.chunks,
            TILES_PER_CHUNK=sums.tiles,
        )
        launch(
            topk_merge_kernel,
            problem.batch,
            **shared,
            **sums.arguments(),
            values_ptr=values,
            indices_ptr=indices,
            logsumexp_ptr=logsumexp,
            LOG_PROBABILITIES=log_probabilities,
            LOG2_TILE=log2(max(places, min(power_of_two(sums.chunks * places), 1024))),
        )
    return values, indices, logsumexp


@_operator
def head_topk(
    checked: shapes.Head,
    k: int,
    log_probabilities: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Values and indices of the k largest logits, and logsumexp."""
    checked.check_k(k)
    checked.check_allowed(allowed)
    problem = Head.of(checked, power_of_two(k))
    values, indices, logsumexp = _topk(problem, k, log_probabilities, allowed, True)
    rows = problem.leading
    return values.view(*rows, k), indices.view(*rows, k), logsumexp.view(rows)


@_operator
def head_argmax(checked: shapes.Head, allowed: Tensor | None = None) -> Tensor:
    """The class of the largest logit: top-1 without exponentials."""
    checked.check_allowed(allowed)
    problem = Head.of(checked)
    return _topk(problem, 1, False, allowed, False)[1].view(problem.leading)


@_operator
def head_log_prob(
    checked: shapes.Head, ids: Tensor, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and logits at ids, and logsumexp."""
    checked.check_ids(ids, "ids")
    checked.check_allowed(allowed)
    problem = Head.of(checked)
    wanted = ids_of(problem, ids)
    arguments = allowed_of(problem, allowed)
    each = wanted.shape[1]
    logits = problem.empty(each, dtype=torch.float32)
    log_probs = torch.empty_like(logits)
    logsumexp = problem.empty(dtype=torch.float32)
    if problem.batch > 0:
        statistics = _statistics(problem, arguments, wanted, logits)
        launch(
            log_prob_kernel,
            problem.batch,
            **statistics.arguments(),
            ids_ptr=wanted,
            logits_ptr=logits,
            log_probs_ptr=log_probs,
            logsumexp_ptr=logsumexp,
            IDS_PER_ROW=each,
            class_count=problem.classes,
            IDS=min(power_of_two(max(each, 1)), 1024),
        )
    return log_probs.view(ids.shape), logits.view(ids.shape), logsumexp.view(problem.leading)


@_operator
def project_adjoint(
    g: Tensor, base: Tensor | None, signs: Tensor | None, geometry: list[int]
) -> Tensor:
    """Wᵀ g, for the backward pass of `head`."""
    book = shapes.check_gradient(g, base, signs, geometry)
    check_x("g", g)
    return adjoint.project(g, base, signs, book, hadamard_transform)


@_operator
def head_reduction_backward(
    checked: shapes.Head,
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
    """Wᵀ dz and Σ dz, dz as csrc/core/problem.h has it: `head` and `project_adjoint` for a range of
    classes after the other, so that no more than about 2^22 logits exist at a time."""
    problem, book = Head.of(checked), checked.book
    x, alpha, bias, base, signs, _, normalize = checked.arguments
    wanted = ids_of(problem, ids)
    step = problem.classes
    if not book.center:  # whose mean is over the classes of a range
        step = min(step, max(1024, (1 << 22) // max(problem.batch, 1)) // 8 * 8)
    rows, dtype = x.reshape(problem.batch, x.shape[-1]), torch.float32
    a, lse, c, d, e = (
        None if values is None else values.reshape(-1, 1)
        for values in (softmax_grad, logsumexp, uniform_grad, linear_grad, sigmoid_grad)
    )
    if a is not None and lse is None:
        fail("logsumexp is not given, but softmax_grad is")
    b = ids_grad.reshape(wanted.shape)
    counts = (b != 0).any(-1, keepdim=True)
    for values in (a, c, d, e):
        if values is not None:
            counts = counts | (values != 0)
    projected = torch.zeros(problem.batch, book.in_features, dtype=dtype, device=x.device)
    biases = []
    for begin in range(0, problem.classes, step):
        end = min(begin + step, problem.classes)
        part = book._replace(class_begin=book.class_begin + begin, class_end=book.class_begin + end)
        shard = (base, signs, list(part))
        biases_of = None if bias is None else bias[begin:end]
        z = head(rows, alpha, biases_of, *shard, normalize, Epilogue.LOGITS, dtype)
        dz = torch.zeros_like(z)
        if a is not None:
            # Beyond 0 is a class that is left out.
            dz = dz + a * torch.where(counts, z - lse, 0).clamp_max(88).exp()
        if c is not None:
            dz = dz + c
        if d is not None:
            dz = dz + d * z
        if e is not None:
            dz = dz + e * z.sigmoid()
        inside = (wanted >= begin) & (wanted < end)
        at = torch.where(inside, wanted - begin, 0)
        if others:
            hit = torch.zeros_like(z).scatter_add(1, at, inside.to(z.dtype))
            dz = torch.where(hit > 0, 0, dz)
        dz = dz.scatter_add(1, at, torch.where(inside, b, 0))
        if allowed is not None:
            bits = allowed[..., begin // 8 : (end + 7) // 8].reshape(-1, (end - begin + 7) // 8)
            dz = torch.where(ops.unpack_signs(bits, end - begin) < 0, dz, 0)
        dz = torch.where(counts, dz, 0)
        projected = projected + project_adjoint(dz, *shard)
        if bias is not None:
            biases.append(dz.sum(0))
    dbias = torch.cat(biases) if biases else torch.zeros(0, dtype=dtype, device=x.device)
    return projected.view(*problem.leading, book.in_features), dbias


derivatives.register("fixclf_triton")
