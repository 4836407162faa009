"""The Walsh–Hadamard transform and what it is compared with, checked first.

The kernels run alike: in place, one thread, in a C loop, over a batch of at least 2^12 numbers
(16 KB, which fits in the first-level cache) or one row of more. `fixclf torch.ops` is the operator,
out of place, on a batch of at least 2^18 numbers. Times are per row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from fixclf_infer import _native, ops, reference

from . import native, timing

Array = NDArray[np.float32]
Kernel = Callable[[Array, int], timing.Call]


def batch(log_n: int, log_total: int) -> Array:
    """[rows, 2^log_n] of at least 2^log_total numbers, 64-byte aligned."""
    rows = 1 << max(0, log_total - log_n)
    generator = torch.Generator().manual_seed(0)
    return np.asarray(torch.randn(rows, 1 << log_n, generator=generator).numpy())


def check(y: Array, x: Array) -> None:
    """Compare the first and the last row with float64; AssertionError on a mismatch.

    Bound: k/2 units in the last place at the scale of ‖x‖, for k = log2 n additions in a row.
    """
    log_n = x.shape[1].bit_length() - 1
    few = x[[0, -1]].astype(np.float64)
    half = log_n // 2  # H_n = H_high ⊗ H_low: two small products instead of one of order n
    low, high = reference.hadamard_matrix(1 << half), reference.hadamard_matrix(1 << (log_n - half))
    cube = few.reshape(len(few), len(high), len(low))
    expected = (high @ cube @ low).reshape(few.shape)
    error = np.abs(y[[0, -1]] - expected).max()
    allowed = max(log_n, 2) / 2 * np.finfo(np.float32).eps * np.linalg.norm(few, axis=1).max()
    if not error <= allowed:
        raise AssertionError(f"2^{log_n}: error {error:.3g} against float64, allowed {allowed:.3g}")


def _in_place(kernel: Kernel, log_n: int, prepare: timing.Call | None = None) -> timing.Variant:
    """Times `kernel` on zeros, which stay finite however often they are transformed; additions take
    as long for any finite normal number."""
    x = batch(log_n, 12)
    if prepare is not None:
        prepare()
    work = torch.from_numpy(x).clone().numpy()
    kernel(work, 1)()
    check(work, x)
    work[:] = 0
    repeat = max(1, 2**16 // x.size)
    return timing.Variant(kernel(work, repeat), prepare, items=repeat * len(x))


def fixclf(isa: str, log_n: int) -> timing.Variant:
    """Our kernel on a forced ISA."""
    return _in_place(native.transform, log_n, lambda: native.set_isa(isa))


def fixclf_torch(log_n: int) -> timing.Variant:
    """torch.ops.fixclf.hadamard_transform, with all that a call costs."""
    x = batch(log_n, 18)
    tensor = torch.from_numpy(x)
    check(ops.hadamard_transform(tensor).numpy(), x)

    def prepare() -> None:
        torch.set_num_threads(1)

    return timing.Variant(lambda: ops.hadamard_transform(tensor), prepare, items=len(x))


def ffht(log_n: int) -> timing.Variant:
    """FFHT; only where its library is named."""
    library = native.ffht_library()
    assert library is not None
    return _in_place(lambda x, repeat: native.ffht(library, x, repeat), log_n)


def copy(log_n: int) -> timing.Variant:
    """The floor of the operator: one copy of its batch."""
    x = batch(log_n, 18)
    return timing.Variant(timing.copy_floor(x.nbytes), items=len(x))


def _forced(isa: str) -> Callable[[int], timing.Variant]:
    return lambda log_n: fixclf(isa, log_n)


def peers() -> dict[str, Callable[[int], timing.Variant]]:
    """Everything that can be compared on this machine, by name."""
    kernels = {f"fixclf {isa}": _forced(isa) for isa in _native.supported_isas()}
    other = {"ffht": ffht} if native.ffht_library() else {}
    return {**kernels, **other, "fixclf torch.ops": fixclf_torch, "copy": copy}
