"""Finds and loads the compiled libraries of this package."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

_FOLDER = Path(__file__).parent


def has_torch() -> bool:
    """Whether torch is installed; does not import it."""
    return importlib.util.find_spec("torch") is not None


def torch_library() -> Path:
    """Path of the library that defines `torch.ops.fixclf`; a C++ program may dlopen it.

    Raises ImportError when this installation was built without it.
    """
    path = _FOLDER / "libfixclf_torch.so"
    if not path.exists():
        raise ImportError(
            f"fixclf_infer was built without its torch operators: {path} does not exist; "
            "reinstall it in an environment that has torch"
        )
    return path


def torch_cuda_library() -> Path | None:
    """Path of the library with the operators' CUDA kernels; None when it was not built."""
    path = _FOLDER / "libfixclf_torch_cuda.so"
    return path if path.exists() else None


@cache
def torch_has_cuda() -> bool:
    """Whether torch is installed and a build with CUDA; does not import it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    version = importlib.util.spec_from_file_location(
        "torch_version", Path(spec.origin).with_name("version.py")
    )
    if version is None or version.loader is None:
        return False
    module = importlib.util.module_from_spec(version)
    version.loader.exec_module(module)
    return module.cuda is not None


@cache
def load_torch_library() -> None:
    """Registers `torch.ops.fixclf`: on the CPU, and on CUDA with a CUDA build of torch.

    Raises ImportError without torch or without the library.
    """
    if not has_torch():
        raise ImportError(
            "this part of fixclf_infer needs torch, which is not installed; "
            "pip install 'fixclf_infer[torch]'"
        )
    import torch

    torch.ops.load_library(str(torch_library()))
    cuda = torch_cuda_library()
    if torch_has_cuda() and cuda is not None:
        torch.ops.load_library(str(cuda))
