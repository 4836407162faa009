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
        facts["torch operators on CUDA"] = _cuda()
    return facts


def _cuda() -> str:
    path = loader.torch_cuda_library()
    if path is None:
        return "not built: nvcc was not found, or FIXCLF_CUDA is OFF"
    import torch

    if torch.version.cuda is None:
        return f"{path}, not loaded: this torch is a build without CUDA"
    devices = torch.cuda.device_count()
    return f"{path}, loaded; {devices} device{'' if devices == 1 else 's'}"
