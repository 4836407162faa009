"""The Walsh–Hadamard transform: every order, dtype, layout and instruction set."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from backends import to_numpy, to_torch
from cases import DTYPES, NUMPY_DTYPES
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_norm_within, transform

from fixclf_infer import hadamard_transform, reference

ORDERS = range(21)


@cache
def sylvester(order: int) -> np.ndarray:
    return reference.hadamard_matrix(order)


def oracle(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Dense up to 2^10; above, H_mn = H_m ⊗ H_n with two dense factors: Y = H_m X H_n."""
    values = np.asarray(x, np.float64)
    order = values.shape[-1]
    if order <= 1024:
        return scale * (values @ sylvester(order))
    high = order // 1024
    matrix = values.reshape(*values.shape[:-1], high, 1024)
    return scale * (sylvester(high) @ matrix @ sylvester(1024)).reshape(values.shape)


def features(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return rng.standard_normal(shape).astype(NUMPY_DTYPES[dtype])


def check(got: np.ndarray, x: np.ndarray, scale: float = 1.0, context: str = "") -> None:
    assert got.dtype == x.dtype
    want = oracle(x, scale)
    log2 = x.shape[-1].bit_length() - 1
    bound = transform(want, log2, str(x.dtype))
    assert_norm_within(f"transform {x.dtype}", got, want, bound, context)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_the_oracle_is_the_definition() -> None:
    i = np.arange(64)
    signs = (-1.0) ** np.bitwise_count(i[:, None] & i[None, :])
    np.testing.assert_array_equal(sylvester(64), signs)
    x = np.random.default_rng(0).standard_normal(2048)
    i = np.arange(2048)
    dense = (-1.0) ** np.bitwise_count(i[:, None] & i[None, :])
    np.testing.assert_allclose(oracle(x), dense @ x, rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log2", ORDERS)
def test_every_order(isa: str, log2: int, dtype: str, rng: np.random.Generator) -> None:
    rows = 3 if log2 < 15 else 1
    x = features(rng, (rows, 1 << log2), dtype)
    check(hadamard_transform(x), x)
    if log2 < 19:
        check(hadamard_transform(x, 0.37), x, 0.37)


@pytest.mark.parametrize("log2", ORDERS)
def test_every_order_in_torch(log2: int, rng: np.random.Generator) -> None:
    x = features(rng, (2, 1 << log2), "float32")
    check(to_numpy(hadamard_transform(to_torch(x), -1.5)), x, -1.5)


@pytest.mark.parametrize("log2", ORDERS)
def test_integers_are_exact(isa: str, log2: int, rng: np.random.Generator) -> None:
    # Every partial sum is an integer below 2^24, so float32 has it exactly.
    x = rng.integers(-8, 9, (2, 1 << log2)).astype(np.float32)
    np.testing.assert_array_equal(hadamard_transform(x), oracle(x))


@pytest.mark.parametrize("log2", range(0, 21, 2))
def test_twice_is_n_times_the_identity(isa: str, log2: int, rng: np.random.Generator) -> None:
    x = rng.integers(-8, 9, (1, 1 << log2)).astype(np.float64)
    twice = hadamard_transform(hadamard_transform(x), 2.0**-log2)
    np.testing.assert_array_equal(twice, x)
    x = features(rng, (2, 1 << log2), "float32")
    twice = hadamard_transform(hadamard_transform(x), 2.0**-log2)
    assert_norm_within("transform float32", twice, x, transform(x, 2 * log2, "float32"))


@pytest.mark.parametrize("log2", [3, 11, 13, 16, 20])
def test_linear(isa: str, log2: int, rng: np.random.Generator) -> None:
    # Integers: both sides are exact, so they are equal.
    x, y = rng.integers(-4, 5, (2, 1, 1 << log2)).astype(np.float32)
    together = hadamard_transform(3 * x - 2 * y)
    apart = 3 * hadamard_transform(x) - 2 * hadamard_transform(y)
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("log2", [4, 12, 15, 20])
def test_unit_vectors_give_rows(isa: str, log2: int) -> None:
    order = 1 << log2
    i = np.arange(order)
    for j in (0, 1, order // 2 + 1, order - 1):
        x = np.zeros((1, order), np.float32)
        x[0, j] = 1
        np.testing.assert_array_equal(
            hadamard_transform(x)[0], 1 - 2.0 * (np.bitwise_count(i & j) % 2)
        )


@pytest.mark.parametrize("log2", [1, 5, 12, 17])
def test_recursion(isa: str, log2: int, rng: np.random.Generator) -> None:
    # H_2n [a; b] = [H_n (a + b); H_n (a − b)], on integers.
    a, b = rng.integers(-8, 9, (2, 3, 1 << log2)).astype(np.float32)
    want = np.concatenate([hadamard_transform(a + b), hadamard_transform(a - b)], axis=-1)
    np.testing.assert_array_equal(hadamard_transform(np.concatenate([a, b], axis=-1)), want)


# Layouts: the same bits as on a contiguous copy, which other tests compare with the oracle.


def layouts(block: np.ndarray) -> dict[str, np.ndarray]:
    """Views of many strides into `block` [6, 5, 16, 16]; the last dimension is a power of two."""
    square = block[0, 0]
    return {
        "one dimension": square[3],
        "one dimension, every second": block[0, 0, 0, ::2],
        "one dimension, backwards": square[2, ::-1],
        "row stride above the columns": square[:, :8],
        "columns from an odd offset": square[:, 3:7],
        "every third row": square[::3],
        "rows backwards": square[::-1],
        "transposed": square.T,
        "every second column": square[:, ::2],
        "one column": square[:, 5:6],
        "one column of one row": square[2:3, 5:6],
        "row stride zero": np.broadcast_to(square[4], (7, 16)),
        "column stride zero": np.broadcast_to(square[:, 2:3], (16, 16)),
        "three dimensions": block[1],
        "three dimensions, permuted": block[1].transpose(1, 0, 2),
        "three dimensions, cut": block[1, ::2, 1:-1, :4],
        "four dimensions": block,
        "four dimensions, permuted": block.transpose(3, 1, 0, 2),
        "four dimensions, one row each": block[:, :, :1],
        "ones around": block[None, 0, :1],
        "four dimensions, stride zero": np.broadcast_to(block[:, :1], block.shape),
    }


LAYOUTS = tuple(layouts(np.zeros((6, 5, 16, 16))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_in_numpy(isa: str, layout: str, dtype: str, rng: np.random.Generator) -> None:
    view = layouts(features(rng, (6, 5, 16, 16), dtype))[layout]
    before = view.copy()
    got = hadamard_transform(view)
    check(got, view, context=layout)
    np.testing.assert_array_equal(got, hadamard_transform(np.ascontiguousarray(view)))
    np.testing.assert_array_equal(view, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "backwards" not in name])
def test_layouts_in_torch(layout: str, dtype: str, rng: np.random.Generator) -> None:
    view = layouts(features(rng, (6, 5, 16, 16), dtype))[layout]
    x = to_torch(view.copy())
    if dtype != "bfloat16":  # a torch view of the same strides; NumPy's bfloat16 has none
        x = torch.from_numpy(view) if view.flags.writeable else x.clone().expand(view.shape)
    got = hadamard_transform(x)
    assert got.is_contiguous()
    check(to_numpy(got), np.ascontiguousarray(view), context=layout)
    assert torch.equal(got, hadamard_transform(x.contiguous()))


def test_a_tensor_expanded_from_one_row(rng: np.random.Generator) -> None:
    row = to_torch(features(rng, (1, 64), "float32"))
    got = hadamard_transform(row.expand(5, 64))
    assert torch.equal(got, hadamard_transform(row).expand(5, 64))
    check(to_numpy(got), row.expand(5, 64).numpy())


def test_a_tensor_with_pending_negation(rng: np.random.Generator) -> None:
    pair = torch.randn(3, 32, 2).view(3, 32, 2)
    lazy = torch.view_as_complex(pair).conj().imag  # torch keeps this as "negate on read"
    assert lazy.is_neg()
    got = hadamard_transform(lazy)
    check(to_numpy(got), -pair[..., 1].contiguous().numpy())


def test_unaligned_rows(isa: str, rng: np.random.Generator) -> None:
    raw = np.zeros(4 * 100 + 4, np.uint8)
    for offset in (1, 2, 3):
        view = raw[offset : offset + 400].view(np.float32)[: 3 * 32].reshape(3, 32)
        view[...] = rng.standard_normal((3, 32))
        assert not view.flags.aligned
        check(hadamard_transform(view), view.copy())


@pytest.mark.parametrize("shape", [(0, 8), (0,), (3, 0, 16), (0, 0, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_empty_batches(isa: str, shape: tuple[int, ...], dtype: str) -> None:
    x = np.empty(shape, NUMPY_DTYPES[dtype])
    if shape[-1] == 0:
        for empty in (x, to_torch(x)):
            with pytest.raises(ValueError, match="order is 0, expected at least the 0 elements"):
                hadamard_transform(empty)
        return
    for got in (hadamard_transform(x), to_numpy(hadamard_transform(to_torch(x)))):
        assert got.shape == shape
        assert got.dtype == x.dtype


# Values.


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("log2", [0, 2, 3, 6, 13])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bad_value_stays_in_its_row(
    isa: str, dtype: str, log2: int, bad: float, rng: np.random.Generator
) -> None:
    x = features(rng, (5, 1 << log2), dtype)
    clean = hadamard_transform(x)
    dirty = x.copy()
    dirty[2, -1] = bad
    got = hadamard_transform(dirty)
    assert not np.isfinite(got[2].astype(np.float64)).any()
    np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-30, 1e30, 2.0**103])
def test_magnitudes(isa: str, magnitude: float, rng: np.random.Generator) -> None:
    # |y| ≤ 64 · 8 · 2^103 < 2^127 · 8: nothing here may overflow, and subnormals count.
    x = (rng.integers(-8, 9, (4, 64)) * magnitude).astype(np.float32)
    want = oracle(x)
    got = hadamard_transform(x)
    assert np.isfinite(got).all()
    assert_norm_within("transform float32", got, want, transform(want, 6, "float32"))


def test_scale_zero_and_huge(isa: str, rng: np.random.Generator) -> None:
    x = features(rng, (3, 128), "float32")
    np.testing.assert_array_equal(hadamard_transform(x, 0.0), np.zeros_like(x))
    check(hadamard_transform(x, 1e30), x, 1e30)
    check(hadamard_transform(x, -1e-30), x, -1e-30)


@given(
    log2=st.integers(0, 12),
    rows=st.integers(0, 5),
    dtype=st.sampled_from(DTYPES),
    scale=st.floats(-4, 4, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_transform(isa: str, log2: int, rows: int, dtype: str, scale: float, seed: int) -> None:
    x = features(np.random.default_rng(seed), (rows, 1 << log2), dtype)
    check(hadamard_transform(x, scale), x, np.float64(scale))


def test_orthonormal_scale(isa: str, rng: np.random.Generator) -> None:
    x = features(rng, (4, 4096), "float32")
    y = hadamard_transform(x, 4096**-0.5)
    norms = np.linalg.norm(x.astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(y.astype(np.float64), axis=1), norms, rtol=1e-6)
    # x − y is an eigenvector of H/√n: it comes back negated.
    back = hadamard_transform(x - y, 4096**-0.5)
    bound = 2 * transform(x, 12, "float32")
    assert_norm_within("transform float32", back, (y - x).astype(np.float64), bound)
