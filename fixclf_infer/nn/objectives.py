"""Objectives: what a head is trained to minimise, each one formula over a few numbers of a row.

With z [..., C] the logits of a row, t its target and α the head's scale, every objective here but
`LogitNormalization` is a function of z_t and of sums over the other classes i ≠ t: log Σ e^{z_i},
Σ z_i, Σ z_i² and Σ log(1 + e^{z_i}). So a fixed head needs no logits: its kernels stream over the
classes, forward and backward. `FixedClassifier.loss(x, target, objective=…)` runs them so. The same
object serves any other head: `objective(logits, target)` takes the sums from a tensor of logits.

Derivatives are autograd's, of the formula; those of the sums are the kernels' (or torch's).
docs/objectives.md has the table of formulas and sources.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..ops import derivatives
from ..ops.statistics import Statistics, Sums, of_logits, softplus


class Row(NamedTuple):
    """What a formula sees: the target's logit and sums over all classes but the target (those that
    the objective needs), of one shape, [..., M] for M targets a row. α and the target's bias serve
    objectives of the target's cosine, (z − bias) / α."""

    z: Tensor
    logsumexp: Tensor
    sum: Tensor
    squares: Tensor
    softplus: Tensor
    num_classes: int
    alpha: Tensor | float
    bias: Tensor | float

    def cross_entropy(self, z: Tensor) -> Tensor:
        """log Σ_i exp(z_i) − z_t with z for z_t: never a difference of large numbers."""
        return softplus(self.logsumexp - z)

    def total_logsumexp(self) -> Tensor:
        """log Σ_i exp(z_i) over all classes."""
        return torch.logaddexp(self.logsumexp, self.z)


def _each(s: Statistics, which: Sums, body: Callable[[Sums, Tensor], Tensor]) -> list[Tensor]:
    """body(sum, values) of the sums that are there; the others as they are."""
    sums = zip(Sums, s[1:], strict=True)
    return [body(name, values) if name in which else values for name, values in sums]


def _of_targets(s: Statistics, ids: Tensor, which: Sums) -> list[Tensor]:
    """The sums over all classes but one, for each of the M ids: [..., M]."""
    if ids.shape[-1] == 1:
        return _each(s, which, lambda _, values: values.unsqueeze(-1))
    # An id that stands in a row several times is one class.
    same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    first = ~same.tril(-1).any(-1)
    joins = first.unsqueeze(-2) & ~same  # [..., target, other id]

    def join(name: Sums, values: Tensor) -> Tensor:
        z, values = s.logits.unsqueeze(-2), values.unsqueeze(-1)
        if name == Sums.LOGSUMEXP:
            z = torch.where(joins, z, -math.inf)
            others = values.unsqueeze(-1).expand(*z.shape[:-1], 1)
            return torch.cat([z, others], -1).logsumexp(-1)
        if name == Sums.SQUARES:
            z = z.square()
        elif name == Sums.SOFTPLUS:
            z = softplus(z)
        return values + torch.where(joins, z, 0).sum(-1)

    return _each(s, which, join)


def _in_range(name: str, value: float, low: float, high: float, text: str | None = None) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}, expected {text or f'{low:g} to {high:g}'}")


def _positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}, expected a positive number")


def _not_negative(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value}, expected a number of at least 0")


class Objective:
    """The base of objectives: `needs`, the sums that the formula takes, and `formula`.

    Called with logits it is a loss for any head. The arguments but the logits are those of
    `FixedClassifier.loss`; α and the bias are wanted where the formula has the target's cosine.
    """

    needs: ClassVar[Sums] = Sums.LOGSUMEXP
    # One pass over the classes; otherwise a fixed head's logits are made, too.
    fused: ClassVar[bool] = True
    needs_bias: ClassVar[bool] = False

    def formula(self, row: Row) -> Tensor:
        """The loss of one target, elementwise."""
        raise NotImplementedError

    def operands(
        self, x: Tensor, alpha: Tensor, bias: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The fixed head's operands, where the objective sets some of them."""
        return x, alpha, bias

    def from_logits(self, z: Tensor) -> Tensor:
        """What the formula takes for the logits z of another head."""
        return z

    def penalty(
        self, alpha: Tensor | float, bias: Tensor | None, num_classes: int
    ) -> Tensor | float:
        """What is added to each loss, whatever the row."""
        return 0.0

    def __call__(
        self,
        logits: Tensor,
        target: Tensor,
        reduction: str = "mean",
        *,
        ignore_index: int = -100,
        weight: Tensor | None = None,
        target_weights: Tensor | None = None,
        alpha: Tensor | float = 1.0,
        bias: Tensor | None = None,
    ) -> Tensor:
        """The loss of logits [..., C] and targets [...] (or [..., M] with target_weights)."""
        statistics = partial(of_logits, self.from_logits(logits))
        options = Targets(
            target, logits.shape[:-1], logits.shape[-1], ignore_index, weight, target_weights
        )
        return options.loss(self, statistics, reduction, alpha, bias)


class Targets:
    """Targets of rows, checked, and the reduction of their losses.

    Args:
        target: int64, the shape `leading`, or with target_weights [*leading, M].
        weight: of each class, [C].
        target_weights: of each target of a row, [*leading, M].
    """

    def __init__(
        self,
        target: Tensor,
        leading: torch.Size,
        num_classes: int,
        ignore_index: int,
        weight: Tensor | None,
        target_weights: Tensor | None,
    ) -> None:
        if target.dtype != torch.int64:
            raise ValueError(f"target is {target.dtype}, expected torch.int64")
        soft = target_weights is not None
        if (target.shape[:-1] if soft and target.dim() > 0 else target.shape) != leading:
            also = ", and one more for the targets of a row" if soft else ""
            raise ValueError(
                f"target has shape {list(target.shape)}, expected {list(leading)}, that of x "
                f"without its last dimension{also}"
            )
        if target_weights is not None and target_weights.shape != target.shape:
            raise ValueError(
                f"target_weights has shape {list(target_weights.shape)}, expected that of target, "
                f"{list(target.shape)}"
            )
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(
                f"weight has shape {list(weight.shape)}, expected [{num_classes}], one for each "
                "class"
            )
        _check_weights("weight", weight)
        _check_weights("target_weights", target_weights)
        self.num_classes = num_classes
        ids = target if soft else target.unsqueeze(-1)
        self.counts = ids != ignore_index  # [..., M]
        self.ids = torch.where(self.counts, ids, 0)
        _check_ids(target, ids, self.ids, num_classes)
        self.class_weights = None if weight is None else weight[self.ids]
        self.target_weights = target_weights

    def loss(
        self,
        objective: Objective,
        statistics: Callable[[Tensor, Sums], Statistics],
        reduction: str,
        alpha: Tensor | float,
        bias: Tensor | None,
    ) -> Tensor:
        """The objective at these targets, reduced; `statistics` gives the sums of ids."""
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
        rows = self.counts.any(-1)
        # A row that does not count has no gradient, whatever it holds: not even NaN times 0.
        needs, found = objective.needs, statistics(self.ids, objective.needs)
        sums = _each(found, needs, lambda _, values: torch.where(rows, values, 0))
        found = Statistics(torch.where(rows.unsqueeze(-1), found.logits, 0), *sums)
        if isinstance(alpha, Tensor):
            alpha = alpha.reshape(())
        at_ids = bias[self.ids] if bias is not None and objective.needs_bias else 0.0
        lse, total, squares, soft = _of_targets(found, self.ids, needs)
        row = Row(found.logits, lse, total, squares, soft, self.num_classes, alpha, at_ids)
        losses = objective.formula(row)
        losses = losses + objective.penalty(alpha, bias, self.num_classes)
        for weights in (self.class_weights, self.target_weights):
            if weights is not None:
                losses = losses * weights.to(losses.dtype)
        losses = torch.where(self.counts, losses, 0).sum(-1)
        if reduction == "none":
            return losses
        if reduction == "sum":
            return losses.sum()
        if self.class_weights is None or self.target_weights is not None:
            return losses.sum() / rows.sum()
        return losses.sum() / torch.where(self.counts, self.class_weights, 0).sum()


def _checks_values(tensor: Tensor) -> bool:
    """Whether to look at values: not where that would break a graph or wait for a device."""
    if torch.compiler.is_compiling() or derivatives.under_transforms():
        return False
    return tensor.device.type == "cpu"


def _check_weights(name: str, weights: Tensor | None) -> None:
    if weights is None:
        return
    if not weights.is_floating_point():
        raise ValueError(f"{name} is {weights.dtype}, expected a floating dtype")
    if not _checks_values(weights):
        return
    bad = ~((weights >= 0) & (weights < math.inf))
    if bad.any():
        at = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name}{at} is {float(weights[tuple(at)])}, expected a finite number of at least 0"
        )


def _check_ids(target: Tensor, given: Tensor, ids: Tensor, num_classes: int) -> None:
    if not _checks_values(target):
        return
    outside = (ids < 0) | (ids >= num_classes)
    if outside.any():
        at = outside.nonzero()[0].tolist()
        value = int(given[tuple(at)])
        raise ValueError(
            f"target{at[: target.dim()]} is {value}, expected a class in [0, {num_classes})"
        )


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Objective):
    """log Σ_i e^{z_i} − z_t (Bridle 1990), as `torch.nn.functional.cross_entropy`."""

    def formula(self, row: Row) -> Tensor:
        return row.cross_entropy(row.z)


@dataclass(frozen=True)
class LabelSmoothing(Objective):
    """log Σ_i e^{z_i} − z_t + ε / (1 − ε) (log Σ_i e^{z_i} − mean z): the cross-entropy with
    (1 − ε) [i = t] + ε / C (Szegedy et al. 2016, §7), divided by 1 − ε, as Kornblith et al. 2021
    have it. `cross_entropy(…, label_smoothing=ε)` is 1 − ε times this."""

    epsilon: float = 0.1
    needs: ClassVar[Sums] = Sums.LOGSUMEXP | Sums.SUM

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon is {self.epsilon}, expected 0 to below 1")

    def formula(self, row: Row) -> Tensor:
        to_uniform = row.total_logsumexp() - (row.sum + row.z) / row.num_classes
        return row.cross_entropy(row.z) + self.epsilon / (1 - self.epsilon) * to_uniform


@dataclass(frozen=True)
class Dropout(SoftmaxCrossEntropy):
    """Softmax cross-entropy of a head whose features are dropped with probability p in training
    (Srivastava et al. 2014; Kornblith et al. 2021). For another head, drop its features."""

    p: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ValueError(f"p is {self.p}, expected 0 to below 1")

    def operands(
        self, x: Tensor, alpha: Tensor, bias: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return functional.dropout(x, self.p, training), alpha, bias


@dataclass(frozen=True)
class FinalLayerL2(SoftmaxCrossEntropy):
    """Softmax cross-entropy + λ / 2 (C α² + ‖b‖²): the extra final-layer L2 of Kornblith et al.
    2021, whose λ / 2 ‖W‖² is λ / 2 C α² for rows of length α. For a learned W, α = ‖W‖ / √C."""

    lambda_: float = 1e-4

    def __post_init__(self) -> None:
        _not_negative("lambda_", self.lambda_)

    def penalty(
        self, alpha: Tensor | float, bias: Tensor | None, num_classes: int
    ) -> Tensor | float:
        squares = num_classes * alpha**2
        if bias is not None:
            squares = squares + bias.square().sum()
        return self.lambda_ / 2 * squares


@dataclass(frozen=True)
class LogitPenalty(Objective):
    """Softmax cross-entropy + β / 2 Σ_i z_i² (Kornblith et al. 2021)."""

    beta: float = 6e-4
    needs: ClassVar[Sums] = Sums.LOGSUMEXP | Sums.SQUARES

    def __post_init__(self) -> None:
        _not_negative("beta", self.beta)

    def formula(self, row: Row) -> Tensor:
        return row.cross_entropy(row.z) + self.beta / 2 * (row.squares + row.z.square())


@dataclass(frozen=True)
class LogitNormalization(SoftmaxCrossEntropy):
    """Softmax cross-entropy of z / (τ ‖z‖) (Kornblith et al. 2021). The norm must be known before
    the first exponential: two passes, and with a bias no head has these logits; so the logits of a
    fixed head are made, [..., C]."""

    temperature: float = 0.04
    fused: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)

    def from_logits(self, z: Tensor) -> Tensor:
        return functional.normalize(z, dim=-1) / self.temperature


@dataclass(frozen=True)
class CosineSoftmax(SoftmaxCrossEntropy):
    """Softmax cross-entropy of the cosines divided by τ (Kornblith et al. 2021): a fixed head with
    α = 1/τ and no bias, whatever its own. For another head, `logits` are its cosines."""

    temperature: float = 0.05

    def __post_init__(self) -> None:
        _positive("temperature", self.temperature)

    def operands(
        self, x: Tensor, alpha: Tensor, bias: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return x, torch.full_like(alpha, 1 / self.temperature, requires_grad=False), None

    def from_logits(self, z: Tensor) -> Tensor:
        return z / self.temperature


@dataclass(frozen=True)
class SigmoidCrossEntropy(Objective):
    """Σ_i log(1 + e^{z_i}) − z_t: the sum of the classes' binary cross-entropies (Beyer et al.
    2020). Kornblith et al. 2021 subtract log C from the logits, so that at first the probabilities
    add up to about 1; here the bias starts there, `initial_bias(C)`, and the trained head needs no
    shift."""

    needs: ClassVar[Sums] = Sums.SOFTPLUS

    @staticmethod
    def initial_bias(num_classes: int) -> float:
        """−log C."""
        return -math.log(num_classes)

    def formula(self, row: Row) -> Tensor:
        return row.softplus + softplus(-row.z)


@dataclass(frozen=True)
class SquaredError(Objective):
    """s (κ (z_t − M)² + Σ_{i≠t} z_i²): Hui and Belkin 2021, with s = 1/C; Kornblith et al. 2021
    tune the scale s.

    Args:
        kappa: weight of the target, above 0.
        peak: M, the logit that the target should have.
        scale: s, above 0.
    """

    kappa: float = 15.0
    peak: float = 30.0
    scale: float = 1.0
    needs: ClassVar[Sums] = Sums.SQUARES

    def __post_init__(self) -> None:
        _positive("kappa", self.kappa)
        _positive("scale", self.scale)
        if not math.isfinite(self.peak):
            raise ValueError(f"peak is {self.peak}, expected a finite number")

    def formula(self, row: Row) -> Tensor:
        return self.scale * (self.kappa * (row.z - self.peak).square() + row.squares)


@dataclass(frozen=True)
class CosineAngle(Objective):
    """((1 − c_t) + Σ_{i≠t} (1 + c_i)) / C of the cosines c: the distances of the target's from 1
    and of the others' from −1 (Hoffer et al. 2018, §2). α and b take no part. For another head,
    `logits` are its cosines."""

    needs: ClassVar[Sums] = Sums.SUM

    def operands(
        self, x: Tensor, alpha: Tensor, bias: Tensor | None, training: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return x, torch.ones_like(alpha, requires_grad=False), None

    def formula(self, row: Row) -> Tensor:
        return (row.num_classes - row.z + row.sum) / row.num_classes


@dataclass(frozen=True)
class ZLoss(Objective):
    """Softmax cross-entropy + λ (log Σ_i e^{z_i})² (Chowdhery et al. 2023, PaLM, §5, with 1e-4):
    keeps the normaliser near 1."""

    weight: float = 1e-4
    needs: ClassVar[Sums] = Sums.LOGSUMEXP

    def __post_init__(self) -> None:
        _not_negative("weight", self.weight)

    def formula(self, row: Row) -> Tensor:
        return row.cross_entropy(row.z) + self.weight * row.total_logsumexp().square()


@dataclass(frozen=True)
class CosFace(Objective):
    """Softmax cross-entropy with z_t − α m for z_t: the target's cosine less m, 0 to 1 (Wang et al.
    2018, eq. 4, with 0.35). α > 0 is meant."""

    margin: float = 0.35

    def __post_init__(self) -> None:
        _in_range("margin", self.margin, 0, 1)

    def formula(self, row: Row) -> Tensor:
        return row.cross_entropy(row.z - self.margin * row.alpha)


@dataclass(frozen=True)
class ArcFace(Objective):
    """Softmax cross-entropy with α cos(θ + m) + b_t for z_t = α cos θ + b_t (Deng et al. 2019,
    eq. 3, with 0.5), m from 0 to π/2. α > 0 is meant.

    cos(θ + m) falls with θ up to θ = π − m only. Beyond, the cosine falls by m sin m instead, which
    goes on falling with θ; with easy_margin, only targets with θ < π/2 have the margin. (Both are
    choices of the authors' code; both have a step where they begin.) cos(θ + m) = c cos m − sin θ
    sin m, and sin θ is kept from below by √ε of the dtype: gradients near c = ±1 stay finite.
    """

    margin: float = 0.5
    easy_margin: bool = False
    needs_bias: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _in_range("margin", self.margin, 0, math.pi / 2, "0 to π/2")

    def formula(self, row: Row) -> Tensor:
        c = (row.z - row.bias) / row.alpha
        cos, sin = math.cos(self.margin), math.sin(self.margin)
        sine = (1 - c.square()).clamp_min(torch.finfo(c.dtype).eps).sqrt()
        shifted = c * cos - sine * sin
        if self.easy_margin:
            shifted = torch.where(c > 0, shifted, c)
        else:
            shifted = torch.where(c > -cos, shifted, c - self.margin * sin)
        return row.cross_entropy(row.alpha * shifted + row.bias)
