"""FIXCLF_CUDA: what CMake does where nvcc can't do all that is asked. Nothing is compiled."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REAL = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")

REFUSES = """#!/bin/sh
echo "error -- unsupported GNU version! gcc versions later than 9 are not supported!" >&2
exit 1
"""
LACKS_100 = """#!/bin/sh
case "$*" in
  *arch=compute_100*) echo "Unsupported gpu architecture 'compute_100'" >&2; exit 1;;
esac
exec {nvcc} "$@"
"""


def configure(tmp_path: Path, nvcc: str, cuda: str) -> subprocess.CompletedProcess[str]:
    """CMake's configuration of the kernels alone, with a stand-in for nvcc."""
    script = tmp_path / "nvcc"
    script.write_text(nvcc)
    script.chmod(0o755)
    options = {"NVCC": script, "CUDA": cuda, "TORCH": "OFF", "NUMPY": "OFF", "ONNXRUNTIME": "OFF"}
    defined = [f"-DFIXCLF_{key}={value}" for key, value in options.items()]
    return subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path / "build"), "-Wno-dev", *defined],
        capture_output=True,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "CUDACXX"},
    )


def words(text: str) -> str:
    """Without the line breaks that CMake puts into messages."""
    return " ".join(text.split())


def test_auto_goes_on_where_nvcc_refuses_the_host_compiler(tmp_path: Path) -> None:
    done = configure(tmp_path, REFUSES, "AUTO")
    assert done.returncode == 0, done.stderr
    said = words(done.stderr)
    assert "unsupported GNU version" in said
    assert "The CUDA library is left out" in said
    assert "Build files have been written" in done.stdout


def test_on_fails_where_nvcc_refuses_the_host_compiler(tmp_path: Path) -> None:
    done = configure(tmp_path, REFUSES, "ON")
    assert done.returncode != 0
    said = words(done.stderr)
    assert "FIXCLF_CUDA is ON, but" in said and "unsupported GNU version" in said
    assert "-DFIXCLF_CUDA=OFF" in said


@pytest.mark.skipif(REAL is None, reason="nvcc is not installed")
def test_auto_leaves_out_an_architecture_that_nvcc_lacks(tmp_path: Path) -> None:
    done = configure(tmp_path, LACKS_100.format(nvcc=REAL), "AUTO")
    assert done.returncode == 0, done.stderr
    said = words(done.stderr)
    assert "The CUDA architecture 100 is left out" in said
    assert "Unsupported gpu architecture 'compute_100'" in said
    assert "architectures 80-real;90-real\n" in done.stdout


@pytest.mark.skipif(REAL is None, reason="nvcc is not installed")
def test_on_fails_for_an_architecture_that_nvcc_lacks(tmp_path: Path) -> None:
    done = configure(tmp_path, LACKS_100.format(nvcc=REAL), "ON")
    assert done.returncode != 0
    assert "can't compile for architecture 100" in words(done.stderr)
