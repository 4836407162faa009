"""The Triton kernels against the oracle: the shared cases, on a GPU or under Triton's interpreter.

Run by test_triton.py, in a process of their own: TRITON_INTERPRET has to be set before Triton is
imported, and would change what the other tests of this process see. Sizes are small, because the
interpreter takes about a millisecond for each operation of a kernel.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import tolerances
import torch
from backends import to_numpy, to_torch
from cases import (
    CASES,
    NUMPY_DTYPES,
    Case,
    any_codebook,
    check_head,
    expand,
    scale_of,
    sylvester,
    synthetic,
)
from fixclf_infer.triton_kernels.head import EPILOGUES
from hypothesis import given, settings
from hypothesis import strategies as st
from reductions import check_argmax, check_log_prob, check_topk, oracle, pack, scale_for

import fixclf_infer
from fixclf_infer import ops, reference
from fixclf_infer.codebooks import Codebook, codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(autouse=True, scope="module")
def triton_backend() -> Any:
    with fixclf_infer.use_backend("triton"):
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def on_device(value: Any) -> Any:
    """Arrays as tensors; tuples and lists of them too."""
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        # A copy keeps no strides; views of a tensor of the whole do.
        return to_torch(array).to(DEVICE)
    if isinstance(value, torch.Tensor):
        return value.to(DEVICE)
    return value


def to_host(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(to_host, value))
    return to_numpy(value.cpu())


class Head:
    """A head on DEVICE, on NumPy arrays."""

    def __init__(
        self,
        book: Codebook,
        alpha: float,
        bias: np.ndarray | None = None,
        *,
        classes: range | None = None,
        normalize: bool = True,
    ) -> None:
        base, signs, geometry = ops.codebook_arguments(book, classes)
        self.codebook = ops.CodebookArguments(on_device(base), on_device(signs), geometry)
        self.alpha = torch.tensor(alpha, device=DEVICE)
        self.bias = on_device(bias)
        self.normalize = normalize

    def _run(self, name: str, x: Any, *arguments: Any, **keywords: Any) -> Any:
        keywords = {key: on_device(value) for key, value in keywords.items()}
        function = getattr(ops, name)
        head = (on_device(x), self.alpha, self.bias, self.codebook)
        arguments = tuple(map(on_device, arguments))
        return to_host(function(*head, *arguments, normalize=self.normalize, **keywords))

    def map(self, x: Any, epilogue: int = 0, out: str | None = None) -> np.ndarray:
        dtype = getattr(torch, out) if out else None
        return self._run("head", x, epilogue=epilogue, dtype=dtype)

    def topk(self, x: Any, k: int, log_probabilities: bool = False, allowed: Any = None) -> Any:
        return self._run("head_topk", x, k, log_probabilities=log_probabilities, allowed=allowed)

    def argmax(self, x: Any, allowed: Any = None) -> np.ndarray:
        return self._run("head_argmax", x, allowed=allowed)

    def log_prob(self, x: Any, ids: np.ndarray, allowed: Any = None) -> Any:
        return self._run("head_log_prob", x, ids, allowed=allowed)


BOOKS = {
    "folded": synthetic(1000, 9, log2=10),
    "one block": synthetic(60, 61, log2=6),
    "negated": synthetic(64, 100, log2=6, negate=True),
    "masked": synthetic(30, 150, log2=5, blocks=5),
    "masked and negated": synthetic(30, 150, log2=5, blocks=3, negate=True),
    "base matrix": synthetic(40, 48, log2=2, base_order=12),
    "base matrix of odd order": synthetic(17, 20, log2=2, base_order=5),
    "base matrix and masks": synthetic(24, 60, log2=1, base_order=12, blocks=3),
    "centred": synthetic(64, 33, log2=6, center=True),
    "centred base matrix": synthetic(40, 45, log2=2, base_order=12, center=True, row_offset=2),
    "offsets": synthetic(31, 40, log2=5, blocks=2, row_offset=3, column_offset=1),
    "everything": synthetic(
        40, 200, log2=2, base_order=12, blocks=3, negate=True, row_offset=2, column_offset=1
    ),
    "several tiles": synthetic(60, 5000, log2=6, blocks=80),
    "several tiles, negated": synthetic(120, 9000, log2=7, blocks=40, negate=True),
}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)


def random_rows(rng: np.random.Generator, batch: int, n: int, dtype: str = "float32") -> Any:
    return rng.standard_normal((batch, n)).astype(NUMPY_DTYPES[dtype])


def random_bias(rng: np.random.Generator, classes: int) -> np.ndarray:
    return rng.standard_normal(classes).astype(np.float32)


# Transform.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log2", [0, 1, 2, 3, 5, 8, 11, 14])
def test_transform(log2: int, dtype: str, rng: np.random.Generator) -> None:
    for batch in (1, 3):
        x = random_rows(rng, batch, 1 << log2, dtype)
        got = to_host(ops.hadamard_transform(on_device(x), 0.7))
        assert got.dtype == x.dtype
        # The C++ operator in float64, whose own tests have the oracle: H of order 2^14 is 2 GiB.
        with fixclf_infer.use_backend("auto"):
            want = ops.hadamard_transform(torch.from_numpy(x.astype(np.float64)), 0.7).numpy()
        bound = tolerances.transform(want, log2, dtype)
        tolerances.assert_norm_within(f"transform {dtype}, Triton", got, want, bound)


def test_transform_layouts(rng: np.random.Generator) -> None:
    block = on_device(random_rows(rng, 12, 64)).view(3, 4, 64)
    for x in (block, block[:, ::2, :32], block[..., ::2], block[0].T[:, :4], block[0, 0, :16]):
        got = to_host(ops.hadamard_transform(x))
        want = to_host(ops.hadamard_transform(x.contiguous()))
        np.testing.assert_array_equal(got, want)
    assert ops.hadamard_transform(block[:0]).shape == (0, 4, 64)


# Maps.


def smaller(case: Case) -> Case:
    """Few rows of a wide head, where each is a program."""
    batch = case.batch if case.in_features <= 128 else min(case.batch, 3)
    return Case(**dict(vars(case), batch=batch))


MAPS = list(
    dict.fromkeys(
        smaller(case)
        for case in CASES
        if case.dtype != "float64" and (case.in_features != 500 or not INTERPRETED)
    )
)


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_case(case: Case) -> None:
    head = Head(case.codebook, case.alpha, case.bias_values())
    case.check(head.map(case.features(), case.epilogue, case.out or None))


@books
def test_shards(book: Codebook, rng: np.random.Generator) -> None:
    c, rows = book.num_classes, expand(book)
    x, bias = random_rows(rng, 2, book.in_features), random_bias(rng, c)
    shards = [range(c), range(c // 3, c - 2), range(c - 1, c)]
    for shard, epilogue in zip(shards, (2, 1, 3), strict=True):
        b = bias[shard.start : shard.stop]
        got = Head(book, -3.0, b, classes=shard).map(x, epilogue)
        check_head(got, x, rows[shard.start : shard.stop], -3.0, b, Epilogue(epilogue))


@settings(max_examples=5 if INTERPRETED else 200)
@given(
    book_and_classes=any_codebook(128),
    dtype=st.sampled_from(DTYPES),
    alpha=st.floats(-20, 20, width=32, allow_subnormal=False),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codebook_data(
    book_and_classes: tuple[Codebook, range], dtype: str, alpha: float, seed: int
) -> None:
    book, classes = book_and_classes
    rng = np.random.default_rng(seed)
    x = random_rows(rng, 2, book.in_features, dtype)
    rows, bias = expand(book)[classes.start : classes.stop], random_bias(rng, len(classes))
    head = Head(book, alpha, bias, classes=classes)
    check_head(head.map(x, 0, "float32"), x, rows, alpha, bias, Epilogue.LOGITS)
    z, scale = oracle(x, rows, alpha, bias), scale_for(x, rows, alpha, bias)
    k = min(len(classes), 5)
    check_topk(head.topk(x, k), z, k, scale, dtype)


@books
def test_without_normalisation(book: Codebook, rng: np.random.Generator) -> None:
    x, rows = 3 * random_rows(rng, 2, book.in_features), expand(book)
    bias = random_bias(rng, book.num_classes)
    want = oracle(x, rows, 0.7, bias, normalize=False)
    bound = tolerances.logits(want, scale_for(x, rows, 0.7, bias, False), "float32", "float32")
    got = Head(book, 0.7, bias, normalize=False).map(x)
    tolerances.assert_within("logits without normalisation, Triton", got, want, bound)


@pytest.mark.parametrize("name", ["one block", "base matrix and masks", "folded", "offsets"])
def test_integer_features(name: str, rng: np.random.Generator) -> None:
    book = BOOKS[name]
    x = rng.integers(-128, 128, (3, book.in_features)).astype(np.int8)
    bias = random_bias(rng, book.num_classes)
    got = Head(book, 6.0, bias).map(x)
    want = reference.logits(x.astype(np.float64), expand(book), 6.0, bias)
    bound = tolerances.logits(want, scale_of(expand(book), 6.0, bias), "float32", "float32")
    tolerances.assert_within("logits int8→float32, Triton", got, want, bound)

    signs = rng.choice([-1.0, 1.0], (3, book.in_features)).astype(np.float32)
    packed = to_numpy(ops.pack_signs(torch.from_numpy(signs)))
    np.testing.assert_array_equal(
        Head(book, 6.0, bias).map(packed), Head(book, 6.0, bias).map(signs)
    )


# Rows of extreme values.


@pytest.mark.parametrize("name", [name for name in BOOKS if "several" not in name])
def test_extreme_rows(name: str, rng: np.random.Generator) -> None:
    """Neither overflow nor underflow; a zero row has the bias; NaN and infinity stay in a row."""
    book = BOOKS[name]
    n, c = book.in_features, book.num_classes
    x = random_rows(rng, 9, n)
    factors = [1, 1e30, 1e-30, 1e37, 2.0**-100, 0, 1, 1, 1]
    x = (x.astype(np.float64) * np.array(factors)[:, None]).astype(np.float32)
    x[6, n // 2], x[7, n - 1], x[8, 0] = np.nan, np.inf, -np.inf
    bias = random_bias(rng, c)
    head = Head(book, 5.0, bias)
    want = reference.logits(x.astype(np.float64), expand(book), 5.0, bias)
    bound = tolerances.logits(want, scale_of(expand(book), 5.0, bias), "float32", "float32")
    tolerances.assert_within("logits of extreme rows, Triton", head.map(x), want, bound)
    np.testing.assert_array_equal(head.map(x)[5], bias)
    for epilogue in EPILOGUES[1:]:
        got = head.map(x, epilogue)
        assert np.isfinite(got[:6]).all() and np.isnan(got[6:]).all()
    values, indices, logsumexp = head.topk(x, min(c, 5), True)
    assert np.isfinite(values[:6]).all() and np.isfinite(logsumexp[:6]).all()
    assert np.isnan(values[6:]).all() and np.isnan(logsumexp[6:]).all()
    np.testing.assert_array_equal(indices[6:], [np.arange(min(c, 5))] * 3)
    np.testing.assert_array_equal(head.argmax(x)[6:], 0)
    for part in head.log_prob(x, np.full(9, c - 1)):
        assert np.isfinite(part[:6]).all() and np.isnan(part[6:]).all()


@pytest.mark.parametrize("alpha", [20.0, 1e-30, 3e38])
@pytest.mark.parametrize("name", ["one block", "folded", "masked", "base matrix", "centred"])
def test_huge_features_without_normalisation(name: str, alpha: float) -> None:
    """Sums beyond the range: infinite where the logit is, and never NaN."""
    book = BOOKS[name]
    x = np.zeros((3, book.in_features), np.float32)
    x[0, :2] = 1e38
    x[1, :4] = 3e38, 3e38, -3e38, -3e38
    x[2] = 1e-5
    got = Head(book, alpha, normalize=False).map(x).astype(np.float64)
    values = x.astype(np.float64)
    want = np.float64(np.float32(alpha)) * (values @ expand(book).T)
    norm = np.linalg.norm(values, axis=1, keepdims=True) * np.sqrt(book.in_features)
    bound = np.broadcast_to(4 * 2.0**-23 * alpha * norm, want.shape)
    assert not np.isnan(got).any()
    finite = np.isfinite(got)
    assert (np.abs(got - want)[finite] <= bound[finite]).all()
    assert ((np.abs(want) + bound)[~finite] > 3.4e38).all()


@pytest.mark.parametrize("log2", [1, 5, 9])
def test_transforms_beyond_the_range(log2: int, rng: np.random.Generator) -> None:
    n = 1 << log2
    x = random_rows(rng, 3, n)
    x[1] = np.where(np.arange(n) % 2, -3e38, 3e38)
    got = to_host(ops.hadamard_transform(on_device(x), 1 / n))
    np.testing.assert_array_equal(got[1], np.where(np.arange(n) == 1, np.float32(3e38), 0))
    alone = to_host(ops.hadamard_transform(on_device(x[2:]), 1 / n))
    np.testing.assert_array_equal(alone, got[2:])
    x[:] = 0
    x[0, :2] = 1, -1
    x[1, 0] = 1e-40
    odd = np.arange(n) % 2 == 1
    got = to_host(ops.hadamard_transform(on_device(x), 1e300))
    np.testing.assert_array_equal(got[0], np.where(odd, np.inf, 0))
    np.testing.assert_array_equal(got[1:], [[np.inf] * n, [0] * n])
    got = to_host(ops.hadamard_transform(on_device(x), 1e-42))
    np.testing.assert_allclose(got[0], np.where(odd, 2e-42, 0), atol=2e-45)


@pytest.mark.parametrize("name", ["one block", "masked and negated", "several tiles"])
def test_special_biases(name: str, rng: np.random.Generator) -> None:
    """NaN is the largest logit; infinities, and what swallows the logarithm, as in torch."""
    book = BOOKS[name]
    x, c = random_rows(rng, 2, book.in_features), book.num_classes
    ids = np.tile(np.arange(9), (2, 1))
    for special in ({7: np.nan, c - 1: np.nan, 3: np.inf}, {3: np.inf, 5: np.inf}, {2: -np.inf}):
        bias = random_bias(rng, c)
        bias[list(special)] = list(special.values())
        z = reference.logits(x, expand(book), 6.0, bias)
        head = Head(book, 6.0, bias)
        np.testing.assert_array_equal(head.argmax(x), np.argmax(z, -1))
        want, order = reference.topk(z, 5)
        values, indices, lse = head.topk(x, 5)
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_allclose(values, want, rtol=1e-5)
        np.testing.assert_allclose(lse, reference.logsumexp(z)[:, 0], rtol=1e-5)
        log_p = reference.log_softmax(z)
        np.testing.assert_allclose(head.map(x, 2), log_p, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(head.map(x, 1), np.exp(log_p), atol=1e-6)
        np.testing.assert_allclose(head.log_prob(x, ids)[0], log_p[:, :9], rtol=1e-5, atol=1e-5)
    for size in (1e30, -3e38):
        head = Head(book, 6.0, np.full(c, size, np.float32))
        np.testing.assert_allclose(head.topk(x, 5, True)[0], -np.log(c), rtol=1e-5)
        np.testing.assert_allclose(head.log_prob(x, ids)[0], -np.log(c), rtol=1e-5)
        np.testing.assert_allclose(head.map(x, 2), -np.log(c), rtol=1e-5)


# Reductions.


def check_reductions(
    head: Head,
    x: np.ndarray,
    z: np.ndarray,
    scale: float,
    rng: np.random.Generator,
    mask: np.ndarray | None = None,
    ks: tuple[int, ...] = (1, 6),
) -> None:
    dtype = "float32" if x.dtype.kind in "iu" else str(x.dtype)
    batch, classes = z.shape
    for k in sorted({min(k, classes) for k in ks}):
        check_topk(head.topk(x, k, k > 1, mask), z, k, scale, dtype, k > 1)
    best = head.argmax(x, mask)
    check_argmax(best, z, scale, dtype)
    np.testing.assert_array_equal(best, head.topk(x, 1, allowed=mask)[1][..., 0])
    for shape in ((batch,), (batch, 3)):
        ids = rng.integers(0, classes, shape)
        check_log_prob(head.log_prob(x, ids, mask), z, ids, scale, dtype)


@books
@pytest.mark.parametrize("masked", [False, True])
def test_reductions(book: Codebook, masked: bool, rng: np.random.Generator) -> None:
    c, rows = book.num_classes, expand(book)
    x, bias = random_rows(rng, 2, book.in_features), random_bias(rng, c)
    z, scale = oracle(x, rows, 6.0, bias), scale_for(x, rows, 6.0, bias)
    mask = None
    if masked:
        allowed = rng.random(z.shape) < 0.3
        allowed[:, c // 2] = True
        z, mask = reference.masked(z, allowed), pack(allowed)
    check_reductions(Head(book, 6.0, bias), x, z, scale, rng, mask)


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_reductions_in_other_dtypes(dtype: str, rng: np.random.Generator) -> None:
    for name in ("one block", "masked and negated"):
        book = BOOKS[name]
        rows, x = expand(book), random_rows(rng, 3, book.in_features, dtype)
        z, scale = oracle(x, rows, 6.0, None), scale_for(x, rows, 6.0, None)
        check_reductions(Head(book, 6.0), x, z, scale, rng)


@pytest.mark.parametrize("k", [16, 17, 100] if INTERPRETED else [16, 17, 100, 1024])
def test_long_lists(k: int, rng: np.random.Generator) -> None:
    """Random logits, and biases that rise or fall along the classes, many of them alike."""
    c = 250 if INTERPRETED else 3000
    book = synthetic(32, c, log2=5, blocks=94)
    x, rows = random_rows(rng, 1, 32), expand(book)
    ramp = np.round(np.linspace(-c // 30, c // 30, c)).astype(np.float32)
    for alpha, bias in ((6.0, ramp), (0.0, ramp[::-1].copy())):
        z, scale = oracle(x, rows, alpha, bias), scale_for(x, rows, alpha, bias)
        got = Head(book, alpha, bias).topk(x, k)
        check_topk(got, z, k, scale, "float32")
        if alpha == 0:
            np.testing.assert_array_equal(got[1][0], np.argsort(-bias, kind="stable")[:k])


@books
def test_ties(book: Codebook, rng: np.random.Generator) -> None:
    """The lowest class first: of all classes, and of ±1 features, whose sums are integers."""
    c, n = book.num_classes, book.in_features
    k = min(c, 10)
    x = rng.choice([-1.0, 1.0], (2, n)).astype(np.float32)
    np.testing.assert_array_equal(Head(book, 0.0).topk(x, k)[1], [np.arange(k)] * 2)
    if book.kernel.center:
        return  # the mean is no integer
    sums = np.round(x.astype(np.float64) @ expand(book).T)
    for alpha in (4.0, -4.0):
        _, want = reference.topk(sums * np.sign(alpha), k)
        np.testing.assert_array_equal(Head(book, alpha).topk(x, k)[1], want)
        np.testing.assert_array_equal(Head(book, alpha).argmax(x), want[:, 0])


@books
def test_the_best_logits_are_those_of_the_map(book: Codebook, rng: np.random.Generator) -> None:
    """Bit for bit, so that no rounding can make top-k and the logits disagree on an order."""
    x, bias = random_rows(rng, 2, book.in_features), random_bias(rng, book.num_classes)
    head, k = Head(book, 9.0, bias), min(book.num_classes, 12)
    z = head.map(x)
    values, indices, _ = head.topk(x, k)
    want, want_ids = reference.topk(z.astype(np.float64), k)
    np.testing.assert_array_equal(indices, want_ids)
    np.testing.assert_array_equal(values, want)
    ids = rng.integers(0, book.num_classes, (2, 4))
    np.testing.assert_array_equal(head.log_prob(x, ids)[1], np.take_along_axis(z, ids, -1))


def test_masks_of_one_class_and_bits_beyond(rng: np.random.Generator) -> None:
    book, c = BOOKS["masked and negated"], 150
    x = np.repeat(random_rows(rng, 1, 30), 4, axis=0)
    own = np.array([0, 7, 77, 149])
    allowed = np.zeros((4, c), bool)
    allowed[np.arange(4), own] = True
    mask = pack(allowed)
    head = Head(book, 5.0)
    values, indices, lse = head.topk(x, 3, True, mask)
    others = [[i for i in range(4) if i != each][:2] for each in own]
    np.testing.assert_array_equal(indices, np.column_stack([own, others]))
    np.testing.assert_array_equal(values, [[0, -np.inf, -np.inf]] * 4)
    np.testing.assert_array_equal(lse, head.log_prob(x, own)[1])
    beyond = mask.copy()
    beyond[:, -1] |= 0xC0
    for got, want in zip(head.topk(x, 3, True, beyond), (values, indices, lse), strict=True):
        np.testing.assert_array_equal(got, want)
    with_one = head.topk(x, 5, False, np.full(19, 255, np.uint8))
    for got, want in zip(with_one, head.topk(x, 5), strict=True):
        np.testing.assert_array_equal(got, want)


def test_ids_outside_are_nan(rng: np.random.Generator) -> None:
    """Ids are on the device: an error would have to wait for it."""
    head = Head(BOOKS["masked"], 5.0)
    ids = np.array([[3, -1, 150], [2**40, 149, 0]])
    log_probs, logits, lse = head.log_prob(random_rows(rng, 2, 30), ids)
    inside = np.array([[True, False, False], [False, True, True]])
    np.testing.assert_array_equal(np.isnan(log_probs), ~inside)
    np.testing.assert_array_equal(np.isnan(logits), ~inside)
    assert np.isfinite(lse).all()


# Batch invariance.


INVARIANT = {
    "logits": lambda head, x: head.map(x),
    "softmax": lambda head, x: head.map(x, Epilogue.SOFTMAX),
    "topk": lambda head, x: head.topk(x, 3, True),
    "log_prob": lambda head, x: head.log_prob(x, np.full(len(x), 5)),
}


@pytest.mark.parametrize("compute", INVARIANT.values(), ids=INVARIANT)
@pytest.mark.parametrize(
    "name", ["folded", "one block", "base matrix", "masked", "centred", "several tiles, negated"]
)
def test_batch_invariance(name: str, compute: Any, rng: np.random.Generator) -> None:
    """Bit for bit the same alone, in any place of any batch, and at any row stride. The batch of
    130 is computed with several rows to a program wherever there is room for them."""
    book = BOOKS[name]
    head = Head(book, 6.0, random_bias(rng, book.num_classes))
    few = random_rows(rng, 3, book.in_features)
    batch = 24 if INTERPRETED else 130
    many = np.concatenate([few, random_rows(rng, batch - 6, book.in_features), few[::-1]])
    if book.num_classes > 1000 and INTERPRETED:
        many = np.concatenate([few, few[::-1]])
    wide = on_device(np.concatenate([many, many], axis=1))[:, : book.in_features]

    def each(result: Any) -> tuple[Any, ...]:
        return result if isinstance(result, tuple) else (result,)

    together, strided = each(compute(head, many)), each(compute(head, wide))
    for part, same in zip(together, strided, strict=True):
        np.testing.assert_array_equal(part, same)
        np.testing.assert_array_equal(part[:3], part[-3:][::-1])
    for row in range(3):
        alone = each(compute(head, few[row : row + 1]))
        for part, one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(part[row], one[0])


# Shapes, errors, derivatives, modules.


def test_shapes_of_the_batch(rng: np.random.Generator) -> None:
    book = BOOKS["masked"]
    head = Head(book, 4.0)
    block = random_rows(rng, 6, 37)
    want = head.map(np.ascontiguousarray(block[:, :30]))
    x = on_device(block).view(3, 2, 37)[..., :30]
    np.testing.assert_array_equal(head.map(x), want.reshape(3, 2, 150))
    np.testing.assert_array_equal(head.map(x[1, 1]), want[3])
    np.testing.assert_array_equal(head.map(x[:, 0]), want[::2])
    for got, rows in zip(head.topk(x, 3), head.topk(block[:, :30].copy(), 3), strict=True):
        np.testing.assert_array_equal(got, rows.reshape(got.shape))
    log_probs, _, lse = head.log_prob(x, np.zeros((3, 2, 0), np.int64))
    assert log_probs.shape == (3, 2, 0)
    np.testing.assert_array_equal(lse, head.topk(x, 1)[2])
    for shape in ((0, 30), (2, 0, 30)):
        empty = np.empty(shape, np.float32)
        assert head.map(empty).shape == (*shape[:-1], 150)
        assert [part.shape for part in head.topk(empty, 3)] == [
            (*shape[:-1], 3),
            (*shape[:-1], 3),
            shape[:-1],
        ]
        assert head.argmax(empty).shape == shape[:-1]
        assert head.log_prob(empty, np.empty(shape[:-1], np.int64))[2].shape == shape[:-1]


def test_errors(rng: np.random.Generator) -> None:
    book = BOOKS["masked"]
    head, x = Head(book, 4.0), random_rows(rng, 2, 30)
    calls = {
        "x has 29 features in its last dimension, but the codebook has 30": lambda: head.map(
            x[:, :29]
        ),
        "alpha is float32, expected float64|x is float64": lambda: head.map(x.astype(np.float64)),
        "k is 0, expected 1 to 150": lambda: head.topk(x, 0),
        "k is 151, expected 1 to 150": lambda: head.topk(x, 151),
        "bias has 3 elements, expected one for each of 150": lambda: Head(
            book, 4.0, np.zeros(3, np.float32)
        ).map(x),
        "allowed has rows of 18 bytes, expected 19": lambda: head.topk(
            x, 2, allowed=np.zeros(18, np.uint8)
        ),
        "allowed has shape .3, 19., expected": lambda: head.topk(
            x, 2, allowed=np.zeros((3, 19), np.uint8)
        ),
        "ids has shape .3., expected": lambda: head.log_prob(x, np.zeros(3, np.int64)),
        "ids is Int, expected Long": lambda: head.log_prob(x, np.zeros(2, np.int32)),
        "the order .* is 32768, more than the 16384": lambda: Head(
            synthetic(20000, 5, log2=15), 1.0
        ).map(np.zeros((1, 20000), np.float32)),
        "the last dimension of x is 32768, more than the 16384": lambda: ops.hadamard_transform(
            torch.zeros(1, 1 << 15, device=DEVICE)
        ),
        "x has 12 elements in its last dimension, expected a power of two": lambda: (
            ops.hadamard_transform(torch.zeros(1, 12, device=DEVICE))
        ),
        "epilogue is 7, expected one of 0": lambda: head.map(x, 7),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("name", [name for name in BOOKS if "several" not in name])
def test_adjoint(name: str, rng: np.random.Generator) -> None:
    book = BOOKS[name]
    c = book.num_classes
    for shard in (range(c), range(c // 3, c - 1)):
        rows = expand(book)[shard.start : shard.stop]
        base, signs, geometry = map(on_device, ops.codebook_arguments(book, shard))
        g = random_rows(rng, 2, len(shard))
        operator = torch.ops.fixclf_triton.project_adjoint
        got = to_host(operator(on_device(g), base, signs, geometry))
        want = reference.project_adjoint(g, rows)
        bound = 8 * tolerances.EPS["float32"] * np.linalg.norm(want) + 1e-6
        tolerances.assert_norm_within("adjoint, Triton", got, want, bound)


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("name", ["one block", "masked and negated", "centred"])
def test_gradients(name: str, epilogue: Epilogue, rng: np.random.Generator) -> None:
    """Those of the CPU operators, whose own tests compare them with finite differences."""
    book = BOOKS[name]
    weight = random_rows(rng, 2, book.num_classes)
    x, bias = random_rows(rng, 2, book.in_features), random_bias(rng, book.num_classes)
    gradients = []
    for backend, device in (("triton", DEVICE), ("auto", "cpu")):
        with fixclf_infer.use_backend(backend):
            base, signs, geometry = ops.codebook_arguments(book)
            moved = [None if t is None else t.to(device) for t in (base, signs)]
            arguments = [torch.from_numpy(a).to(device) for a in (x, np.float32(5) + 0 * x[0, :1])]
            arguments.append(torch.from_numpy(bias).to(device))
            for argument in arguments:
                argument.requires_grad_()
            out = ops.head(*arguments, ops.CodebookArguments(*moved, geometry), epilogue=epilogue)
            (out * torch.from_numpy(weight).to(device)).sum().backward()
            gradients.append([to_host(argument.grad) for argument in arguments])
    for got, want in zip(*gradients, strict=True):
        bound = tolerances.gradient(want, "float32") + 1e-6
        tolerances.assert_norm_within("gradients, Triton against C++", got, want, bound)


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_of_reductions(name: str, masked: bool, rng: np.random.Generator) -> None:
    """Those of the CPU operators; of top-k, log-probabilities and logsumexp together."""
    book = BOOKS[name]
    k = min(3, book.num_classes)
    x, bias = random_rows(rng, 2, book.in_features), random_bias(rng, book.num_classes)
    ids = rng.integers(0, book.num_classes, (2, 3))
    allowed = rng.random((2, book.num_classes)) < 0.7
    np.put_along_axis(allowed, ids, True, 1)
    allowed[:, :k] = True
    gradients = []
    for backend, device in (("triton", DEVICE), ("auto", "cpu")):
        with fixclf_infer.use_backend(backend):
            base, signs, geometry = ops.codebook_arguments(book)
            moved = [None if t is None else t.to(device) for t in (base, signs)]
            arguments = [torch.from_numpy(a).to(device) for a in (x, np.float32(5) + 0 * x[0, :1])]
            arguments.append(torch.from_numpy(bias).to(device))
            for argument in arguments:
                argument.requires_grad_()
            mask = ops.pack_allowed(torch.from_numpy(allowed)).to(device) if masked else None
            inputs = (*arguments, ops.CodebookArguments(*moved, geometry))
            values, _, lse = ops.head_topk(*inputs, k, log_probabilities=masked, allowed=mask)
            at_ids = ops.head_log_prob(*inputs, torch.from_numpy(ids).to(device), allowed=mask)[0]
            (values.sum() - lse.square().sum() + (at_ids * at_ids).sum()).backward()
            gradients.append([to_host(argument.grad) for argument in arguments])
    for got, want in zip(*gradients, strict=True):
        bound = tolerances.gradient(want, "float32") + 1e-5
        tolerances.assert_norm_within("gradients, Triton against C++", got, want, bound)


def test_module(rng: np.random.Generator) -> None:
    """FixedClassifier runs on the backend that was asked for, and says what that one lacks."""
    model = FixedClassifier(64, 100, codebook="orthoplex").to(DEVICE)
    x = on_device(random_rows(rng, 3, 64))
    got = to_host(model.predict_proba(x))
    with fixclf_infer.use_backend("auto"):
        want = to_host(model.cpu().predict_proba(x.cpu()))
    model.to(DEVICE)
    np.testing.assert_allclose(got, want, atol=1e-6)
    with pytest.raises(NotImplementedError, match="head_nll has no Triton kernel"):
        model.loss(x, torch.zeros(3, dtype=torch.int64, device=DEVICE))


def test_largest_order(rng: np.random.Generator) -> None:
    """N = 16384: mixed from several slots, and a softmax over more classes than one tile."""
    book = codebook(16384, 6000, "hadamard")
    x = random_rows(rng, 1, 16384)
    transformed = to_host(ops.hadamard_transform(torch.from_numpy(x).to(DEVICE)))[0]
    first = book.kernel.row_offset
    z = 8.0 * transformed[first : first + 6000].astype(np.float64) / np.linalg.norm(x) / 128
    got = Head(book, 8.0).map(x, Epilogue.SOFTMAX)[0]
    np.testing.assert_allclose(got, np.exp(z - reference.logsumexp(z)), atol=1e-6)


def test_sylvester_widths(rng: np.random.Generator) -> None:
    for n, c in ((1, 1), (3, 17), (17, 3), (33, 64), (64, 33), (129, 2)):
        book = sylvester(n, c)
        x = random_rows(rng, 1, n)
        check_head(Head(book, 7.5).map(x, 1), x, expand(book), 7.5, None, Epilogue.SOFTMAX)
