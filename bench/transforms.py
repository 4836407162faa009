"""The Walsh–Hadamard transform and what it is compared with, checked first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fixclf_infer import _native, reference

from . import ffht, timing

Array = NDArray[np.float32]


def batch(log_n: int, rows: int | None = None) -> Array:
    """[rows, 2^log_n], 64-byte aligned; rows: as many as make 2^16 numbers (256 KB)."""
    rows = rows or max(1, 1 << (16 - log_n) if log_n < 16 else 1)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(torch.randn(rows, 1 << log_n, generator=generator).numpy())


def check(y: Array, x: Array) -> None:
    """Compare some rows with float64: a dense product up to 2^12, a Kronecker product above.

    Bound: k/2 units in the last place at the scale of ‖x‖, for k = log2 n additions in a row.
    """
    log_n = x.shape[1].bit_length() - 1
    few = x[[0, -1]].astype(np.float64)
    half = log_n // 2
    low, high = reference.hadamard_matrix(1 << half), reference.hadamard_matrix(1 << (log_n - half))
    cube = few.reshape(len(few), len(high), len(low))
    expected = (high @ cube @ low).reshape(few.shape)
    error = np.abs(y[[0, -1]] - expected).max()
    allowed = max(log_n, 2) / 2 * np.finfo(np.float32).eps * np.linalg.norm(few, axis=1).max()
    if not error <= allowed:
        raise AssertionError(f"2^{log_n}: error {error:.3g} against float64, allowed {allowed:.3g}")


def fixclf(isa: str, x: Array) -> timing.Variant:
    """Our transform on NumPy arrays, out of place, on a forced ISA and one thread."""

    def prepare() -> None:
        _native.set_isa(isa)
        _native.set_num_threads(1)

    prepare()
    check(_native.hadamard_transform(x), x)
    return timing.Variant(lambda: _native.hadamard_transform(x), prepare)


def ffht_peer(path: Path, x: Array) -> timing.Variant:
    """FFHT in place. Timed on zeros, which stay finite however often they are transformed; the time
    of additions does not depend on the numbers."""
    work = torch.from_numpy(x).clone().numpy()
    ffht.transform(path, work)()
    check(work, x)
    work[:] = 0
    return timing.Variant(ffht.transform(path, work))


def copy(x: Array) -> timing.Variant:
    """The floor: one copy of the batch."""
    return timing.Variant(timing.copy_floor(x.nbytes))


def peers(ffht_library: Path | None) -> dict[str, Callable[[Array], timing.Variant]]:
    """Everything that can be compared on this machine, by name."""
    result: dict[str, Callable[[Array], timing.Variant]] = {
        f"fixclf {isa}": lambda x, isa=isa: fixclf(isa, x)  # type: ignore[misc]
        for isa in _native.supported_isas()
    }
    if ffht_library is not None:
        result["ffht"] = lambda x: ffht_peer(ffht_library, x)
    return result | {"copy": copy}
