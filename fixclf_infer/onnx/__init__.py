"""Models with a fixed head in ONNX and ONNX Runtime.

Importing this package imports neither onnx, onnxruntime nor torch; each name does so on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .exporter import export
    from .merging import merge_models
    from .replacement import Replaced, replace_dense_heads
    from .runtime import library_path, session
    from .schema import Head
    from .single import head_model
    from .verification import Verification, verify

__all__ = [
    "Head",
    "Replaced",
    "Verification",
    "export",
    "head_model",
    "library_path",
    "merge_models",
    "replace_dense_heads",
    "session",
    "verify",
]

_MODULES = {
    "Head": "schema",
    "Replaced": "replacement",
    "Verification": "verification",
    "export": "exporter",
    "head_model": "single",
    "library_path": "runtime",
    "merge_models": "merging",
    "replace_dense_heads": "replacement",
    "session": "runtime",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    except ModuleNotFoundError as error:
        if error.name not in ("onnx", "onnxscript"):
            raise
        raise ImportError(
            f"fixclf_infer.onnx.{name} needs {error.name}, which is not installed; "
            "pip install 'fixclf_infer[onnx]'"
        ) from None
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_MODULES))
