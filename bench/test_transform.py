"""`pytest bench/test_transform.py [--full]`: the transform on every ISA, and its peers."""

from __future__ import annotations

from typing import Any

import pytest

from . import ffht, transforms

QUICK = (8, 11, 14)
FULL = range(4, 21)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = FULL if metafunc.config.getoption("--full") else QUICK
    names = [*transforms.peers(ffht.library()), *([] if ffht.library() else ["ffht"])]
    pairs = [(log_n, peer) for log_n in sizes for peer in names]
    metafunc.parametrize(("log_n", "peer"), pairs, ids=[f"{p} 2^{k}" for k, p in pairs])


def test_transform(benchmark: Any, log_n: int, peer: str) -> None:
    available = transforms.peers(ffht.library())
    if peer not in available:
        pytest.skip(ffht.left_out())
    x = transforms.batch(log_n)
    variant = available[peer](x)
    if variant.prepare is not None:
        variant.prepare()
    benchmark.group = f"transform 2^{log_n} x {len(x)} rows"
    benchmark.extra_info.update({"log_n": log_n, "rows": len(x), "dtype": "float32", "peer": peer})
    benchmark(variant.call)
