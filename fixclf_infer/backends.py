"""What this installation and this machine can run, and what "auto" picks."""

from __future__ import annotations

from importlib import metadata

from . import _native, loader


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
    else:
        facts["torch"] = metadata.version("torch")
        try:
            facts["torch operators"] = str(loader.torch_library())
        except ImportError as error:
            facts["torch operators"] = str(error)
    return facts
