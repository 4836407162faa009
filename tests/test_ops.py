"""torch.ops.fixclf.*: schema, autograd, compilation, export, threads."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from backends import to_numpy, torch_head
from cases import EPILOGUES, any_codebook, check_head, expand, synthetic
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_norm_within, assert_within, gradient, logits
from torch import Tensor

from fixclf_infer import hadamard_transform, ops, reference
from fixclf_infer.codebooks import Codebook, codebook
from fixclf_infer.epilogue import Epilogue

BOOKS = {
    "one block": synthetic(6, 5, log2=3),
    "folded": synthetic(19, 3, log2=5),
    "negated": synthetic(4, 7, log2=2, negate=True),
    "masked": synthetic(7, 20, log2=3, blocks=3),
    "masked and negated": synthetic(4, 21, log2=2, blocks=3, negate=True),
    "base matrix": synthetic(10, 11, log2=0, base_order=12),
    "base matrix and masks": synthetic(7, 20, log2=1, base_order=4, blocks=3),
    "centred": synthetic(8, 6, log2=3, center=True),
    "centred, offsets": synthetic(7, 7, log2=3, center=True, row_offset=1, column_offset=1),
    "offsets": synthetic(7, 9, log2=3, blocks=2, row_offset=3, column_offset=1),
}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)
epilogues = pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: e.name.lower())

transform_op = torch.ops.fixclf.hadamard_transform.default
head_op = torch.ops.fixclf.head.default
adjoint_op = torch.ops.fixclf.project_adjoint.default


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(5)


def shards(book: Codebook) -> list[range | None]:
    c = book.num_classes
    return [None, range(1, c), range(c // 2, c // 2 + 1)]


def dense_head(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    matrix: Tensor,
    epilogue: Epilogue,
    normalize: bool = True,
) -> Tensor:
    """The head as a dense product in torch, for its gradients."""
    unit = torch.nn.functional.normalize(x, dim=-1) if normalize else x
    scale = alpha / matrix.shape[1] ** 0.5 if normalize else alpha
    z = scale * torch.nn.functional.linear(unit, matrix)
    z = z if bias is None else z + bias
    return {
        Epilogue.LOGITS: lambda: z,
        Epilogue.SOFTMAX: lambda: z.softmax(-1),
        Epilogue.LOG_SOFTMAX: lambda: z.log_softmax(-1),
        Epilogue.SIGMOID: z.sigmoid,
    }[epilogue]()


# Forward and adjoint.


@books
def test_forward_of_variants(book: Codebook) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, book.in_features)).astype(np.float32)
    for classes in shards(book):
        part = classes or range(book.num_classes)
        rows = expand(book)[part.start : part.stop]
        bias = rng.standard_normal(len(part)).astype(np.float32)
        for epilogue in EPILOGUES:
            got = torch_head(x, 4.0, bias, book, epilogue, classes=classes)
            check_head(got, x, rows, 4.0, bias, epilogue)


@books
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_adjoint_is_the_transpose(book: Codebook, dtype: torch.dtype) -> None:
    for classes in shards(book):
        part = classes or range(book.num_classes)
        rows = expand(book)[part.start : part.stop]
        g = torch.randn(2, 3, len(part)).to(dtype)
        got = adjoint_op(g, *ops.codebook_arguments(book, classes))
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        assert got.dtype == exact
        check_adjoint(got, g, rows)
        if len(part) > 1:  # columns of any stride
            padded = torch.randn(4, len(part) + 3).to(dtype)
            for view in (padded[:, 2 : 2 + len(part)], padded.t()[: len(part)].t()):
                got = adjoint_op(view, *ops.codebook_arguments(book, classes))
                check_adjoint(got, view, rows)


def check_adjoint(got: Tensor, g: Tensor, rows: np.ndarray) -> None:
    values = g.double().numpy()
    want = reference.project_adjoint(values, rows)
    # Each element is ⟨column of W, g⟩: at most ‖column‖ ‖g‖, in the place of α.
    longest = np.linalg.norm(rows, axis=0).max() * np.linalg.norm(values, axis=-1).max()
    exact = str(got.dtype).removeprefix("torch.")
    assert_within(f"adjoint {exact}", to_numpy(got), want, logits(want, longest, exact, exact))


@given(book_and_classes=any_codebook(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200)
def test_adjoint_of_any_codebook(book_and_classes: tuple[Codebook, range], seed: int) -> None:
    book, classes = book_and_classes
    values = np.random.default_rng(seed).standard_normal((2, len(classes)))
    g = torch.from_numpy(values.astype(np.float32))
    got = adjoint_op(g, *ops.codebook_arguments(book, classes))
    check_adjoint(got, g, expand(book)[classes.start : classes.stop])


@books
def test_adjoint_of_an_empty_batch(book: Codebook) -> None:
    got = adjoint_op(torch.empty(0, book.num_classes), *ops.codebook_arguments(book))
    assert got.shape == (0, book.in_features) and got.dtype == torch.float32


# opcheck: schema, fake kernel, autograd registration, ahead-of-time dispatch.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck_of_the_transform(dtype: torch.dtype, requires_grad: bool) -> None:
    for shape in ((8,), (3, 16), (2, 3, 4), (0, 4)):
        x = torch.randn(shape, dtype=dtype).requires_grad_(requires_grad)
        torch.library.opcheck(transform_op, (x, 0.5))
    torch.library.opcheck(transform_op, (torch.randn(16, 3).t(),))


@books
@epilogues
def test_opcheck_of_the_head(book: Codebook, epilogue: Epilogue) -> None:
    arguments = ops.codebook_arguments(book)
    for requires_grad in (False, True):
        x = torch.randn(2, 3, book.in_features).requires_grad_(requires_grad)
        alpha = torch.tensor(2.0).requires_grad_(requires_grad)
        bias = torch.randn(book.num_classes).requires_grad_(requires_grad)
        torch.library.opcheck(head_op, (x, alpha, bias, *arguments, True, int(epilogue)))
    half = x.detach().bfloat16()
    torch.library.opcheck(
        head_op, (half, alpha.detach(), None, *arguments, False, int(epilogue), torch.float32)
    )


@books
def test_opcheck_of_the_adjoint(book: Codebook) -> None:
    for classes in shards(book)[:2]:
        arguments = ops.codebook_arguments(book, classes)
        g = torch.randn(3, len(classes or range(book.num_classes)))
        torch.library.opcheck(adjoint_op, (g.requires_grad_(), *arguments))
        torch.library.opcheck(adjoint_op, (g.detach().bfloat16(), *arguments))


def test_fake_kernels_agree_with_real_ones() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    book = BOOKS["masked"]
    arguments = ops.codebook_arguments(book, range(2, 9))
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        x, g = torch.randn(4, 2, 7).to(dtype), torch.randn(5, 7).to(dtype)
        calls = [
            lambda x=x, e=exact: head_op(x, x.new_ones((), dtype=e), None, *arguments, True, 1),
            lambda x=x, e=exact: head_op(x, x.new_ones((), dtype=e), None, *arguments, True, 1, e),
            lambda g=g: adjoint_op(g, *arguments),
            lambda x=x: transform_op(x[..., :4]),
        ]
        for call in calls:
            real = call()
            with FakeTensorMode(allow_non_fake_inputs=True):
                fake = call()
            assert (fake.shape, fake.dtype, fake.stride()) == (
                real.shape,
                real.dtype,
                real.stride(),
            )


# Gradients.


@pytest.mark.parametrize("order", [1, 2, 16])
def test_gradcheck_of_the_transform(order: int) -> None:
    x = torch.randn(2, order, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: hadamard_transform(x, 0.3), (x,))
    assert torch.autograd.gradgradcheck(lambda x: hadamard_transform(x, 0.3) ** 2, (x,))


@books
@epilogues
@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no bias"])
def test_gradcheck_of_the_head(book: Codebook, epilogue: Epilogue, has_bias: bool) -> None:
    classes = None if has_bias else range(1, book.num_classes)
    arguments = ops.codebook_arguments(book, classes)
    x = torch.randn(2, book.in_features, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(book.num_classes, dtype=torch.float64, requires_grad=True)
    inputs = (x, alpha, bias) if has_bias else (x, alpha)

    def head(x: Tensor, alpha: Tensor, bias: Tensor | None = None) -> Tensor:
        return ops.head(x, alpha, bias, arguments, epilogue=epilogue)

    assert torch.autograd.gradcheck(head, inputs)
    assert torch.autograd.gradgradcheck(head, inputs)


@books
def test_gradcheck_without_normalisation(book: Codebook) -> None:
    arguments = ops.codebook_arguments(book)
    x = torch.randn(2, book.in_features, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)

    def head(x: Tensor, alpha: Tensor) -> Tensor:
        return ops.head(x, alpha, None, arguments, normalize=False, epilogue=Epilogue.SIGMOID)

    assert torch.autograd.gradcheck(head, (x, alpha))
    assert torch.autograd.gradgradcheck(head, (x, alpha))


@books
def test_gradcheck_of_the_adjoint(book: Codebook) -> None:
    g = torch.randn(2, book.num_classes, dtype=torch.float64, requires_grad=True)
    arguments = ops.codebook_arguments(book)
    assert torch.autograd.gradcheck(lambda g: adjoint_op(g, *arguments), (g,))
    assert torch.autograd.gradgradcheck(lambda g: adjoint_op(g, *arguments) ** 2, (g,))


TRAINED = {
    "hadamard": codebook(64, 40),
    "folded": codebook(512, 10),
    "orthoplex": codebook(64, 100),
    "kerdock": codebook(16, 200),
    "base matrix": codebook(48, 30),
    "etf": codebook(64, 10, "etf"),
    **BOOKS,
}


def gradients(
    book: Codebook, epilogue: Epilogue, x: Tensor, alpha: float, normalize: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """(got, wanted) gradients for x, α and bias of a random linear function of the result; wanted
    ones by autograd through a dense product in float64."""
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    bias = torch.randn(book.num_classes, dtype=exact)
    weight = torch.randn(*x.shape[:-1], book.num_classes)

    def of(function, x: Tensor, dtype: torch.dtype) -> list[Tensor]:
        leaves = [x.detach(), torch.tensor(alpha, dtype=exact).to(dtype), bias.to(dtype)]
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = function(*leaves)
        return list(torch.autograd.grad((out * weight.to(out.dtype)).sum(), leaves))

    arguments, matrix = ops.codebook_arguments(book), torch.from_numpy(expand(book))
    got = of(
        lambda x, a, b: ops.head(x, a, b, arguments, epilogue=epilogue, normalize=normalize),
        x,
        exact,
    )
    want = of(
        lambda x, a, b: dense_head(x, a, b, matrix, epilogue, normalize), x.double(), torch.float64
    )
    return got, want


@pytest.mark.parametrize("book", TRAINED.values(), ids=TRAINED)
@epilogues
@pytest.mark.parametrize("normalize", [True, False], ids=["normalised", "not"])
def test_gradients_in_float32(book: Codebook, epilogue: Epilogue, normalize: bool) -> None:
    x = torch.randn(3, 5, book.in_features)
    got, want = gradients(book, epilogue, x, 6.0 if normalize else 0.3, normalize)
    for name, g, w in zip(("x", "α", "bias"), got, want, strict=True):
        assert g.dtype == torch.float32
        # α's gradient is one sum with cancellation: its bound is on the terms, not on their sum.
        bound = gradient(w.numpy(), "float32")
        if name == "α":
            bound = bound + gradient(want[0].numpy() * x.norm().item(), "float32")
            bound = bound + gradient(want[2].numpy(), "float32")
        assert_norm_within(f"gradient of {name} float32", g.numpy(), w.numpy(), bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["hadamard", "orthoplex", "kerdock", "base matrix", "etf"])
@epilogues
def test_gradients_in_16_bits(name: str, epilogue: Epilogue, dtype: torch.dtype) -> None:
    x = torch.randn(4, TRAINED[name].in_features).to(dtype)
    got, want = gradients(TRAINED[name], epilogue, x, 6.0)
    assert got[0].dtype == dtype and got[1].dtype == got[2].dtype == torch.float32
    for g, w in zip(got, want, strict=True):
        assert g.isfinite().all()
        # The weights of the loss and the saved result are 16-bit numbers as well.
        bound = gradient(w.numpy(), str(dtype).removeprefix("torch."))
        if w.ndim == 0:
            bound = 4 * gradient(want[2].numpy(), str(dtype).removeprefix("torch."))
        kind = f"gradient {str(dtype).removeprefix('torch.')}"
        assert_norm_within(kind, g.float().numpy(), w.numpy(), bound)


@pytest.mark.parametrize("magnitude", [1e-30, 1e-9, 1e10, 1e18, 1e30, 8e37])
def test_gradients_at_any_magnitude(magnitude: float) -> None:
    book = TRAINED["hadamard"]
    x = torch.randn(4, 64).clamp(-4, 4) * magnitude
    got, want = gradients(book, Epilogue.LOGITS, x, 6.0)
    assert all(g.isfinite().all() for g in got)
    # dx is as small as 1 / ‖x‖, below which float32 ends.
    tiny = 2.0**-126 * 16
    for name, g, w in zip(("x", "α", "bias"), got, want, strict=True):
        bound = gradient(w.numpy(), "float32") + tiny
        if name == "α":
            bound = gradient(want[2].numpy(), "float32")
        assert_norm_within(f"gradient of {name} float32", g.numpy(), w.numpy(), bound)


def test_gradients_of_zero_rows() -> None:
    book = TRAINED["hadamard"]
    x = torch.zeros(2, 64)
    x[1] = torch.randn(64)
    got, want = gradients(book, Epilogue.LOG_SOFTMAX, x, 6.0)
    for g, w in zip(got, want, strict=True):
        assert g.isfinite().all()
        assert_norm_within("gradient at zero", g.numpy(), w.numpy(), gradient(w.numpy(), "float32"))


def test_a_bad_row_spoils_its_own_gradient_only() -> None:
    book = TRAINED["hadamard"]
    arguments = ops.codebook_arguments(book)
    x = torch.randn(4, 64)
    grads = []
    for bad in (False, True):
        leaf = x.clone()
        if bad:
            leaf[2, 5] = torch.nan
        leaf.requires_grad_()
        ops.head(leaf, torch.tensor(2.0), None, arguments).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0][[0, 1, 3]], grads[1][[0, 1, 3]])
    assert grads[1][2].isnan().all()


@pytest.mark.parametrize("needed", ["x", "alpha", "bias", "x alpha", "alpha bias", "x bias"])
@epilogues
def test_only_some_gradients(needed: str, epilogue: Epilogue) -> None:
    book = BOOKS["masked"]
    values = {
        "x": torch.randn(3, 7),
        "alpha": torch.tensor(2.0),
        "bias": torch.randn(20),
    }
    arguments = ops.codebook_arguments(book)

    def grads(names: list[str]) -> dict[str, Tensor | None]:
        leaves = {k: v.clone().requires_grad_(k in names) for k, v in values.items()}
        out = ops.head(*leaves.values(), arguments, epilogue=epilogue)
        (out * torch.arange(20.0)).sum().backward()
        return {name: leaf.grad for name, leaf in leaves.items()}

    everything, some = grads(list(values)), grads(needed.split())
    for name in values:
        if name in needed.split():
            assert torch.equal(some[name], everything[name])
        else:
            assert some[name] is None


def test_no_gradient_is_recorded_without_need() -> None:
    arguments = ops.codebook_arguments(BOOKS["masked"])
    x = torch.randn(3, 7, requires_grad=True)
    with torch.no_grad():
        assert not ops.head(x, torch.tensor(1.0), None, arguments).requires_grad
    with torch.inference_mode():
        inferred = ops.head(x, torch.tensor(1.0), None, arguments)
    assert torch.equal(inferred, ops.head(x, torch.tensor(1.0), None, arguments))


# Compilation and export.


class Head(torch.nn.Module):
    def __init__(self, book: Codebook) -> None:
        super().__init__()
        self.base, self.signs, self.geometry = ops.codebook_arguments(book)
        self.alpha = torch.nn.Parameter(torch.tensor(3.0))
        self.bias = torch.nn.Parameter(torch.randn(book.num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = hadamard_transform(x, 0.5).relu()
        logs = torch.ops.fixclf.head(
            x, self.alpha, self.bias, self.base, self.signs, self.geometry, True, 2
        )
        return logs * 2


def compare_with_eager(head: Head, compiled: torch.nn.Module, features: int) -> None:
    for batch in (1, 4, 7, 33, 1):
        x = torch.randn(batch, features)
        results = []
        for function in (head, compiled):
            leaf = x.clone().requires_grad_()
            out = function(leaf)
            grads = torch.autograd.grad(out.square().sum(), [leaf, *head.parameters()])
            results.append((out.detach(), grads))
        (out, grads), (compiled_out, compiled_grads) = results
        assert torch.equal(out, compiled_out)
        for g, c in zip(grads, compiled_grads, strict=True):
            # The compiler may reorder the backward's own sums.
            assert_norm_within(
                "gradient compiled", c.numpy(), g.numpy(), gradient(g.numpy(), "float32")
            )


@pytest.mark.parametrize("kind", ["orthoplex", "kerdock"])
def test_compile_keeps_one_graph(kind: str) -> None:
    features, classes = {"orthoplex": (64, 100), "kerdock": (16, 200)}[kind]
    head = Head(codebook(features, classes, kind))
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend=counter)
    compare_with_eager(head, compiled, features)
    assert counter.frame_count <= 2  # batch 1 may be a graph of its own


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compile_with_inductor() -> None:
    head = Head(codebook(16, 200, "kerdock"))
    torch._dynamo.reset()
    compare_with_eager(head, torch.compile(head, fullgraph=True, dynamic=True), 16)


def test_export_round_trip(tmp_path) -> None:
    head = Head(codebook(64, 100)).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    exported = torch.export.export(
        head, (torch.randn(4, 64),), dynamic_shapes={"x": {0: batch}}, strict=False
    )
    names = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert "fixclf.head.default" in names and "fixclf.hadamard_transform.default" in names
    path = tmp_path / "head.pt2"
    torch.export.save(exported, path)
    loaded = torch.export.load(path).module()
    for size in (1, 4, 19):
        x = torch.randn(size, 64)
        assert torch.equal(loaded(x), head(x))


# Many threads.


def test_many_threads_at_once(torch_threads: None) -> None:
    torch.set_num_threads(2)
    names = ("hadamard", "kerdock", "base matrix", "masked and negated")
    work = []
    for name in names:
        book = TRAINED[name]
        arguments = ops.codebook_arguments(book)
        for batch in (1, 3, 200):
            x, bias = torch.randn(batch, book.in_features), torch.randn(book.num_classes)
            for epilogue in EPILOGUES:
                work.append((x, torch.tensor(5.0), bias, arguments, epilogue))

    def call(item: tuple) -> Tensor:
        x, alpha, bias, arguments, epilogue = item
        return ops.head(x, alpha, bias, arguments, epilogue=epilogue)

    want = [call(item) for item in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = list(pool.map(call, work * 4))
            assert all(torch.equal(r, w) for r, w in zip(results, want * 4, strict=True))


def test_training_in_many_threads() -> None:
    book = TRAINED["kerdock"]
    arguments = ops.codebook_arguments(book)
    x = torch.randn(5, 16)

    def gradient_of(_: int) -> Tensor:
        leaf = x.clone().requires_grad_()
        ops.head(leaf, torch.tensor(5.0), None, arguments, epilogue=Epilogue.SOFTMAX)[
            :, 0
        ].sum().backward()
        return leaf.grad

    want = gradient_of(0)
    with ThreadPoolExecutor(6) as pool:
        assert all(torch.equal(g, want) for g in pool.map(gradient_of, range(60)))
