"""Launching a kernel: on a GPU tuned and compiled, or under Triton's interpreter."""

from __future__ import annotations

from typing import Any

import triton
from torch.library import wrap_triton
from triton.runtime.interpreter import InterpretedFunction

# Elements of the tile that a thread may hold: two numbers of warps are tried for each kernel, size
# and dtype, and the faster one is kept (in Triton's cache on disk too). Results don't depend on it.
ELEMENTS_PER_THREAD = (8, 16)
MAX_WARPS = 16
_WARPS = (1, 2, 4, 8, 16)


def warps_for(arguments: dict[str, Any]) -> list[int]:
    """The numbers of warps to try for a launch with these arguments, the most first."""
    elements = arguments.get("ROWS", 1) << arguments.get("LOG2_TILE", 8)
    wanted = {min(max(elements // (32 * each), 1), MAX_WARPS) for each in ELEMENTS_PER_THREAD}
    if "PLACES" in arguments:  # the kernels of top-k take seconds to compile: only once, then
        wanted = {max(wanted)}
    return sorted(wanted, reverse=True)


def _prune(configs: list[Any], named: dict[str, Any], **constants: Any) -> list[Any]:
    wanted = warps_for({**named, **constants})
    return [config for config in configs if config.num_warps in wanted]


_tuned: dict[Any, Any] = {}


def tuned(kernel: Any) -> Any:
    """The kernel with autotuning; the kernel itself under the interpreter, which has no clock."""
    if isinstance(kernel, InterpretedFunction):
        return kernel
    if kernel not in _tuned:
        # Everything that is compiled in, but nothing that changes from call to call.
        key = [p.name for p in kernel.params if p.is_constexpr]
        _tuned[kernel] = triton.autotune(
            configs=[triton.Config({}, num_warps=warps, num_stages=1) for warps in _WARPS],
            key=key,
            prune_configs_by={"early_config_prune": _prune},
            cache_results=True,
        )(kernel)
    return _tuned[kernel]


def launch(kernel: Any, programs: int, **arguments: Any) -> None:
    """Runs the kernel on a one-dimensional grid."""
    kernel = tuned(kernel)
    wrapped = wrap_triton(kernel)
    # Products and sums are rounded one by one, or by an explicit fma: the same bits whatever the
    # compiler's default. A traced launch takes no options of the compiler.
    options = {"enable_fp_fusion": False} if wrapped is kernel else {}
    wrapped[(programs,)](**arguments, **options)
