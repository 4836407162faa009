"""FFHT (Andoni, Indyk, Laarhoven, Razenshteyn, Schmidt 2015), the fastest public CPU transform.

Built from https://github.com/FALCONN-LIB/FFHT, for example with
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

# FFHT transforms one vector; a call through ctypes costs more than a small transform. This loop
# takes FFHT through a batch as our kernel goes through one.
_LOOP = """
void rows(int (*fht)(float *, int), float *x, long count, int log_n) {
  for (long i = 0; i < count; ++i) fht(x + (i << log_n), log_n);
}
"""


def library() -> Path | None:
    """The shared library that FIXCLF_FFHT names; FileNotFoundError when it is not there."""
    name = os.environ.get(VARIABLE)
    if not name:
        return None
    path = Path(name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"{VARIABLE} is {name}, expected a shared library")
    return path


def left_out() -> str:
    """What to print where FFHT is not measured."""
    return f"FFHT was left out: {VARIABLE} does not name its shared library"


@cache
def _loop() -> ctypes.CDLL:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError(
            "the comparison with FFHT needs a C compiler: no `cc`, and CC is not set"
        )
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "rows.c", Path(folder) / "rows.so"
        source.write_text(_LOOP)
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", target, source], check=True)
        return ctypes.CDLL(str(target))


def transform(path: Path, x: NDArray[np.float32]) -> timing.Call:
    """A call that transforms every row of x [rows, 2^k] in place, unscaled."""
    count, log_n = len(x), x.shape[1].bit_length() - 1
    assert x.dtype == np.float32 and x.flags.c_contiguous and x.shape[1] == 1 << log_n
    loop = _loop().rows
    loop.restype = None
    function = ctypes.cast(ctypes.CDLL(str(path)).fht_float, ctypes.c_void_p)
    data = x.ctypes.data_as(ctypes.c_void_p)  # keeps x alive
    rows, log = ctypes.c_long(count), ctypes.c_int(log_n)
    return lambda: loop(function, data, rows, log)
