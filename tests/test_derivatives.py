"""Derivatives in reverse and forward mode, of every operator, and under `torch.func`, against a
dense layer in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import expand
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap

from fixclf_infer import codebook, hadamard_transform, ops
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

BOOKS = {
    "masks": codebook(16, 60),
    "base": codebook(12, 11),
    "columns dropped": codebook(13, 9, "hadamard"),
    "etf": codebook(16, 10, "etf"),
}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


class Inputs:
    """x, α and bias in float64, and what the reductions take."""

    def __init__(self, book: Codebook) -> None:
        n, c = book.in_features, book.num_classes
        self.book, self.codebook = book, ops.codebook_arguments(book)
        self.w = torch.from_numpy(expand(book))
        self.x = torch.randn(4, n, dtype=torch.float64)
        self.alpha = torch.tensor([2.5], dtype=torch.float64)
        self.bias = torch.randn(c, dtype=torch.float64)
        allowed = torch.rand(4, c) < 0.7
        allowed[:, :3] = True
        self.allowed, self.mask = allowed, ops.pack_allowed(allowed)
        self.ids = torch.stack([row.nonzero()[:3, 0] for row in allowed])
        self.target = torch.tensor([1, -100, c - 1, 0])

    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(t.clone().requires_grad_() for t in (self.x, self.alpha, self.bias))

    def logits(self, x: Tensor, alpha: Tensor, bias: Tensor) -> Tensor:
        unit = nn.functional.normalize(x, dim=-1)
        return alpha / math.sqrt(x.shape[-1]) * unit @ self.w.T + bias


# name → (ours, dense), both of (inputs, x, α, bias).
def _masked(i: Inputs, z: Tensor) -> Tensor:
    return z.masked_fill(~i.allowed, -math.inf)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "logits": (lambda i, *a: ops.head(*a, i.codebook), lambda i, *a: i.logits(*a)),
    "softmax": (
        lambda i, *a: ops.head(*a, i.codebook, epilogue=Epilogue.SOFTMAX),
        lambda i, *a: i.logits(*a).softmax(-1),
    ),
    "log-softmax": (
        lambda i, *a: ops.head(*a, i.codebook, epilogue=Epilogue.LOG_SOFTMAX),
        lambda i, *a: i.logits(*a).log_softmax(-1),
    ),
    "sigmoid": (
        lambda i, *a: ops.head(*a, i.codebook, epilogue=Epilogue.SIGMOID),
        lambda i, *a: i.logits(*a).sigmoid(),
    ),
    "top-k": (
        lambda i, *a: ops.head_topk(*a, i.codebook, 3)[0],
        lambda i, *a: i.logits(*a).topk(3)[0],
    ),
    "top-k, log-probabilities, masked": (
        lambda i, *a: ops.head_topk(*a, i.codebook, 2, log_probabilities=True, allowed=i.mask)[0],
        lambda i, *a: _masked(i, i.logits(*a)).log_softmax(-1).topk(2)[0],
    ),
    "logsumexp": (
        lambda i, *a: ops.head_topk(*a, i.codebook, 1)[2],
        lambda i, *a: i.logits(*a).logsumexp(-1),
    ),
    "log-probabilities": (
        lambda i, *a: ops.head_log_prob(*a, i.codebook, i.ids)[0],
        lambda i, *a: i.logits(*a).log_softmax(-1).gather(-1, i.ids),
    ),
    "log-probabilities, one, masked": (
        lambda i, *a: ops.head_log_prob(*a, i.codebook, i.ids[:, 1], allowed=i.mask)[0],
        lambda i, *a: _masked(i, i.logits(*a)).log_softmax(-1).gather(-1, i.ids[:, 1:2])[:, 0],
    ),
    "logits at ids": (
        lambda i, *a: ops.head_log_prob(*a, i.codebook, i.ids)[1],
        lambda i, *a: i.logits(*a).gather(-1, i.ids),
    ),
    "loss": (
        lambda i, *a: ops.head_nll(*a, i.codebook, i.target)[0],
        lambda i, *a: nn.functional.cross_entropy(i.logits(*a), i.target, reduction="none"),
    ),
    "loss, smoothed": (
        lambda i, *a: ops.head_nll(*a, i.codebook, i.target, label_smoothing=0.2)[0],
        lambda i, *a: nn.functional.cross_entropy(
            i.logits(*a), i.target, reduction="none", label_smoothing=0.2
        ),
    ),
}
MAPS = ("logits", "softmax", "log-softmax", "sigmoid")
functions = pytest.mark.parametrize("name", FUNCTIONS)


def near(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@books
@functions
def test_reverse_mode(book: Codebook, name: str) -> None:
    inputs = Inputs(book)
    results = []
    for function in FUNCTIONS[name]:
        leaves = inputs.leaves()
        out = function(inputs, *leaves)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
        results.append([out, *torch.autograd.grad((weight * out).sum(), leaves)])
    for got, want in zip(*results, strict=True):
        near(got, want)


@books
@functions
def test_forward_mode(book: Codebook, name: str) -> None:
    inputs = Inputs(book)
    primals = (inputs.x, inputs.alpha, inputs.bias)
    tangents = tuple(torch.randn_like(t) for t in primals)
    ours, dense = FUNCTIONS[name]
    want = jvp(lambda *a: dense(inputs, *a), primals, tangents)
    got = jvp(lambda *a: ours(inputs, *a), primals, tangents)
    near(got[0], want[0])
    near(got[1], want[1])
    near(
        jvp(lambda x: ours(inputs, x, *primals[1:]), primals[:1], tangents[:1])[1],
        jvp(lambda x: dense(inputs, x, *primals[1:]), primals[:1], tangents[:1])[1],
    )
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, t) for p, t in zip(primals, tangents, strict=True)]
        near(forward_ad.unpack_dual(ours(inputs, *duals)).tangent, want[1])


@pytest.mark.parametrize("epilogue", list(Epilogue))
def test_forward_mode_over_reverse_mode(epilogue: Epilogue) -> None:
    inputs = Inputs(BOOKS["masks"])

    def head(*leaves: Tensor) -> Tensor:
        return ops.head(*leaves, inputs.codebook, epilogue=epilogue)

    assert gradcheck(head, inputs.leaves(), check_forward_ad=True)
    assert gradgradcheck(head, inputs.leaves(), check_fwd_over_rev=True)


def test_the_transform_in_forward_mode() -> None:
    x, t = torch.randn(3, 8), torch.randn(3, 8)
    torch.testing.assert_close(
        jvp(lambda x: hadamard_transform(x, 0.5), (x,), (t,))[1], hadamard_transform(t, 0.5)
    )
    torch.testing.assert_close(vmap(hadamard_transform, in_dims=1)(x.unsqueeze(0))[:, 0], x @ _h(8))


def _h(n: int) -> Tensor:
    return hadamard_transform(torch.eye(n))


@books
@functions
def test_reverse_mode_under_func(book: Codebook, name: str) -> None:
    inputs = Inputs(book)
    ours, dense = FUNCTIONS[name]
    rest = (inputs.alpha, inputs.bias)
    near(
        jacrev(lambda x: ours(inputs, x, *rest))(inputs.x),
        jacrev(lambda x: dense(inputs, x, *rest))(inputs.x),
    )


@pytest.mark.parametrize("name", MAPS)
def test_second_derivatives_under_func(name: str) -> None:
    inputs = Inputs(BOOKS["masks"])
    ours, dense = FUNCTIONS[name]
    rest = (inputs.alpha, inputs.bias)
    x = inputs.x[0]
    near(
        hessian(lambda x: ours(inputs, x, *rest).square().sum())(x),
        hessian(lambda x: dense(inputs, x, *rest).square().sum())(x),
    )
    near(
        jacfwd(lambda a: ours(inputs, inputs.x, a, rest[1]))(inputs.alpha),
        jacfwd(lambda a: dense(inputs, inputs.x, a, rest[1]))(inputs.alpha),
    )


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in MAPS and n != "logits at ids"])
def test_reductions_have_no_second_derivative(name: str) -> None:
    inputs = Inputs(BOOKS["masks"])
    leaves = inputs.leaves()
    out = FUNCTIONS[name][0](inputs, *leaves)
    (dx,) = torch.autograd.grad(out.sum(), leaves[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        dx.sum().backward()


def test_classes_have_no_derivative() -> None:
    inputs = Inputs(BOOKS["masks"])
    leaves = inputs.leaves()
    for indices in (
        ops.head_topk(*leaves, inputs.codebook, 2)[1],
        ops.head_argmax(*leaves, inputs.codebook),
        ops.head_sample(*leaves, inputs.codebook, torch.arange(4)),
    ):
        assert not indices.requires_grad
        with pytest.raises(RuntimeError, match="does not require grad"):
            indices.sum().backward()


@books
def test_gradients_for_each_sample(book: Codebook) -> None:
    inputs = Inputs(book)
    target = inputs.target.clamp_min(0)

    def ours(alpha: Tensor, bias: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.cross_entropy(ops.head(x, alpha, bias, inputs.codebook), t)

    def fused(alpha: Tensor, bias: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return ops.head_nll(x, alpha, bias, inputs.codebook, t)[0]

    def dense(alpha: Tensor, bias: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.cross_entropy(inputs.logits(x, alpha, bias), t)

    arguments = (inputs.alpha, inputs.bias, inputs.x, target)
    want = vmap(grad(dense, (0, 1, 2)), (None, None, 0, 0))(*arguments)
    for function in (ours, fused):
        got = vmap(grad(function, (0, 1, 2)), (None, None, 0, 0))(*arguments)
        for a, b in zip(got, want, strict=True):
            near(a, b)


@books
@functions
def test_vmap(book: Codebook, name: str) -> None:
    """Over rows, a middle dimension, and α and bias as ensembles have them; without a warning that
    it is slow."""
    inputs = Inputs(book)
    ours, dense = FUNCTIONS[name]
    alphas, biases = torch.randn(2, 1).double(), torch.randn(2, book.num_classes).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = vmap(lambda a, b: ours(inputs, inputs.x, a, b))(alphas, biases)
        xs = torch.stack([inputs.x, -inputs.x], 1)
        wide = vmap(lambda x: ours(inputs, x, inputs.alpha, inputs.bias), in_dims=1)(xs)
    for i in range(2):
        near(got[i], dense(inputs, inputs.x, alphas[i], biases[i]))
        near(wide[i], dense(inputs, xs[:, i], inputs.alpha, inputs.bias))


def test_vmap_of_classes() -> None:
    inputs = Inputs(BOOKS["masks"])
    rest = (inputs.alpha, inputs.bias, inputs.codebook)
    seeds = torch.arange(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        best = vmap(lambda x: ops.head_argmax(x, *rest))(inputs.x)
        masked = vmap(lambda x, m: ops.head_argmax(x, *rest, allowed=m))(inputs.x, inputs.mask)
        drawn = vmap(lambda x, s: ops.head_sample(x, *rest, s))(inputs.x, seeds)
    assert torch.equal(best, ops.head_argmax(inputs.x, *rest))
    assert torch.equal(masked, ops.head_argmax(inputs.x, *rest, allowed=inputs.mask))
    assert torch.equal(drawn, ops.head_sample(inputs.x, *rest, seeds))


def test_an_operator_under_func_says_what_to_call() -> None:
    inputs = Inputs(BOOKS["masks"])
    arguments = (inputs.alpha, inputs.bias, *inputs.codebook, True, 0)
    with pytest.raises(NotImplementedError, match=r"call fixclf_infer\.ops\.head"):
        grad(lambda x: torch.ops.fixclf.head(x, *arguments).sum())(inputs.x)


# The module.


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
def test_a_module_under_func(kind: str) -> None:
    head = FixedClassifier(16, 9, codebook=kind, dtype=torch.float64)
    x, t = torch.randn(4, 16).double(), torch.randn(4, 16).double()
    w = torch.from_numpy(head.codebook.matrix()).double()

    def dense(x: Tensor) -> Tensor:
        return head.alpha / 4 * nn.functional.normalize(x, dim=-1) @ w.T + head.bias

    near(jvp(head, (x,), (t,))[1], jvp(dense, (x,), (t,))[1])
    near(jacfwd(head)(x), jacfwd(dense)(x))
    near(jacrev(head)(x), jacrev(dense)(x))
    y = torch.tensor([0, 3, 8, 1])
    near(
        jvp(lambda x: head.loss(x, y), (x,), (t,))[1],
        jvp(lambda x: nn.functional.cross_entropy(dense(x), y), (x,), (t,))[1],
    )
    step = 1e-6
    near_enough = (head(x + step * t) - head(x - step * t)) / (2 * step)
    torch.testing.assert_close(jvp(head, (x,), (t,))[1], near_enough, rtol=1e-6, atol=1e-6)


def test_an_ensemble_of_modules() -> None:
    heads = [FixedClassifier(16, 9, alpha=float(i)) for i in (2, 5)]
    with torch.no_grad():
        for head in heads:
            head.bias.normal_()
    params, buffers = stack_module_state(heads)
    x = torch.randn(4, 16)
    got = vmap(lambda p, b: functional_call(heads[0], (p, b), (x,)))(params, buffers)
    for each, head in zip(got, heads, strict=True):
        torch.testing.assert_close(each, head(x))


def test_the_training_objective_of_the_report() -> None:
    """cross_entropy − 0.1 log_prob had a gradient that left its second term out."""
    head = FixedClassifier(16, 60)
    x, y, ids = torch.randn(4, 16), torch.tensor([0, 3, 8, 1]), torch.tensor([5, 6, 7, 8])
    gradients = []
    for at_ids in (
        lambda x: head.log_prob(x, ids),
        lambda x: head(x).log_softmax(-1).gather(-1, ids[:, None])[:, 0],
    ):
        leaf = x.clone().requires_grad_()
        head.zero_grad()
        (nn.functional.cross_entropy(head(leaf), y) - 0.1 * at_ids(leaf).sum()).backward()
        gradients.append((leaf.grad, head.alpha_spread.grad, head.bias.grad))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_compiled_reductions_have_derivatives() -> None:
    head, ids = FixedClassifier(16, 60), torch.tensor([[5, 6], [7, 8], [0, 1]])

    def step(x: Tensor) -> Tensor:
        values, _, lse = head.topk(x, 3)
        return values.sum() + lse.sum() + head.log_prob(x, ids).sum()

    x = torch.randn(3, 16)
    results = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        head.zero_grad()
        function(leaf).backward()
        results.append((leaf.grad, head.alpha_spread.grad.clone(), head.bias.grad.clone()))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_of_gradients(dtype: torch.dtype) -> None:
    inputs = Inputs(BOOKS["masks"])
    x = inputs.x.to(dtype).requires_grad_()
    alpha, bias = inputs.alpha.float().requires_grad_(), inputs.bias.float().requires_grad_()
    ops.head_log_prob(x, alpha, bias, inputs.codebook, inputs.ids)[0].sum().backward()
    assert x.grad.dtype == dtype and alpha.grad.dtype == bias.grad.dtype == torch.float32
    leaves = inputs.leaves()
    leaves[0].data = x.detach().double()
    FUNCTIONS["log-probabilities"][1](inputs, *leaves).sum().backward()
    bound = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(x.grad.double(), leaves[0].grad, rtol=bound, atol=bound)
    torch.testing.assert_close(bias.grad.double(), leaves[2].grad, rtol=1e-5, atol=1e-5)
