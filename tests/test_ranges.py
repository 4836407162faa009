"""The edges of the floating-point range: features whose sums overflow, scales beyond float32, and
biases that are NaN, infinite or huge. Finite input never gives NaN; NaN is the largest logit, as in
torch and NumPy."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from backends import native_head, to_torch
from cases import NUMPY_DTYPES, expand, synthetic
from reductions import makers, pack
from test_transform import oracle

from fixclf_infer import _native, hadamard_transform, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

INF, NAN = np.inf, np.nan
BIG = 3.0e38  # two of them are more than float32 holds

BOOKS = {
    "direct": synthetic(20, 40, log2=5, negate=True),
    "folded": synthetic(2000, 9, log2=11),
    "several blocks": synthetic(24, 150, log2=5, blocks=5),
    "chunks": synthetic(30, 70_000, log2=5, blocks=2200),
    "base matrix": synthetic(24, 24, log2=1, base_order=12),
    "centred": synthetic(32, 20, log2=5, center=True, row_offset=1),
}
ONE_BLOCK, BLOCKS = BOOKS["direct"], BOOKS["several blocks"]
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)


def scaled_product(book: Codebook, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """W x in float64, which can't overflow here, and what its error is measured against."""
    x = x.astype(np.float64)
    return x @ expand(book).T, np.linalg.norm(x, axis=-1, keepdims=True)


# Features whose sums are beyond the range.


@books
@pytest.mark.parametrize("alpha", [20.0, 1.0, -1e-3, 1e-30, 3e38])
def test_huge_features_without_normalisation(isa: str, book: Codebook, alpha: float) -> None:
    rng = np.random.default_rng(1)
    n = book.in_features
    x = np.zeros((5, n), np.float32)
    x[0, :2] = 1e38
    x[1, :4] = BIG, BIG, -BIG, -BIG
    x[2] = np.where(rng.random(n) < 0.5, -BIG, BIG)
    x[3] = rng.standard_normal(n) * 1e20  # squares overflow, sums don't
    x[4, ::2] = 1e-40
    bias = rng.standard_normal(book.num_classes).astype(np.float32)
    for b in (None, bias):
        got = native_head(x, alpha, b, book, normalize=False)
        product, norm = scaled_product(book, x)
        want = alpha * product + (0 if b is None else b)
        size = 4 * tolerances.EPS["float32"] * (abs(alpha) * norm * np.sqrt(n) + 10)
        assert not np.isnan(got).any()
        finite = np.isfinite(got)
        assert (np.abs(got - want)[finite] <= np.broadcast_to(size, want.shape)[finite]).all()
        # Infinite only where float32 can't hold the logit, and with its sign.
        assert (np.abs(want) + size > np.finfo(np.float32).max)[~finite].all()
        rows = np.concatenate([native_head(r, alpha, b, book, normalize=False) for r in x[:, None]])
        np.testing.assert_array_equal(got, rows)


def test_the_range_of_the_other_dtypes(isa: str) -> None:
    for dtype, big in (("bfloat16", BIG), ("float64", 1.7e308), ("float16", 65504.0)):
        x = np.zeros((2, 20), NUMPY_DTYPES[dtype])
        x[0, :4] = big, big, -big, -big
        x[1, :2] = big
        exact = tolerances.accumulation(dtype)
        got = native_head(x, 0.125, None, ONE_BLOCK, normalize=False, out=exact)
        signs = expand(ONE_BLOCK)[:, :4]
        unit = float(x[0, 0]) / 8
        np.testing.assert_allclose(got[0], (signs @ [1, 1, -1, -1]) * unit, rtol=1e-6)
        np.testing.assert_allclose(got[1], (signs @ [1, 1, 0, 0]) * unit, rtol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_bad_feature_without_normalisation(isa: str, bad: float) -> None:
    x = np.ones((3, 20), np.float32)
    x[1, 7] = bad
    got = native_head(x, 2.0, None, ONE_BLOCK, normalize=False)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


# The transform.


@pytest.mark.parametrize("log2", [1, 2, 3, 6, 9, 13])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_transform_of_huge_rows(isa: str, log2: int, dtype: str) -> None:
    n, big = 1 << log2, 1.7e308 if dtype == "float64" else BIG
    rng = np.random.default_rng(log2)
    x = np.zeros((4, n), NUMPY_DTYPES[dtype])
    x[0, -2:] = big, -big
    x[1] = rng.standard_normal(n)
    x[2] = np.where(np.arange(n) % 4 < 2, big, -big)
    x[3] = big * rng.choice([-1, 1], n)
    for scale in (1.0, 2.0**-log2):
        got = hadamard_transform(x, scale)
        unit = x.astype(np.float64) / (4 * n)
        want = oracle(unit, scale)
        exact = tolerances.transform(want, log2, dtype)[:, None]
        with np.errstate(over="ignore"):
            assert not np.isnan(got.astype(np.float64)).any()
            finite = np.isfinite(got.astype(np.float64))
            error = np.abs(got.astype(np.float64) / (4 * n) - want)
            assert (error <= exact)[finite].all()
            most = float(np.finfo(tolerances.accumulation(dtype)).max)
            assert ((np.abs(want) + exact) * (4 * n) > 0.99 * most)[~finite].all()
        if scale < 1:
            assert finite.all()
        for row in range(4):  # the batch, where one row alone is wide, changes no bit
            np.testing.assert_array_equal(hadamard_transform(x[row], scale), got[row])
        wide = np.zeros((4, n + 1), x.dtype)[:, :n]
        wide[...] = x
        np.testing.assert_array_equal(hadamard_transform(wide, scale), got)


def test_zero_cancels_exactly(isa: str) -> None:
    x = np.array([[BIG, BIG, -BIG, -BIG]], np.float32)
    np.testing.assert_array_equal(hadamard_transform(x), [[0, 0, INF, 0]])
    np.testing.assert_array_equal(hadamard_transform(x, 0.25), [[0, 0, np.float32(BIG), 0]])


@pytest.mark.parametrize("scale", [1e300, -1e300, 1e39, 1e-39, 1e-42, -1e-300])
def test_scales_beyond_float32(isa: str, scale: float) -> None:
    x = np.zeros((3, 16), np.float32)
    x[0, :2] = 1, -1
    x[1, 3] = 1e-44
    x[2, 5] = 1e38
    with np.errstate(over="ignore"):
        want = reference.hadamard_transform(x, scale).astype(np.float32)
    np.testing.assert_allclose(hadamard_transform(x, scale), want, rtol=1e-6)
    np.testing.assert_allclose(hadamard_transform(to_torch(x), scale).numpy(), want, rtol=1e-6)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_bad_rows_beside_huge_ones(isa: str, bad: float) -> None:
    x = np.ones((3, 64), np.float32)
    x[0] = np.where(np.arange(64) % 2, BIG, -BIG)
    x[1, 5] = bad
    got = hadamard_transform(x, 2.0**-6)
    assert np.isfinite(got[0]).all()
    assert not np.isfinite(got[1]).any()
    np.testing.assert_array_equal(got[2], hadamard_transform(x[2], 2.0**-6))


# Biases. The features are ordinary, the oracle is the reference.

SPECIAL = {
    "one NaN": {7: NAN},
    "two NaN": {3: NAN, 31: -NAN},
    "NaN and infinities": {0: INF, 9: NAN, 10: -INF},
    "the last is NaN": {-1: NAN},
    "+inf": {5: INF},
    "two +inf": {2: INF, 12: INF},
    "-inf": {0: -INF, 3: -INF},
}


def special_bias(classes: int, name: str) -> np.ndarray:
    bias = np.random.default_rng(3).standard_normal(classes).astype(np.float32)
    for index, value in SPECIAL[name].items():
        bias[index % classes] = value
    return bias


special = pytest.mark.parametrize("name", SPECIAL)


def inputs(book: Codebook) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((3, book.in_features)).astype(np.float32)


def check_ranks(head: Any, x: np.ndarray, z: np.ndarray, mask: Any = None) -> None:
    """Argmax, top-k and logsumexp against logits that hold NaN."""
    classes, rows = z.shape[-1], len(z)
    np.testing.assert_array_equal(head.argmax(x, allowed=mask), np.argmax(z, -1))
    k = min(classes, 40)
    want, order = reference.topk(z, k)
    lse = reference.logsumexp(z)[..., 0]
    for log_probabilities in (False, True):
        values, indices, got = head.topk(x, k, log_probabilities=log_probabilities, allowed=mask)
        numbers = np.isnan(want)
        np.testing.assert_array_equal(indices[numbers], order[numbers])
        assert ((indices >= 0) & (indices < classes)).all()
        expected = want
        if log_probabilities:
            expected = np.take_along_axis(reference.log_softmax(z), order, -1)
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(got, lse, rtol=1e-5, atol=1e-5)
    ids = np.tile(np.arange(min(classes, 40)), (rows, 1))
    log_p, logits, got = head.log_prob(x, ids, allowed=mask)
    np.testing.assert_allclose(got, lse, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(logits, z[:, : ids.shape[1]], rtol=1e-5, atol=1e-5)
    want = reference.log_softmax(z)[:, : ids.shape[1]]
    np.testing.assert_allclose(log_p, want, rtol=1e-5, atol=1e-4)


@special
@books
def test_special_biases_rank_as_in_numpy(isa: str, book: Codebook, name: str) -> None:
    x, bias = inputs(book), special_bias(book.num_classes, name)
    z = reference.logits(x, expand(book), 9.0, bias)
    for make in makers(isa):
        check_ranks(make(book, 9.0, bias), x, z)


@special
@books
def test_special_biases_under_a_mask(isa: str, book: Codebook, name: str) -> None:
    x, bias = inputs(book), special_bias(book.num_classes, name)
    allowed = np.random.default_rng(5).random((3, book.num_classes)) < 0.3
    allowed[:, [3, 5, 7]] = True
    allowed[2] = np.arange(book.num_classes) == 7  # NaN or not, the only one
    z = reference.masked(reference.logits(x, expand(book), 9.0, bias), allowed)
    for make in makers(isa):
        check_ranks(make(book, 9.0, bias), x, z, mask=pack(allowed))


@special
@pytest.mark.parametrize("book", [ONE_BLOCK, BLOCKS], ids=["one block", "several"])
def test_special_biases_as_in_torch(isa: str, book: Codebook, name: str) -> None:
    """The same logits, by torch's own functions."""
    x, bias = inputs(book), special_bias(book.num_classes, name)
    z = torch.from_numpy(native_head(x, 9.0, bias, book))
    head = partial(native_head, x, 9.0, bias, book)
    np.testing.assert_allclose(head(Epilogue.SOFTMAX), z.softmax(-1), atol=1e-6)
    np.testing.assert_allclose(head(Epilogue.LOG_SOFTMAX), z.log_softmax(-1), atol=1e-4)
    np.testing.assert_allclose(head(Epilogue.SIGMOID), z.sigmoid(), atol=1e-6)
    target = np.array([0, 7, book.num_classes - 1])
    for make in makers(isa):
        tested = make(book, 9.0, bias)
        np.testing.assert_array_equal(tested.argmax(x), z.argmax(-1))
        values, indices, lse = tested.topk(x, 5)
        np.testing.assert_array_equal(values, z.topk(5)[0])
        at_indices = z.gather(1, torch.from_numpy(indices)).numpy()
        np.testing.assert_array_equal(np.isnan(values), np.isnan(at_indices))
        np.testing.assert_allclose(lse, z.logsumexp(-1), rtol=1e-5)
        for smoothing in (0.0, 0.1):
            loss, _ = tested.nll(x, target, label_smoothing=smoothing)
            want = torch.nn.functional.cross_entropy(
                z, torch.from_numpy(target), reduction="none", label_smoothing=smoothing
            )
            np.testing.assert_allclose(loss, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e30, -1e30, 3e38, -3e38])
@books
def test_a_huge_bias_for_all(isa: str, book: Codebook, size: float) -> None:
    """Every logit is the bias: the softmax is uniform, and log-probabilities are -log C."""
    x, classes = inputs(book), book.num_classes
    bias = np.full(classes, size, np.float32)
    uniform = -np.log(classes)
    for epilogue, want in ((Epilogue.SOFTMAX, 1 / classes), (Epilogue.LOG_SOFTMAX, uniform)):
        got = native_head(x, 9.0, bias, book, epilogue)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    target = np.array([0, 5, classes - 1])
    for make in makers(isa):
        head = make(book, 9.0, bias)
        np.testing.assert_array_equal(head.argmax(x), 0)
        values, indices, lse = head.topk(x, 5, log_probabilities=True)
        np.testing.assert_allclose(values, uniform, rtol=1e-5)
        np.testing.assert_array_equal(indices, np.tile(np.arange(5), (3, 1)))
        np.testing.assert_allclose(lse, size, rtol=1e-6)
        np.testing.assert_allclose(head.log_prob(x, target)[0], uniform, rtol=1e-5)
        for smoothing in (0.0, 0.3):
            loss, _ = head.nll(x, target, label_smoothing=smoothing)
            np.testing.assert_allclose(loss, -uniform, rtol=1e-5)


@pytest.mark.parametrize("size", [1e4, 2e37, 1e38, 3e38])
@books
def test_losses_of_extreme_logits(isa: str, book: Codebook, size: float) -> None:
    x, classes = inputs(book), book.num_classes
    bias = np.where(np.arange(classes) % 3 == 0, -size, size).astype(np.float32)
    z = reference.logits(x, expand(book), 9.0, bias)
    target = np.array([0, 1, classes - 1])
    for make in makers(isa):
        head = make(book, 9.0, bias)
        for smoothing in (0.0, 0.1, 1.0):
            want = reference.nll(z, target, label_smoothing=smoothing)
            with np.errstate(over="ignore"):
                want32 = want.astype(np.float32)
            loss, lse = head.nll(x, target, label_smoothing=smoothing)
            np.testing.assert_allclose(loss, want32, rtol=1e-5, atol=1e-6 * size)
            np.testing.assert_allclose(lse, reference.logsumexp(z)[:, 0], rtol=1e-6)


def test_samples_of_a_row_with_nan(isa: str) -> None:
    x = inputs(BLOCKS)
    bias = special_bias(BLOCKS.num_classes, "two NaN")
    seeds = np.arange(3)
    for make in makers(isa):
        np.testing.assert_array_equal(make(BLOCKS, 9.0, bias).sample(x, seeds), 3)


def test_a_row_of_nan_keeps_its_contract(isa: str) -> None:
    x = inputs(ONE_BLOCK)
    x[1, 2] = NAN
    bias = special_bias(ONE_BLOCK.num_classes, "one NaN")
    for make in makers(isa):
        head = make(ONE_BLOCK, 9.0, bias)
        values, indices, lse = head.topk(x, 6)
        np.testing.assert_array_equal(indices[1], np.arange(6))
        assert np.isnan(values[1]).all() and np.isnan(lse).all()
        np.testing.assert_array_equal(indices[[0, 2], 0], 7)
        np.testing.assert_array_equal(head.argmax(x), [7, 0, 7])


def test_threads_and_batches_keep_nan_in_place(isa: str, native_threads: None) -> None:
    """Chunks of one row on several threads, and rows of a batch: the same bits."""
    book = BOOKS["chunks"]
    bias = special_bias(book.num_classes, "one NaN")
    bias[[7, 40_000, 69_999]] = 0.5, NAN, NAN
    head = makers(isa)[0](book, 9.0, bias)
    x = np.random.default_rng(6).standard_normal((40, 30)).astype(np.float32)
    _native.set_num_threads(1)
    want = head.topk(x, 4), head.argmax(x)
    np.testing.assert_array_equal(want[0][1][:, :2], [[40_000, 69_999]] * 40)
    np.testing.assert_array_equal(want[1], 40_000)
    _native.set_num_threads(3)
    for rows in (slice(0, 1), slice(3, 5), slice(0, 40)):
        for got, expected in zip(head.topk(x[rows], 4), want[0], strict=True):
            np.testing.assert_array_equal(got, expected[rows])
        np.testing.assert_array_equal(head.argmax(x[rows]), want[1][rows])


@pytest.mark.parametrize("kind", ["auto", "orthonormal"])
def test_modules_rank_nan_alike(kind: str) -> None:
    """Codebooks that run as a dense product too."""
    head = FixedClassifier(32, 16, codebook=kind)
    with torch.no_grad():
        head.bias[[7, 9]] = NAN
        x = torch.randn(3, 32)
        assert head.argmax(x).tolist() == [7, 7, 7]
        values, indices, lse = head.topk(x, 4)
        assert indices[:, :2].tolist() == [[7, 9]] * 3
        assert torch.isnan(values[:, :2]).all() and torch.isfinite(values[:, 2:]).all()
        assert torch.isnan(lse).all()
