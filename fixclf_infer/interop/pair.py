"""Two linear layers in a row: the second becomes a fixed head, with the same outputs.

W₂ W₁ has C rows. With H [C, n] orthogonal ±1 rows of an order n ≥ C, Hᵀ/√n is an isometry, so

    W₂ (W₁ x + b₁) + b₂ = α H (M x) + (W₂ b₁ + b₂),   M = Hᵀ W₂ W₁ / (α n)  [n, N],

exactly, whatever α; we take a power of two near 1/√n, which every dtype holds. n N multiplications
instead of d (N + C), d the width between the layers, and the head's additions.

Where the second layer is a FixedClassifier whose dense rows are orthogonal or a simplex
(`from_etf`, `from_proj`), they are a rotation of our ±1 rows: V = W Q, Q [d, d] orthogonal. A
rotation leaves norms as they are, so W₁ and b₁ become Q W₁ and Q b₁, and the head that of W: C d
multiplications less.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.fx
from torch import nn

from ..codebooks import Codebook, codebook
from ..codebooks.measure import additions
from ..codebooks.orders import choose_order, find_order
from ..nn import FixedClassifier
from .etf import unevenness
from .fixed_linear import FixedLinear

_RESIDUAL = 1e-5  # of a rotated row of norm 1
_Second = nn.Linear | FixedClassifier


@dataclass(frozen=True)
class ConvertedPair:
    """What was converted, with the costs for one row and the parameters and buffers of both."""

    first: str
    second: str
    codebook: Codebook
    multiplications: int
    multiplications_now: int
    additions_now: int  # of the fixed head
    multiplications_merged: int | None  # of one dense layer W₂ W₁; None where a norm lies between
    parameters: int
    parameters_now: int

    def __str__(self) -> str:
        merged = ""
        if self.multiplications_merged is not None:
            merged = f"; one merged dense layer: {self.multiplications_merged:,} multiplications"
        return (
            f"{self.first} and {self.second}: {self.multiplications:,} → "
            f"{self.multiplications_now:,} multiplications and {self.additions_now:,} additions a "
            f"row, {self.parameters:,} → {self.parameters_now:,} parameters{merged}"
        )


def convert_linear_pair(
    model: nn.Module, first: str | None = None, second: str | None = None
) -> ConvertedPair:
    """Converts two linear layers in a row, in place: the first gets new weights, the second becomes
    a FixedLinear, or stays a FixedClassifier if it is one.

    The new weights are rounded to their dtype, which changes outputs by at most u ‖W₂ W₁‖_F ‖x‖
    and u max|bias|, u = 2⁻²⁴ for float32; with a FixedClassifier by at most |α| (2⁻¹⁵ + 2⁻²²
    (‖W₁‖_F ‖x‖ + ‖b₁‖) / ‖W₁ x + b₁‖). Computing in float32 adds its own rounding, as before: a
    worst case of N + 32 times as much.

    Args:
        model: changed only if everything is in order.
        first, second: the paths of two layers, as `model.get_submodule` takes them. They must be
            neighbours in a torch.nn.Sequential, or torch.fx must be able to trace the model and
            find nothing between them, and nothing else that uses the first's output. By default
            the only pair of neighbours. Identity, and Dropout in evaluation mode, count as nothing.

    Raises:
        ValueError: no pair or several; something lies between; a layer is used, or its weights are,
            elsewhere; hooks; sizes or dtypes that don't fit; or no multiplication would be saved.
    """
    if (first is None) != (second is None):
        raise ValueError(f"first and second must be given together, got {first!r} and {second!r}")
    pairs = list(_neighbours(model))
    if first is None or second is None:
        if len(pairs) != 1:
            named = ", ".join(f"{a!r} and {b!r}" for a, b in pairs) or "none"
            raise ValueError(
                f"model must have one pair of linear layers in a row in a Sequential, or first and "
                f"second, got {named}"
            )
        ((first, second),) = pairs
    one, two = _layer(model, "first", first), _layer(model, "second", second)
    if not isinstance(one, nn.Linear):
        raise ValueError(f"first must be a torch.nn.Linear, got {first!r}, a FixedClassifier")
    if one.out_features != two.in_features:
        raise ValueError(
            f"second must take the {one.out_features} features of first, got {two.in_features}"
        )
    if (first, second) not in pairs:
        _prove(model, first, second)
    if isinstance(two, nn.Linear):
        return _two_linear(model, first, second, one, two)
    return _rotated(model, first, second, one, two)


def _layer(model: nn.Module, argument: str, path: str) -> _Second:
    try:
        layer = model.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"{argument} must name a module of the model, got {path!r}") from error
    fixed = type(layer) is FixedClassifier and layer.codebook.dense is not None
    if type(layer) is not nn.Linear and not fixed:
        raise ValueError(
            f"{argument} must be a torch.nn.Linear itself, or a FixedClassifier with a dense "
            f"codebook as the second, got {path!r}, a {type(layer).__name__}"
        )
    assert isinstance(layer, nn.Linear | FixedClassifier)
    if any((layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks)):
        raise ValueError(f"{argument} must have no hooks, which {path!r} has")
    names = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    tensors = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    if names[id(layer)] > 1 or any(tensors[id(p)] > 1 for p in layer.parameters()):
        raise ValueError(f"{argument} must be used once, but {path!r} or its weights are shared")
    for name, p in layer.named_parameters():
        if not p.is_floating_point() or p.is_meta or not torch.isfinite(p).all():
            raise ValueError(
                f"{argument} must hold finite floating-point values, not {path}.{name}"
            )
    return layer


def _passes(module: nn.Module) -> bool:
    dropout = isinstance(module, nn.Dropout) and (module.p == 0 or not module.training)
    return type(module) is nn.Identity or dropout


def _neighbours(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Linear layers next to each other in a Sequential."""
    for path, module in model.named_modules():
        if type(module) is not nn.Sequential:
            continue
        prefix = f"{path}." if path else ""
        children = [(prefix + name, m) for name, m in module.named_children() if not _passes(m)]
        for (a, one), (b, two) in pairwise(children):
            dense = type(two) is FixedClassifier and two.codebook.dense is not None
            if type(one) is nn.Linear and (type(two) is nn.Linear or dense):
                yield a, b


def _prove(model: nn.Module, first: str, second: str) -> None:
    """That second(first(x)) is all that becomes of first(x), by torch.fx."""

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
            fixed = isinstance(m, FixedClassifier | FixedLinear)
            return fixed or super().is_leaf_module(m, qualified_name)

    try:
        nodes = Tracer().trace(model).nodes
    except Exception as error:  # what fails in a model's forward has no common class
        raise ValueError(
            f"torch.fx can't trace {type(model).__name__}, and {first!r} and {second!r} are no "
            f"neighbours in a Sequential: nothing proves that they follow each other ({error})"
        ) from error
    for path in (first, second):
        if any(n.op == "get_attr" and str(n.target).startswith(f"{path}.") for n in nodes):
            raise ValueError(f"{path!r} must be used as a layer, but the model reads its weights")
        calls = [n for n in nodes if n.op == "call_module" and n.target == path]
        if len(calls) != 1:
            raise ValueError(f"{path!r} must be called once in the model, got {len(calls)} calls")
    (node,) = (n for n in nodes if n.op == "call_module" and n.target == first)
    while True:
        if len(node.users) != 1:
            raise ValueError(
                f"the output of {first!r} must go to {second!r} alone, got {len(node.users)} uses"
            )
        (node,) = node.users
        if node.op == "call_module":
            if node.target == second:
                return
            if _passes(model.get_submodule(str(node.target))):
                continue
        raise ValueError(f"nothing may lie between {first!r} and {second!r}, got {node.target}")


def _two_linear(
    model: nn.Module, first: str, second: str, one: nn.Linear, two: nn.Linear
) -> ConvertedPair:
    n_in, width, c = one.in_features, one.out_features, two.out_features
    if one.weight.dtype != two.weight.dtype or one.weight.device != two.weight.device:
        raise ValueError(
            f"first and second must have one dtype and device, got {one.weight.dtype} on "
            f"{one.weight.device} and {two.weight.dtype} on {two.weight.device}"
        )
    order = choose_order(max(c, 4), None)
    before, now = width * (n_in + c), order.n * n_in
    if now >= before:
        raise ValueError(
            f"converting {first!r} and {second!r} would not save: {now:,} multiplications a row "
            f"({order.n} x {n_in}) instead of {before:,} ({width} x ({n_in} + {c}))"
        )
    book = _orthogonal(order.n, c)
    alpha = 2.0 ** -round(math.log2(order.n) / 2)
    with torch.no_grad():
        w1, w2 = one.weight.double(), two.weight.double()
        rows = torch.from_numpy(book.matrix()).to(w1)
        mixed = rows.T @ (w2 @ w1) / (alpha * order.n)
        bias = None
        if one.bias is not None or two.bias is not None:
            bias = w1.new_zeros(c)
            if one.bias is not None:
                bias += w2 @ one.bias.double()
            if two.bias is not None:
                bias += two.bias.double()
        like: dict[str, Any] = {"device": one.weight.device, "dtype": one.weight.dtype}
        layer = nn.Linear(n_in, order.n, bias=False, **like)
        layer.weight.copy_(mixed)
        head = FixedLinear(order.n, c, bias is not None, **like, codebook=book, alpha=alpha)
        if bias is not None:
            assert head.bias is not None
            head.bias.copy_(bias)
    layer.requires_grad_(one.weight.requires_grad)
    head.requires_grad_(two.weight.requires_grad)
    _put(model, first, layer.train(one.training))
    _put(model, second, head.train(two.training))
    assert book.kernel is not None
    return ConvertedPair(
        first,
        second,
        book,
        before,
        now,
        additions(book.kernel, c, order.n),
        c * n_in,
        _count(one, two),
        _count(layer, head),
    )


def _rotated(
    model: nn.Module, first: str, second: str, one: nn.Linear, two: FixedClassifier
) -> ConvertedPair:
    n, c = two.in_features, two.num_classes
    assert two.codebook.dense is not None
    with torch.no_grad():
        theirs = torch.from_numpy(two.codebook.dense).to(one.weight).double()
        simplex = c > 1 and abs(float((theirs[0] @ theirs[1]) / n) + 1 / (c - 1)) < 0.5 / (c - 1)
        if find_order(n) is None or c > n or unevenness(theirs) > _RESIDUAL * 10:
            raise ValueError(
                f"second must have orthogonal or simplex rows, at most as many as its features, a "
                f"Hadamard order, got {c} rows of {n} features, unevenness {unevenness(theirs):.2g}"
            )
        book = codebook(n, c, "etf") if simplex else _orthogonal(n, c)
        ours = torch.from_numpy(book.matrix()).to(theirs)
        u, _, v = torch.linalg.svd(ours.T @ theirs)
        rotation = u @ v
        residual = float((ours @ rotation - theirs).norm(dim=1).max()) / n**0.5
        if residual > _RESIDUAL:
            raise ValueError(
                f"second must be a rotation of ±1 rows, but {residual:.2g} is left over"
            )
        head = copy.deepcopy(two)
        head.set_extra_state(FixedClassifier(n, c, codebook=book).get_extra_state())
        before = _count(one, two) + c * n
        one.weight.copy_(rotation @ one.weight.double())
        if one.bias is not None:
            one.bias.copy_(rotation @ one.bias.double())
    _put(model, second, head)
    assert book.kernel is not None
    return ConvertedPair(
        first,
        second,
        book,
        n * (one.in_features + c),
        n * one.in_features,
        additions(book.kernel, c, n),
        None,
        before,
        _count(one, head),
    )


def _orthogonal(order: int, num_classes: int) -> Codebook:
    """num_classes orthogonal rows of an order."""
    kind = "hadamard" if num_classes < order else "orthoplex"
    return codebook(order, num_classes, kind, exact=True)


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def _count(*layers: nn.Module) -> int:
    return sum(p.numel() for layer in layers for p in layer.parameters())
