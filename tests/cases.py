"""The shapes, dtypes, codebooks and epilogues that every backend is tested on, and their oracle.

Nothing here knows a device or a backend: a case makes its inputs as NumPy arrays, and the result is
compared with `fixclf_infer.reference` on a matrix that `expand` writes out from the codebook's bits
by their definition. A test of a new backend runs over CASES and calls `Case.check`.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cache
from itertools import cycle
from typing import Any

import ml_dtypes
import numpy as np
import tolerances
from hypothesis import strategies as st

from fixclf_infer import reference
from fixclf_infer.codebooks import Codebook, KernelData, codebook
from fixclf_infer.epilogue import Epilogue

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "float64": np.dtype(np.float64),
}
DTYPES = tuple(NUMPY_DTYPES)
EPILOGUES = tuple(Epilogue)

# Every vector width ± 1, their unrolled multiples, and some that are near none.
WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129)


# Codebooks as data.


def unpack(bits: np.ndarray | None, count: int) -> np.ndarray:
    """Rows of little-endian bits to ±1 (set = −1); one row of ones for None."""
    if bits is None:
        return np.ones((1, count))
    return 1.0 - 2.0 * np.unpackbits(bits, axis=1, count=count, bitorder="little")


def expand(book: Codebook) -> np.ndarray:
    """The rows [C, N] that the kernels' data describe, by their definition and nothing else."""
    data = book.kernel
    assert data is not None
    base = unpack(data.base, data.base_order)
    matrix = np.kron(base, reference.hadamard_matrix(1 << data.log2))
    blocks = []
    for flips in unpack(data.signs, data.order):
        blocks.append(matrix * flips)
        if data.negate:
            blocks.append(-matrix * flips)
    rows = np.concatenate(blocks)[data.row_offset : data.row_offset + book.num_classes]
    rows = rows[:, data.column_offset : data.column_offset + book.in_features]
    if data.center:
        rows = np.sqrt(len(rows) / (len(rows) - 1)) * (rows - rows.mean(axis=0))
    return rows


def synthetic(
    in_features: int,
    num_classes: int,
    *,
    log2: int,
    base_order: int = 1,
    blocks: int = 0,
    negate: bool = False,
    center: bool = False,
    row_offset: int = 0,
    column_offset: int = 0,
    seed: int = 0,
) -> Codebook:
    """A codebook of random bits: what kernels must get right whatever the family. blocks = 0: no
    sign masks at all."""
    rng = np.random.default_rng([seed, base_order, log2, blocks])
    order = base_order << log2

    def random_bits(rows: int, columns: int) -> np.ndarray:
        return np.packbits(rng.integers(0, 2, (rows, columns), np.uint8), axis=1, bitorder="little")

    data = KernelData(
        base_order=base_order,
        log2=log2,
        base=random_bits(base_order, base_order) if base_order > 1 else None,
        signs=random_bits(blocks, order) if blocks else None,
        negate=negate,
        center=center,
        row_offset=row_offset,
        column_offset=column_offset,
    )
    return Codebook("synthetic", 1, in_features, num_classes, seed, data)


def sylvester(in_features: int, num_classes: int) -> Codebook:
    """The smallest plain codebook of N and C: one block, ± one block, or as many masked blocks as
    C asks for."""
    log2 = (in_features - 1).bit_length()
    order = 1 << log2
    if num_classes <= 2 * order:
        return synthetic(in_features, num_classes, log2=log2, negate=num_classes > order)
    blocks = -(-num_classes // order)
    return synthetic(in_features, num_classes, log2=log2, blocks=blocks)


@st.composite
def any_codebook(draw: st.DrawFn, max_order: int = 512) -> tuple[Codebook, range]:
    """Any codebook that the kernels accept, of random bits, and a shard of its classes."""
    base_order = draw(st.sampled_from([1, 1, 1, 2, 3, 4, 12, 20, 28, 63, 64, 65, 68]))
    log2 = draw(st.integers(0, (max_order // base_order).bit_length() - 1))
    order = base_order << log2
    blocks = draw(st.sampled_from([0, 0, 1, 2, 5]))
    negate = draw(st.booleans())
    column_offset = draw(st.integers(0, min(1, order - 1)))
    rows = order * max(blocks, 1) * (2 if negate else 1)
    row_offset = draw(st.integers(0, min(3, rows - 1)))
    num_classes = draw(st.integers(1, rows - row_offset))
    center = draw(st.booleans()) and blocks < 2 and not negate and num_classes > 1
    book = synthetic(
        draw(st.integers(1, order - column_offset)),
        num_classes,
        log2=log2,
        base_order=base_order,
        blocks=blocks,
        negate=negate,
        center=center,
        row_offset=row_offset,
        column_offset=column_offset,
        seed=draw(st.integers(0, 99)),
    )
    begin = draw(st.integers(0, num_classes - 1))
    shard = range(begin, draw(st.integers(begin + 1, num_classes)))
    return book, draw(st.sampled_from([range(num_classes), shard]))


def scale_of(matrix: np.ndarray, alpha: float, bias: np.ndarray | None) -> float:
    """What one logit is made of (see tolerances.py); infinite biases have no rounding error."""
    rows = np.linalg.norm(matrix, axis=1).max() / np.sqrt(matrix.shape[1])
    finite = np.zeros(1) if bias is None else bias[np.isfinite(bias)]
    return abs(alpha) * float(rows) + float(np.abs(finite).max(initial=0))


def check_head(
    got: Any,
    x: np.ndarray,
    matrix: np.ndarray,
    alpha: float,
    bias: np.ndarray | None,
    epilogue: Epilogue,
    context: str = "",
) -> None:
    """`got`, a NumPy array, against the oracle on the features x, within its family's bound."""
    want = reference.head(x.astype(np.float64), matrix, alpha, bias, epilogue)
    scale = scale_of(matrix, alpha, bias)
    family, bound = tolerances.head(epilogue, want, scale, str(x.dtype), str(got.dtype))
    tolerances.assert_within(family, got, want, bound, context)


# Cases.


@dataclass(frozen=True)
class Case:
    """One head on one batch. dtype is of the features, out of the result."""

    in_features: int
    num_classes: int
    batch: int
    dtype: str = "float32"
    kind: str = "auto"
    epilogue: Epilogue = Epilogue.LOGITS
    bias: bool = True
    out: str = ""

    def __str__(self) -> str:
        parts = [f"N{self.in_features}", f"C{self.num_classes}", f"B{self.batch}", self.kind]
        parts += [self.dtype, *([self.out] if self.out else []), self.epilogue.name.lower()]
        return "-".join(parts if self.bias else [*parts, "nobias"])

    @property
    def out_dtype(self) -> str:
        return self.out or self.dtype

    @property
    def exact(self) -> str:
        """The accumulation dtype, which is that of α and bias."""
        return tolerances.accumulation(self.dtype)

    @property
    def codebook(self) -> Codebook:
        return _codebook(self.kind, self.in_features, self.num_classes)

    @property
    def matrix(self) -> np.ndarray:
        return _matrix(self.kind, self.in_features, self.num_classes)

    @property
    def alpha(self) -> float:
        """Exact in float32; in the range that training finds."""
        return 11.5

    def features(self) -> np.ndarray:
        """[B, N] of `dtype`: normal, with the mean that features after a ReLU have."""
        rng = np.random.default_rng(zlib.crc32(str(self).encode()))
        values = rng.standard_normal((self.batch, self.in_features)) + 0.5
        return values.astype(NUMPY_DTYPES[self.dtype])

    def bias_values(self) -> np.ndarray | None:
        """[C] of `exact`."""
        rng = np.random.default_rng(self.num_classes)
        values = rng.standard_normal(self.num_classes).astype(self.exact)
        return values if self.bias else None

    def check(self, got: np.ndarray, x: np.ndarray | None = None) -> None:
        """Fails unless `got`, what a backend made of `features()`, agrees with the oracle."""
        assert str(got.dtype) == self.out_dtype
        x = self.features() if x is None else x
        check_head(
            got, x, self.matrix, self.alpha, self.bias_values(), self.epilogue, context=str(self)
        )


@cache
def _codebook(kind: str, in_features: int, num_classes: int) -> Codebook:
    return codebook(in_features, num_classes, kind)


@cache
def _matrix(kind: str, in_features: int, num_classes: int) -> np.ndarray:
    return expand(_codebook(kind, in_features, num_classes))


# (kind, N, C): each family, full and cut, folded, padded, with and without a base matrix.
SHAPES = (
    ("search", 1, 1),
    ("hadamard", 2, 1),
    ("hadamard", 8, 5),
    ("hadamard", 12, 11),
    ("hadamard", 20, 7),
    ("hadamard", 33, 35),
    ("hadamard", 64, 63),
    ("hadamard", 100, 37),
    ("hadamard", 384, 100),
    ("hadamard", 512, 500),
    ("hadamard", 768, 512),
    ("hadamard", 2048, 10),
    ("hadamard", 2048, 1000),
    ("orthoplex", 3, 6),
    ("orthoplex", 8, 13),
    ("orthoplex", 12, 24),
    ("orthoplex", 64, 100),
    ("orthoplex", 292, 500),
    ("kerdock", 16, 100),
    ("kerdock", 64, 1000),
    ("delsarte_goethals", 32, 1500),
    ("search", 12, 100),
    ("search", 24, 333),
    ("etf", 15, 16),
    ("etf", 64, 10),
)


def _cases() -> list[Case]:
    cases = []
    batches, dtypes = cycle((1, 3, 17)), cycle(DTYPES)
    bias = cycle((True, True, False))
    for kind, n, c in SHAPES:
        for epilogue in EPILOGUES:
            case = Case(n, c, next(batches), "float32", kind, epilogue, next(bias))
            cases.append(case)
        cases.append(replace(case, dtype=next(dtypes), epilogue=next(_EPILOGUES)))
    for kind, n, c in (("hadamard", 100, 37), ("orthoplex", 64, 100), ("kerdock", 16, 100)):
        for dtype in ("bfloat16", "float16", "float64"):
            for out in ("",) if dtype == "float64" else ("", "float32"):
                cases += [Case(n, c, 5, dtype, kind, e, True, out) for e in EPILOGUES]
    cases += [Case(100, 37, 0, dtype, "hadamard", e) for dtype in DTYPES for e in EPILOGUES[:2]]
    cases.append(Case(768, 512, 257, "float32", "hadamard", Epilogue.SOFTMAX))
    return list(dict.fromkeys(cases))


_EPILOGUES = cycle(EPILOGUES)
CASES = _cases()
