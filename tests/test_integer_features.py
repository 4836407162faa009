"""int8 and packed ±1 features: exact sums, against the integer oracle and float32 features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends import TORCH_ERRORS, native, to_numpy
from cases import EPILOGUES, WIDTHS, any_codebook, check_head, expand, sylvester, synthetic
from hypothesis import given
from hypothesis import strategies as st
from reductions import TorchHead, check_everything, makers, oracle, pack, scale_for
from tolerances import EPS, assert_within

from fixclf_infer import _native, hadamard_transform, ops, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

LOGITS = int(Epilogue.LOGITS)

BOOKS = {
    "folded": synthetic(300, 9, log2=9),
    "folded to a vector": synthetic(2048, 100, log2=11),
    "one block": synthetic(256, 200, log2=8),
    "one large block": synthetic(1000, 1024, log2=10),
    "negated": synthetic(512, 1000, log2=9, negate=True),
    "row offset": synthetic(200, 250, log2=8, row_offset=5),
    "column offset": synthetic(255, 256, log2=8, column_offset=1),
    "masked": synthetic(120, 600, log2=7, blocks=5),
    "masked and negated": synthetic(128, 700, log2=7, blocks=3, negate=True),
    "base matrix": synthetic(384, 384, log2=5, base_order=12),
    "base matrix of odd order": synthetic(33, 40, log2=3, base_order=5),
    "base matrix and masks": synthetic(47, 130, log2=2, base_order=12, blocks=3),
}
CENTRED = {"centred": synthetic(256, 130, log2=8, center=True)}
books = pytest.mark.parametrize("book", BOOKS.values(), ids=BOOKS)
all_books = pytest.mark.parametrize(
    "book", (BOOKS | CENTRED).values(), ids=(BOOKS | CENTRED).keys()
)

# Values that are as large as they come, or as unbalanced: what overflows first.
FEATURES = {
    "any": lambda rng, shape: rng.integers(-128, 128, shape),
    "within 7 bits": lambda rng, shape: rng.integers(-127, 128, shape),
    "small": lambda rng, shape: rng.integers(-2, 3, shape),
    "all -128": lambda rng, shape: np.full(shape, -128),
    "all 127": lambda rng, shape: np.full(shape, 127),
    "all -127": lambda rng, shape: np.full(shape, -127),
    "±127": lambda rng, shape: rng.choice([-127, 127], shape),
    "-128 or 127": lambda rng, shape: rng.choice([-128, 127], shape),
    "one -128": lambda rng, shape: (
        np.where(np.arange(shape[-1]) == shape[-1] - 1, -128, 127) * np.ones(shape, int)
    ),
    "sparse": lambda rng, shape: rng.integers(-128, 128, shape) * (rng.random(shape) < 0.03),
}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(13)


def integers(rng: np.random.Generator, batch: int, n: int, values: Any) -> np.ndarray:
    return values(rng, (batch, n)).astype(np.int8)


def packed_signs(rng: np.random.Generator, batch: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """±1 features, and their signs as bits with garbage after the last."""
    x = rng.choice([-1.0, 1.0], (batch, n))
    packed = pack(x < 0)
    if n % 8:
        packed[:, -1] |= (rng.integers(0, 256, batch) << n % 8 & 0xFF).astype(np.uint8)
    return x, packed


def exact_logits(make: Any, book: Codebook, x: np.ndarray) -> np.ndarray:
    """W x without scale or bias."""
    return make(book, 1.0, None, normalize=False).map(x, LOGITS)


def integer_rows(book: Codebook) -> np.ndarray:
    return expand(book).astype(np.int64)


# Exactness.


@books
def test_int8_sums_are_exact(isa: str, book: Codebook, rng: np.random.Generator) -> None:
    for name, values in FEATURES.items():
        x = integers(rng, 4, book.in_features, values)
        want = x.astype(np.int64) @ integer_rows(book).T
        for make in makers(isa):
            got = exact_logits(make, book, x)
            assert got.dtype == np.float32
            np.testing.assert_array_equal(got, want, name)


@books
def test_sign_sums_are_exact(isa: str, book: Codebook, rng: np.random.Generator) -> None:
    n = book.in_features
    x, packed = packed_signs(rng, 6, n)
    x[4], packed[4] = 1, 0
    x[5], packed[5] = -1, 0xFF
    want = x.astype(np.int64) @ integer_rows(book).T
    for make in makers(isa):
        got = exact_logits(make, book, packed)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("n", WIDTHS)
def test_every_width(isa: str, n: int, rng: np.random.Generator) -> None:
    x, packed = packed_signs(rng, 3, n)
    small = integers(rng, 3, n, FEATURES["any"])
    order = 1 << (n - 1).bit_length()
    plain = [sylvester(n, c) for c in WIDTHS]
    blocks = [synthetic(n, 3 * order - 1, log2=order.bit_length() - 1, blocks=3)]
    wide = [synthetic(n, 200, log2=8), synthetic(n, 90, log2=4, base_order=12)]
    for book in plain + blocks + wide:
        rows = integer_rows(book)
        np.testing.assert_array_equal(exact_logits(native, book, packed), x @ rows.T)
        np.testing.assert_array_equal(
            exact_logits(native, book, small), small.astype(np.int64) @ rows.T
        )


@pytest.mark.parametrize("n", [513, 1024, 1025, 2047, 2048, 3000])
def test_folding(isa: str, n: int, rng: np.random.Generator) -> None:
    """int16 arithmetic holds up to a depth of folding, beyond which it must not be used."""
    order = 1 << (n - 1).bit_length()
    hadamard = reference.hadamard_matrix(order)[:, :n]
    x, packed = packed_signs(rng, 2, n)
    packed[1], x[1] = 0xFF, -1
    kinds = [FEATURES[name] for name in ("any", "all -128", "all 127", "-128 or 127")]
    x8 = np.concatenate([integers(rng, 1, n, values) for values in kinds])
    for c in (1, 65, 128, 129, 513, 1000, 2048):
        book = sylvester(n, c)
        rows = np.concatenate([hadamard, -hadamard])[:c]
        np.testing.assert_array_equal(exact_logits(native, book, packed), x @ rows.T)
        np.testing.assert_array_equal(exact_logits(native, book, x8), x8 @ rows.T)
        for high, low in ((127, -128), (-128, 127), (127, -127)):  # the largest sums there are
            aligned = np.where(rows[-1:] > 0, high, low).astype(np.int8)
            np.testing.assert_array_equal(exact_logits(native, book, aligned), aligned @ rows.T)


@pytest.mark.parametrize("n", [5000, 16384, 32768, 65535, 65536])
@pytest.mark.parametrize("c", [3, 128, 300])
def test_many_features(isa: str, n: int, c: int, rng: np.random.Generator) -> None:
    """Up to the limit: 2^16 times -128 is 2^23, which float32 holds."""
    book = sylvester(n, c)
    rows = 1.0 - 2.0 * (np.bitwise_count(np.arange(c)[:, None] & np.arange(n)[None, :]) % 2)
    x8 = np.concatenate(
        [
            integers(rng, 1, n, FEATURES["any"]),
            integers(rng, 1, n, FEATURES["all -128"]),
            integers(rng, 1, n, FEATURES["all 127"]),
            np.where(rows[-1:] > 0, -128, 127).astype(np.int8),
        ]
    )
    np.testing.assert_array_equal(exact_logits(native, book, x8), x8.astype(float) @ rows.T)
    x, packed = packed_signs(rng, 3, n)
    x[1], packed[1] = -1, 0xFF
    x[2], packed[2] = rows[-1], pack(rows[-1] < 0)
    np.testing.assert_array_equal(exact_logits(native, book, packed), x @ rows.T)
    # The norm of the largest row: one logit is alpha, but for the roundings of scale and product.
    got = native(book, 4.0, None).map(x8[1:3], LOGITS)
    np.testing.assert_allclose(got[:, 0], [-4, 4], rtol=2 * EPS["float32"])
    got = native(book, 4.0, None).map(packed, LOGITS)
    np.testing.assert_allclose([got[1, 0], got[2, -1]], [-4, 4], rtol=2 * EPS["float32"])


def test_the_largest_transform(isa: str, rng: np.random.Generator) -> None:
    n = 65536
    book = synthetic(n, n, log2=16)
    x8 = integers(rng, 2, n, FEATURES["any"])
    x8[1] = -128
    want = hadamard_transform(x8.astype(np.float64))
    np.testing.assert_array_equal(exact_logits(native, book, x8), want)
    x, packed = packed_signs(rng, 1, n)
    np.testing.assert_array_equal(exact_logits(native, book, packed), hadamard_transform(x))


@given(
    book_and_classes=any_codebook(),
    signs=st.booleans(),
    values=st.sampled_from(sorted(FEATURES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codebook_data(
    isa: str,
    book_and_classes: tuple[Codebook, range],
    signs: bool,
    values: str,
    seed: int,
) -> None:
    book, classes = book_and_classes
    rng = np.random.default_rng(seed)
    x8 = integers(rng, 2, book.in_features, FEATURES[values])
    x, given_x = packed_signs(rng, 2, book.in_features) if signs else (x8, x8)
    x = x.astype(np.float64)
    rows = expand(book)[classes.start : classes.stop]
    bias = rng.standard_normal(len(classes)).astype(np.float32)
    for make in makers(isa):
        if not book.kernel.center:
            got = make(book, 1.0, None, classes=classes, normalize=False).map(given_x, LOGITS)
            np.testing.assert_array_equal(got, x @ rows.T)
        head = make(book, 7.0, bias, classes=classes)
        for epilogue in EPILOGUES:
            got = head.map(given_x, int(epilogue))
            check_head(got, x.astype(np.float32), rows, 7.0, bias, epilogue, values)


# Logits, and every reduction of them.


@all_books
def test_int8_against_the_oracle(isa: str, book: Codebook, rng: np.random.Generator) -> None:
    """The same as of float32 features of these integers."""
    bias, rows = rng.standard_normal(book.num_classes).astype(np.float32), expand(book)
    for name, values in FEATURES.items():
        x = integers(rng, 3, book.in_features, values)
        for make in makers(isa):
            for epilogue in EPILOGUES:
                got = make(book, 7.0, bias).map(x, int(epilogue))
                assert got.dtype == np.float32
                check_head(got, x.astype(np.float32), rows, 7.0, bias, epilogue, name)
        wide = native(book, 7.0, bias).map(x.astype(np.float32), LOGITS)
        got = native(book, 7.0, bias).map(x, LOGITS)
        bound = 8 * EPS["float32"] * scale_for(x, rows, 7.0, bias)
        assert_within("logits int8, against float32", got, wide, bound, name)


@all_books
def test_reductions(isa: str, book: Codebook, rng: np.random.Generator) -> None:
    c, n, rows = book.num_classes, book.in_features, expand(book)
    bias = rng.standard_normal(c).astype(np.float32)
    signs, packed = packed_signs(rng, 3, n)
    x8 = integers(rng, 3, n, FEATURES["any"])
    allowed = rng.random((3, c)) < 0.5
    allowed[:, 2] = True
    for x, given_x in ((signs, packed), (x8, x8)):
        z, scale = oracle(x, rows, 7.0, bias), scale_for(x, rows, 7.0, bias)
        for make in makers(isa):
            head = make(book, 7.0, bias)
            check_everything(head, given_x, z, scale, rng)
            check_everything(
                head, given_x, np.where(allowed, z, -np.inf), scale, rng, pack(allowed)
            )


@books
def test_ties_are_exact(isa: str, book: Codebook, rng: np.random.Generator) -> None:
    """Without a bias the order of the logits is that of the integers."""
    n, c = book.in_features, book.num_classes
    signs, packed = packed_signs(rng, 4, n)
    x8 = integers(rng, 4, n, FEATURES["small"])
    for x, given_x in ((signs, packed), (x8, x8)):
        sums = x @ integer_rows(book).T.astype(np.float64)
        for make in makers(isa):
            for normalize in (True, False):
                for alpha in (3.0, -3.0):
                    head = make(book, alpha, None, normalize=normalize)
                    k = min(c, 1024)
                    want = reference.topk(sums * np.sign(alpha), k)[1]
                    np.testing.assert_array_equal(head.topk(given_x, k)[1], want)
                    np.testing.assert_array_equal(head.argmax(given_x), want[:, 0])


@all_books
def test_the_scale_of_quantisation_cancels(
    isa: str, book: Codebook, rng: np.random.Generator
) -> None:
    """Twice, four and 32 times the integers: the same bits. Three times: the scale is rounded
    elsewhere, and nothing else."""
    n, c = book.in_features, book.num_classes
    x = rng.integers(-4, 4, (4, n)).astype(np.int8)
    bias = rng.standard_normal(c).astype(np.float32)
    for make in makers(isa):
        head, plain = make(book, 9.0, bias), make(book, 9.0, None)
        want = [head.map(x, int(e)) for e in EPILOGUES]
        want += [*head.topk(x, min(c, 9)), head.argmax(x)]
        for factor in (2, 4, 32):
            scaled = (x * np.int8(factor)).astype(np.int8)
            np.testing.assert_array_equal(scaled.astype(int), x.astype(int) * factor)
            got = [head.map(scaled, int(e)) for e in EPILOGUES]
            got += [*head.topk(scaled, min(c, 9)), head.argmax(scaled)]
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b)
        once, thrice = plain.map(x, LOGITS), plain.map(x * np.int8(3), LOGITS)
        if book.kernel.center:
            np.testing.assert_allclose(thrice, once, rtol=0, atol=9 * 4 * EPS["float32"])
        else:
            np.testing.assert_allclose(thrice, once, rtol=2 * EPS["float32"], atol=0)


def test_signs_are_int8_of_one(isa: str, rng: np.random.Generator) -> None:
    """Packed signs, int8 ±1 and int8 ±127 with one norm: the first two agree bit for bit."""
    for book in (BOOKS | CENTRED).values():
        x, packed = packed_signs(rng, 3, book.in_features)
        for make in makers(isa):
            head = make(book, 9.0, None)
            for epilogue in EPILOGUES:
                np.testing.assert_array_equal(
                    head.map(packed, int(epilogue)), head.map(x.astype(np.int8), int(epilogue))
                )
            large = head.map((x * 64).astype(np.int8), LOGITS)
            np.testing.assert_array_equal(large, head.map(packed, LOGITS))


def test_zero_rows(isa: str) -> None:
    for book in (BOOKS | CENTRED).values():
        bias = np.linspace(-3, 3, book.num_classes, dtype=np.float32)
        x = np.zeros((2, book.in_features), np.int8)
        for make in makers(isa):
            np.testing.assert_array_equal(make(book, 5.0, bias).map(x, LOGITS), [bias] * 2)
            assert (make(book, 5.0, None).map(x, LOGITS) == 0).all()


# Layouts and batches.


@pytest.mark.parametrize("name", ["folded to a vector", "one block", "masked", "base matrix"])
def test_layouts(isa: str, name: str, rng: np.random.Generator) -> None:
    book = BOOKS[name]
    n, width = book.in_features, (book.in_features + 7) // 8
    for block, columns in (
        (integers(rng, 60, n + 9, FEATURES["any"]).reshape(5, 12, n + 9), n),
        (rng.integers(0, 256, (5, 12, width + 9), np.uint8), width),
    ):
        view = block[..., 4 : columns + 4]
        rows = np.ascontiguousarray(view).reshape(60, columns)
        for make in makers(isa):
            head = make(book, 5.0, None)
            want, best = head.map(rows, 1), head.argmax(rows)
            np.testing.assert_array_equal(head.map(view, 1), want.reshape(5, 12, -1))
            np.testing.assert_array_equal(head.map(view[2], 1), want[24:36])  # strided rows
            np.testing.assert_array_equal(head.map(view[2, 3], 1), want[27])
            np.testing.assert_array_equal(head.map(rows[17:18], 1), want[17:18])
            np.testing.assert_array_equal(head.argmax(view[:, ::2]), best.reshape(5, 12)[:, ::2])
            assert head.map(rows[:0], 1).shape == (0, book.num_classes)
            assert head.map(rows[:0], 1).dtype == np.float32
            assert head.argmax(rows[:0]).shape == (0,)
        if make is native:
            np.testing.assert_array_equal(head.map(view[2, ::-1], 1), want[24:36][::-1])


@pytest.mark.parametrize("name", ["one large block", "masked and negated", "base matrix"])
def test_invariance(isa: str, name: str, rng: np.random.Generator, native_threads: None) -> None:
    book = BOOKS[name]
    head = native(book, 5.0, None)
    for x in (
        integers(rng, 150, book.in_features, FEATURES["any"]),
        packed_signs(rng, 150, book.in_features)[1],
    ):
        _native.set_num_threads(1)
        want = [head.map(x, 1), *head.topk(x, 5)]
        for threads in (2, 3):
            _native.set_num_threads(threads)
            for rows in (np.s_[:], np.s_[:1], np.s_[100:137], np.s_[::-7]):
                got = [head.map(x[rows], 1), *head.topk(x[rows], 5)]
                for a, b in zip(got, want, strict=True):
                    np.testing.assert_array_equal(a, b[rows])


@pytest.mark.parametrize("signs", [False, True])
def test_many_classes(
    isa: str, signs: bool, rng: np.random.Generator, native_threads: None
) -> None:
    """One row's classes shared among threads: bitwise the same, and in the order of integers."""
    book = synthetic(64, 250_000, log2=6, blocks=2048, negate=True)
    x, packed = packed_signs(rng, 33, 64)
    given_x = packed if signs else (127 * x).astype(np.int8)
    flips = 1.0 - 2.0 * np.unpackbits(book.kernel.signs, axis=1, count=64, bitorder="little")
    y = (x[:2, None, :] * flips) @ reference.hadamard_matrix(64)
    sums = np.stack([y, -y], axis=2).reshape(2, -1)[:, : book.num_classes]
    want = reference.topk(sums, 500)[1]
    results = []
    for threads in (1, 2, 3):
        _native.set_num_threads(threads)
        for batch in (2, 33):
            results.append(native(book, 5.0, None).topk(given_x[:batch], 500))
    np.testing.assert_array_equal(results[0][1], want)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(a[:2], b)


@all_books
def test_numpy_and_torch_give_the_same_bits(book: Codebook, rng: np.random.Generator) -> None:
    bias = rng.standard_normal(book.num_classes).astype(np.float32)
    for x in (
        integers(rng, 4, book.in_features, FEATURES["any"]),
        packed_signs(rng, 4, book.in_features)[1],
    ):
        for epilogue in EPILOGUES:
            got = TorchHead(book, 3.0, bias).map(x, int(epilogue))
            np.testing.assert_array_equal(got, native(book, 3.0, bias).map(x, int(epilogue)))


# torch: the module, packing, opcheck, gradients of alpha and bias.


MODULES = [
    ("hadamard", 100, 37),
    ("hadamard", 768, 512),
    ("orthoplex", 64, 100),
    ("kerdock", 16, 100),
    ("search", 12, 90),
    ("etf", 15, 16),
    ("orthonormal", 24, 18),
]


@pytest.mark.parametrize(("kind", "n", "c"), MODULES)
def test_module(kind: str, n: int, c: int) -> None:
    torch.manual_seed(6)
    head = FixedClassifier(n, c, codebook=kind, alpha=6.0)
    with torch.no_grad():
        head.bias.normal_()
    signs = torch.randint(0, 2, (2, 3, n)) * 2.0 - 1
    small = torch.randint(-128, 128, (2, 3, n), dtype=torch.int8)
    target = torch.randint(0, c, (2, 3))
    for x, wide in ((ops.pack_signs(signs), signs), (small, small.float())):
        results = []
        for features in (x, wide):
            head.zero_grad()
            loss = head.loss(features, target, label_smoothing=0.1)
            results.append(
                [
                    head(features),
                    head.predict_proba(features),
                    head.predict_log_proba(features),
                    *head.topk(features, 3)[::2],
                    head.log_prob(features, target),
                    loss,
                ]
            )
        for got, want in zip(*results, strict=True):
            assert got.dtype == torch.float32
            torch.testing.assert_close(got, want, rtol=0, atol=64 * EPS["float32"])
        same = (head.argmax(x) == head.argmax(wide)) | (
            head.topk(wide, 2)[0].diff().abs()[..., 0] < 1e-4
        )
        assert same.all()
        assert head.sample(x, torch.Generator().manual_seed(0)).shape == (2, 3)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_loss_gradients_of_alpha_and_bias(dtype: torch.dtype) -> None:
    """The features have no gradient, but the parameters have that of float32 features."""
    head, target = FixedClassifier(24, 18, alpha=6.0), torch.arange(5)
    small = torch.randint(-128, 128, (5, 24), dtype=torch.int8)
    x = ops.pack_signs(small) if dtype == torch.uint8 else small
    wide = ops.unpack_signs(x, 24) if dtype == torch.uint8 else small.float()
    gradients = []
    for features in (wide, x):
        head.zero_grad()
        head.loss(features, target, label_smoothing=0.1).backward()
        gradients.append([head.alpha_spread.grad.clone(), head.bias.grad.clone()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_head_gradients_of_alpha_and_bias(dtype: torch.dtype) -> None:
    """Through the logits these are those of float32 features."""
    head = FixedClassifier(24, 18, alpha=6.0)
    small = torch.randint(-128, 128, (5, 24), dtype=torch.int8)
    x = ops.pack_signs(small) if dtype == torch.uint8 else small
    wide = ops.unpack_signs(x, 24) if dtype == torch.uint8 else small.float()
    weights = torch.randn(5, 18)
    gradients = []
    for features in (x, wide):
        head.zero_grad()
        (head(features) * weights).sum().backward()
        gradients.append([head.alpha_spread.grad.clone(), head.bias.grad.clone()])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.parametrize("name", ["masked"])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    book = (BOOKS | CENTRED)[name]
    n = book.in_features
    low, width = (0, (n + 7) // 8) if dtype == torch.uint8 else (-128, n)
    x = torch.randint(low, low + 256, (3, width), dtype=dtype)
    common = (x, torch.tensor(2.0), None, *ops.codebook_arguments(book), True)
    ids, checks = torch.arange(3), torch.ops.fixclf
    for op, extra in (
        (checks.head, (1,)),
        (checks.head, (0, torch.float32)),
        (checks.head_topk, (3,)),
        (checks.head_argmax, ()),
        (checks.head_sample, (ids,)),
        (checks.head_log_prob, (ids,)),
        (checks.head_nll, (ids,)),
    ):
        torch.library.opcheck(op.default, (*common, *extra))


# Bad input.


@pytest.mark.parametrize("n", [1, 8, 9, 100])
def test_packed_width(n: int) -> None:
    book, width = sylvester(n, 5), (n + 7) // 8
    for wrong in (width - 1, width + 1, n if n > 1 else 3):
        message = (
            f"x has {wrong} bytes of packed signs in its last dimension, "
            f"expected {width} for {n} features"
        )
        x = np.zeros((2, wrong), np.uint8)
        with pytest.raises(ValueError, match=message):
            native(book, 1.0, None).argmax(x)
        with pytest.raises(TORCH_ERRORS, match=message):
            TorchHead(book, 1.0, None).argmax(x)
        with pytest.raises(TORCH_ERRORS, match=message):
            FixedClassifier(n, 5, codebook=book)(torch.from_numpy(x))


def test_int8_width() -> None:
    x = np.zeros((2, 9), np.int8)
    for make in (native, TorchHead):
        with pytest.raises(TORCH_ERRORS, match=r"x has 9 features in its last dimension, but .* 8"):
            make(sylvester(8, 5), 1.0, None).argmax(x)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_more_features_than_sum_exactly(dtype: str) -> None:
    n = 65537
    book = sylvester(n, 5)
    x = np.zeros((1, n if dtype == "int8" else (n + 7) // 8), dtype)
    for make in (native, TorchHead):
        with pytest.raises(TORCH_ERRORS, match=r"x is .* with 65537 features.* limit of 65536"):
            make(book, 1.0, None).argmax(x)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_no_transform_of_integers(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"x is {dtype}, expected float32, bfloat16, float16 or"):
        hadamard_transform(np.ones(8, dtype))
    with pytest.raises(TORCH_ERRORS, match=r"x is (Char|Byte), expected Float, BFloat16, Half or"):
        hadamard_transform(torch.ones(8, dtype=getattr(torch, dtype)))


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_results_are_float32_only(dtype: str) -> None:
    book, x = sylvester(8, 5), np.ones((2, 8 if dtype == "int8" else 1), dtype)
    alpha = torch.tensor(1.0)
    arguments = ops.codebook_arguments(book)
    for name in ("float16", "float64"):
        with pytest.raises(ValueError, match=f"the output dtype is {name}, expected float32"):
            native(book, 1.0, None).map(x, 0, np.dtype(name))
        with pytest.raises(TORCH_ERRORS, match=f"dtype is {name}, expected float32"):
            out = getattr(torch, name)
            ops.head(torch.from_numpy(x), alpha, None, arguments, dtype=out)
    with pytest.raises(TORCH_ERRORS, match=r"dtype is (Char|Byte), expected"):
        out = getattr(torch, dtype)
        ops.head(torch.from_numpy(x), alpha, None, arguments, dtype=out)
    with pytest.raises(TORCH_ERRORS, match="alpha is float64, expected float32"):
        ops.head(torch.from_numpy(x), alpha.double(), None, arguments)
    got = ops.head(torch.from_numpy(x), alpha, None, arguments, dtype=torch.float32)
    np.testing.assert_array_equal(to_numpy(got), native(book, 1.0, None).map(x, 0))


@pytest.mark.parametrize("dtype", ["int16", "int32", "int64", "uint16", "bool"])
def test_other_integers(dtype: str) -> None:
    x = np.ones((2, 8), dtype)
    with pytest.raises(TypeError, match=f"x is {dtype}, expected float32, .* int8 or uint8"):
        native(sylvester(8, 5), 1.0, None).argmax(x)
    with pytest.raises(TORCH_ERRORS, match=r"x is \w+, expected Float, .* Char or Byte"):
        TorchHead(sylvester(8, 5), 1.0, None).argmax(x)
