from typing import Any

import numpy as np
from numpy.typing import NDArray

EPILOGUES: dict[str, int]

def hadamard_transform(x: NDArray[Any], scale: float = 1.0) -> NDArray[Any]: ...
def head(
    x: NDArray[Any],
    alpha: float,
    bias: NDArray[Any] | None,
    *,
    in_features: int,
    base: NDArray[np.uint8] | None,
    signs: NDArray[np.uint8] | None,
    base_order: int,
    log2: int,
    negate: bool,
    center: bool,
    row_offset: int,
    column_offset: int,
    num_classes: int,
    class_begin: int,
    class_end: int,
    normalize: bool,
    epilogue: int,
    dtype: Any = None,
) -> NDArray[Any]: ...
def isa() -> str: ...
def set_isa(name: str) -> None: ...
def compiled_isas() -> list[str]: ...
def supported_isas() -> list[str]: ...
def num_threads() -> int: ...
def set_num_threads(threads: int) -> None: ...
