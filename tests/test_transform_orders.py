"""`hadamard_transform` of composite orders, padded, along any dimension, and of 2^21 and 2^22."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends import TORCH_ERRORS, to_numpy, to_torch
from cases import DTYPES, NUMPY_DTYPES
from tolerances import EPS, accumulation, assert_norm_within

from fixclf_infer import hadamard_transform, ops, reference
from fixclf_infer.codebooks.orders import base_matrix, find_order


def matrix(n: int) -> np.ndarray:
    """P_b ⊗ H_{2^k}, dense."""
    order = find_order(n)
    assert order is not None
    return np.kron(base_matrix(order.base), reference.hadamard_matrix(1 << order.log2))


def check(got: np.ndarray, x: np.ndarray, n: int, scale: float = 1.0) -> None:
    """Along the last dimension; H's entries are ±1, so an error is relative to scale √n ‖x‖."""
    assert got.dtype == x.dtype and got.shape == (*x.shape[:-1], n)
    values = x.astype(np.float64)
    want = scale * values @ matrix(n)[:, : x.shape[-1]].T
    exact = accumulation(str(x.dtype))
    eps = 8 * EPS[exact] + (0 if exact == str(x.dtype) else EPS[str(x.dtype)])
    bound = eps * abs(scale) * np.sqrt(n) * np.linalg.norm(values, axis=-1) + 1e-6 * (eps > 1e-4)
    assert_norm_within(f"transform of composite order {x.dtype}", got, want, bound)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [12, 20, 28, 36, 44, 24, 40, 56, 72, 768, 1280, 1792, 1152, 1000])
def test_composite_orders(isa: str, n: int, dtype: str) -> None:
    rng = np.random.default_rng(n)
    x = rng.standard_normal((3, n)).astype(NUMPY_DTYPES[dtype])
    check(hadamard_transform(x), x, n)
    check(hadamard_transform(x, -0.37), x, n, np.float32(-0.37) if dtype != "float64" else -0.37)


@pytest.mark.parametrize("n", [12, 20, 28, 36])
def test_rows_are_orthogonal_and_exact(n: int) -> None:
    h = hadamard_transform(np.eye(4 * n, dtype=np.float32)).T
    assert set(np.unique(h)) == {-1.0, 1.0}
    np.testing.assert_array_equal(h @ h.T, 4 * n * np.eye(4 * n))
    np.testing.assert_array_equal(h, matrix(4 * n))


@pytest.mark.parametrize(("size", "order"), [(5, 8), (1, 2), (700, 768), (1000, 1024), (17, 20)])
def test_padding(isa: str, size: int, order: int) -> None:
    x = np.random.default_rng(size).standard_normal((2, 3, size)).astype(np.float32)
    got = hadamard_transform(x, 0.5, order=order)
    check(got, x, order, 0.5)
    tensor = hadamard_transform(to_torch(x), 0.5, order=order)
    check(to_numpy(tensor), x, order, 0.5)


@pytest.mark.parametrize("n", [16, 12, 24])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_dimension(n: int, dim: int) -> None:
    x = np.random.default_rng(dim + 9).standard_normal((n, n, n)).astype(np.float32)
    want = np.moveaxis(np.moveaxis(x, dim, -1) @ matrix(n).T, -1, dim)
    for got in (
        hadamard_transform(x, dim=dim),
        hadamard_transform(x, axis=dim),
        to_numpy(hadamard_transform(to_torch(x), 1.0, dim)),
    ):
        np.testing.assert_allclose(got, want, atol=1e-4)
    longer = hadamard_transform(to_torch(x), dim=dim, order=2 * n)
    assert longer.shape[dim] == 2 * n and longer.numel() == 2 * n**3


@pytest.mark.parametrize("log2", [21, 22])
def test_the_largest_orders(log2: int) -> None:
    # Integers: exact. Columns of H by their definition.
    n = 1 << log2
    x = np.zeros(n, np.float32)
    x[[1, n // 2 + 3, n - 1]] = 1, 2, 4
    got = hadamard_transform(x)
    i = np.arange(n)
    want = sum(v * (1 - 2.0 * (np.bitwise_count(i & j) % 2)) for v, j in ((1, 1), (2, n // 2 + 3)))
    want += 4 * (1 - 2.0 * (np.bitwise_count(i & (n - 1)) % 2))
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("n", [12, 40, 16])
def test_derivatives(n: int) -> None:
    x = torch.randn(2, n - 3, dtype=torch.float64, requires_grad=True)

    def transform(values: torch.Tensor) -> torch.Tensor:
        return hadamard_transform(values, 0.3, order=n)

    assert torch.autograd.gradcheck(transform, x)
    assert torch.autograd.gradgradcheck(transform, x)
    g = torch.randn(2, n, dtype=torch.float64)
    (dx,) = torch.autograd.grad(transform(x), x, g)
    want = (0.3 * g.numpy() @ matrix(n))[:, : n - 3]
    np.testing.assert_allclose(dx, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("n", [12, 768, 64])
def test_compile(n: int) -> None:
    x = torch.randn(3, n)
    compiled = torch.compile(lambda v: hadamard_transform(v, 2.0) + 1, fullgraph=True)
    torch.testing.assert_close(compiled(x), hadamard_transform(x, 2.0) + 1)


@pytest.mark.parametrize("scale", [1e300, 1e-42])
def test_scales_beyond_float32(scale: float) -> None:
    x = np.zeros((1, 12), np.float32)
    x[0, :2] = 1, -1
    with np.errstate(over="ignore", invalid="ignore"):
        want = (scale * (x.astype(np.float64) @ matrix(12).T)).astype(np.float32)
        np.testing.assert_allclose(hadamard_transform(x, scale), want, rtol=1e-6)
    np.testing.assert_allclose(hadamard_transform(to_torch(x), scale), want, rtol=1e-6)


@pytest.mark.parametrize(
    ("size", "order", "message"),
    [
        (6, None, r"order is 6 \(the size of x\), of which no Hadamard matrix .*; order=8 is"),
        (6, 10, "order is 10, of which no Hadamard matrix is built in; order=12 is the next one"),
        (6, 4, "order is 4, expected at least the 6 elements of x"),
        (0, None, "order is 0, expected at least the 0 elements of x, and 1"),
        (8, 2**23, "order is 8388608, expected at most 4194304"),
    ],
)
@pytest.mark.parametrize("make", [np.ones, torch.ones])
def test_orders_that_are_not_there(make: Any, size: int, order: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hadamard_transform(make((2, size)), order=order)


def test_dimensions_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"dim is 2, expected one of the 2 dimension\(s\) of x"):
        hadamard_transform(np.ones((2, 8)), dim=2)


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "bool"])
def test_integers_are_no_features_here(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"x is {dtype}, expected float32"):
        hadamard_transform(np.ones(12, dtype))
    with pytest.raises(ValueError, match=f"x is torch.{dtype}, expected float32"):
        hadamard_transform(torch.ones(12).to(getattr(torch, dtype)))


def test_the_operator_takes_powers_of_two() -> None:
    with pytest.raises(TORCH_ERRORS, match="expected a power of two up to 4194304"):
        ops.hadamard_transform(torch.ones(1, 12))
