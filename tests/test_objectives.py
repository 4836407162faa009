"""Objectives: each formula against its dense definition and torch's own losses in float64, and the
fixed head's fused form against the dense one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from cases import expand, synthetic
from script import run
from torch import Tensor
from torch.nn import functional

from fixclf_infer import ops, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.nn import FixedClassifier
from fixclf_infer.nn.objectives import (
    ArcFace,
    CosFace,
    CosineAngle,
    CosineSoftmax,
    Dropout,
    FinalLayerL2,
    LabelSmoothing,
    LogitNormalization,
    LogitPenalty,
    Objective,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    ZLoss,
)
from fixclf_infer.ops.statistics import Sums, of_logits

ALL = Sums.LOGSUMEXP | Sums.SUM | Sums.SQUARES | Sums.SOFTPLUS


def _margin(z: Tensor, hot: Tensor, alpha: float, bias: Tensor, changed: Callable) -> Tensor:
    """The cross-entropy of logits whose target's angle θ has become `changed(θ)`'s cosine."""
    angle = ((z - bias) / alpha).clamp(-1, 1).acos()
    return _entropy(torch.where(hot > 0, alpha * changed(angle) + bias, z), hot)


def _entropy(z: Tensor, hot: Tensor) -> Tensor:
    return -(hot * z.log_softmax(-1)).sum(-1)


def _arc(m: float) -> Callable[[Tensor], Tensor]:
    return lambda angle: torch.where(
        angle < math.pi - m, (angle + m).cos(), angle.cos() - m * math.sin(m)
    )


def _binary(z: Tensor, hot: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(z, hot, reduction="none").sum(-1)


def _smooth(z: Tensor, hot: Tensor, epsilon: float) -> Tensor:
    p = (1 - epsilon) * hot + epsilon / z.shape[-1]
    return functional.cross_entropy(z, p, reduction="none") / (1 - epsilon)


# α and b of the dense heads below; z − b is within ±α.
ALPHA = 6.0


@dataclass(frozen=True)
class Definition:
    """The dense form of an objective, of logits, one-hot targets and b, all [B, C]."""

    objective: Objective
    dense: Callable[[Tensor, Tensor, Tensor], Tensor]


DEFINITIONS = [
    Definition(SoftmaxCrossEntropy(), lambda z, hot, b: _entropy(z, hot)),
    Definition(LabelSmoothing(0.2), lambda z, hot, b: _smooth(z, hot, 0.2)),
    Definition(Dropout(0.0), lambda z, hot, b: _entropy(z, hot)),
    Definition(
        FinalLayerL2(0.03),
        lambda z, hot, b: _entropy(z, hot) + 0.015 * (z.shape[-1] * ALPHA**2 + b.square().sum(-1)),
    ),
    Definition(LogitPenalty(0.1), lambda z, hot, b: _entropy(z, hot) + 0.05 * z.square().sum(-1)),
    Definition(
        LogitNormalization(0.3),
        lambda z, hot, b: _entropy(z / z.norm(dim=-1, keepdim=True) / 0.3, hot),
    ),
    Definition(CosineSoftmax(0.2), lambda z, hot, b: _entropy(z / 0.2, hot)),
    Definition(SigmoidCrossEntropy(), lambda z, hot, b: _binary(z, hot)),
    Definition(
        SquaredError(9.0, 5.0, 0.25),
        lambda z, hot, b: 0.25 * (9 * hot * (z - 5) ** 2 + (1 - hot) * z**2).sum(-1),
    ),
    Definition(CosineAngle(), lambda z, hot, b: (z - (2 * hot - 1)).mul(1 - 2 * hot).mean(-1)),
    Definition(ZLoss(0.02), lambda z, hot, b: _entropy(z, hot) + 0.02 * z.logsumexp(-1).square()),
    Definition(CosFace(0.3), lambda z, hot, b: _entropy(z - ALPHA * 0.3 * hot, hot)),
    Definition(ArcFace(0.5), lambda z, hot, b: _margin(z, hot, ALPHA, b, _arc(0.5))),
    Definition(
        ArcFace(0.5, easy_margin=True),
        lambda z, hot, b: _margin(
            z, hot, ALPHA, b, lambda t: torch.where(t < math.pi / 2, t + 0.5, t).cos()
        ),
    ),
]
defined = pytest.mark.parametrize(
    "definition", DEFINITIONS, ids=lambda d: repr(d.objective).replace(" ", "")
)
OBJECTIVES = [d.objective for d in DEFINITIONS]
each = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: repr(o).replace(" ", ""))


def dense_case(rows: int = 7, classes: int = 9, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    cosines = torch.rand(rows, classes, dtype=torch.float64, generator=generator) * 1.96 - 0.98
    bias = torch.randn(classes, dtype=torch.float64, generator=generator)
    target = torch.randint(classes, (rows,), generator=generator)
    target[0] = target[1]
    return ALPHA * cosines + bias, bias, target


@defined
def test_formula_is_the_dense_definition(definition: Definition) -> None:
    z, bias, target = dense_case()
    hot = functional.one_hot(target, z.shape[-1]).double()
    want = definition.dense(z, hot, bias.expand_as(z))
    for reduction, reduce in (("none", lambda v: v), ("sum", torch.sum), ("mean", torch.mean)):
        got = definition.objective(z, target, reduction, alpha=ALPHA, bias=bias)
        torch.testing.assert_close(got, reduce(want), rtol=1e-12, atol=1e-12)


@defined
def test_soft_targets_are_mixed_losses(definition: Definition) -> None:
    """With several targets a row, of which some are the same class and some are ignored."""
    z, bias, _ = dense_case()
    rows, classes = z.shape
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(classes, (rows, 4), generator=generator)
    target[0] = target[0, 0]
    target[1, 2] = target[1, 0]
    target[2, 1] = -100
    target[3] = -100
    weights = torch.rand(rows, 4, dtype=torch.float64, generator=generator)
    counts = target != -100
    each = [
        definition.dense(
            z, functional.one_hot(target[:, m].clamp_min(0), classes).double(), bias.expand_as(z)
        )
        for m in range(4)
    ]
    want = torch.where(counts, weights * torch.stack(each, -1), 0).sum(-1)
    got = definition.objective(z, target, "none", target_weights=weights, alpha=ALPHA, bias=bias)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    mean = definition.objective(z, target, target_weights=weights, alpha=ALPHA, bias=bias)
    torch.testing.assert_close(mean, want.sum() / (rows - 1), rtol=1e-12, atol=1e-12)


def test_torchs_cross_entropy() -> None:
    """Class weights, ignored targets, soft targets: as torch has them."""
    z, _, target = dense_case()
    generator = torch.Generator().manual_seed(2)
    weight = torch.rand(z.shape[-1], dtype=torch.float64, generator=generator)
    target[2] = -1
    loss = SoftmaxCrossEntropy()
    for reduction in ("none", "sum", "mean"):
        for of_class in (None, weight):
            options = {"ignore_index": -1, "weight": of_class, "reduction": reduction}
            want = functional.cross_entropy(z, target, **options)
            torch.testing.assert_close(loss(z, target, **options), want, rtol=1e-12, atol=1e-13)
    two = torch.randint(z.shape[-1], (len(z), 2), generator=generator)
    share = torch.rand(len(z), 1, dtype=torch.float64, generator=generator)
    shares = torch.cat([share, 1 - share], -1)
    p = torch.zeros_like(z).scatter_add(-1, two, shares)
    for of_class in (None, weight):
        want = functional.cross_entropy(z, p, weight=of_class)
        got = loss(z, two, target_weights=shares, weight=of_class)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    smooth = functional.cross_entropy(z, target, label_smoothing=0.1, ignore_index=-1) / 0.9
    torch.testing.assert_close(LabelSmoothing(0.1)(z, target, ignore_index=-1), smooth)


@each
def test_gradcheck_of_the_dense_form(objective: Objective) -> None:
    z, bias, target = dense_case(4, 5)
    alpha = torch.tensor([ALPHA], dtype=torch.float64)
    soft = torch.stack([target, (target + 2) % 5], -1)
    weights = torch.rand(4, 2, dtype=torch.float64)
    for tensor in (z, alpha, bias):
        tensor.requires_grad_(True)

    def hard(z: Tensor, alpha: Tensor, bias: Tensor) -> Tensor:
        return objective(z, target, "none", alpha=alpha, bias=bias)

    def mixed(z: Tensor, alpha: Tensor, bias: Tensor) -> Tensor:
        return objective(z, soft, target_weights=weights, alpha=alpha, bias=bias)

    assert torch.autograd.gradcheck(hard, (z, alpha, bias))
    assert torch.autograd.gradcheck(mixed, (z, alpha, bias))


def test_a_certain_row_keeps_its_small_loss() -> None:
    """In float32, where logsumexp − z_t has no digit left."""
    z = torch.tensor([[30.0, 2.0, 1.0]], requires_grad=True)
    target = torch.tensor([0])
    loss = SoftmaxCrossEntropy()(z, target)
    want = math.log1p(math.exp(-28) + math.exp(-29))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(want, rel=1e-5)
    assert float(z.grad[0, 0]) == pytest.approx(-want, rel=1e-5)
    assert float(SigmoidCrossEntropy()(z.detach() - 40, target)) == pytest.approx(10.0000454, 1e-6)


def test_arcface_is_monotone_and_has_finite_gradients() -> None:
    c = torch.linspace(-1, 1, 4001, requires_grad=True)
    z = torch.stack([8 * c, torch.zeros_like(c)], -1)
    target = torch.zeros(len(c), dtype=torch.int64)
    for objective in (ArcFace(0.5), ArcFace(math.pi / 2), ArcFace(0.3, easy_margin=True)):
        losses = objective(z, target, "none", alpha=8.0)
        (gradient,) = torch.autograd.grad(losses.sum(), c, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient <= 0).all()  # the loss falls as the cosine grows
    assert (losses.diff()[:1999] <= 0).all()
    # The losses of either branch, beside the place where they meet.
    m = 0.5
    at = torch.tensor([-math.cos(m) - 1e-3, -math.cos(m) + 1e-3], dtype=torch.float64)
    z = torch.stack([8 * at, torch.zeros(2)], -1)
    got = ArcFace(m)(z, target[:2], "none", alpha=8.0)
    cosine = torch.stack([at[0] - m * math.sin(m), (at[1].acos() + m).cos()])
    torch.testing.assert_close(got, functional.softplus(-8 * cosine))


def test_initial_bias_of_sigmoid_gives_probabilities_that_add_up_to_one() -> None:
    bias = SigmoidCrossEntropy.initial_bias(1000)
    assert 1000 / (1 + math.exp(-bias)) == pytest.approx(1, abs=1e-3)


LOGITS = torch.zeros(3, 4)
TARGET = torch.tensor([0, 1, 2])
BAD = [
    (lambda: LabelSmoothing(1.0), "epsilon is 1.0, expected 0 to below 1"),
    (lambda: Dropout(1.5), "p is 1.5, expected 0 to below 1"),
    (lambda: FinalLayerL2(-1.0), "lambda_ is -1.0, expected a number of at least 0"),
    (lambda: LogitPenalty(math.nan), "beta is nan, expected a number of at least 0"),
    (lambda: LogitNormalization(0.0), "temperature is 0.0, expected a positive number"),
    (lambda: CosineSoftmax(-0.1), "temperature is -0.1, expected a positive number"),
    (lambda: SquaredError(kappa=0.0), "kappa is 0.0, expected a positive number"),
    (lambda: SquaredError(peak=math.inf), "peak is inf, expected a finite number"),
    (lambda: ZLoss(-1.0), "weight is -1.0, expected a number of at least 0"),
    (lambda: CosFace(1.5), "margin is 1.5, expected 0 to 1"),
    (lambda: ArcFace(2.0), "margin is 2.0, expected 0 to π/2"),
    (lambda: ArcFace(math.nan), "margin is nan, expected 0 to π/2"),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET, "average"),
        "reduction is 'average', expected 'mean', 'sum' or 'none'",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET.int()),
        "target is torch.int32, expected torch.int64",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET[:2]),
        r"target has shape \[2\], expected \[3\], that of x without its last dimension",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, torch.tensor([0, 1, 4])),
        r"target\[2\] is 4, expected a class in \[0, 4\)",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET, weight=torch.ones(5)),
        r"weight has shape \[5\], expected \[4\], one for each class",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET, weight=torch.tensor([1, math.nan, 1, 1])),
        r"weight\[1\] is nan, expected a finite number of at least 0",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET, weight=torch.ones(4).long()),
        "weight is torch.int64, expected a floating dtype",
    ),
    (
        lambda: SoftmaxCrossEntropy()(LOGITS, TARGET[:, None], target_weights=torch.ones(3, 2)),
        r"target_weights has shape \[3, 2\], expected that of target, \[3, 1\]",
    ),
    (
        lambda: SoftmaxCrossEntropy()(
            LOGITS, TARGET[:, None], target_weights=torch.tensor([[1.0], [-1.0], [0.0]])
        ),
        r"target_weights\[1, 0\] is -1.0, expected a finite number of at least 0",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_is_one_sentence(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


# The statistics of a fixed head, beside those of its logits.

BOOKS = {
    "folded": synthetic(100, 9, log2=7),
    "negated": synthetic(64, 100, log2=6, negate=True),
    "masked and negated": synthetic(30, 150, log2=5, blocks=3, negate=True),
    "base matrix and masks": synthetic(24, 60, log2=1, base_order=12, blocks=3),
    "centred": synthetic(64, 33, log2=6, center=True),
    "one class": synthetic(4, 1, log2=2),
}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)


def operands(
    book: Codebook, dtype: torch.dtype, rows: int, has_bias: bool = True, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(seed)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    x = torch.randn(rows, book.in_features, generator=generator, dtype=torch.float64).to(dtype)
    bias = torch.randn(book.num_classes, generator=generator, dtype=torch.float64).to(exact)
    return x, torch.tensor([7.0], dtype=exact), bias if has_bias else None


def some_ids(book: Codebook, rows: int, each: int) -> Tensor:
    """Some repeat in their row."""
    generator = torch.Generator().manual_seed(each)
    ids = torch.randint(book.num_classes, (rows, each), generator=generator)
    if each > 1:
        ids[0] = ids[0, 0]
        ids[1, 0] = ids[1, each - 1]
    return ids


def logits64(book: Codebook, x: Tensor, alpha: Tensor, bias: Tensor | None) -> Tensor:
    b = None if bias is None else bias.numpy()
    return torch.from_numpy(reference.logits(x.double().numpy(), expand(book), float(alpha), b))


@books
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("each", [0, 1, 5])
def test_statistics_of_a_fixed_head(
    isa: str, book: Codebook, dtype: torch.dtype, each: int
) -> None:
    rows = 6
    ids = some_ids(book, rows, each)
    arguments = ops.codebook_arguments(book)
    for has_bias in (True, False):
        x, alpha, bias = operands(book, dtype, rows, has_bias)
        z = logits64(book, x, alpha, bias)
        want = of_logits(z, ids, ALL)
        got = ops.head_statistics(x, alpha, bias, arguments, ids, ALL)
        unit = 2.0**-52 if dtype == torch.float64 else 2.0**-23
        # Of a logit: 4 units of α (docs/accuracy.md); the sums add them up.
        bound = 16 * unit * (7 + 4)
        size = z.abs().sum(-1) + 1
        assert ((got.logits - want.logits).abs() <= bound).all()
        assert ((got.logsumexp - want.logsumexp).abs() <= bound)[want.logsumexp > -math.inf].all()
        assert (got.logsumexp == -math.inf)[want.logsumexp == -math.inf].all()
        for name, scale in (
            ("sum", size),
            ("squares", z.square().sum(-1) + size),
            ("softplus", size),
        ):
            error = (getattr(got, name) - getattr(want, name)).abs()
            assert (error <= bound * scale).all(), name
        for which in (Sums.SUM, Sums.LOGSUMEXP | Sums.SOFTPLUS):
            some = ops.head_statistics(x, alpha, bias, arguments, ids, int(which))
            for i, (one, all_) in enumerate(zip(some[1:], got[1:], strict=True)):
                if which >> i & 1:
                    assert torch.equal(one, all_)
                else:
                    assert one.shape == (0,)


@books
def test_statistics_of_allowed_classes(isa: str, book: Codebook) -> None:
    """Forbidden classes, ids among them, take no part in the sums; every other class of a row
    may be forbidden."""
    rows, c = 6, book.num_classes
    x, alpha, bias = operands(book, torch.float32, rows)
    ids = some_ids(book, rows, 2)
    arguments = ops.codebook_arguments(book)
    z = logits64(book, x, alpha, bias)
    generator = torch.Generator().manual_seed(5)
    allowed = torch.rand(rows, c, generator=generator) < 0.6
    allowed[0] = False
    allowed[range(rows), ids[:, 0]] = True
    left_out = torch.zeros(rows, c, dtype=torch.bool).scatter(-1, ids, True) | ~allowed
    below = z.masked_fill(left_out, -math.inf)
    zero = z.masked_fill(left_out, 0)
    want = [
        z.masked_fill(~allowed, -math.inf).gather(-1, ids),
        below.logsumexp(-1),
        zero.sum(-1),
        zero.square().sum(-1),
        torch.logaddexp(below, torch.zeros(())).sum(-1),
    ]
    got = ops.head_statistics(
        x, alpha, bias, arguments, ids, ALL, allowed=ops.pack_allowed(allowed)
    )
    for one, expected in zip(got, want, strict=True):
        torch.testing.assert_close(one.double(), expected, rtol=1e-5, atol=2e-4)


def test_statistics_of_special_rows(isa: str) -> None:
    book = BOOKS["negated"]
    x, alpha, bias = operands(book, torch.float32, 4)
    x[1, 3] = math.nan
    x[2] = 0
    ids = some_ids(book, 4, 2)
    arguments = ops.codebook_arguments(book)
    got = ops.head_statistics(x, alpha, bias, arguments, ids, ALL)
    for each in got:
        assert each[1].isnan().all()
        assert each[[0, 2, 3]].isfinite().all()
    # A bias of −∞ leaves a class out of the exponentials; NaN reaches every sum, but no other z.
    bias[7] = -math.inf
    ids = torch.full((4, 1), 3)
    _, lse, total, squares, softplus = ops.head_statistics(x, alpha, bias, arguments, ids, ALL)
    z = logits64(book, x, alpha, bias)
    want = of_logits(z, ids, Sums.LOGSUMEXP | Sums.SOFTPLUS)
    for got_, want_ in ((lse, want.logsumexp), (softplus, want.softplus)):
        torch.testing.assert_close(got_[[0, 2, 3]].double(), want_[[0, 2, 3]], rtol=1e-5, atol=1e-5)
    assert (total[[0, 2, 3]] == -math.inf).all()
    assert (squares[[0, 2, 3]] == math.inf).all()
    bias[7] = math.nan
    logits, *sums = ops.head_statistics(x, alpha, bias, arguments, ids, ALL)
    assert logits[0].isfinite().all()
    assert all(each.isnan().all() for each in sums)


def test_a_softplus_of_many_small_terms_keeps_its_digits(isa: str) -> None:
    """e^−20 a class: 1 + e^−20 rounds to 1 in float32, times 150 classes."""
    book = BOOKS["masked and negated"]
    x, _, _ = operands(book, torch.float32, 2)
    for level in (-20.0, -9.0, 0.0, 30.0):
        bias = torch.full((150,), level)
        ids = torch.tensor([[0], [149]])
        alpha = torch.zeros(1)
        softplus = ops.head_statistics(
            x, alpha, bias, ops.codebook_arguments(book), ids, Sums.SOFTPLUS
        )[4]
        want = 149 * (max(level, 0) + math.log1p(math.exp(-abs(level))))
        assert softplus.tolist() == pytest.approx([want, want], rel=2e-6)


def test_statistics_are_batch_invariant(isa: str, torch_threads: None) -> None:
    """A row's bits depend on its features and ids alone: not on the batch, its place in it, the
    stride or the threads; forward and backward."""
    book = synthetic(64, 70_000, log2=6, blocks=600, negate=True)
    arguments = ops.codebook_arguments(book)
    wide = torch.randn(40, 70, generator=torch.Generator().manual_seed(0))
    x = wide[:, 3:67]
    alpha, ids = torch.tensor([9.0]), some_ids(book, 40, 2)

    def run(rows: Tensor, x: Tensor) -> list[Tensor]:
        x = x[rows].requires_grad_()
        found = ops.head_statistics(x, alpha, None, arguments, ids[rows], ALL)
        weighted = [(i + 1) * each.sum() / (1, 1, 100, 9e3, 1e3)[i] for i, each in enumerate(found)]
        (gradient,) = torch.autograd.grad(sum(weighted), x)
        return [*(each.detach() for each in found), gradient]

    torch.set_num_threads(1)
    whole = run(torch.arange(40), x)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (torch.arange(1), torch.arange(3, 40, 8), torch.arange(40).flip(0)):
            for got, want in zip(run(rows, x), whole, strict=True):
                assert torch.equal(got, want[rows])


def test_statistics_of_int8_and_packed_features() -> None:
    book = BOOKS["negated"]
    _, alpha, bias = operands(book, torch.float32, 3)
    values = torch.randint(-127, 128, (3, 64), dtype=torch.int8)
    signs = torch.where(values < 0, -1.0, 1.0)
    ids, arguments = some_ids(book, 3, 1), ops.codebook_arguments(book)
    for x, meant in ((values, values.float()), (ops.pack_signs(signs), signs)):
        got = ops.head_statistics(x, alpha, bias, arguments, ids, ALL)
        want = ops.head_statistics(meant, alpha, bias, arguments, ids, ALL)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def statistics_losses(found: tuple[Tensor, ...]) -> list[Tensor]:
    """Functions of the statistics that need all of their derivatives."""
    logits, lse, total, squares, softplus = found
    return [
        (logits.square().sum(-1) * lse.exp() + total * lse + squares.sqrt() + softplus.square()),
        logits.sum(-1),
    ]


@pytest.mark.parametrize("name", [name for name in BOOKS if name != "one class"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_of_the_statistics(name: str, normalize: bool) -> None:
    """Backward and forward mode, with and without a bias and a mask."""
    book = BOOKS[name]
    x, alpha, bias = operands(book, torch.float64, 3)
    if not normalize:
        x = x / 16
    ids, arguments = some_ids(book, 3, 2), ops.codebook_arguments(book)
    keep = torch.rand(3, book.num_classes, generator=torch.Generator().manual_seed(1)) < 0.7
    keep[:, :2] = True
    masks = (None, ops.pack_allowed(keep.scatter(-1, ids, True)))
    for allowed in masks:

        def run(x: Tensor, alpha: Tensor, bias: Tensor | None, allowed=allowed) -> tuple:
            return ops.head_statistics(
                x, alpha, bias, arguments, ids, ALL, allowed=allowed, normalize=normalize
            )

        def unbiased(x: Tensor, alpha: Tensor, f=run) -> list[Tensor]:
            return statistics_losses(f(x, alpha, None))

        def biased(*inputs: Tensor, f=run) -> list[Tensor]:
            return statistics_losses(f(*inputs))

        inputs = [each.clone().requires_grad_() for each in (x, alpha, bias)]
        options = {"check_forward_ad": True, "fast_mode": True}
        assert torch.autograd.gradcheck(biased, inputs, **options)
        assert torch.autograd.gradcheck(unbiased, inputs[:2], **options)


def test_statistics_under_torch_func() -> None:
    book = BOOKS["masked and negated"]
    x, alpha, bias = operands(book, torch.float64, 4)
    ids, arguments = some_ids(book, 4, 2), ops.codebook_arguments(book)

    def loss(x: Tensor, ids: Tensor, which: int = int(ALL)) -> Tensor:
        found = ops.head_statistics(x, alpha, bias, arguments, ids, which)
        return sum(each.sum() for each in found)

    each = [torch.func.grad(loss)(x[i], ids[i]) for i in range(4)]
    got = torch.func.vmap(torch.func.grad(loss))(x, ids)
    torch.testing.assert_close(got, torch.stack(each))
    which = int(Sums.SQUARES)
    got = torch.func.vmap(lambda x, i: loss(x, i, which))(x, ids)
    torch.testing.assert_close(got, torch.stack([loss(x[i], ids[i], which) for i in range(4)]))


@pytest.mark.parametrize("which", [int(ALL), int(Sums.SQUARES)])
def test_opcheck_of_the_statistics(which: int) -> None:
    book = BOOKS["base matrix and masks"]
    for dtype, grad, has_bias in ((torch.float64, True, True), (torch.bfloat16, False, False)):
        x, alpha, bias = operands(book, dtype, 3, has_bias)
        if grad:
            x, alpha, bias = (each.requires_grad_() for each in (x, alpha, bias))
        ids = some_ids(book, 3, 2)
        inputs = (x, alpha, bias, *ops.codebook_arguments(book), True, ids, which)
        op = torch.ops.fixclf.head_statistics.default
        torch.library.opcheck(op, inputs)
        torch.library.opcheck(op, (*inputs[:-2], ids[:, 0], which))
        allowed = ops.pack_allowed(torch.ones(3, 60, dtype=torch.bool))
        torch.library.opcheck(op, inputs, {"allowed": allowed})


@pytest.mark.parametrize("softmax", [True, False])
def test_opcheck_of_every_term_of_the_backward_pass(softmax: bool) -> None:
    book = BOOKS["negated"]
    x, alpha, bias = operands(book, torch.float32, 3)
    a = torch.rand(3) if softmax else None
    op = torch.ops.fixclf.head_reduction_backward.default
    ids = some_ids(book, 3, 2)
    head = (x, alpha, bias, *ops.codebook_arguments(book), True)
    given = (*head, ids, a, a, torch.rand(3, 2), torch.rand(3))
    terms = {"linear_grad": torch.rand(3), "sigmoid_grad": torch.rand(3), "others": True}
    torch.library.opcheck(op, given, terms)


def test_errors_of_the_operators() -> None:
    book = BOOKS["negated"]
    x, alpha, bias = operands(book, torch.float32, 3)
    arguments = ops.codebook_arguments(book)
    ids = torch.tensor([[0, 1], [2, 100], [0, 0]])
    with pytest.raises(ValueError, match=r"ids\[1, 1\] is 100, expected a class in \[0, 100\)"):
        ops.head_statistics(x, alpha, bias, arguments, ids, 1)
    with pytest.raises(ValueError, match="which is 16, expected the sum of some of 1"):
        ops.head_statistics(x, alpha, bias, arguments, ids % 100, 16)
    op = torch.ops.fixclf.head_reduction_backward
    with pytest.raises(ValueError, match="logsumexp is not given, but softmax_grad is"):
        op(x, alpha, bias, *arguments, True, ids % 100, None, torch.rand(3), torch.rand(3, 2))


# Objectives on a fixed head.

HEADS = [("hadamard", 32, 20), ("kerdock", 16, 100), ("etf", 16, 16), ("orthonormal", 24, 18)]
heads = pytest.mark.parametrize(("kind", "n", "c"), HEADS)


def module(kind: str, n: int, c: int, dtype: torch.dtype) -> FixedClassifier:
    head = FixedClassifier(n, c, codebook=kind, alpha=6.0, dtype=dtype)
    with torch.no_grad():
        head.bias.copy_(torch.randn(c, generator=torch.Generator().manual_seed(3)))
    return head


def dense_loss(head: FixedClassifier, objective: Objective, x: Tensor, *arguments, **options):
    """Of the logits of the head, made of its parameters in their dtype."""
    book = head.codebook
    w = torch.from_numpy(book.dense if book.kernel is None else expand(book)).to(head.alpha.dtype)
    x, alpha, bias = objective.operands(x.to(head.alpha.dtype), head.alpha, head.bias, False)
    z = alpha / math.sqrt(head.in_features) * functional.normalize(x, dim=-1) @ w.T
    z = z if bias is None else z + bias
    if isinstance(objective, CosineSoftmax):
        z = z * objective.temperature  # the cosines
    return objective(z, *arguments, alpha=alpha, bias=bias, **options)


@heads
@each
def test_fused_is_dense(kind: str, n: int, c: int, objective: Objective) -> None:
    """The loss and all gradients: float64 tightly, bfloat16 features as float32 of them."""
    generator = torch.Generator().manual_seed(4)
    target = torch.randint(c, (2, 3), generator=generator)
    target[0, 1] = -100
    weight = torch.rand(c, generator=generator)
    soft = torch.randint(c, (2, 3, 2), generator=generator)
    soft[1, 1] = 5
    shares = torch.rand(2, 3, 2, generator=generator)
    features = torch.randn(2, 3, n, generator=generator)
    features[0, 1] = 0.1
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-5)):
        head = module(kind, n, c, dtype)
        for options in (
            {"target": target, "weight": weight.to(dtype)},
            {"target": target, "reduction": "none"},
            {"target": soft, "target_weights": shares.to(dtype), "reduction": "sum"},
        ):
            results = []
            for loss in (
                partial(head.loss, objective=objective),
                partial(dense_loss, head, objective),
            ):
                head.zero_grad()
                x = features.to(dtype).requires_grad_()
                value = loss(x, **options)
                value.sum().backward()
                results.append([value.detach(), x.grad, *(p.grad for p in head.parameters())])
            for got, want in zip(*results, strict=True):
                if got is None or want is None:  # α or b takes no part
                    assert all(g is None or not g.any() for g in (got, want))
                    continue
                bound = tolerance * (1 + float(want.abs().max()))
                assert float((got - want).abs().max()) <= bound
    half = features.bfloat16()
    torch.testing.assert_close(
        head.loss(half, target, objective=objective),
        head.loss(half.float(), target, objective=objective),
        rtol=2e-2 if not objective.fused or head.dense is not None else 1e-5,
        atol=1e-4,
    )


@each
def test_gradcheck_on_a_fixed_head(objective: Objective) -> None:
    head = module("kerdock", 4, 8, torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0, 3], [7, 7], [5, 1]])
    shares = torch.rand(3, 2, dtype=torch.float64)
    names = [name for name, _ in head.named_parameters()]

    def loss(x: Tensor, *values: Tensor) -> Tensor:
        parameters = dict(zip(names, values, strict=True))
        arguments = (x, target, "none")
        options = {"objective": objective, "target_weights": shares}
        return torch.func.functional_call(head, parameters, arguments, options)

    head.forward = head.loss
    parameters = [p.detach().clone().requires_grad_() for p in head.parameters()]
    assert torch.autograd.gradcheck(loss, (x, *parameters))


def test_without_an_objective_weights_are_those_of_the_cross_entropy() -> None:
    head = module("kerdock", 16, 100, torch.float64)
    x, target = torch.randn(5, 16, dtype=torch.float64), torch.tensor([1, 99, 0, 7, -100])
    weight = torch.rand(100, dtype=torch.float64)
    want = functional.cross_entropy(head(x), target, weight=weight)
    torch.testing.assert_close(head.loss(x, target, weight=weight), want)
    torch.testing.assert_close(
        head.loss(x, target, objective=SoftmaxCrossEntropy()), head.loss(x, target)
    )


def test_rows_that_do_not_count_have_no_gradient_whatever_they_hold() -> None:
    for objective in OBJECTIVES:
        head = module("kerdock", 16, 100, torch.float32)
        x = torch.randn(3, 16)
        x[1] = math.nan
        x.requires_grad_()
        loss = head.loss(x, torch.tensor([4, -100, 99]), objective=objective)
        loss.backward()
        assert loss.isfinite()
        if objective.fused:
            assert x.grad.isfinite().all() and not x.grad[1].any(), objective
            assert head.bias.grad is None or head.bias.grad.isfinite().all()
    for target in (torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, 3, dtype=torch.int64)):
        weights = None if target.dim() == 2 else torch.zeros(2, 0, 3)
        empty = head.loss(
            torch.zeros(2, 0, 16), target, "none", objective=ZLoss(), target_weights=weights
        )
        assert empty.shape == (2, 0)
        empty.sum().backward()


def test_dropout_drops_features_in_training_only() -> None:
    head = module("kerdock", 16, 100, torch.float32)
    x, target = torch.randn(4, 16), torch.arange(4)
    plain = head.loss(x, target)
    torch.manual_seed(0)
    dropped = head.loss(x, target, objective=Dropout(0.5))
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, head.loss(functional.dropout(x, 0.5), target))
    assert not torch.isclose(dropped, plain)
    head.eval()
    torch.testing.assert_close(head.loss(x, target, objective=Dropout(0.5)), plain)


@pytest.mark.parametrize(("kind", "n", "c"), [("kerdock", 16, 100), ("orthonormal", 24, 18)])
def test_compile(kind: str, n: int, c: int) -> None:
    head = module(kind, n, c, torch.float32)
    target = torch.arange(5) % c
    soft, shares = torch.stack([target, target.flip(0)], -1), torch.rand(5, 2)

    def step(x: Tensor) -> Tensor:
        total = head.loss(x, soft, target_weights=shares, objective=ArcFace(0.3))
        for objective in (SigmoidCrossEntropy(), SquaredError(), ZLoss(), LabelSmoothing()):
            total = total + head.loss(x, target, objective=objective)
        return total

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, n)
    results = []
    for function in (step, compiled):
        head.zero_grad()
        features = x.clone().requires_grad_()
        loss = function(features)
        loss.backward()
        results.append([loss.detach(), features.grad, *(p.grad for p in head.parameters())])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_bad_input_of_the_module() -> None:
    head, x = FixedClassifier(16, 100), torch.randn(3, 16)
    target = torch.tensor([0, 1, 2])
    for change, message in (
        (
            {"label_smoothing": 0.1, "objective": ZLoss()},
            "label_smoothing is 0.1, expected 0 beside",
        ),
        ({"target": target + 98, "objective": ZLoss()}, r"target\[2\] is 100, expected a class in"),
        ({"target": target[:2], "objective": ZLoss()}, r"target has shape \[2\], expected \[3\]"),
        ({"weight": torch.full((100,), math.nan)}, r"weight\[0\] is nan, expected a finite number"),
        (
            {"target_weights": torch.ones(3)},
            r"target has shape \[3\], expected \[3\], that of x .* and one more",
        ),
        ({"objective": ZLoss(), "reduction": "all"}, "reduction is 'all', expected"),
    ):
        with pytest.raises(ValueError, match=message):
            head.loss(x, **{"target": target, **change})


MEMORY = """
import torch
from fixclf_infer.nn import FixedClassifier, objectives

def field(name):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

def reset():
    open("/proc/self/clear_refs", "w").write("5")

def work(head):
    for objective in (objectives.SigmoidCrossEntropy(), objectives.SquaredError(),
                      objectives.ZLoss(), objectives.ArcFace()):
        x = torch.randn(8, 512, requires_grad=True)
        head.loss(x, torch.arange(8), objective=objective).backward()
        assert x.grad.abs().sum() > 0

torch.set_num_threads(1)
small, large = (FixedClassifier(512, c, bias=False) for c in (20_000, 200_000))
work(small)
work(small)
before = field("VmRSS")
reset()
work(large)
grown = field("VmHWM") - before
before = field("VmRSS")
reset()
dense = torch.ones(8, 200_000)  # what the measurement would show
print(grown, field("VmHWM") - before)
"""


def test_no_array_of_logits() -> None:
    """Of 8 rows of 200 000 classes, 6.4 MB, forward and backward."""
    grown, dense = map(int, run(MEMORY).stdout.split())
    assert dense > 5_000
    assert grown < 2_000, f"{grown} kB"
