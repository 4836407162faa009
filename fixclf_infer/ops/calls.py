"""The operators as functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..epilogue import Epilogue
from . import derivatives
from .bits import CodebookArguments
from .statistics import Statistics

_FUNCTIONS = derivatives.FUNCTIONS


def call(name: str, *arguments: Any) -> Any:
    """An operator of the backend in use, under transforms of `torch.func` too."""
    if derivatives.under_transforms() and name in _FUNCTIONS:
        return _FUNCTIONS[name].apply(backends.operators, *arguments)
    return getattr(backends.operators, name).default(*arguments)


def hadamard_transform(x: Tensor, scale: float = 1.0) -> Tensor:
    """See `fixclf_infer.hadamard_transform`."""
    result: Tensor = call("hadamard_transform", x, scale)
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
    result: Tensor = call("head", x, alpha, bias, *codebook, normalize, int(epilogue), dtype)
    return result


def head_topk(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    k: int,
    *,
    log_probabilities: bool = False,
    allowed: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest logits: values [..., k], indices [..., k] (int64), logsumexp [...].

    Sorted, descending; equal values by class, lowest first. Indices count from class_begin. Needs
    neither a weight matrix nor a logits tensor: memory does not grow with C. See `head` for the
    other arguments.

    Args:
        k: 1 to min(C, 1024).
        log_probabilities: values are z − logsumexp(z).
        allowed: from `pack_allowed`, [⌈C/8⌉] or [..., ⌈C/8⌉]: forbidden classes have the logit −∞.

    Raises:
        ValueError: one sentence that names the argument, what it was and what was expected.
    """
    result: tuple[Tensor, Tensor, Tensor] = call(
        "head_topk", x, alpha, bias, *codebook, normalize, k, log_probabilities, allowed
    )
    return result


def head_argmax(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    *,
    allowed: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """The class of the largest logit [...] (int64), the lowest on ties; no exponential."""
    result: Tensor = call("head_argmax", x, alpha, bias, *codebook, normalize, allowed)
    return result


def head_sample(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    seeds: Tensor,
    *,
    allowed: Tensor | None = None,
    normalize: bool = True,
) -> Tensor:
    """One class [...] (int64) drawn from the softmax of each row, by Gumbel-max in one pass.

    seeds: int64 [...], one a row. A row's sample depends on its features and its seed alone.
    """
    result: Tensor = call("head_sample", x, alpha, bias, *codebook, normalize, seeds, allowed)
    return result


def head_log_prob(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    ids: Tensor,
    *,
    allowed: Tensor | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """At the classes ids, int64 [...] or [..., M]: log-probabilities and logits of that shape, and
    logsumexp [...]. ValueError names the first id outside [0, C)."""
    result: tuple[Tensor, Tensor, Tensor] = call(
        "head_log_prob", x, alpha, bias, *codebook, normalize, ids, allowed
    )
    return result


def head_statistics(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    codebook: CodebookArguments,
    ids: Tensor,
    which: int,
    *,
    allowed: Tensor | None = None,
    normalize: bool = True,
) -> Statistics:
    """The logits z at the classes ids, int64 [...] or [..., M], of that shape; and sums over the
    others, the allowed classes that are not among the row's ids, each [...]:

    log Σ exp(z) (−∞ without others), Σ z, Σ z² and Σ log(1 + exp(z)).

    Objectives are functions of these (`fixclf_infer.nn.objectives`). That the ids are left out, not
    subtracted, keeps the digits of small losses. All have derivatives with respect to x, alpha and
    bias (once); the backward pass computes the logits again.

    Args:
        which: the `Sums` wanted; empty tensors stand for the others.

    Raises:
        ValueError: names the first id outside [0, C).
    """
    arguments = (x, alpha, bias, *codebook, normalize, ids, int(which), allowed)
    return Statistics(*call("head_statistics", *arguments))


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
    and bias (once), and so has the logsumexp; the backward pass computes the logits again.
    """
    result: tuple[Tensor, Tensor] = call(
        "head_nll", x, alpha, bias, *codebook, normalize, target, ignore_index, label_smoothing
    )
    return result
