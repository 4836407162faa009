"""Classifier heads without weights.

A network's final dense layer is replaced by a fixed ±1 Hadamard codebook (Hoffer, Hubara and
Soudry, "Fix your classifier", ICLR 2018): for features x with x̂ = x / max(‖x‖₂, 1e-12), class i has
the logit z_i = α ⟨w_i, x̂⟩ / √N + b_i, computed by additions and subtractions only.

Importing this package does not import torch; the names that need it do so on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adapt, analysis, codebooks, edge, interop, nn, onnx, ops, reference
    from .backends import use_backend
    from .codebooks import Codebook, codebook
    from .swap import replace_head
    from .transform import hadamard_transform

__version__ = "0.1.0"  # the one place: docs/releasing.md

# Name → module that defines it; None for the submodule of that name.
_LAZY = {
    "Codebook": "codebooks",
    "codebook": "codebooks",
    "hadamard_transform": "transform",
    "adapt": None,
    "analysis": None,
    "codebooks": None,
    "edge": None,
    "interop": None,
    "nn": None,
    "onnx": None,
    "ops": None,
    "reference": None,
    "replace_head": "swap",
    "use_backend": "backends",
}

__all__ = [
    "Codebook",
    "__version__",
    "adapt",
    "analysis",
    "codebook",
    "codebooks",
    "edge",
    "hadamard_transform",
    "interop",
    "nn",
    "onnx",
    "ops",
    "reference",
    "replace_head",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    source = _LAZY[name]
    module = importlib.import_module(f".{source or name}", __name__)
    value = getattr(module, name) if source else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
