"""Runs triton_tests.py: on the GPU if there is one, and always under Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fixclf_infer import backends

TESTS = Path(__file__).parent


def run_suite(**environment: str) -> str:
    """The last line of pytest on triton_tests.py in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-W", "ignore::RuntimeWarning", "triton_tests.py"],
        cwd=TESTS,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return next(line for line in reversed(result.stdout.splitlines()) if " passed" in line)


@pytest.mark.slow
def test_under_the_interpreter(note: Callable[[str], None]) -> None:
    if not backends.has_triton():
        note("Triton kernels, interpreter: SKIPPED, triton is not installed")
        pytest.skip("triton is not installed")
    summary = run_suite(TRITON_INTERPRET="1")
    note(f"Triton kernels, interpreter: {summary}")


@pytest.mark.slow
def test_on_the_gpu(note: Callable[[str], None]) -> None:
    if not backends.has_triton() or not torch.cuda.is_available():
        reason = "triton is not installed" if not backends.has_triton() else "no GPU"
        note(f"Triton kernels, GPU: SKIPPED, {reason}")
        pytest.skip(reason)
    summary = run_suite(TRITON_INTERPRET="0")
    note(f"Triton kernels, GPU: {summary}")
