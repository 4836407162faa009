"""Choosing an instruction set: FIXCLF_ISA, `_native.set_isa`, and the summary of what ran."""

from __future__ import annotations

import pytest
from script import run

from fixclf_infer import _native

SUPPORTED = _native.supported_isas()
UNSUPPORTED = [name for name in _native.compiled_isas() if name not in SUPPORTED]

USE_NUMPY = """
import numpy as np
from fixclf_infer import _native, hadamard_transform
print(hadamard_transform(np.arange(4, dtype=np.float32)).tolist(), _native.isa())
"""
USE_TORCH = """
import torch
from fixclf_infer import hadamard_transform
print(hadamard_transform(torch.arange(4.0)).tolist())
"""


def test_scalar_is_always_there_and_the_best_is_the_default() -> None:
    assert SUPPORTED[0] == _native.compiled_isas()[0] == "scalar"
    assert set(SUPPORTED) <= set(_native.compiled_isas())
    result = run("from fixclf_infer import _native; print(_native.isa())", FIXCLF_ISA=None)
    assert result.stdout.split() == [SUPPORTED[-1]]


def test_set_isa_switches_and_refuses_unknown_names() -> None:
    before = _native.isa()
    for name in SUPPORTED:
        _native.set_isa(name)
        assert _native.isa() == name
    _native.set_isa(before)
    with pytest.raises(ValueError, match="isa is 'v9', expected one of scalar"):
        _native.set_isa("v9")
    with pytest.raises(ValueError, match="isa is '', expected one of scalar"):
        _native.set_isa("")
    assert _native.isa() == before


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_environment_variable_forces(name: str) -> None:
    result = run(USE_NUMPY, FIXCLF_ISA=name)
    assert result.stdout.strip() == f"[6.0, -2.0, -4.0, 0.0] {name}"
    assert not result.stderr


def test_an_empty_environment_variable_means_the_default() -> None:
    assert run(USE_NUMPY, FIXCLF_ISA="").stdout.split()[-1] == SUPPORTED[-1]


@pytest.mark.parametrize("script", [USE_NUMPY, USE_TORCH], ids=["numpy", "torch"])
@pytest.mark.parametrize("name", ["v9", "V3", *UNSUPPORTED])
def test_a_name_that_can_not_run_is_one_clear_error(name: str, script: str) -> None:
    result = run(script, check=False, FIXCLF_ISA=name)
    assert result.returncode == 1  # an exception, not a signal
    assert not result.stdout
    last = result.stderr.strip().splitlines()[-1]
    assert f"the environment variable FIXCLF_ISA is '{name}'" in last
    if name in UNSUPPORTED:
        assert f"which this machine can't run; it runs {', '.join(SUPPORTED)}" in last
    else:
        assert f"expected one of {', '.join(_native.compiled_isas())}" in last


def test_the_error_repeats_and_importing_is_harmless() -> None:
    script = """
import numpy as np
from fixclf_infer import _native, hadamard_transform
x = np.ones((0, 4), np.float32), np.ones((3, 4)), np.ones((3, 4), np.float32)
for features in x:
    try:
        hadamard_transform(features)
    except ValueError as error:
        print("FIXCLF_ISA is 'v9'" in str(error))
_native.set_isa("scalar")
print(hadamard_transform(np.ones((1, 2), np.float32)).tolist())
"""
    result = run(script, FIXCLF_ISA="v9")
    assert result.stdout.split("\n")[:4] == ["True", "True", "True", "[[2.0, 0.0]]"]


@pytest.mark.parametrize("name", SUPPORTED[:-1])
def test_torch_operators_on_the_other_instruction_sets(name: str) -> None:
    """The torch library has no `set_isa`: its forward and adjoint run again in a process of their
    own, against the same oracle (test_ops.py)."""
    script = """
import sys, pytest
tests = "test_adjoint_is_the_transpose or test_adjoint_of_any_codebook or test_forward_of_variants"
sys.exit(pytest.main(["-q", "-x", sys.argv[1], "-k", tests]))
"""
    result = run(script, "test_ops.py", FIXCLF_ISA=name, check=False)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout or "[100%]" in result.stdout
