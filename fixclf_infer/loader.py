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


@cache
def load_torch_library() -> None:
    """Registers `torch.ops.fixclf`. Raises ImportError without torch or without the library."""
    if not has_torch():
        raise ImportError(
            "this part of fixclf_infer needs torch, which is not installed; "
            "pip install 'fixclf_infer[torch]'"
        )
    import torch

    torch.ops.load_library(str(torch_library()))
