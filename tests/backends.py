"""The head as each binding takes it: features and a codebook in, a NumPy array out."""

from __future__ import annotations

from typing import Any

import numpy as np
import tolerances
from cases import NUMPY_DTYPES

from fixclf_infer import _native
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue

# What the torch operators raise: std::invalid_argument, which torch ≥ 2.13 shows as ValueError and
# a compiled graph or an older torch as RuntimeError.
TORCH_ERRORS = (ValueError, RuntimeError)


def devices() -> tuple[str, ...]:
    """Where the torch operators run on this machine: the CPU, and a CUDA device if there is one."""
    import torch

    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def native_arguments(book: Codebook, classes: range | None = None) -> dict[str, Any]:
    """Keyword arguments of `_native.Head` that stand for the codebook."""
    data = book.kernel
    assert data is not None
    return {"base": data.base, "signs": data.signs, "geometry": book.geometry(classes)}


def native(
    book: Codebook,
    alpha: float,
    bias: np.ndarray | None,
    *,
    classes: range | None = None,
    normalize: bool = True,
) -> _native.Head:
    """The head of the NumPy module."""
    return _native.Head(alpha, bias, **native_arguments(book, classes), normalize=normalize)


def native_head(
    x: np.ndarray,
    alpha: float,
    bias: np.ndarray | None,
    book: Codebook,
    epilogue: Epilogue = Epilogue.LOGITS,
    *,
    classes: range | None = None,
    normalize: bool = True,
    out: str | None = None,
) -> np.ndarray:
    """Without torch."""
    head = native(book, alpha, bias, classes=classes, normalize=normalize)
    return head.map(x, int(epilogue), NUMPY_DTYPES[out] if out else None)


def to_torch(x: np.ndarray) -> Any:
    """A tensor of the same dtype and strides; torch knows no ml_dtypes."""
    import torch

    if x.dtype == NUMPY_DTYPES["bfloat16"]:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def to_numpy(x: Any) -> np.ndarray:
    """The reverse of `to_torch`."""
    import torch

    x = x.detach().cpu()
    if x.dtype == torch.bfloat16:
        return x.view(torch.int16).numpy().view(NUMPY_DTYPES["bfloat16"])
    return x.numpy()


def codebook_on(device: str, book: Codebook, classes: range | None = None) -> Any:
    """`ops.codebook_arguments` with its bits on a device."""
    from fixclf_infer import ops

    base, signs, geometry = ops.codebook_arguments(book, classes)
    placed = (None if bits is None else bits.to(device) for bits in (base, signs))
    return ops.CodebookArguments(*placed, geometry)


def torch_head(
    x: np.ndarray,
    alpha: float,
    bias: np.ndarray | None,
    book: Codebook,
    epilogue: Epilogue = Epilogue.LOGITS,
    *,
    classes: range | None = None,
    normalize: bool = True,
    out: str | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """Through torch.ops.fixclf.head."""
    import torch

    from fixclf_infer import ops

    exact = getattr(torch, tolerances.accumulation(str(x.dtype)))
    result = ops.head(
        to_torch(x).to(device),
        torch.tensor(alpha, dtype=exact, device=device),
        None if bias is None else torch.from_numpy(bias).to(device),
        codebook_on(device, book, classes),
        normalize=normalize,
        epilogue=epilogue,
        dtype=getattr(torch, out) if out else None,
    )
    return to_numpy(result)
