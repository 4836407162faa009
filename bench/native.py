"""The transform kernels without Python around them: ours, and FFHT where its library is named.

FFHT (Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt 2015) is the fastest public CPU transform that
we know. Build it from https://github.com/FALCONN-LIB/FFHT, for example with
`cc -O3 -march=native -shared -fPIC fht.c -o libffht.so`; the environment variable FIXCLF_FFHT names
the library.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import timing

VARIABLE = "FIXCLF_FFHT"
LEFT_OUT = f"FFHT was left out: {VARIABLE} does not name its shared library"
_ROOT = Path(__file__).parents[1]
_KERNELS = _ROOT / "build" / "cmake" / "libfixclf_kernels.a"


def ffht_library() -> Path | None:
    """The shared library that FIXCLF_FFHT names; FileNotFoundError when it is not there."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    path = Path(name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{VARIABLE} is {name}, expected a shared library")
    return path


@cache
def _driver() -> ctypes.CDLL:
    """bench/kernel.cc with the kernels that `make install` built."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise RuntimeError("bench/kernel.cc needs a C++ compiler: no `c++`, and CXX is not set")
    if not _KERNELS.is_file():
        raise RuntimeError(f"bench/kernel.cc needs {_KERNELS}, which `make install` builds")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.so"
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", f"-I{_ROOT / 'csrc'}", "-pthread"]
        source = Path(__file__).with_name("kernel.cc")
        subprocess.run([compiler, *flags, "-o", target, source, _KERNELS], check=True)
        driver = ctypes.CDLL(str(target))
    driver.fixclf_set_isa.restype = ctypes.c_char_p
    return driver


def set_isa(name: str) -> None:
    """The ISA of `transform` from now on (its own copy of the kernels, not that of the package)."""
    error = _driver().fixclf_set_isa(name.encode())
    if error is not None:
        raise ValueError(error.decode())


def _rows(x: NDArray[np.float32], repeat: int) -> tuple[object, ...]:
    log_n = x.shape[1].bit_length() - 1
    assert x.dtype == np.float32 and x.flags.c_contiguous and x.shape[1] == 1 << log_n
    data = x.ctypes.data_as(ctypes.c_void_p)  # keeps x alive
    return data, ctypes.c_long(len(x)), ctypes.c_int(log_n), ctypes.c_long(repeat)


def transform(x: NDArray[np.float32], repeat: int) -> timing.Call:
    """A call that transforms every row of x [rows, 2^k] `repeat` times in place, unscaled."""
    function, arguments = _driver().fixclf_rows, _rows(x, repeat)
    return lambda: function(*arguments)


def ffht(library: Path, x: NDArray[np.float32], repeat: int) -> timing.Call:
    """The same by FFHT."""
    fht = ctypes.cast(ctypes.CDLL(str(library)).fht_float, ctypes.c_void_p)
    function, arguments = _driver().ffht_rows, _rows(x, repeat)
    return lambda: function(fht, *arguments)
