"""`pytest bench/test_transform.py [--full]`: the transform on every ISA, and its peers."""

from __future__ import annotations

from typing import Any

import pytest

from . import native, transforms

QUICK = (8, 11, 14)
FULL = range(4, 21)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    sizes = FULL if metafunc.config.getoption("--full") else QUICK
    names = dict.fromkeys([*transforms.peers(), "ffht"])
    pairs = [(log_n, peer) for log_n in sizes for peer in names]
    metafunc.parametrize(("log_n", "peer"), pairs, ids=[f"{p} 2^{k}" for k, p in pairs])


def test_transform(benchmark: Any, log_n: int, peer: str) -> None:
    available = transforms.peers()
    if peer not in available:
        pytest.skip(native.LEFT_OUT)
    variant = available[peer](log_n)
    if variant.prepare is not None:
        variant.prepare()
    # Of one size, but not of one batch: `rows` transforms a call.
    benchmark.group = f"transform 2^{log_n} of `rows` rows"
    benchmark.extra_info.update({"log_n": log_n, "rows": variant.items, "peer": peer})
    benchmark(variant.call)
