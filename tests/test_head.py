"""The fused head against the oracle: instruction sets, epilogues, dtypes, codebooks as data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import tolerances
from backends import native_head, torch_head
from cases import (
    CASES,
    DTYPES,
    EPILOGUES,
    NUMPY_DTYPES,
    WIDTHS,
    Case,
    any_codebook,
    check_head,
    expand,
    scale_of,
    sylvester,
    synthetic,
)
from hypothesis import given
from hypothesis import strategies as st

from fixclf_infer import _native, reference
from fixclf_infer import codebook as make_codebook
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue


def run_case(case: Case, head=native_head) -> np.ndarray:
    return head(
        case.features(),
        case.alpha,
        case.bias_values(),
        case.codebook,
        case.epilogue,
        out=case.out or None,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(isa: str, case: Case) -> None:
    got = run_case(case)
    case.check(got)
    # And against scalar, the reference of every other instruction set: within the same bound, but
    # a 16-bit result may have been rounded the other way.
    _native.set_isa("scalar")
    want = run_case(case).astype(np.float64)
    scale = scale_of(case.matrix, case.alpha, case.bias_values())
    family, bound = tolerances.head(case.epilogue, want, scale, case.dtype, case.out_dtype)
    if case.out_dtype != case.exact:
        bound = bound + tolerances.rounding(want, case.out_dtype)
    tolerances.assert_within(f"{family}, against scalar", got, want, bound, str(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_in_torch(device: str, case: Case) -> None:
    got = run_case(case, partial(torch_head, device=device))
    case.check(got)
    if device == "cpu":  # the same kernels on the same instruction set: the same bits
        np.testing.assert_array_equal(got, run_case(case))


def test_a_large_base_matrix_keeps_its_precision(isa: str) -> None:
    """b = 500, features that all agree with a class: a running sum over the whole base was off by
    2.8 eps, one for each tile of 64 columns is by 1."""
    book = make_codebook(500, 499, exact=True)
    assert book.kernel is not None and book.kernel.base_order == 500
    rng, rows = np.random.default_rng(0), book.matrix().astype(np.float64)
    x = (rows[7] * (1 + 0.01 * rng.random((64, 500)))).astype(np.float32)
    got = native_head(x, 1.0, None, book, Epilogue.LOGITS)
    want = reference.head(x.astype(np.float64), rows, 1.0, None, Epilogue.LOGITS)
    assert np.abs(got - want).max() <= 1.5 * tolerances.EPS["float32"]


def test_epilogues_are_those_of_the_kernels() -> None:
    assert {e.name.lower(): int(e) for e in Epilogue} == _native.EPILOGUES


@pytest.mark.parametrize("in_features", WIDTHS)
def test_every_width(isa: str, in_features: int) -> None:
    rng = np.random.default_rng(in_features)
    for num_classes in WIDTHS:
        book = sylvester(in_features, num_classes)
        matrix = expand(book)
        x = rng.standard_normal((2, in_features)).astype(np.float32)
        bias = rng.standard_normal(num_classes).astype(np.float32)
        for epilogue in EPILOGUES:
            b = bias if (num_classes + epilogue) % 3 else None
            got = native_head(x, 7.5, b, book, epilogue)
            check_head(got, x, matrix, 7.5, b, epilogue, f"N={in_features} C={num_classes}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_in_other_dtypes(isa: str, width: int, dtype: str) -> None:
    rng = np.random.default_rng(width)
    for in_features, num_classes in ((width, 37), (50, width)):
        book = sylvester(in_features, num_classes)
        matrix = expand(book)
        x = rng.standard_normal((3, in_features)).astype(NUMPY_DTYPES[dtype])
        bias = rng.standard_normal(num_classes).astype(tolerances.accumulation(dtype))
        for epilogue in EPILOGUES:
            for out in {dtype, tolerances.accumulation(dtype)}:
                got = native_head(x, 7.5, bias, book, epilogue, out=out)
                assert str(got.dtype) == out
                check_head(got, x, matrix, 7.5, bias, epilogue, f"N={in_features} C={num_classes}")


@given(
    book_and_classes=any_codebook(),
    batch=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    wide=st.booleans(),
    epilogue=st.sampled_from(EPILOGUES),
    alpha=st.floats(-20, 20, width=32),
    has_bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_codebook_data(
    isa: str,
    book_and_classes: tuple[Codebook, range],
    batch: int,
    dtype: str,
    wide: bool,
    epilogue: Epilogue,
    alpha: float,
    has_bias: bool,
    seed: int,
) -> None:
    book, classes = book_and_classes
    rng = np.random.default_rng(seed)
    exact = tolerances.accumulation(dtype)
    x = rng.standard_normal((batch, book.in_features)).astype(NUMPY_DTYPES[dtype])
    bias = rng.standard_normal(len(classes)).astype(exact) if has_bias else None
    rows = expand(book)[classes.start : classes.stop]
    got = native_head(x, alpha, bias, book, epilogue, classes=classes, out=exact if wide else None)
    check_head(got, x, rows, alpha, bias, epilogue)


# Features that make sums grow: the bound holds whatever their distribution.

DISTRIBUTIONS = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "after a ReLU": lambda rng, n: np.maximum(rng.standard_normal(n), 0),
    "constant": lambda rng, n: np.full(n, 0.1),
    "all but constant": lambda rng, n: 3 + 0.01 * rng.standard_normal(n),
    "one of them large": lambda rng, n: np.where(np.arange(n) == n // 3, 1e4, 0.37),
    "one of them": lambda rng, n: np.where(np.arange(n) == n // 2, -0.3, 0.0),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "alternating": lambda rng, n: 0.7 * (-1.0) ** np.arange(n),
    "decaying": lambda rng, n: 0.999 ** np.arange(n),
}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("in_features", [60, 512, 2048, 5000, 65536])
def test_distributions(isa: str, in_features: int, distribution: str) -> None:
    rng = np.random.default_rng(3)
    x = DISTRIBUTIONS[distribution](rng, in_features).astype(np.float32)[None]
    book = sylvester(in_features, 40)  # folded to 64 sums
    got = native_head(x, 1.0, None, book)
    check_head(got, x, expand_first(book), 1.0, None, Epilogue.LOGITS, distribution)


def expand_first(book: Codebook) -> np.ndarray:
    """The rows of a plain Sylvester codebook without the whole matrix of its order."""
    i, j = np.arange(book.num_classes)[:, None], np.arange(book.in_features)[None, :]
    return 1.0 - 2.0 * (np.bitwise_count(i & j) % 2)


def test_the_short_way_to_rows() -> None:
    np.testing.assert_array_equal(expand_first(sylvester(100, 40)), expand(sylvester(100, 40)))


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 65])
@pytest.mark.parametrize("in_features", [1023, 1024, 1025, 2048, 3000])
def test_folding(isa: str, in_features: int, num_classes: int) -> None:
    x = np.random.default_rng(in_features).standard_normal((2, in_features)).astype(np.float32)
    book = sylvester(in_features, num_classes)
    bias = np.linspace(-1, 1, num_classes, dtype=np.float32)
    for epilogue in EPILOGUES:
        got = native_head(x, 4.0, bias, book, epilogue)
        check_head(got, x, expand_first(book), 4.0, bias, epilogue)


@pytest.mark.parametrize("row_offset", [0, 1, 40])
@pytest.mark.parametrize("log2", range(5, 12))
def test_a_row_read_with_the_first_pass(isa: str, log2: int, row_offset: int) -> None:
    """As many features as rows, or twice as many; codelets that the epilogue does, or does not."""
    for in_features, num_classes in (
        (1 << log2, (1 << log2) - row_offset),
        (2 << log2, (1 << log2) - row_offset),
        (2 << log2, (1 << log2 - 1) + 3),
    ):
        if num_classes + row_offset > 1 << log2 or num_classes < 1:
            continue
        order = (in_features - 1).bit_length()
        book = synthetic(in_features, num_classes, log2=order, row_offset=row_offset)
        x = np.random.default_rng(log2).standard_normal((2, in_features)).astype(np.float32)
        bias = np.linspace(-1, 1, num_classes, dtype=np.float32)
        for epilogue in (Epilogue.LOGITS, Epilogue.SOFTMAX):
            got = native_head(x, 6.0, bias, book, epilogue)
            check_head(got, x, expand(book), 6.0, bias, epilogue)


def test_largest_order(isa: str) -> None:
    # 2^20 columns; only as many rows as the oracle can hold.
    in_features = 2**20 - 3
    book = synthetic(in_features, 5, log2=20)
    x = np.random.default_rng(5).standard_normal((1, in_features)).astype(np.float32)
    check_head(native_head(x, 2.0, None, book), x, expand_first(book), 2.0, None, Epilogue.LOGITS)


# One property of codebook data at a time, so that a failure names it.

VARIANTS = {
    "base matrix": {"base_order": 12, "log2": 3},
    "base matrix of odd order": {"base_order": 5, "log2": 2},
    "base matrix alone": {"base_order": 20, "log2": 0},
    "base matrix over one tile": {"base_order": 68, "log2": 1},
    "largest base matrix": {"base_order": 512, "log2": 0},
    "one sign mask": {"log2": 6, "blocks": 1},
    "sign masks": {"log2": 5, "blocks": 7},
    "sign masks of less than a byte": {"log2": 2, "blocks": 9},
    "negation": {"log2": 5, "negate": True},
    "negation and sign masks": {"log2": 4, "blocks": 3, "negate": True},
    "centre": {"log2": 6, "center": True},
    "centre and base matrix": {"base_order": 12, "log2": 2, "center": True},
    "centre and sign mask": {"log2": 6, "center": True, "blocks": 1},
    "row offset": {"log2": 6, "row_offset": 1},
    "row offset over a block": {"log2": 3, "blocks": 4, "row_offset": 11},
    "row offset and negation": {"log2": 4, "negate": True, "row_offset": 5},
    "column offset": {"log2": 6, "column_offset": 1},
    "column offset and base matrix": {"base_order": 28, "log2": 1, "column_offset": 1},
    "both offsets and centre": {"log2": 5, "row_offset": 1, "column_offset": 1, "center": True},
    "everything at once": {
        "base_order": 12,
        "log2": 2,
        "blocks": 3,
        "negate": True,
        "row_offset": 2,
        "column_offset": 1,
    },
}


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(isa: str, variant: str, epilogue: Epilogue) -> None:
    options = VARIANTS[variant]
    order = options.get("base_order", 1) << options["log2"]
    stack = order * max(options.get("blocks", 0), 1) * (2 if options.get("negate") else 1)
    most = stack - options.get("row_offset", 0)
    widest = order - options.get("column_offset", 0)
    rng = np.random.default_rng(order)
    for in_features, num_classes in ((widest, most), (widest // 2 + 1, most // 2 + 1)):
        book = synthetic(in_features, num_classes, **options)
        matrix = expand(book)
        x = rng.standard_normal((2, in_features)).astype(np.float32)
        bias = rng.standard_normal(num_classes).astype(np.float32)
        third = max(num_classes // 3, 1)
        shards = [range(num_classes), range(third), range(num_classes - 1, num_classes)]
        shards.append(range(third - 1, max(num_classes - third, third)))
        for shard in shards:
            b = bias[shard.start : shard.stop].copy()
            rows = matrix[shard.start : shard.stop]
            got = native_head(x, -3.0, b, book, epilogue, classes=shard)
            check_head(got, x, rows, -3.0, b, epilogue, f"{variant}, N={in_features}, {shard}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_join_to_the_whole(isa: str, variant: str) -> None:
    options = VARIANTS[variant]
    order = options.get("base_order", 1) << options["log2"]
    num_classes = order - options.get("row_offset", 0) % order
    in_features = order - options.get("column_offset", 0)
    book = synthetic(in_features, num_classes, **options)
    x = np.random.default_rng(1).standard_normal((3, in_features)).astype(np.float32)
    whole = native_head(x, 2.0, None, book)
    cut = num_classes // 2
    parts = [
        native_head(x, 2.0, None, book, classes=range(begin, end))
        for begin, end in ((0, cut), (cut, num_classes))
    ]
    want = whole.astype(np.float64)
    scale = scale_of(expand(book), 2.0, None)
    bound = tolerances.logits(want, scale, "float32", "float32")
    joined = np.concatenate(parts, axis=1)
    tolerances.assert_within("logits float32→float32, sharded", joined, want, bound, variant)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_without_normalisation(isa: str, variant: str, dtype: str) -> None:
    options = VARIANTS[variant]
    order = options.get("base_order", 1) << options["log2"]
    in_features = order - options.get("column_offset", 0)
    book = synthetic(in_features, order // 2 + 1, **options)
    matrix = expand(book)
    rng = np.random.default_rng(8)
    x = (3 * rng.standard_normal((3, in_features))).astype(NUMPY_DTYPES[dtype])
    exact = tolerances.accumulation(dtype)
    bias = rng.standard_normal(book.num_classes).astype(exact)
    got = native_head(x, 0.7, bias, book, normalize=False, out=exact)
    want = 0.7 * reference.project_adjoint(x.astype(np.float64), matrix.T) + bias
    # The same bound, with α ‖w‖ ‖x‖ in the place of α ‖w‖ / √N.
    norm = np.linalg.norm(x.astype(np.float64), axis=1).max() * np.sqrt(in_features)
    bound = tolerances.logits(want, scale_of(matrix, 0.7 * norm, bias), dtype, exact)
    tolerances.assert_within(f"logits without normalisation {dtype}", got, want, bound, variant)


@pytest.mark.parametrize("kind", ["row stride", "backwards", "three dimensions", "transposed"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(isa: str, dtype: str, kind: str) -> None:
    rng = np.random.default_rng(9)
    block = rng.standard_normal((3, 40, 40)).astype(NUMPY_DTYPES[dtype])
    view = {
        "row stride": block[0, :, 3:36],
        "backwards": block[0, ::-1, ::-1][:, :33],
        "three dimensions": block[:, ::2, :33],
        "transposed": block[0, :33].T,
    }[kind]
    book = sylvester(33, 70)
    got = native_head(view, 5.0, None, book, Epilogue.SOFTMAX)
    check_head(got, view, expand(book), 5.0, None, Epilogue.SOFTMAX)
    rows = native_head(np.ascontiguousarray(view), 5.0, None, book, Epilogue.SOFTMAX)
    np.testing.assert_array_equal(got, rows)


@pytest.mark.parametrize("shape", [(0, 9), (2, 0, 9)])
@pytest.mark.parametrize("head", [native_head, torch_head])
def test_empty_batch(head, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        for epilogue in EPILOGUES:
            x = np.empty(shape, NUMPY_DTYPES[dtype])
            got = head(x, 1.0, None, sylvester(9, 21), epilogue)
            assert got.shape == (*shape[:-1], 21)
            assert got.dtype == x.dtype


@pytest.mark.parametrize("head", [native_head, torch_head])
def test_inputs_are_left_alone(head) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 60)).astype(np.float32)
    bias = rng.standard_normal(200).astype(np.float32)
    book = synthetic(60, 200, log2=6, blocks=2, negate=True)
    copies = x.copy(), bias.copy(), book.kernel.signs.copy()
    for epilogue in EPILOGUES:
        head(x, 2.0, bias, book, epilogue)
    for now, before in zip((x, bias, book.kernel.signs), copies, strict=True):
        np.testing.assert_array_equal(now, before)
