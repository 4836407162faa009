"""Top-k, argmax, log-probabilities, loss, samples and class masks, against the oracle."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from backends import native, to_numpy, to_torch
from cases import (
    DTYPES,
    NUMPY_DTYPES,
    SHAPES,
    WIDTHS,
    Case,
    any_codebook,
    expand,
    sylvester,
    synthetic,
)
from hypothesis import given
from hypothesis import strategies as st
from reductions import (
    TorchHead,
    check_everything,
    check_log_prob,
    check_nll,
    check_sample,
    check_topk,
    makers,
    oracle,
    pack,
    scale_for,
)
from scipy.stats import chisquare
from script import run
from tolerances import EPS, accumulation, assert_norm_within, assert_within, gradient

from fixclf_infer import _native, ops, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

VARIANTS = {
    "folded": synthetic(100, 9, log2=7),
    "one block": synthetic(60, 61, log2=6),
    "negated": synthetic(64, 100, log2=6, negate=True),
    "masked": synthetic(30, 150, log2=5, blocks=5),
    "masked and negated": synthetic(30, 150, log2=5, blocks=3, negate=True),
    "base matrix": synthetic(40, 48, log2=2, base_order=12),
    "base matrix and masks": synthetic(24, 60, log2=1, base_order=12, blocks=3),
    "centred": synthetic(64, 33, log2=6, center=True),
    "offsets": synthetic(31, 40, log2=5, blocks=2, row_offset=3, column_offset=1),
}
variants = pytest.mark.parametrize("book", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def random_rows(rng: np.random.Generator, batch: int, n: int, dtype: str) -> np.ndarray:
    return rng.standard_normal((batch, n)).astype(NUMPY_DTYPES[dtype])


def random_bias(rng: np.random.Generator, classes: int, dtype: str) -> np.ndarray:
    return rng.standard_normal(classes).astype(accumulation(dtype))


def random_mask(rng: np.random.Generator, shape: tuple[int, ...], share: float) -> np.ndarray:
    """bool; at least one class a row is allowed."""
    allowed = rng.random(shape) < share
    np.put_along_axis(allowed, rng.integers(0, shape[-1], (*shape[:-1], 1)), True, -1)
    return allowed


# Against the oracle.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "n", "c"), SHAPES)
def test_family(isa: str, kind: str, n: int, c: int, dtype: str) -> None:
    case = Case(n, c, 4, dtype, kind)
    rng = np.random.default_rng(zlib.crc32(str(case).encode()))
    x, rows, bias = case.features(), case.matrix, case.bias_values()
    z, scale = oracle(x, rows, case.alpha, bias), scale_for(x, rows, case.alpha, bias)
    for make in makers(isa):
        check_everything(make(case.codebook, case.alpha, bias), x, z, scale, rng)


@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_shards(isa: str, book: Codebook, dtype: str, rng: np.random.Generator) -> None:
    """Classes count from the shard's first."""
    c, x = book.num_classes, random_rows(rng, 3, book.in_features, dtype)
    for classes in (range(1, c), range(c // 3, c - 2), range(c - 1, c)):
        rows = expand(book)[classes.start : classes.stop]
        bias = random_bias(rng, len(classes), dtype)
        z, scale = oracle(x, rows, -6.0, bias), scale_for(x, rows, -6.0, bias)
        for make in makers(isa):
            check_everything(make(book, -6.0, bias, classes=classes), x, z, scale, rng)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width(isa: str, width: int, rng: np.random.Generator) -> None:
    for n, c in ((width, 37), (50, width), (width, width)):
        book = sylvester(n, c)
        x, bias = random_rows(rng, 2, n, "float32"), random_bias(rng, c, "float32")
        z, scale = oracle(x, expand(book), 7.5, bias), scale_for(x, expand(book), 7.5, bias)
        check_everything(native(book, 7.5, bias), x, z, scale, rng)


@given(
    book_and_classes=any_codebook(),
    dtype=st.sampled_from(DTYPES),
    alpha=st.floats(-20, 20, width=32, allow_subnormal=False),
    has_bias=st.booleans(),
    normalize=st.booleans(),
    masks=st.sampled_from(["none", "one", "each"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codebook_data(
    isa: str,
    book_and_classes: tuple[Codebook, range],
    dtype: str,
    alpha: float,
    has_bias: bool,
    normalize: bool,
    masks: str,
    seed: int,
) -> None:
    book, classes = book_and_classes
    rng = np.random.default_rng(seed)
    x = random_rows(rng, 3, book.in_features, dtype)
    bias = random_bias(rng, len(classes), dtype) if has_bias else None
    rows = expand(book)[classes.start : classes.stop]
    z = oracle(x, rows, alpha, bias, normalize)
    scale = scale_for(x, rows, alpha, bias, normalize)
    mask = None
    if masks != "none":
        shape = (len(classes),) if masks == "one" else z.shape
        allowed = random_mask(rng, shape, rng.choice([0.02, 0.5, 0.95]))
        z, mask = reference.masked(z, allowed), pack(allowed)
    for make in makers(isa):
        head = make(book, alpha, bias, classes=classes, normalize=normalize)
        check_everything(head, x, z, scale, rng, mask)


@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_best_logits_are_those_of_the_map(
    isa: str, book: Codebook, dtype: str, rng: np.random.Generator
) -> None:
    """Bit for bit, so that no rounding can make top-k and the logits disagree on an order."""
    x, bias = (
        random_rows(rng, 5, book.in_features, dtype),
        random_bias(rng, book.num_classes, dtype),
    )
    head, k = native(book, 9.0, bias), min(book.num_classes, 40)
    z = head.map(x, int(Epilogue.LOGITS), NUMPY_DTYPES[accumulation(dtype)])
    want, want_ids = reference.topk(z.astype(np.float64), k)
    values, indices, _ = head.topk(x, k)
    np.testing.assert_array_equal(indices, want_ids)
    np.testing.assert_array_equal(values, want)
    ids = rng.integers(0, book.num_classes, (5, 9))
    np.testing.assert_array_equal(head.log_prob(x, ids)[1], np.take_along_axis(z, ids, -1))


@variants
def test_numpy_and_torch_give_the_same_bits(book: Codebook, rng: np.random.Generator) -> None:
    c = book.num_classes
    mask = pack(random_mask(rng, (c,), 0.5))
    for dtype in DTYPES:
        x, bias = random_rows(rng, 4, book.in_features, dtype), random_bias(rng, c, dtype)
        results = []
        for make in (native, TorchHead):
            head = make(book, 3.0, bias)
            results.append([f(head, x, mask) for f in REDUCTIONS.values()])
        for a, b in zip(*results, strict=True):
            assert_same(a, b)


# Shapes.


def ids_for(x: np.ndarray, step: int) -> np.ndarray:
    """Some integer for each row, which depends on the row's features alone."""
    first = np.abs(x[..., 0].astype(np.float64))
    return np.floor(np.where(np.isfinite(first), first, 0) * 7).astype(np.int64) % step


REDUCTIONS: dict[str, Callable[[Any, np.ndarray, Any], Any]] = {
    "topk": lambda head, x, mask: head.topk(x, 3, False, mask),
    "log-probabilities of topk": lambda head, x, mask: head.topk(x, 9, True, mask),
    "argmax": lambda head, x, mask: head.argmax(x, mask),
    "sample": lambda head, x, mask: head.sample(x, ids_for(x, 1000), mask),
    "log_prob": lambda head, x, mask: head.log_prob(x, ids_for(x, 9), mask),
    "log_prob of several": lambda head, x, mask: head.log_prob(
        x, np.stack([ids_for(x, 9), ids_for(x, 5), ids_for(x, 9)], -1), mask
    ),
    "nll": lambda head, x, mask: head.nll(x, ids_for(x, 9)),
    "smoothed nll": lambda head, x, mask: head.nll(x, ids_for(x, 9), 2, 0.2),
}
reductions = pytest.mark.parametrize("reduce", REDUCTIONS.values(), ids=REDUCTIONS)


def each(result: Any) -> tuple[np.ndarray, ...]:
    return result if isinstance(result, tuple) else (result,)


def assert_same(got: Any, want: Any) -> None:
    for a, b in zip(each(got), each(want), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@reductions
def test_shapes_of_the_batch(
    isa: str, reduce: Callable[..., Any], rng: np.random.Generator
) -> None:
    book = VARIANTS["masked"]
    block = rng.standard_normal((3, 4, 37)).astype(np.float32)
    for make in makers(isa):
        head = make(book, 4.0, None)
        want = reduce(head, np.ascontiguousarray(block[..., :30]).reshape(12, 30), None)
        got = reduce(head, block[..., :30], None)  # 3-D, strided
        assert_same(got, tuple(a.reshape(3, 4, *a.shape[1:]) for a in each(want)))
        got = reduce(head, block[1, 2, :30], None)  # 1-D
        assert_same(tuple(map(np.asarray, each(got))), tuple(a[6] for a in each(want)))
        for shape in ((0, 30), (2, 0, 30)):
            got = each(reduce(head, np.empty(shape, np.float32), None))
            for a, b in zip(got, each(want), strict=True):
                assert a.shape == (*shape[:-1], *b.shape[1:]) and a.dtype == b.dtype


def test_no_ids_at_all(isa: str, rng: np.random.Generator) -> None:
    x = random_rows(rng, 3, 60, "float32")
    for make in makers(isa):
        head = make(VARIANTS["one block"], 4.0, None)
        log_probs, logits, lse = head.log_prob(x, np.empty((3, 0), np.int64))
        assert log_probs.shape == logits.shape == (3, 0)
        np.testing.assert_array_equal(lse, head.topk(x, 1)[2])


def test_repeated_ids_and_one_row_of_many(isa: str, rng: np.random.Generator) -> None:
    book = VARIANTS["negated"]
    x = random_rows(rng, 2, 64, "float32")
    ids = np.tile([7, 99, 7, 0, 0, 7], (2, 300))
    for make in makers(isa):
        log_probs, logits, _ = make(book, 4.0, None).log_prob(x, ids)
        few = make(book, 4.0, None).log_prob(x, ids[:, :6])
        np.testing.assert_array_equal(log_probs, np.tile(few[0], 300))
        np.testing.assert_array_equal(logits, np.tile(few[1], 300))


def test_inputs_are_left_alone(rng: np.random.Generator) -> None:
    book = VARIANTS["masked"]
    x, mask = random_rows(rng, 4, 30, "float32"), pack(random_mask(rng, (150,), 0.5))
    copies = x.copy(), mask.copy()
    for make in (native, TorchHead):
        for reduce in REDUCTIONS.values():
            reduce(make(book, 2.0, None), x, mask)
    assert_same((x, mask), copies)


# Exact ties: the lowest class first.


@variants
@pytest.mark.parametrize("bias", [None, 0.75])
def test_all_classes_tie(
    isa: str, book: Codebook, bias: float | None, rng: np.random.Generator
) -> None:
    c = book.num_classes
    for dtype in DTYPES:
        x = random_rows(rng, 2, book.in_features, dtype)
        b = None if bias is None else np.full(c, bias, accumulation(dtype))
        for make in makers(isa):
            head = make(book, 0.0, b)
            np.testing.assert_array_equal(head.topk(x, c)[1], [np.arange(c)] * 2)
            np.testing.assert_array_equal(head.argmax(x), 0)


@variants
@pytest.mark.parametrize("alpha", [5.0, -5.0])
def test_ties_of_signs(isa: str, book: Codebook, alpha: float, rng: np.random.Generator) -> None:
    """±1 features: logits are multiples of one number, so the order is that of integers."""
    c, n = book.num_classes, book.in_features
    x = rng.choice([-1.0, 1.0], (6, n))
    sums = np.round(x @ unstretched(book).T * np.sign(alpha))
    if book.kernel.center:
        sums = sums * 1.0  # the mean moves all alike
    assert (np.sort(sums, -1)[:, 1:] == np.sort(sums, -1)[:, :-1]).any()
    for dtype in DTYPES:
        for make in makers(isa):
            head = make(book, alpha, None)
            for k in {1, min(5, c), c // 2, c}:
                _, want = reference.topk(sums, k)
                np.testing.assert_array_equal(head.topk(x.astype(NUMPY_DTYPES[dtype]), k)[1], want)
            np.testing.assert_array_equal(
                head.argmax(x.astype(NUMPY_DTYPES[dtype])), sums.argmax(axis=-1)
            )


def unstretched(book: Codebook) -> np.ndarray:
    """The ±1 rows, also of a centred codebook: centring does not change an order."""
    if not book.kernel.center:
        return expand(book)
    other = copy.copy(book.kernel)
    object.__setattr__(other, "center", False)
    plain = copy.copy(book)
    object.__setattr__(plain, "kernel", other)
    return expand(plain)


def test_largest_k(isa: str, rng: np.random.Generator) -> None:
    """k = 1024 of random and of tied logits, ascending and descending along the classes."""
    c = 3000
    book = synthetic(32, c, log2=5, blocks=94)
    x, rows = random_rows(rng, 3, 32, "float32"), expand(book)
    ramp = np.linspace(-50, 50, c, dtype=np.float32)
    for bias in (None, ramp, ramp[::-1].copy(), np.round(ramp)):
        z, scale = oracle(x, rows, 6.0, bias), scale_for(x, rows, 6.0, bias)
        for make in makers(isa):
            check_topk(make(book, 6.0, bias).topk(x, 1024), z, 1024, scale, "float32")
            if bias is not None:  # the biases alone
                order = np.argsort(-bias, kind="stable")[:1024]
                got = make(book, 0.0, bias).topk(x, 1024)[1]
                np.testing.assert_array_equal(got, [order] * 3)


# Masks.


@variants
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_masks(isa: str, book: Codebook, share: float, rng: np.random.Generator) -> None:
    c, rows = book.num_classes, expand(book)
    for dtype in DTYPES:
        x, bias = random_rows(rng, 4, book.in_features, dtype), random_bias(rng, c, dtype)
        z, scale = oracle(x, rows, 5.0, bias), scale_for(x, rows, 5.0, bias)
        for shape in ((c,), (4, c)):
            allowed = random_mask(rng, shape, share)
            for make in makers(isa):
                head = make(book, 5.0, bias)
                check_everything(head, x, reference.masked(z, allowed), scale, rng, pack(allowed))


@reductions
def test_bits_beyond_the_classes(
    isa: str, reduce: Callable[..., Any], rng: np.random.Generator
) -> None:
    for c in (1, 7, 9, 61, 150):
        book = sylvester(30, c)
        x, mask = random_rows(rng, 3, 30, "float32"), pack(random_mask(rng, (3, c), 0.5))
        other = mask.copy()
        other[:, -1] |= 0xFF << c % 8 & 0xFF if c % 8 else 0
        for make in makers(isa):
            head = make(book, 5.0, None)
            try:
                want = reduce(head, x, mask)
            except (ValueError, RuntimeError):
                assert c < 9  # fewer classes than this asks for
                continue
            assert_same(reduce(head, x, other), want)


def test_every_single_class_allowed(isa: str, rng: np.random.Generator) -> None:
    """One class has all the probability; all others follow, lowest first."""
    book, c = VARIANTS["masked and negated"], 150
    x = np.repeat(random_rows(rng, 1, 30, "float32"), c, axis=0)
    mask = pack(np.eye(c, dtype=bool))
    for make in makers(isa):
        head = make(book, 5.0, None)
        values, indices, lse = head.topk(x, 4, True, mask)
        others = np.array([[i for i in range(5) if i != own][:3] for own in range(c)])
        np.testing.assert_array_equal(indices, np.column_stack([np.arange(c), others]))
        np.testing.assert_array_equal(values, [[0, -np.inf, -np.inf, -np.inf]] * c)
        np.testing.assert_array_equal(lse, head.log_prob(x, np.arange(c))[1])
        np.testing.assert_array_equal(head.argmax(x, mask), np.arange(c))
        np.testing.assert_array_equal(head.sample(x, np.arange(c), mask), np.arange(c))


def test_a_mask_of_all_classes_changes_no_bit(isa: str, rng: np.random.Generator) -> None:
    for book in VARIANTS.values():
        x, mask = (
            random_rows(rng, 3, book.in_features, "float32"),
            pack(np.ones(book.num_classes, bool)),
        )
        for make in makers(isa):
            head = make(book, 5.0, None)
            for reduce in REDUCTIONS.values():
                assert_same(reduce(head, x, mask), reduce(head, x, None))


def test_forbidden_and_minus_infinite_classes_tie(isa: str, rng: np.random.Generator) -> None:
    book, c = VARIANTS["one block"], 61
    x, bias = random_rows(rng, 2, 60, "float32"), random_bias(rng, c, "float32")
    allowed = random_mask(rng, (c,), 0.3)
    bias[np.flatnonzero(allowed)[2:]] = -np.inf
    rest = [i for i in range(c) if i not in np.flatnonzero(allowed)[:2]]
    for make in makers(isa):
        values, indices, _ = make(book, 5.0, bias).topk(x, c, allowed=pack(allowed))
        np.testing.assert_array_equal(indices[:, 2:], [rest] * 2)
        assert np.isneginf(values[:, 2:]).all() and np.isfinite(values[:, :2]).all()


# Bad rows.


@variants
@pytest.mark.parametrize("dtype", DTYPES)
def test_bad_rows(isa: str, book: Codebook, dtype: str, rng: np.random.Generator) -> None:
    n, c = book.in_features, book.num_classes
    x = random_rows(rng, 8, n, dtype)
    bad = {1: np.nan, 3: np.inf, 4: -np.inf, 7: np.nan}
    mask = pack(random_mask(rng, (8, c), 0.6))
    for make in makers(isa):
        head = make(book, 4.0, None)
        for given_mask in (None, mask):
            for reduce in REDUCTIONS.values():
                clean, broken = x.copy(), x.copy()
                for row, value in bad.items():
                    clean[row, 0] = 0  # the same ids
                    broken[row, 0 if row == 7 else n - 1] = value
                    broken[row, 0] = broken[row, 0] if row == 7 else 0
                    if n - 1 == 0 or row != 7:
                        broken[row, n - 1] = value
                good = [i for i in range(8) if i not in bad]
                got, want = (
                    each(reduce(head, broken, given_mask)),
                    each(reduce(head, clean, given_mask)),
                )
                assert_same(tuple(a[good] for a in got), tuple(a[good] for a in want))
                for a in got:
                    if a.dtype == np.int64:
                        assert ((a >= 0) & (a < c)).all()
        values, indices, lse = head.topk(broken, min(c, 9))
        assert np.isnan(values[list(bad)]).all() and np.isnan(lse[list(bad)]).all()
        for row in bad:
            assert len(set(indices[row])) == indices.shape[1]
        losses, _ = head.nll(broken, np.zeros(8, np.int64))
        assert np.isnan(losses[list(bad)]).all()
        log_probs, logits, _ = head.log_prob(broken, np.zeros((8, 2), np.int64))
        assert np.isnan(log_probs[list(bad)]).all() and np.isnan(logits[list(bad)]).all()
        losses, lse = head.nll(broken, np.where(np.isin(np.arange(8), list(bad)), -100, 1))
        np.testing.assert_array_equal(losses[list(bad)], 0)  # ignored rows have no loss
        np.testing.assert_array_equal(lse[list(bad)], 0)


@pytest.mark.parametrize("alpha", [1e30, -1e30, 1e-30, 0.0])
def test_extreme_alpha(isa: str, alpha: float, rng: np.random.Generator) -> None:
    """Finite input gives no NaN: the losses of huge logits, the values of zero rows."""
    for book in VARIANTS.values():
        x = random_rows(rng, 4, book.in_features, "float32")
        x[1] = 0
        x[2] *= np.float32(1e-38)
        x[3] *= np.float32(1e37)
        alpha = float(np.float32(alpha))
        z = oracle(x, expand(book), alpha, None)
        check_everything(
            native(book, alpha, None), x, z, scale_for(x, expand(book), alpha, None), rng
        )


# Loss.


@variants
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_every_target(
    isa: str, book: Codebook, label_smoothing: float, rng: np.random.Generator
) -> None:
    c = book.num_classes
    x = np.repeat(random_rows(rng, 1, book.in_features, "float32"), c, axis=0)
    bias, target = random_bias(rng, c, "float32"), np.arange(c)
    z, scale = oracle(x, expand(book), 8.0, bias), scale_for(x, expand(book), 8.0, bias)
    for make in makers(isa):
        head = make(book, 8.0, bias)
        for ignore in (-100, 0, c - 1, c, 2**63 - 1, -(2**63)):
            got = head.nll(x, target, ignore, label_smoothing)
            check_nll(got, z, target, scale, "float32", ignore, label_smoothing)


def test_small_losses_keep_their_accuracy(isa: str) -> None:
    """The features are the target's own row at a large α: the loss is a sum of tiny exponentials,
    which no difference of large numbers may swallow."""
    book = sylvester(64, 64)
    x = expand(book).astype(np.float32)
    for alpha in (12.0, 16.0):
        want = np.log1p(63 * np.exp(-alpha))
        for make in makers(isa):
            losses, _ = make(book, alpha, None).nll(x, np.arange(64))
            np.testing.assert_allclose(losses, want, rtol=1e-5 + 10 * EPS["float32"] / want)


# Samples.


def test_samples_are_those_of_the_oracle(isa: str, rng: np.random.Generator) -> None:
    book = VARIANTS["masked"]
    x, bias = random_rows(rng, 3000, 30, "float32"), random_bias(rng, 150, "float32")
    seeds = np.concatenate([np.arange(-1000, 1000), rng.integers(-(2**63), 2**63 - 1, 1000)])
    z, scale = oracle(x, expand(book), 3.0, bias), scale_for(x, expand(book), 3.0, bias)
    for make in makers(isa):
        got = make(book, 3.0, bias).sample(x, seeds)
        assert check_sample(got, z, seeds, scale, "float32").mean() > 0.99
        np.testing.assert_array_equal(got, make(book, 3.0, bias).sample(x, seeds))
        assert (got != make(book, 3.0, bias).sample(x, seeds + 1)).mean() > 0.5


@pytest.mark.parametrize("first", [0, -(2**63), 2**40, 2**63 - 20001])
@pytest.mark.parametrize("masked", [False, True])
def test_the_distribution_of_samples(
    isa: str, masked: bool, first: int, rng: np.random.Generator
) -> None:
    """Chi-square of 20000 draws with neighbouring seeds from one softmax of 50 classes."""
    book, draws = sylvester(40, 50), 20_000
    x, bias = random_rows(rng, 1, 40, "float32"), random_bias(rng, 50, "float32")
    z = oracle(x, expand(book), 1.5, bias)[0]
    allowed = random_mask(rng, (50,), 0.4) if masked else np.ones(50, bool)
    p = reference.apply_epilogue(reference.masked(z, allowed), Epilogue.SOFTMAX)
    head = native(book, 1.5, bias)
    seeds = first + np.arange(draws)
    got = head.sample(np.broadcast_to(x, (draws, 40)), seeds, pack(allowed) if masked else None)
    counts = np.bincount(got, minlength=50)
    assert counts[~allowed].sum() == 0
    assert (draws * p[allowed]).min() > 5
    assert chisquare(counts[allowed], draws * p[allowed]).pvalue > 1e-3


def test_samples_of_two_rows_are_independent(rng: np.random.Generator) -> None:
    """The joint distribution of draws with the seeds 2 i and 2 i + 1."""
    draws = 20_000
    got = native(sylvester(8, 8), 0.0, None).sample(
        np.ones((2 * draws, 8), np.float32), np.arange(2 * draws)
    )
    pairs = got[::2] * 8 + got[1::2]
    assert chisquare(np.bincount(pairs, minlength=64)).pvalue > 1e-3


def test_neighbouring_classes_get_independent_noise() -> None:
    """For one seed: over 2^15 classes of equal logits, a mask of two, who wins is a fair coin."""
    book, c = synthetic(16, 2**15, log2=4, blocks=2**11), 2**15
    winners = []
    for distance in (1, 2, 8, 256, 4096):
        mask = np.zeros((200, c), bool)
        first = np.arange(200) * 17
        mask[np.arange(200), first] = mask[np.arange(200), first + distance] = True
        got = native(book, 0.0, None).sample(
            np.ones((200, 16), np.float32), np.full(200, 5), pack(mask)
        )
        winners.append(int((got == first).sum()))
    assert all(60 < count < 140 for count in winners), winners


def test_a_module_samples_reproducibly() -> None:
    head, x = FixedClassifier(32, 200, alpha=2.0), torch.randn(3, 50, 32)
    draws = [head.sample(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draws[0].shape == (3, 50) and draws[0].dtype == torch.int64
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    torch.manual_seed(3)
    first = head.sample(x)
    assert not torch.equal(head.sample(x), first)
    torch.manual_seed(3)
    assert torch.equal(head.sample(x), first)


# Batch invariance, bit for bit.


def rows_of(result: Any, rows: Any) -> tuple[np.ndarray, ...]:
    return tuple(a[rows] for a in each(result))


@reductions
@variants
def test_invariance_in_numpy(
    isa: str, book: Codebook, reduce: Callable[..., Any], native_threads: None
) -> None:
    rng = np.random.default_rng(3)
    n = book.in_features
    x = rng.standard_normal((37, n + 7)).astype(np.float32)[:, 3 : n + 3]
    mask = pack(random_mask(rng, (book.num_classes,), 0.7))
    for given_mask in (None, mask):
        head = native(book, 9.0, None)
        _native.set_num_threads(1)
        want = reduce(head, np.ascontiguousarray(x), given_mask)
        for threads in (1, 2, 3):
            _native.set_num_threads(threads)
            assert_same(reduce(head, x, given_mask), want)
            assert_same(reduce(head, x[::-1], given_mask), rows_of(want, np.s_[::-1]))
        for rows in (np.s_[:1], np.s_[17:18], np.s_[30:], np.s_[1::5]):
            assert_same(reduce(head, x[rows], given_mask), rows_of(want, rows))
        repeated = np.broadcast_to(x[17], (40, n))
        assert_same(reduce(head, repeated, given_mask), rows_of(want, [17] * 40))


MANY = {
    "±1 blocks of 64": synthetic(64, 250_000, log2=6, blocks=2048, negate=True),
    "blocks of 128": synthetic(100, 210_001, log2=7, blocks=1700, row_offset=3),
    "blocks of 48": synthetic(40, 201_000, log2=2, base_order=12, blocks=4200),
}


@reductions
@pytest.mark.parametrize("name", ["±1 blocks of 64", "blocks of 48"])
def test_invariance_with_many_classes(
    isa: str, name: str, reduce: Callable[..., Any], native_threads: None
) -> None:
    """Fewer than 32 rows share out their classes, not themselves."""
    rng = np.random.default_rng(4)
    book = MANY[name]
    n, few = book.in_features, random_mask(rng, (book.num_classes,), 3e-5)
    x = rng.standard_normal((40, n + 3)).astype(np.float32)[:, 2 : n + 2]
    x = x[:32] if isa == "scalar" else x  # 32 rows and more share themselves
    head = native(book, 12.0, None)
    for mask in (None, pack(few)) if name.startswith("±") else (None,):
        _native.set_num_threads(1)
        want = reduce(head, np.ascontiguousarray(x), mask)
        for threads in (1, 2, 3):
            _native.set_num_threads(threads)
            for rows in (np.s_[:1], np.s_[3::9]):
                assert_same(reduce(head, x[rows], mask), rows_of(want, rows))
        assert_same(reduce(head, x, mask), want)


@reductions
def test_invariance_in_torch(reduce: Callable[..., Any], torch_threads: None) -> None:
    rng = np.random.default_rng(5)
    for book in (VARIANTS["masked and negated"], MANY["±1 blocks of 64"]):
        n = book.in_features
        mask = pack(random_mask(rng, (book.num_classes,), 0.7))
        for dtype in ("float32", "bfloat16"):
            x = rng.standard_normal((40, n + 3)).astype(NUMPY_DTYPES[dtype])[:, 2 : n + 2]
            head = TorchHead(book, 12.0, None)
            torch.set_num_threads(1)
            want = reduce(head, np.ascontiguousarray(x), mask)
            for threads in (1, 2, 3):
                torch.set_num_threads(threads)
                for rows in (np.s_[:1], np.s_[3::8], np.s_[:]):
                    assert_same(reduce(head, x[rows], mask), rows_of(want, rows))


def block_logits(book: Codebook, x: np.ndarray) -> np.ndarray:
    """W x of a codebook of many blocks without a base matrix, block by block."""
    data = book.kernel
    flips = 1.0 - 2.0 * np.unpackbits(data.signs, axis=1, count=data.order, bitorder="little")
    y = (x[:, None, :] * flips[:, : book.in_features]) @ (
        reference.hadamard_matrix(data.order)[: book.in_features]
    )
    if data.negate:
        y = np.stack([y, -y], axis=2)
    return y.reshape(len(x), -1)[:, data.row_offset : data.row_offset + book.num_classes]


def test_the_short_way_to_logits(rng: np.random.Generator) -> None:
    for name in ("masked", "masked and negated"):
        book = VARIANTS[name]
        x = rng.standard_normal((2, book.in_features))
        np.testing.assert_allclose(block_logits(book, x), x @ expand(book).T, atol=1e-12)


@pytest.mark.parametrize("batch", [2, 33])
@pytest.mark.parametrize("name", ["±1 blocks of 64", "blocks of 128"])
def test_many_classes(
    isa: str, name: str, batch: int, rng: np.random.Generator, native_threads: None
) -> None:
    """The oracle on the first rows; fewer than 32 rows share out their classes."""
    book = MANY[name]
    _native.set_num_threads(2)
    x = random_rows(rng, batch, book.in_features, "float32")
    z = 12 * block_logits(book, reference.normalize(x[:2]) / np.sqrt(book.in_features))
    allowed = random_mask(rng, (book.num_classes,), 1e-4)
    target, ids = rng.integers(0, book.num_classes, batch), rng.integers(0, 200_000, (batch, 3))

    def first(result: Any) -> tuple[np.ndarray, ...]:
        return tuple(a[:2] for a in each(result))

    for make in makers(isa):
        head = make(book, 12.0, None)
        check_topk(first(head.topk(x, 1000)), z, 1000, 12.0, "float32")
        masked = reference.masked(z, allowed)
        got = first(head.topk(x, 100, True, pack(allowed)))
        check_topk(got, masked, 100, 12.0, "float32", True)
        check_log_prob(first(head.log_prob(x, ids)), z, ids[:2], 12.0, "float32")
        check_sample(head.sample(x, target)[:2], z, target[:2], 12.0, "float32")
        check_nll(first(head.nll(x, target, 3, 0.1)), z, target[:2], 12.0, "float32", 3, 0.1)
        np.testing.assert_array_equal(head.argmax(x)[:2], head.topk(x[:2], 1)[1][:, 0])


@pytest.mark.parametrize("batch", [3, 33])
def test_ties_across_threads(
    isa: str, batch: int, rng: np.random.Generator, native_threads: None
) -> None:
    book = MANY["±1 blocks of 64"]
    x = rng.choice([-1.0, 1.0], (batch, 64)).astype(np.float32)
    sums = block_logits(book, x[:3])
    _, want = reference.topk(sums, 1024)
    for threads in (1, 3):
        _native.set_num_threads(threads)
        for make in makers(isa):
            head = make(book, 3.0, None)
            np.testing.assert_array_equal(head.topk(x, 1024)[1][:3], want)
            np.testing.assert_array_equal(head.argmax(x)[:3], want[:, 0])
            flat = make(book, 0.0, None).topk(x, 1024)[1]
            np.testing.assert_array_equal(flat, [np.arange(1024)] * batch)


# Gradients of the loss.

KINDS = [
    ("hadamard", 20, 7),
    ("hadamard", 100, 37),
    ("orthoplex", 64, 100),
    ("kerdock", 16, 100),
    ("search", 12, 100),
    ("etf", 15, 16),
    ("etf", 64, 10),
    ("orthonormal", 24, 18),
]
kinds = pytest.mark.parametrize(("kind", "n", "c"), KINDS)


def dense_logits(x: torch.Tensor, alpha: Any, bias: Any, rows: np.ndarray) -> torch.Tensor:
    unit = torch.nn.functional.normalize(x, dim=-1)
    z = alpha / rows.shape[1] ** 0.5 * unit @ torch.from_numpy(rows).T
    return z if bias is None else z + bias


def rows_of_book(book: Codebook) -> np.ndarray:
    return book.dense.astype(np.float64) if book.kernel is None else expand(book)


@kinds
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
def test_gradients_of_the_loss(
    kind: str, n: int, c: int, dtype: str, label_smoothing: float
) -> None:
    torch.manual_seed(1)
    exact = getattr(torch, accumulation(dtype))
    head = FixedClassifier(n, c, codebook=kind, alpha=7.0, dtype=exact)
    with torch.no_grad():
        head.bias.normal_()
    x = torch.randn(3, 4, n).to(getattr(torch, dtype)).requires_grad_()
    target = torch.randint(0, c, (3, 4))
    target[1, 2] = -100
    weights = torch.rand(3, 4, dtype=exact)
    options = {"label_smoothing": label_smoothing}
    losses = head.loss(x, target, "none", **options)
    assert losses.shape == (3, 4) and losses.dtype == exact
    (losses * weights).sum().backward()

    rows = rows_of_book(head.codebook)
    x64, alpha, bias = (t.detach().double().requires_grad_() for t in (x, head.alpha, head.bias))
    z = dense_logits(x64, alpha, bias, rows)
    want = torch.nn.functional.cross_entropy(
        z.flatten(0, 1), target.flatten(), reduction="none", **options
    ).reshape(3, 4)
    (want * weights.double()).sum().backward()
    assert_norm_within(
        f"loss's gradient {dtype}",
        to_numpy(x.grad),
        x64.grad.numpy(),
        gradient(x64.grad.numpy(), dtype),
        f"{kind} x",
    )
    # dz of the oracle without autograd: what the bias gradient adds up, and what bounds alpha's.
    dz = reference.nll_gradient(z.detach().numpy(), target, -100, label_smoothing)
    dz *= weights.double().numpy()[..., None]
    np.testing.assert_allclose(dz.sum((0, 1)), bias.grad.numpy(), atol=1e-13)
    wide = accumulation(dtype)
    assert_norm_within(
        f"loss's bias gradient {dtype}",
        head.bias.grad.numpy(),
        bias.grad.numpy(),
        gradient(dz, wide),
        f"{kind} bias",
    )
    cosines = ((z - bias) / alpha).detach().numpy()
    assert_within(
        f"loss's alpha gradient {dtype}",
        8 * head.alpha_spread.grad[0, :1].numpy(),  # α = Σ s / 8
        alpha.grad.numpy(),
        gradient(np.abs(dz * cosines).sum(), wide),
        f"{kind} alpha",
    )


@kinds
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [-100, 3])
@pytest.mark.parametrize("shape", [(), (9,), (3, 4)], ids=str)
def test_loss_is_cross_entropy_of_the_logits(
    kind: str, n: int, c: int, shape: tuple[int, ...], reduction: str, ignore_index: int
) -> None:
    """In float64, value and gradients, of one row, a batch and a batch of batches."""
    torch.manual_seed(2)
    head = FixedClassifier(n, c, codebook=kind, dtype=torch.float64)
    with torch.no_grad():
        head.bias.normal_()
    for smoothing in (0.0, 0.3):
        x = torch.randn(*shape, n, dtype=torch.float64)
        target = torch.randint(0, c, shape)
        if shape:
            target.view(-1)[1:3] = ignore_index
        options = {"ignore_index": ignore_index, "label_smoothing": smoothing}
        results = []
        for fused in (True, False):
            head.zero_grad()
            features = x.clone().requires_grad_()
            if fused:
                value = head.loss(features, target, reduction, **options)
            else:
                value = torch.nn.functional.cross_entropy(
                    head(features).reshape(-1, c),
                    target.reshape(-1),
                    reduction=reduction,
                    **options,
                ).reshape(shape if reduction == "none" else ())
            value.sum().backward()
            parameters = [head.alpha_spread.grad, head.bias.grad]
            results.append([value.detach(), features.grad, *map(torch.clone, parameters)])
        for got, want in zip(*results, strict=True):
            assert got.shape == want.shape and got.dtype == want.dtype
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_loss_when_all_targets_are_ignored() -> None:
    head, x = FixedClassifier(8, 5), torch.randn(2, 8, requires_grad=True)
    target = torch.full((2,), -100)
    assert torch.isnan(head.loss(x, target))  # as torch has it
    total = head.loss(x, target, "sum")
    total.backward()
    assert total == 0
    assert not any(leaf.grad.any() for leaf in (x, head.alpha_spread, head.bias))


@pytest.mark.parametrize("name", ["folded", "masked and negated", "base matrix", "centred"])
@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck(name: str, normalize: bool) -> None:
    torch.manual_seed(3)
    book = {
        "folded": synthetic(19, 3, log2=5),
        "masked and negated": synthetic(4, 21, log2=2, blocks=3, negate=True),
        "base matrix": synthetic(10, 11, log2=0, base_order=12),
        "centred": synthetic(7, 7, log2=3, center=True, row_offset=1, column_offset=1),
    }[name]
    c = book.num_classes
    x = torch.randn(3, book.in_features, dtype=torch.float64, requires_grad=True)
    alpha = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(c, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, c - 1, 1])
    for classes, ignore, smoothing in ((range(c), -100, 0.0), (range(1, c), 1, 0.2)):
        arguments, b = ops.codebook_arguments(book, classes), bias[: len(classes)]
        targets = target.clamp(max=len(classes) - 1)

        def losses(x, alpha, bias, arguments=arguments, t=targets, i=ignore, s=smoothing):
            options = {"ignore_index": i, "label_smoothing": s, "normalize": normalize}
            return ops.head_nll(x, alpha, bias, arguments, t, **options)[0]

        b = b.detach().requires_grad_()
        assert torch.autograd.gradcheck(losses, (x, alpha, b))
        assert torch.autograd.gradcheck(lambda x, a, f=losses: f(x, a, None), (x, alpha))
        assert torch.autograd.gradcheck(lambda b, f=losses: f(x.detach(), alpha.detach(), b), (b,))


def test_no_second_derivative() -> None:
    head, x = FixedClassifier(8, 5), torch.randn(2, 8, requires_grad=True)
    loss = head.loss(x, torch.tensor([0, 3]))
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative; use head"):
        dx.sum().backward()


def test_gradients_of_zero_and_tiny_rows() -> None:
    """Below eps the row is divided by eps, as torch.nn.functional.normalize has it."""
    book = VARIANTS["one block"]
    head = FixedClassifier(60, 61, codebook=book, alpha=2.0, dtype=torch.float64)
    x = torch.randn(3, 60, dtype=torch.float64)
    x[0] = 0
    x[1] *= 1e-15
    x.requires_grad_()
    target = torch.tensor([1, 2, 3])
    head.loss(x, target, "sum").backward()
    x64 = x.detach().clone().requires_grad_()
    z = dense_logits(x64, head.alpha.detach(), None, expand(book))
    torch.nn.functional.cross_entropy(z, target, reduction="sum").backward()
    for row in range(3):
        want = x64.grad[row].numpy()
        bound = gradient(want, "float64")
        assert_norm_within("loss's gradient float64", x.grad[row].numpy(), want, bound)


def backward_op(book: Codebook, x: np.ndarray, target: np.ndarray, smoothing: float) -> Any:
    """Losses' gradient with grad 1: Wᵀ dz for each row, and the sum of dz."""
    t, arguments = torch.from_numpy(target), ops.codebook_arguments(book)
    dtype = getattr(torch, accumulation(str(x.dtype)))
    features, alpha = to_torch(x), torch.tensor(6.0, dtype=dtype)
    bias = torch.zeros(book.num_classes, dtype=dtype)
    _, lse = ops.head_nll(features, alpha, bias, arguments, t, label_smoothing=smoothing)
    inputs = (features, alpha, bias, *arguments, True, t)
    one = torch.ones_like(lse)
    uniform = -smoothing / book.num_classes * one
    got = torch.ops.fixclf.head_reduction_backward(
        *inputs, lse, one, (smoothing - 1) * one, uniform
    )
    return tuple(map(to_numpy, got))


@pytest.mark.parametrize("book", [*VARIANTS.values(), *MANY.values()], ids=[*VARIANTS, *MANY])
def test_invariance_of_the_backward_pass(
    book: Codebook, rng: np.random.Generator, torch_threads: None
) -> None:
    n, c = book.in_features, book.num_classes
    x = rng.standard_normal((40, n + 3)).astype(np.float32)[:, 2 : n + 2]
    target = rng.integers(0, c, 40)
    torch.set_num_threads(1)
    projected, bias = backward_op(book, np.ascontiguousarray(x), target, 0.1)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for rows in (np.s_[:1], np.s_[3::8], np.s_[:]):
            got = backward_op(book, x[rows], np.ascontiguousarray(target[rows]), 0.1)
            np.testing.assert_array_equal(got[0], projected[rows])
        np.testing.assert_array_equal(got[1], bias)


@pytest.mark.parametrize("name", ["±1 blocks of 64", "blocks of 128"])
def test_backward_with_many_classes(name: str, rng: np.random.Generator) -> None:
    book = MANY[name]
    x, target = random_rows(rng, 3, book.in_features, "float32"), np.array([0, 77_777, 200_000])
    z = 6 * block_logits(book, reference.normalize(x) / np.sqrt(book.in_features))
    dz = reference.nll_gradient(z, target, -100, 0.1)
    projected, bias = backward_op(book, x, target, 0.1)
    assert_norm_within("loss's bias gradient float32", bias, dz.sum(0), gradient(dz, "float32"))
    # Wᵀ dz by the same blocks: the gradient of ⟨W x, dz⟩ for each unit vector x.
    unit = block_logits(book, np.eye(book.in_features)[:8])
    for column in range(8):
        want = dz @ unit[column]
        bound = 32 * EPS["float32"] * np.abs(dz).sum(axis=1)
        assert_within("loss's projected gradient", projected[:, column], want, bound)


# Memory.

MEMORY = """
import resource, sys
import numpy as np, torch
from backends import native
from cases import synthetic
from fixclf_infer import _native, ops

def book(c):
    return synthetic(512, c, log2=9, blocks=-(-c // 512))

def peak(reset=False):
    if reset:
        open("/proc/self/clear_refs", "w").write("5")
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

def used():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

def work(book, arguments):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 512)).astype(np.float32)
    head = native(book, 9.0, None)
    head.topk(x, 10); head.topk(x, 1024); head.argmax(x); head.nll(x, np.arange(8))
    head.log_prob(x, np.arange(8)); head.sample(x, np.arange(8))
    t, alpha = torch.from_numpy(x), torch.tensor(9.0, requires_grad=True)
    with torch.no_grad():
        ops.head_topk(t, alpha, None, arguments, 10)
        ops.head_argmax(t, alpha, None, arguments)
        ops.head_log_prob(t, alpha, None, arguments, torch.arange(8))
        ops.head_sample(t, alpha, None, arguments, torch.arange(8))
    t.requires_grad_()
    losses, _ = ops.head_nll(t, alpha, None, arguments, torch.arange(8), label_smoothing=0.1)
    losses.sum().backward()
    assert t.grad.abs().sum() > 0

threads = int(sys.argv[1])
_native.set_num_threads(threads)
torch.set_num_threads(threads)
small, large = book(100_000), book(1_000_000)
small = small, ops.codebook_arguments(small)
large = large, ops.codebook_arguments(large)
work(*small)
work(*small)
before = used()
peak(reset=True)
work(*large)
grown = peak() - before
before = used()
peak(reset=True)
dense = np.ones((8, 1_000_000), np.float32)  # what the measurement would show
print(grown, peak() - before)
"""


def test_no_array_of_logits() -> None:
    """Memory beyond the arguments does not grow with a million classes: less than 4 MB in all,
    where [B, C] would take 32."""
    grown, dense = map(int, run(MEMORY, "2").stdout.split())
    assert dense > 25_000
    assert grown < 4_000, f"{grown} kB"


# The module.

MODULES = [*KINDS, ("orthonormal", 8, 3), ("delsarte_goethals", 32, 300)]


@pytest.mark.parametrize(("kind", "n", "c"), MODULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_methods_of_the_module(kind: str, n: int, c: int, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    name = str(dtype).removeprefix("torch.")
    head = FixedClassifier(n, c, codebook=kind, dtype=exact, alpha=6.0)
    with torch.no_grad():
        head.bias.normal_()
    rows, bias = rows_of_book(head.codebook), head.bias.detach().numpy()
    for shape in ((5,), (2, 3)):
        x = torch.randn(*shape, n).to(dtype)
        z = oracle(to_numpy(x), rows, 6.0, bias)
        # A dense product rounds N times, not log N: a wider scale for these.
        scale = scale_for(to_numpy(x), rows, 6.0, bias) * (4 if kind == "orthonormal" else 1)
        allowed = torch.from_numpy(random_mask(np.random.default_rng(1), (*shape, c), 0.6))
        for mask in (None, allowed, ops.pack_allowed(allowed), allowed[(0,) * len(shape)]):
            restricted = z
            if mask is not None:
                restricted = reference.masked(z, allowed if mask.dim() > 1 else mask)
            for logs in (False, True):
                got = head.topk(x, 3, log_probabilities=logs, allowed=mask)
                check_topk(tuple(map(to_numpy, got)), restricted, 3, scale, name, logs)
            best = head.argmax(x, allowed=mask)
            assert best.shape == shape and torch.equal(best, got[1][..., 0])
            ids = torch.randint(0, c, (*shape, 4))
            logs = head.log_prob(x, ids, allowed=mask)
            lse = reference.logsumexp(restricted)
            want = np.take_along_axis(restricted, ids.numpy(), -1) - lse
            bound = 4 * (4 if dtype == torch.float64 else 1) * EPS[accumulation(name)]
            bound *= 2 * scale + np.log(c)
            assert_within(f"module's log-probabilities {name}", logs.detach(), want, bound)
            one = head.log_prob(x, ids[..., 0].contiguous(), allowed=mask)
            assert torch.equal(one, logs[..., 0])
            draws = head.sample(x, torch.Generator().manual_seed(1), allowed=mask)
            assert draws.shape == shape and draws.dtype == torch.int64
            assert np.isfinite(np.take_along_axis(restricted, draws.numpy()[..., None], -1)).all()


METHODS: dict[str, Callable[[FixedClassifier, torch.Tensor, torch.Tensor], Any]] = {
    "topk": lambda head, x, t: head.topk(x, 3),
    "argmax": lambda head, x, t: head.argmax(x),
    "log_prob": lambda head, x, t: head.log_prob(x, t),
    "log_prob of several": lambda head, x, t: head.log_prob(x, torch.stack([t, t + 1], -1)),
    "loss": lambda head, x, t: head.loss(x, t, "none"),
    "sum of losses": lambda head, x, t: head.loss(x, t, "sum").expand(t.shape),
    "sample": lambda head, x, t: head.sample(1e4 * x, torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_methods_on_one_row_and_on_none(method: Callable[..., Any], kind: str) -> None:
    """[N] → [...] without dimensions, and no rows at all."""
    torch.manual_seed(8)
    head = FixedClassifier(16, 9, codebook=kind, alpha=1e4)  # nothing to choose for a sample
    x, target = torch.randn(4, 16), torch.tensor([2, 7, 0, 5])
    with torch.no_grad():
        several = method(head, x[2:3], target[2:3])
        one = method(head, x[2], target[2])
        none = method(head, x[:0], target[:0])
        for a, b, c in zip(*map(tensors, (several, one, none)), strict=True):
            torch.testing.assert_close(b, a[0])
            assert c.shape == (0, *a.shape[1:]) and c.dtype == a.dtype


def tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
def test_ids_and_targets_of_any_stride(kind: str) -> None:
    """As `torch.nn.functional.cross_entropy` takes them: tokens[:, 1:] is the usual target of a
    language model."""
    head, x = FixedClassifier(16, 9, codebook=kind), torch.randn(4, 3, 16)
    tokens = torch.randint(0, 9, (4, 4))
    targets = tokens[:, 1:]
    assert not targets.is_contiguous()
    want = torch.nn.functional.cross_entropy(head(x).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(head.loss(x, targets), want)
    torch.testing.assert_close(head.log_prob(x, targets), head.log_prob(x, targets.contiguous()))


# torch's own checks.


def op_cases() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    ops_ = torch.ops.fixclf
    return {
        "topk": (ops_.head_topk, (3, True)),
        "argmax": (ops_.head_argmax, ()),
        "sample": (ops_.head_sample, (torch.arange(6).reshape(2, 3),)),
        "log_prob": (ops_.head_log_prob, (torch.arange(6).reshape(2, 3),)),
        "log_prob of several": (ops_.head_log_prob, (torch.arange(12).reshape(2, 3, 2) % 5,)),
        "nll": (ops_.head_nll, (torch.arange(6).reshape(2, 3) % 5, 1, 0.1)),
    }


@pytest.mark.parametrize("variant", ["masked and negated", "base matrix"])
@pytest.mark.parametrize("name", op_cases())
def test_opcheck(variant: str, name: str) -> None:
    (op, extra), book = op_cases()[name], VARIANTS[variant]
    arguments = ops.codebook_arguments(book)
    # Derivatives of the loss; then without, in another dtype and with no bias.
    cases = [(torch.float32, True, True)] if name == "nll" else [(torch.float64, False, True)]
    for dtype, grad, has_bias in (*cases, (torch.bfloat16, False, False)):
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        x = torch.randn(2, 3, book.in_features).to(dtype).requires_grad_(grad)
        alpha = torch.tensor(2.0, dtype=exact, requires_grad=grad)
        bias = torch.randn(book.num_classes, dtype=exact, requires_grad=grad)
        inputs = (x, alpha, bias if has_bias else None, *arguments, True)
        torch.library.opcheck(op.default, (*inputs, *extra))
    if name != "nll":
        mask = ops.pack_allowed(torch.ones(2, 3, book.num_classes, dtype=torch.bool))
        torch.library.opcheck(op.default, (*inputs, *extra), {"allowed": mask})


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck_of_the_backward_pass(bias: bool) -> None:
    book = VARIANTS["masked"]
    x, b = torch.randn(3, 30), torch.randn(150) if bias else None
    inputs = (x, torch.tensor(2.0), b, *ops.codebook_arguments(book), True)
    op = torch.ops.fixclf.head_reduction_backward.default
    target = torch.tensor([0, 149, 7])
    _, lse = torch.ops.fixclf.head_nll(*inputs, target)
    torch.library.opcheck(op, (*inputs, target, lse, torch.rand(3), torch.rand(3), torch.rand(3)))
    ids, mask = torch.tensor([[0, 1], [149, 3], [7, 7]]), ops.pack_allowed(torch.rand(3, 150) < 0.9)
    torch.library.opcheck(op, (*inputs, ids, lse, torch.rand(3), torch.rand(3, 2), None, mask))


@pytest.mark.parametrize(
    ("kind", "n", "c"), [("hadamard", 100, 37), ("kerdock", 16, 100), ("orthonormal", 24, 18)]
)
def test_compile(kind: str, n: int, c: int) -> None:
    head = FixedClassifier(n, c, codebook=kind)
    target = torch.arange(5) % c

    def step(x: torch.Tensor) -> Any:
        loss = head.loss(x, target, label_smoothing=0.1)
        values, classes, lse = head.topk(x.detach(), 3, log_probabilities=True)
        best = head.argmax(x.detach())
        return loss, values.detach(), classes, lse.detach(), best

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, n)
    results = []
    for function in (step, compiled):
        head.zero_grad()
        features = x.clone().requires_grad_()
        loss, *rest = function(features)
        loss.backward()
        gradients = [features.grad, head.alpha_spread.grad.clone(), head.bias.grad.clone()]
        results.append([loss.detach(), *rest, *gradients])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_packing_round_trip() -> None:
    for n in WIDTHS:
        allowed = torch.rand(2, 3, n) < 0.5
        np.testing.assert_array_equal(ops.pack_allowed(allowed).numpy(), pack(allowed.numpy()))
        x = torch.randn(2, n)
        packed = ops.pack_signs(x)
        assert packed.shape == (2, (n + 7) // 8) and packed.dtype == torch.uint8
        want = torch.where(x < 0, -1.0, 1.0)
        assert torch.equal(ops.unpack_signs(packed, n), want)
        np.testing.assert_array_equal(reference.unpack_signs(packed.numpy(), n), want.numpy())
