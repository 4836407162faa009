"""The head on NumPy arrays."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _native
from ..codebooks.base import Codebook
from ..epilogue import Epilogue
from . import npz, onnx_file
from .contents import Contents

Array = NDArray[Any]


class FixedHead:
    """z_i = α ⟨w_i, x̂⟩ / √N + b_i with a fixed ±1 codebook W and x̂ = x / max(‖x‖₂, 1e-12).

    Hoffer, Hubara and Soudry, "Fix your classifier" (ICLR 2018), §3. W is never stored: the head
    holds α, b and, where there are several blocks, n/8 bytes of signs for each, n the order.

    Features x [..., N] are float32, float16, bfloat16 (of ml_dtypes), float64 or int8, or ±1 packed
    as uint8 [..., ⌈N/8⌉] (`pack_signs`). Results are the same, bit for bit, for any batch, number
    of threads and stride. Calls from several threads at once are safe; a large call is shared by
    `set_num_threads` threads.

    Args:
        codebook: of a ±1 family.
        alpha: α, finite.
        bias: b, [C], or None.

    Raises ValueError for a dense codebook, an α that is not finite or a bias of another shape.
    """

    def __init__(self, codebook: Codebook, alpha: float, bias: ArrayLike | None = None) -> None:
        self._geometry = codebook.geometry()
        self.codebook = codebook
        self.alpha = float(np.float32(alpha))
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {alpha}, expected a finite float32")
        self.bias = None if bias is None else np.ascontiguousarray(bias, np.float32)
        if self.bias is not None and self.bias.shape != (codebook.num_classes,):
            raise ValueError(
                f"bias has shape {list(self.bias.shape)}, expected [{codebook.num_classes}]"
            )
        self._single = self._native_head(self.bias)
        self._double: _native.Head | None = None

    def _native_head(self, bias: Array | None) -> _native.Head:
        data = self.codebook.kernel
        assert data is not None
        return _native.Head(self.alpha, bias, data.base, data.signs, self._geometry)

    @classmethod
    def from_module(cls, module: Any) -> FixedHead:
        """Of a trained `fixclf_infer.nn.FixedClassifier`, on whatever device it is."""
        bias = None if module.bias is None else module.bias.detach().float().cpu().numpy()
        return cls(module.codebook, module.alpha.item(), bias)

    @classmethod
    def load(cls, path: str | PathLike[str], name: str | None = None) -> FixedHead:
        """The head of a file that `save` wrote, or of an ONNX model; what it holds is checked.

        Args:
            path: of the file; its first bytes tell which it is.
            name: of the node, for an ONNX model with several heads.

        Raises FileNotFoundError, or ValueError: what is wrong with the file, in one sentence.
        """
        with open(path, "rb") as file:
            content = file.read()
        if npz.is_npz(content):
            if name is not None:
                raise ValueError(f"name is {name!r}, but {path} holds one head without a name")
            found = npz.read(content, str(path))
        else:
            found = onnx_file.read(content, Path(path), name)
        book = found.codebook()
        return cls(book, float(found.alpha.reshape(())), found.bias)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes an .npz file for `load`: the codebook's bits, α and b."""
        npz.write(path, Contents.of(self.codebook, self.alpha, self.bias))

    @property
    def in_features(self) -> int:
        """N."""
        return self.codebook.in_features

    @property
    def num_classes(self) -> int:
        """C."""
        return self.codebook.num_classes

    def logits(self, x: Array, dtype: Any = None) -> Array:
        """z [..., C]; dtype: x's (default; float32 for integers) or float32."""
        return self._map(x, Epilogue.LOGITS, dtype)

    def predict_proba(self, x: Array, dtype: Any = None) -> Array:
        """Probabilities [..., C], computed in float32; dtype as for `logits`."""
        return self._map(x, Epilogue.SOFTMAX, dtype)

    def predict_log_proba(self, x: Array, dtype: Any = None) -> Array:
        """log softmax(z) [..., C], computed in float32; dtype as for `logits`."""
        return self._map(x, Epilogue.LOG_SOFTMAX, dtype)

    def sigmoid(self, x: Array, dtype: Any = None) -> Array:
        """1 / (1 + exp(−z)) [..., C]; dtype as for `logits`."""
        return self._map(x, Epilogue.SIGMOID, dtype)

    def topk(
        self,
        x: Array,
        k: int,
        *,
        log_probabilities: bool = False,
        allowed: Array | None = None,
    ) -> tuple[Array, NDArray[np.int64], Array]:
        """The k best classes: values [..., k], classes [..., k], logsumexp [...], in memory that
        does not grow with C. Sorted, the lowest class first on ties.

        Args:
            k: 1 to min(C, 1024).
            log_probabilities: values are log-probabilities, not logits.
            allowed: classes that take part: bool [C] or [..., C], or its bits as uint8
                [⌈C/8⌉] or [..., ⌈C/8⌉], little-endian. Others have the logit −∞.
        """
        return self._native(x).topk(x, k, log_probabilities, _bits(allowed))

    def argmax(self, x: Array, *, allowed: Array | None = None) -> NDArray[np.int64]:
        """The class of the largest logit, [...]; the lowest on ties. allowed as for `topk`."""
        return self._native(x).argmax(x, _bits(allowed))

    def log_prob(self, x: Array, ids: ArrayLike, *, allowed: Array | None = None) -> Array:
        """Log-probabilities at the classes ids, integers [...] or [..., M], in the shape of ids."""
        return self._native(x).log_prob(x, np.asarray(ids), _bits(allowed))[0]

    def _map(self, x: Array, epilogue: Epilogue, dtype: Any) -> Array:
        return self._native(x).map(x, int(epilogue), None if dtype is None else np.dtype(dtype))

    def _native(self, x: Array) -> _native.Head:
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x is a {type(x).__name__}, expected a numpy.ndarray")
        if x.dtype != np.float64:
            return self._single
        if self._double is None:  # float64 features take a bias of their own type
            self._double = self._native_head(
                None if self.bias is None else self.bias.astype(np.float64)
            )
        return self._double

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled and copied as what it was made of."""
        return type(self), (self.codebook, self.alpha, self.bias)

    def __repr__(self) -> str:
        return (
            f"FixedHead(in_features={self.in_features}, num_classes={self.num_classes}, "
            f"codebook={self.codebook.kind!r}, alpha={self.alpha:g}, bias={self.bias is not None})"
        )


def pack_signs(x: Array) -> NDArray[np.uint8]:
    """The signs of features [..., N] as bits, set where x < 0: uint8 [..., ⌈N/8⌉]."""
    return np.packbits(x < 0, axis=-1, bitorder="little")


def _bits(allowed: Array | None) -> NDArray[np.uint8] | None:
    if allowed is None or allowed.dtype == np.uint8:
        return allowed
    if allowed.dtype != np.bool_ or allowed.ndim == 0:
        raise ValueError(
            f"allowed is {allowed.dtype} of {allowed.ndim} dimension(s), "
            "expected bool [..., classes] or its bits"
        )
    return np.packbits(allowed, axis=-1, bitorder="little")
