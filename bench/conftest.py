"""Options of `pytest bench`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fixclf_infer import _native

from . import timing


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="the whole grid, not the quick subset")


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, object]
) -> None:
    machine_info.update(timing.machine())


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Cases set threads and ISA; the next one finds them as they were."""
    threads, isa, native_threads = torch.get_num_threads(), _native.isa(), _native.num_threads()
    yield
    torch.set_num_threads(threads)
    _native.set_isa(isa)
    _native.set_num_threads(native_threads)
