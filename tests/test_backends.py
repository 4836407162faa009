"""Which backend runs, by device and by name."""

from __future__ import annotations

import pytest
import torch
from script import run

import fixclf_infer
from fixclf_infer import backends, loader, ops

NO_CUDA_LIBRARY = pytest.mark.skipif(
    backends.has_cuda_library(), reason="the CUDA library runs here"
)


def test_every_operator_has_a_kernel_for_cuda_tensors() -> None:
    for name in backends.OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fixclf::{name}", "CPU")
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fixclf::{name}", "CUDA")


@NO_CUDA_LIBRARY
def test_what_runs_for_cuda_tensors_is_said() -> None:
    line = backends.describe()["runs for CUDA tensors"]
    built = loader.torch_cuda_library() is not None
    state = "is built, but this torch has no CUDA" if built else "is not built"
    assert f"libfixclf_torch_cuda.so {state}" in line
    assert line.startswith("Triton kernels" if backends.has_triton() else "nothing")


@NO_CUDA_LIBRARY
def test_the_cuda_library_by_name() -> None:
    with pytest.raises(ImportError, match=r"can't run: libfixclf_torch_cuda\.so is"):
        fixclf_infer.use_backend("cuda")


def test_another_name() -> None:
    with pytest.raises(ValueError, match="name is 'tpu', expected 'auto', 'triton' or 'cuda'"):
        fixclf_infer.use_backend("tpu")


def test_a_choice_ends_with_its_block() -> None:
    before = backends.operators
    with fixclf_infer.use_backend("auto"):
        assert backends.operators is torch.ops.fixclf
    assert backends.operators is before
    x = torch.randn(3, 8)
    torch.testing.assert_close(ops.hadamard_transform(ops.hadamard_transform(x), 1 / 8), x)


def test_without_triton() -> None:
    script = """
import sys
sys.modules["triton"] = None
import torch
import fixclf_infer
from fixclf_infer import backends
assert not backends.has_triton()
print(backends.describe()["triton"])
if not backends.has_cuda_library():
    print(backends.describe()["runs for CUDA tensors"])
try:
    fixclf_infer.use_backend("triton")
except ImportError as error:
    print(error)
"""
    out = run(script).stdout
    assert "not installed" in out
    assert "needs triton, which is not installed; pip install 'fixclf_infer[triton]'" in out


@pytest.mark.skipif(not backends.has_triton(), reason="triton is not installed")
def test_what_triton_lacks_is_named() -> None:
    with fixclf_infer.use_backend("triton"):
        book = ops.codebook_arguments(fixclf_infer.codebook(8, 8))
        x, one = torch.zeros(2, 8), torch.ones(())
        with pytest.raises(NotImplementedError, match="head_sample has no Triton kernel"):
            ops.head_sample(x, one, None, book, torch.zeros(2, dtype=torch.int64))


def test_importing_leaves_triton_alone() -> None:
    script = """
import sys
import fixclf_infer.backends, fixclf_infer.cli
fixclf_infer.backends.describe()
print("triton" in sys.modules)
"""
    assert run(script).stdout.strip() == "False"
