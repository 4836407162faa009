"""What this installation and this machine can run, what "auto" picks, and the choice by name.

CPU tensors run the C++ kernels. CUDA tensors run those of the CUDA library if it was built, else
the Triton kernels (fixclf_infer.triton_kernels). This is the only place that knows.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from functools import cache
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from . import _native, loader

OPERATORS = (
    "hadamard_transform",
    "head",
    "head_topk",
    "head_argmax",
    "head_sample",
    "head_log_prob",
    "head_nll",
    "head_statistics",
    "head_reduction_backward",
    "project_adjoint",
)
TRITON_OPERATORS = (
    "hadamard_transform",
    "head",
    "head_topk",
    "head_argmax",
    "head_log_prob",
    "head_reduction_backward",
    "project_adjoint",
)

# Where `ops` finds its operators: torch.ops.fixclf, which dispatches by device, or those of one
# backend that was asked for by name.
operators: Any = None

_CUDA_LIBRARY = "libfixclf_torch_cuda.so"


def has_triton() -> bool:
    """Whether Triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def has_cuda_library() -> bool:
    """Whether the CUDA kernels were built and this torch can load them."""
    return loader.torch_cuda_library() is not None and loader.torch_has_cuda()


def cuda_backend() -> tuple[str | None, str]:
    """What runs for CUDA tensors, "cuda", "triton" or None, and why."""
    if has_cuda_library():
        return "cuda", f"{_CUDA_LIBRARY} is built"
    if has_triton():
        return "triton", f"{_without_library()}, Triton is installed"
    return None, f"{_without_library()} and Triton is not installed"


def _without_library() -> str:
    if loader.torch_cuda_library() is None:
        return f"{_CUDA_LIBRARY} is not built"
    return f"{_CUDA_LIBRARY} is built, but this torch has no CUDA"


def load_triton() -> Any:
    """torch.ops.fixclf_triton. Raises ImportError without Triton."""
    if not has_triton():
        raise ImportError(
            "the Triton backend needs triton, which is not installed; "
            "pip install 'fixclf_infer[triton]'"
        )
    import torch

    importlib.import_module("fixclf_infer.triton_kernels")
    return torch.ops.fixclf_triton


def _missing(name: str) -> NotImplementedError:
    return NotImplementedError(
        f"{name} has no Triton kernel; Triton has {', '.join(TRITON_OPERATORS)}, and the CUDA "
        f"library ({_CUDA_LIBRARY}) has {name}"
    )


def _on_cuda_tensors(name: str) -> Callable[..., Any]:
    """The operator where the CUDA library is not built; what it needs is imported when it runs."""

    def run(*arguments: Any) -> Any:
        if name not in TRITON_OPERATORS:
            raise _missing(name)
        if not has_triton():
            raise ImportError(
                f"{name} on CUDA tensors has no kernel: {_without_library()}, and triton is not "
                "installed; pip install 'fixclf_infer[triton]'"
            )
        return getattr(load_triton(), name).default(*arguments)

    return run


@cache
def load() -> Any:
    """Loads the libraries, once, and returns torch.ops.fixclf, complete on CUDA tensors.

    Raises ImportError without torch or without the library.
    """
    global operators
    loader.load_torch_library()
    import torch

    if not has_cuda_library():
        library = torch.library.Library("fixclf", "IMPL")
        for name in OPERATORS:
            library.impl(name, _on_cuda_tensors(name), "CUDA")
        _kept.append(library)
    operators = torch.ops.fixclf
    return operators


_kept: list[Any] = []  # a torch.library.Library unregisters when it is collected


class use_backend:
    """Which backend the operators of this process run on, whatever the device's default.

    use_backend("triton") stays until the next call; `with use_backend("triton"):` until the block
    ends. A name that can't run raises, naming what is missing, and so does every operator that the
    backend lacks. With "triton", `torch.compile` sees the kernels themselves.

    Args:
        name: "auto", the choice that `fixclf info` prints; "triton"; or "cuda", the CUDA library.

    Raises:
        ValueError: another name.
        ImportError: Triton is not installed, or the CUDA library is not built.
    """

    def __init__(self, name: str) -> None:
        global operators
        load()
        self._before = operators
        operators = _operators_of(name)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        global operators
        operators = self._before


def _operators_of(name: str) -> Any:
    if name == "auto":
        return load()
    if name == "cuda":
        if not has_cuda_library():
            raise ImportError(
                f"the CUDA backend can't run: {_without_library()}; reinstall fixclf_infer where "
                "nvcc and a CUDA build of torch are"
            )
        return SimpleNamespace(**{each: _for_cuda_alone(each) for each in OPERATORS})
    if name != "triton":
        raise ValueError(f"name is {name!r}, expected 'auto', 'triton' or 'cuda'")
    namespace = load_triton()
    return SimpleNamespace(
        **{each: getattr(namespace, each) for each in TRITON_OPERATORS},
        **{each: _raising(each) for each in OPERATORS if each not in TRITON_OPERATORS},
    )


def _for_cuda_alone(name: str) -> Any:
    """The operator, which by itself would run the CPU's kernel for tensors there."""
    operator = getattr(load(), name).default

    def default(x: Any, *others: Any) -> Any:
        if not x.is_cuda:
            raise ValueError(
                f"x is on {x.device}, expected a CUDA device: the backend in use is 'cuda', which "
                "use_backend has chosen"
            )
        return operator(x, *others)

    return SimpleNamespace(default=default)


def _raising(name: str) -> Any:
    def default(*_: Any) -> Any:
        raise _missing(name)

    return SimpleNamespace(default=default)


def describe() -> dict[str, str]:
    """Name → value, for `fixclf info`."""
    facts = {
        "instruction set in use": _native.isa(),
        "compiled": ", ".join(_native.compiled_isas()),
        "supported by this machine": ", ".join(_native.supported_isas()),
        "threads (NumPy)": str(_native.num_threads()),
    }
    if not loader.has_torch():
        facts["torch"] = "not installed"
        return facts
    facts["torch"] = metadata.version("torch")
    try:
        facts["torch operators"] = str(loader.torch_library())
    except ImportError as error:
        facts["torch operators"] = str(error)
        return facts
    facts["triton"] = metadata.version("triton") if has_triton() else "not installed"
    backend, reason = cuda_backend()
    names = {"cuda": "CUDA library", "triton": "Triton kernels", None: "nothing"}
    facts["runs for CUDA tensors"] = f"{names[backend]}: {reason}"
    return facts
