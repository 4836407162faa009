from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPILOGUES: dict[str, int]
GEOMETRY: tuple[str, ...]
MAX_TOPK: int

def check_codebook(
    geometry: Sequence[int], base: tuple[int, int], signs: tuple[int, int]
) -> None: ...
def hadamard_transform(x: NDArray[Any], scale: float = 1.0) -> NDArray[Any]: ...

class Head:
    """Features x [..., N] are float32, bfloat16, float16, float64, int8 or packed signs (uint8
    [..., ceil(N/8)]); masks are packed bits; results that are no map are float32 (float64)."""

    def __init__(
        self,
        alpha: float,
        bias: NDArray[Any] | None,
        base: NDArray[np.uint8] | None,
        signs: NDArray[np.uint8] | None,
        geometry: Sequence[int],
        normalize: bool = True,
    ) -> None: ...
    def map(self, x: NDArray[Any], epilogue: int, dtype: Any = None) -> NDArray[Any]: ...
    def topk(
        self,
        x: NDArray[Any],
        k: int,
        log_probabilities: bool = False,
        allowed: NDArray[np.uint8] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[Any]]: ...
    def argmax(
        self, x: NDArray[Any], allowed: NDArray[np.uint8] | None = None
    ) -> NDArray[np.int64]: ...
    def sample(
        self, x: NDArray[Any], seeds: NDArray[np.int64], allowed: NDArray[np.uint8] | None = None
    ) -> NDArray[np.int64]: ...
    def log_prob(
        self, x: NDArray[Any], ids: NDArray[np.int64], allowed: NDArray[np.uint8] | None = None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]: ...
    def nll(
        self,
        x: NDArray[Any],
        target: NDArray[np.int64],
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> tuple[NDArray[Any], NDArray[Any]]: ...

def isa() -> str: ...
def set_isa(name: str) -> None: ...
def compiled_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def num_threads() -> int:
    """Threads of the kernels, in this process; torch's operators follow torch's own setting."""

def set_num_threads(threads: int) -> None:
    """Sets `num_threads`; 0: as many as cores.

    Raises ValueError for less than 0, or more than the kernels allow.
    """
