"""The numerical contract: magnitudes, bad rows, extreme α and bias, and batch invariance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from backends import native_head, to_numpy, to_torch, torch_head
from cases import DTYPES, EPILOGUES, NUMPY_DTYPES, check_head, expand, sylvester, synthetic
from tolerances import LARGEST, accumulation, assert_within, logits
from tolerances import head as head_family

from fixclf_infer import _native, hadamard_transform, ops, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue

# Folded, one block, ± one block, several blocks, base matrix, centred.
BOOKS = {
    "folded": synthetic(100, 9, log2=7),
    "one block": synthetic(60, 61, log2=6),
    "negated": synthetic(64, 100, log2=6, negate=True),
    "masked": synthetic(30, 150, log2=5, blocks=5),
    "masked and negated": synthetic(30, 150, log2=5, blocks=3, negate=True),
    "base matrix": synthetic(40, 48, log2=2, base_order=12),
    "base matrix and masks": synthetic(24, 60, log2=1, base_order=12, blocks=3),
    "centred": synthetic(64, 33, log2=6, center=True),
}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)
epilogues = pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda e: e.name.lower())


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


# Rows of any magnitude.

MAGNITUDES = {
    "float32": [1e-45, 1e-40, 1e-38, 1e-30, 1e-20, 1e-12, 1e-9, 1e-3, 1e9, 1e17, 1e20, 1e30, 8e37],
    "bfloat16": [1e-40, 1e-38, 1e-30, 1e-12, 1e-9, 1e9, 1e18, 1e30, 8e37],
    "float16": [6e-8, 1e-6, 1e-3, 1e3, 1.5e4],
    "float64": [1e-320, 1e-300, 1e-160, 1e-12, 1e30, 1e160, 1e300, 4e307],
}
magnitudes = pytest.mark.parametrize(
    ("dtype", "magnitude"), [(d, m) for d, values in MAGNITUDES.items() for m in values]
)


def rows(rng: np.random.Generator, count: int, n: int, magnitude: float, dtype: str) -> np.ndarray:
    values = np.clip(rng.standard_normal((count, n)), -4, 4) * magnitude
    return np.clip(values, -LARGEST[dtype], LARGEST[dtype]).astype(NUMPY_DTYPES[dtype])


@magnitudes
@books
def test_rows_of_any_magnitude(
    isa: str, book: Codebook, dtype: str, magnitude: float, rng: np.random.Generator
) -> None:
    x = rows(rng, 3, book.in_features, magnitude, dtype)
    assert np.isfinite(x.astype(np.float64)).all() and x.any()
    matrix = expand(book)
    bias = rng.standard_normal(book.num_classes).astype(accumulation(dtype))
    for epilogue in EPILOGUES:
        got = native_head(x, 5.0, bias, book, epilogue, out=accumulation(dtype))
        check_head(got, x, matrix, 5.0, bias, epilogue, f"{magnitude} {dtype}")


def test_the_magnitudes_reach_the_ends_of_float32(rng: np.random.Generator) -> None:
    lowest, *_, highest = MAGNITUDES["float32"]
    assert 0 < np.abs(rows(rng, 3, 64, lowest, "float32")).max() < 1e-44
    assert np.abs(rows(rng, 3, 64, highest, "float32")).max() > LARGEST["float32"] / 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@books
def test_rows_of_mixed_magnitudes(
    isa: str, book: Codebook, dtype: str, rng: np.random.Generator
) -> None:
    n = book.in_features
    x = np.stack(
        [
            np.where(np.arange(n) == n // 2, 3e38, 1e-38 * rng.standard_normal(n)),
            np.where(np.arange(n) % 2, 1e30, 1.0) * rng.standard_normal(n),
            np.where(np.arange(n) % 3, 1e-30, 1e-25) * rng.standard_normal(n),
            10.0 ** rng.uniform(-38, 38, n),
            np.full(n, 3e38),
            np.where(np.arange(n) == 0, 1e-45, 0.0),
        ]
    ).astype(NUMPY_DTYPES[dtype])
    matrix = expand(book)
    for epilogue in EPILOGUES:
        got = native_head(x, -7.0, None, book, epilogue, out=accumulation(dtype))
        check_head(got, x, matrix, -7.0, None, epilogue)


@pytest.mark.parametrize("norm", [1e-13, 0.999e-12, 1e-12, 1.001e-12, 1e-11])
def test_norms_near_eps(isa: str, norm: float, rng: np.random.Generator) -> None:
    book = BOOKS["one block"]
    x = rng.standard_normal((4, 60))
    x = (norm * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    got = native_head(x, 10.0, None, book)
    check_head(got, x, expand(book), 10.0, None, Epilogue.LOGITS)


@books
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [7.5, -3.0, 0.0, 1e30, 3e38, 1e-30])
def test_zero_rows_give_the_bias(isa: str, book: Codebook, dtype: str, alpha: float) -> None:
    exact = accumulation(dtype)
    bias = np.linspace(-3, 3, book.num_classes).astype(exact)
    for zero in (0.0, -0.0):
        x = np.full((2, book.in_features), zero).astype(NUMPY_DTYPES[dtype])
        got = native_head(x, alpha, bias, book, out=exact)
        np.testing.assert_array_equal(got, np.stack([bias, bias]))
        got = native_head(x, alpha, None, book, out=exact)
        np.testing.assert_array_equal(got, np.zeros_like(got))


@pytest.mark.parametrize("num_classes", [100, 1000, 4096, 60_000])
@pytest.mark.parametrize("epilogue", [Epilogue.SOFTMAX, Epilogue.LOG_SOFTMAX])
def test_features_that_are_a_class_vector(isa: str, num_classes: int, epilogue: Epilogue) -> None:
    """One logit is α and all others are equal, as in a trained head: rounding errors of the sum of
    exponentials are then all of one sign."""
    n = 1 << (num_classes - 1).bit_length()
    book = synthetic(n, num_classes, log2=n.bit_length() - 1)
    for alpha in (5.0, 11.5):
        for row in (0, 17, num_classes - 1):
            x = (1.0 - 2.0 * (np.bitwise_count(np.arange(n) & row) % 2)).astype(np.float32)[None]
            z = np.zeros((1, num_classes))
            z[0, row] = alpha
            want = reference.apply_epilogue(z, epilogue)
            got = native_head(x, alpha, None, book, epilogue)
            family, bound = head_family(epilogue, want, alpha, "float32", "float32")
            assert_within(family, got, want, bound, f"C={num_classes} α={alpha} class {row}")


# Bad rows.


@epilogues
@books
@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_rows_are_nan_and_alone(
    isa: str, book: Codebook, dtype: str, epilogue: Epilogue, rng: np.random.Generator
) -> None:
    n = book.in_features
    x = rows(rng, 9, n, 1.0, dtype)
    bias = rng.standard_normal(book.num_classes).astype(accumulation(dtype))
    clean = native_head(x, 4.0, bias, book, epilogue)
    bad = {1: [np.nan], 2: [np.inf], 4: [-np.inf], 5: [np.inf, -np.inf], 7: [np.nan, np.inf]}
    for row, values in bad.items():
        for place, value in zip((n - 1, 0), values, strict=False):
            x[row, place] = value
    got = native_head(x, 4.0, bias, book, epilogue)
    assert np.isnan(got[list(bad)].astype(np.float64)).all()
    good = [i for i in range(9) if i not in bad]
    np.testing.assert_array_equal(got[good], clean[good])


@pytest.mark.parametrize("place", [0, 1, 7, 8, 31, 63, 64, 99])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_value_anywhere(isa: str, place: int, bad: float, rng: np.random.Generator) -> None:
    x = rows(rng, 3, 100, 1e30 if place % 2 else 1.0, "float32")
    x[1, place] = bad
    for num_classes in (1, 2, 9, 128):
        got = native_head(x, 4.0, None, sylvester(100, num_classes))
        assert np.isnan(got[1]).all()
        assert np.isfinite(got[[0, 2]]).all()


# Extreme α and bias. α may be any finite number and a row of any finite magnitude: z is as large as
# α, whatever the quotient of the two.

ALPHAS = [1e30, 3e38, 1e-30, -4.0, -1e30, 0.0]


@pytest.mark.parametrize("magnitude", MAGNITUDES["float32"])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_extreme_alpha(isa: str, alpha: float, magnitude: float, rng: np.random.Generator) -> None:
    for book in BOOKS.values():
        if book.kernel.center and alpha == 3e38:
            continue  # √(C/(C−1)) takes such logits over the end of float32
        x = rows(rng, 3, book.in_features, magnitude, "float32")
        alpha = float(np.float32(alpha))
        got = native_head(x, alpha, None, book)
        check_head(got, x, expand(book), alpha, None, Epilogue.LOGITS, f"α={alpha} |x|~{magnitude}")


@pytest.mark.parametrize("alpha", [1e30, -1e30, 3e38, 1e6])
@books
def test_softmax_of_huge_logits(
    isa: str, book: Codebook, alpha: float, rng: np.random.Generator
) -> None:
    if book.kernel.center and alpha == 3e38:
        pytest.skip("√(C/(C−1)) takes such logits over the end of float32")
    x = rows(rng, 5, book.in_features, 1.0, "float32")
    z = reference.logits(x, expand(book), alpha)
    runner_up, top = np.sort(z, axis=-1)[:, -2:].T
    assert (top - runner_up > 1000).all() or alpha == 1e6
    clear = top - runner_up > 1000
    assert clear.any()
    one_hot = np.zeros_like(z)
    one_hot[np.arange(5), z.argmax(axis=-1)] = 1
    got = native_head(x, alpha, None, book, Epilogue.SOFTMAX)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[clear], one_hot[clear])
    logs = native_head(x, alpha, None, book, Epilogue.LOG_SOFTMAX)
    assert not np.isnan(logs).any()
    np.testing.assert_array_equal(logs[clear] == 0, one_hot[clear] == 1)
    if abs(alpha) < 1e38:
        assert np.isfinite(logs).all()
    sigmoid = native_head(x, alpha, None, book, Epilogue.SIGMOID)
    np.testing.assert_allclose(sigmoid, reference.apply_epilogue(z, Epilogue.SIGMOID), atol=1e-6)


@books
def test_alpha_zero_leaves_the_bias(isa: str, book: Codebook, rng: np.random.Generator) -> None:
    x = rows(rng, 3, book.in_features, 1.0, "float32")
    bias = rng.standard_normal(book.num_classes).astype(np.float32)
    np.testing.assert_array_equal(native_head(x, 0.0, bias, book), np.stack([bias] * 3))
    uniform = native_head(x, 0.0, None, book, Epilogue.SOFTMAX)
    np.testing.assert_allclose(uniform, 1 / book.num_classes, rtol=1e-6)


def masks(book: Codebook) -> Iterator[tuple[str, slice]]:
    order = book.kernel.order
    c = book.num_classes
    yield "first class", slice(0, 1)
    yield "last class", slice(c - 1, c)
    yield "a vector", slice(0, min(16, c - 1))
    yield "all but the last", slice(0, c - 1)
    yield "all but the first", slice(1, c)
    if c > order:
        yield "the first half or block", slice(0, order)
        yield "the second half or block", slice(order, min(2 * order, c))
        yield "the last half or block", slice((c - 1) // order * order, c)
    if c > 2 * order:
        yield "two halves or blocks", slice(0, 2 * order)


@epilogues
@books
def test_masked_classes(
    isa: str, book: Codebook, epilogue: Epilogue, rng: np.random.Generator
) -> None:
    """A bias of −∞ takes a class out: probability 0, and the others as without it."""
    x = rows(rng, 2, book.in_features, 1.0, "float32")
    matrix = expand(book)
    for name, masked in masks(book):
        bias = rng.standard_normal(book.num_classes).astype(np.float32)
        bias[masked] = -np.inf
        got = native_head(x, 6.0, bias, book, epilogue)
        check_head(got, x, matrix, 6.0, bias, epilogue, name)
        if epilogue is Epilogue.SOFTMAX:
            np.testing.assert_array_equal(got[:, masked], 0)


@pytest.mark.parametrize("large", [50.0, -50.0, 200.0, 1e4, -1e4, 1e30, -1e30, 3e38, -3e38])
@epilogues
@books
def test_large_biases(
    isa: str, book: Codebook, epilogue: Epilogue, large: float, rng: np.random.Generator
) -> None:
    x = rows(rng, 2, book.in_features, 1.0, "float32")
    bias = rng.standard_normal(book.num_classes).astype(np.float32)
    bias[book.num_classes // 2] = large
    got = native_head(x, 6.0, bias, book, epilogue)
    want = reference.head(x, expand(book), 6.0, bias, epilogue)
    assert np.isfinite(got).all()
    if epilogue in (Epilogue.SOFTMAX, Epilogue.SIGMOID):
        # The other logits keep their own accuracy where they are not drowned.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    else:
        check_head(got, x, expand(book), 6.0, bias, epilogue)


@books
@pytest.mark.parametrize("dtype", DTYPES)
def test_probabilities_sum_to_one(
    isa: str, book: Codebook, dtype: str, rng: np.random.Generator
) -> None:
    exact = accumulation(dtype)
    for alpha in (0.1, 11.5, 100.0, 1e4):
        x = rows(rng, 8, book.in_features, 1.0, dtype)
        p = native_head(x, alpha, None, book, Epilogue.SOFTMAX, out=exact).astype(np.float64)
        assert (p >= 0).all() and (p <= 1 + 1e-6).all()
        np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=0, atol=1e-6)
        log_p = native_head(x, alpha, None, book, Epilogue.LOG_SOFTMAX, out=exact)
        # The rounding of logs as large as α is an error of probabilities.
        atol = 4e-6 if alpha <= 100 else 3e-3
        np.testing.assert_allclose(np.exp(log_p.astype(np.float64)).sum(axis=-1), 1, atol=atol)


@pytest.mark.parametrize("largest", [59.5, 60.5])
@pytest.mark.parametrize("name", sorted(BOOKS))
def test_softmax_with_and_without_a_maximum(isa: str, name: str, largest: float) -> None:
    # alpha and the bias bound the logits by 60, or do not; features of class 0 and its opposite
    # come close to the bound.
    book = BOOKS[name]
    matrix = expand(book)
    x = np.stack([matrix[0], -matrix[0], matrix[-1]]).astype(np.float32)
    bias = np.linspace(-20, 20, len(matrix)).astype(np.float32)
    got = native_head(x, largest - 20, bias, book, Epilogue.SOFTMAX)
    check_head(got, x, matrix, largest - 20, bias, Epilogue.SOFTMAX)


def test_probabilities_below_the_smallest_float(isa: str, rng: np.random.Generator) -> None:
    book = BOOKS["negated"]
    x = rows(rng, 3, 64, 1.0, "float32")
    bias = np.zeros(100, np.float32)
    bias[::3] = np.linspace(-120, -60, 34)
    for out in ("float32",):
        got = native_head(x, 3.0, bias, book, Epilogue.SOFTMAX, out=out)
        check_head(got, x, expand(book), 3.0, bias, Epilogue.SOFTMAX)
        logs = native_head(x, 3.0, bias, book, Epilogue.LOG_SOFTMAX, out=out)
        check_head(logs, x, expand(book), 3.0, bias, Epilogue.LOG_SOFTMAX)


def test_sigmoid_far_out(isa: str) -> None:
    x = np.zeros((1, 8), np.float32)
    bias = np.array([0, -1, 1, -20, 20, -87, -88, -89, -104, 89, 1000, -1000, 3e38], np.float32)
    book = sylvester(8, len(bias))
    got = native_head(x, 1.0, bias, book, Epilogue.SIGMOID)
    want = reference.apply_epilogue(bias[None].astype(np.float64), Epilogue.SIGMOID)
    np.testing.assert_allclose(got, want, rtol=3e-7, atol=1.2e-38)  # to the smallest normal float


def test_float16_output_overflows_to_infinity_only_where_it_must(
    isa: str, rng: np.random.Generator
) -> None:
    book = BOOKS["one block"]
    x = rows(rng, 3, 60, 1.0, "float16")
    got = native_head(x, 3e5, None, book).astype(np.float64)
    want = reference.logits(x, expand(book), 3e5)
    with np.errstate(over="ignore"):
        fits = np.abs(want) < 65500
        assert fits.any() and (~fits).any()
        np.testing.assert_allclose(got[fits], want[fits], rtol=2**-11 + 1e-5, atol=1)
        over = np.abs(want) > 65540
        np.testing.assert_array_equal(got[over], np.sign(want[over]) * np.inf)


# Batch invariance, bit for bit.

INVARIANT = {
    "folded": synthetic(300, 20, log2=9),
    "one block": synthetic(256, 200, log2=8),
    "masked and negated": synthetic(120, 700, log2=7, blocks=3, negate=True),
    "base matrix": synthetic(48, 40, log2=2, base_order=12),
    "centred": synthetic(64, 60, log2=6, center=True),
}
invariant = pytest.mark.parametrize("book", INVARIANT.values(), ids=INVARIANT)
BATCH = 150  # enough rows of these for every thread to get some


@invariant
@epilogues
@pytest.mark.parametrize("dtype", DTYPES)
def test_invariance_in_numpy(
    isa: str,
    book: Codebook,
    epilogue: Epilogue,
    dtype: str,
    rng: np.random.Generator,
    native_threads: None,
) -> None:
    n = book.in_features
    padded = rows(rng, BATCH, n + 7, 1.0, dtype)
    x = padded[:, 3 : n + 3]
    bias = rng.standard_normal(book.num_classes).astype(accumulation(dtype))

    def head(features: np.ndarray) -> np.ndarray:
        return native_head(features, 9.0, bias, book, epilogue)

    _native.set_num_threads(1)
    want = head(np.ascontiguousarray(x))
    for threads in (1, 2, 3, 5):
        _native.set_num_threads(threads)
        np.testing.assert_array_equal(head(x), want)  # another stride
        np.testing.assert_array_equal(head(x[::-1]), want[::-1])  # other positions, stride < 0
    for begin, end in ((0, 1), (1, 2), (5, 8), (BATCH - 1, BATCH), (3, 120)):
        np.testing.assert_array_equal(head(x[begin:end]), want[begin:end])  # other batch sizes
    np.testing.assert_array_equal(head(x[17]), want[17])
    np.testing.assert_array_equal(head(np.broadcast_to(x[17], (9, n))), want[[17] * 9])
    np.testing.assert_array_equal(head(x.reshape(10, 15, n)), want.reshape(10, 15, -1))
    order = rng.permutation(BATCH)
    np.testing.assert_array_equal(head(x[order]), want[order])


@invariant
@epilogues
@pytest.mark.parametrize("dtype", DTYPES)
def test_invariance_in_torch(
    book: Codebook, epilogue: Epilogue, dtype: str, rng: np.random.Generator, torch_threads: None
) -> None:
    n = book.in_features
    padded = to_torch(rows(rng, BATCH, n + 7, 1.0, dtype))
    x = padded[:, 3 : n + 3]
    exact = getattr(torch, accumulation(dtype))
    alpha, bias = torch.tensor(9.0, dtype=exact), torch.randn(book.num_classes, dtype=exact)
    arguments = ops.codebook_arguments(book)

    def head(features: torch.Tensor) -> torch.Tensor:
        return ops.head(features, alpha, bias, arguments, epilogue=epilogue)

    torch.set_num_threads(1)
    want = head(x.contiguous())
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        assert torch.equal(head(x), want)
        for begin, end in ((0, 1), (5, 8), (3, 120)):
            assert torch.equal(head(x[begin:end]), want[begin:end])
    assert torch.equal(head(x[17]), want[17])
    assert torch.equal(head(x[17].expand(9, n)), want[17].expand(9, -1))
    assert torch.equal(head(x.reshape(10, 15, n)), want.reshape(10, 15, -1))
    assert torch.equal(head(x.flip(0)), want.flip(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log2", [1, 4, 7, 10, 14])
def test_invariance_of_the_transform(
    isa: str, log2: int, dtype: str, rng: np.random.Generator, native_threads: None
) -> None:
    n = 1 << log2
    x = rows(rng, 40, n + 5, 1.0, dtype)[:, 2 : n + 2]
    _native.set_num_threads(1)
    want = hadamard_transform(np.ascontiguousarray(x), 0.3)
    for threads in (1, 2, 3):
        _native.set_num_threads(threads)
        np.testing.assert_array_equal(hadamard_transform(x, 0.3), want)
        np.testing.assert_array_equal(hadamard_transform(x[7:9], 0.3), want[7:9])
    np.testing.assert_array_equal(hadamard_transform(x[39], 0.3), want[39])


def test_invariance_of_the_adjoint(rng: np.random.Generator, torch_threads: None) -> None:
    book = INVARIANT["masked and negated"]
    g = torch.from_numpy(rows(rng, BATCH, book.num_classes, 1.0, "float32"))
    arguments = ops.codebook_arguments(book)
    torch.set_num_threads(1)
    want = torch.ops.fixclf.project_adjoint(g, *arguments)
    torch.set_num_threads(3)
    assert torch.equal(torch.ops.fixclf.project_adjoint(g, *arguments), want)
    assert torch.equal(torch.ops.fixclf.project_adjoint(g[11], *arguments), want[11])
    oracle = reference.project_adjoint(g, expand(book))
    norm = float(np.linalg.norm(g, axis=1).max()) * np.sqrt(book.num_classes)
    bound = logits(oracle, norm, "float32", "float32")
    assert_within("adjoint float32", to_numpy(want), oracle, bound)


@books
@epilogues
def test_numpy_and_torch_give_the_same_bits(
    book: Codebook, epilogue: Epilogue, rng: np.random.Generator
) -> None:
    for dtype in DTYPES:
        x = rows(rng, 4, book.in_features, 1.0, dtype)
        bias = rng.standard_normal(book.num_classes).astype(accumulation(dtype))
        np.testing.assert_array_equal(
            native_head(x, 3.0, bias, book, epilogue), torch_head(x, 3.0, bias, book, epilogue)
        )
