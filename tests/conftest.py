"""Fixtures of every test, and the summary of what ran."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's pool, until a test asks for more

import pytest
import tolerances
from backends import devices
from hypothesis import HealthCheck, settings

from bench import torchvision_on_cpu  # noqa: F401
from fixclf_infer import _native

settings.register_profile(
    "fixclf",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fixclf")

_ran: set[str] = set()
_notes: list[str] = []


@pytest.fixture(scope="session")
def note() -> Callable[[str], None]:
    """Adds a line to the run's summary: what ran, or was skipped, and why."""
    return _notes.append


@pytest.fixture(params=_native.supported_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The test runs once for every instruction set that this machine has (NumPy path)."""
    before = _native.isa()
    _native.set_isa(request.param)
    assert _native.isa() == request.param
    _ran.add(request.param)
    yield request.param
    _native.set_isa(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`device`: a test of the torch operators runs once for every device of this machine."""
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", devices())


@pytest.fixture
def native_threads() -> Iterator[None]:
    """Restores the NumPy path's number of threads."""
    before = _native.num_threads()
    yield
    _native.set_num_threads(before)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Restores torch's number of threads."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _why_not(name: str) -> str:
    try:
        _native.set_isa(name)
    except ValueError as error:
        return str(error)
    return "no test that was selected uses it"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write = terminalreporter.write_line
    terminalreporter.section("instruction sets")
    before = _native.isa()
    for name in _native.compiled_isas():
        write(f"{name}: ran" if name in _ran else f"{name}: SKIPPED, {_why_not(name)}")
    _native.set_isa(before)
    if _notes:
        terminalreporter.section("backends")
        for line in _notes:
            write(line)
    if tolerances.worst:
        terminalreporter.section("worst error as a fraction of its bound")
        for family, ratio in sorted(tolerances.worst.items()):
            write(f"{ratio:6.3f}  {family}")
