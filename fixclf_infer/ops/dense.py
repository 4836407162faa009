"""The operators for a codebook that is no ±1 matrix, by torch from its logits, [..., C]: the same
names, results and errors, with the matrix W [C, N] in the place of the codebook."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.nn.functional import cross_entropy, linear, normalize

from .bits import unpack_signs
from .shapes import Rows, check_which
from .statistics import Statistics, of_logits


def logits(x: Tensor, alpha: Tensor, bias: Tensor | None, w: Tensor) -> Tensor:
    """z = α W x̂ / √N + b in alpha's dtype."""
    in_features = w.shape[1]
    if x.dtype == torch.uint8:
        x = unpack_signs(x, in_features)
    kind = x.device.type
    full = torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext()
    with full:  # whose float32 products autocast would round to bfloat16
        unit = normalize(x.to(alpha.dtype), dim=-1)
        z = alpha / math.sqrt(in_features) * linear(unit, w.to(alpha.dtype))
        return z if bias is None else z + bias


class _Head(Rows):
    """Logits −∞ where a class does not take part."""

    def __init__(
        self,
        x: Tensor,
        alpha: Tensor,
        bias: Tensor | None,
        w: Tensor,
        allowed: Tensor | None = None,
    ) -> None:
        super().__init__(x, w.shape[0])
        self.check_allowed(allowed)
        self.z = logits(x, alpha, bias, w)
        if allowed is not None:
            takes_part = unpack_signs(allowed, self.classes) < 0
            self.z = self.z.masked_fill(~takes_part, -math.inf)
            none = ~takes_part.any(-1).flatten()
            if not torch.compiler.is_compiling() and none.any():
                row = int(none.nonzero()[0])
                raise ValueError(f"allowed allows no class in row {row}, expected at least one")

    def check_classes(
        self, name: str, ids: Tensor, *, one_a_row: bool = False, ignore_index: int | None = None
    ) -> None:
        self.check_ids(ids, name, one_a_row=one_a_row)
        outside = (ids < 0) | (ids >= self.classes)
        if ignore_index is not None:
            outside &= ids != ignore_index
        if not torch.compiler.is_compiling() and outside.any():
            at = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{name}{at} is {int(ids[tuple(at)])}, expected a class in [0, {self.classes})"
            )

    def descending(self) -> tuple[Tensor, Tensor]:
        """Values and classes, the lowest class first on ties."""
        values, indices = self.z.sort(dim=-1, descending=True, stable=True)
        return values, indices


def head_topk(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    w: Tensor,
    k: int,
    *,
    log_probabilities: bool = False,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _Head(x, alpha, bias, w, allowed)
    head.check_k(k)
    logsumexp = head.z.logsumexp(-1)
    values, indices = (each[..., :k] for each in head.descending())
    if log_probabilities:
        values = values - logsumexp.unsqueeze(-1)
    return values, indices, logsumexp


def head_argmax(
    x: Tensor, alpha: Tensor, bias: Tensor | None, w: Tensor, *, allowed: Tensor | None = None
) -> Tensor:
    return _Head(x, alpha, bias, w, allowed).descending()[1][..., 0]


def head_sample(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    w: Tensor,
    seeds: Tensor,
    *,
    allowed: Tensor | None = None,
) -> Tensor:
    head = _Head(x, alpha, bias, w, allowed)
    head.check_ids(seeds, "seeds", one_a_row=True)
    return (head.z + _gumbel(seeds, head.classes)).argmax(-1)


def _gumbel(seeds: Tensor, classes: int) -> Tensor:
    """The noise [..., C] of csrc/cpu/epilogues/sample-inl.h, in float64."""

    def shifted(v: Tensor, by: int) -> Tensor:  # as of unsigned integers
        return v >> by & (1 << 64 - by) - 1

    key = seeds - 0x61C8864680B583EB  # + 0x9e3779b97f4a7c15, mod 2^64
    key = (key ^ shifted(key, 30)) * -0x40A7B892E31B1A47
    key = (key ^ shifted(key, 27)) * -0x6B2FB644ECCEEE15
    key = (key ^ shifted(key, 31)).unsqueeze(-1)
    low = (1 << 32) - 1

    def mixed(v: Tensor) -> Tensor:
        for by, factor in ((17, 0xED5AD4BB), (11, 0xAC4C1B51), (15, 0x31848BAB)):
            v = (v ^ v >> by) * factor & low
        return v ^ v >> 14

    ids = torch.arange(classes, device=seeds.device)
    u = ((mixed(mixed(ids ^ key & low) + shifted(key, 32) & low) >> 1).double() + 0.5) * 2.0**-31
    return -(-torch.log1p(-u)).log()


def head_log_prob(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    w: Tensor,
    ids: Tensor,
    *,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    head = _Head(x, alpha, bias, w, allowed)
    head.check_classes("ids", ids)
    wide = ids if ids.dim() == x.dim() else ids.unsqueeze(-1)
    at_ids, logsumexp = head.z.gather(-1, wide), head.z.logsumexp(-1)
    log_probs = at_ids - logsumexp.unsqueeze(-1)
    return log_probs.reshape(ids.shape), at_ids.reshape(ids.shape), logsumexp


def head_statistics(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    w: Tensor,
    ids: Tensor,
    which: int,
    *,
    allowed: Tensor | None = None,
) -> Statistics:
    head = _Head(x, alpha, bias, w, allowed)
    head.check_classes("ids", ids)
    check_which(which)
    return of_logits(head.z, ids, which)


def head_nll(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    w: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 to 1")
    head = _Head(x, alpha, bias, w)
    head.check_classes("target", target, one_a_row=True, ignore_index=ignore_index)
    losses = cross_entropy(
        head.z.reshape(-1, head.classes),
        target.flatten(),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    ).reshape(target.shape)
    return losses, torch.where(target != ignore_index, head.z.logsumexp(-1), 0)
