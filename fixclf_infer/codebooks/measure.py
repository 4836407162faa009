"""What a codebook is worth: extremes of its cosines, the bounds on them, and its cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .kernel import Bits, KernelData, integer
from .orders import Order, base_matrix

if TYPE_CHECKING:
    from .base import Codebook

EXACT_UP_TO = 100_000  # classes whose cosines are measured by transforms
GRAM_WORK = 2**34  # multiplications for an explicit product of all rows
BLOCK_WORK = 2**36  # additions for the products of all pairs of blocks
SAMPLE_WORK = 2**32  # the same where blocks are sampled
SAMPLE_ROWS = 4096
CHUNK = 2**22  # entries of a temporary


@dataclass(frozen=True)
class Report:
    """Facts about a codebook.

    A line is a class vector up to its sign: w and −w are one line. `largest_cosine` is taken over
    the pairs of classes, `coherence` is the largest magnitude over the pairs of different lines
    and 1 if two classes are identical; both are None for a single class (line).
    """

    kind: str
    version: int
    in_features: int
    num_classes: int
    order: int
    base_order: int
    log2: int
    blocks: int
    mask_bytes: int
    additions_per_row: int
    largest_cosine: float | None
    coherence: float | None
    method: str  # "exact" (proven), "measured" (every pair), "sampled" (a lower bound)
    identical_pairs: int  # a lower bound if sampled
    rankin_bound: float | None  # on the largest cosine of any C vectors: simplex, orthoplex
    welch_bound: float  # on the coherence of that many lines
    levenshtein_bound: float  # on the coherence, 0 where it says nothing
    coherence_ratio: float | None  # to the larger of these two bounds, None if that is 0

    def __str__(self) -> str:
        rows = [(name.replace("_", " "), value) for name, value in vars(self).items()]
        return "\n".join(
            f"{name:<18} {f'{value:.4g}' if isinstance(value, float) else value}"
            for name, value in rows
        )


@dataclass(frozen=True)
class Histogram:
    """Counts of the cosines between pairs of classes; `classes` says how many were compared."""

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    classes: int


@dataclass(frozen=True)
class Extremes:
    largest: float | None
    coherence: float | None
    method: str
    identical_pairs: int


def report(codebook: Codebook) -> Report:
    found = extremes(codebook)
    data, n, c = codebook.kernel, codebook.in_features, codebook.num_classes
    lines = _lines(codebook)
    welch, levenshtein = welch_bound(n, lines), levenshtein_bound(n, lines)
    bound = max(welch, levenshtein)
    ratio = found.coherence / bound if found.coherence is not None and bound > 0 else None
    return Report(
        kind=codebook.kind,
        version=codebook.version,
        in_features=n,
        num_classes=c,
        order=codebook.order,
        base_order=data.base_order if data else 1,
        log2=data.log2 if data else 0,
        blocks=data.blocks if data else 0,
        mask_bytes=data.signs.nbytes if data and data.signs is not None else 0,
        additions_per_row=additions(data, c, n) if data else c * (n - 1),
        largest_cosine=found.largest,
        coherence=found.coherence,
        method=found.method,
        identical_pairs=found.identical_pairs,
        rankin_bound=rankin_bound(n, c),
        welch_bound=welch,
        levenshtein_bound=levenshtein,
        coherence_ratio=ratio,
    )


def _lines(codebook: Codebook) -> int:
    data, c = codebook.kernel, codebook.num_classes
    if data is not None and codebook.in_features <= 3:
        rows = codebook.matrix()
        return len(np.unique(rows * rows[:, :1], axis=0))
    if data is not None and data.negate and c + data.row_offset > data.order:
        full, rest = divmod(c + data.row_offset, 2 * data.order)
        return full * data.order + min(rest, data.order)  # that of row 0 by its negation
    return c


def rankin_bound(dimension: int, vectors: int) -> float | None:
    """Least possible largest cosine: −1/(C−1) up to N + 1 vectors (simplex), else 0."""
    if vectors < 2:
        return None
    return -1.0 / (vectors - 1) if vectors <= dimension + 1 else 0.0


def welch_bound(dimension: int, lines: int) -> float:
    """L. R. Welch, IEEE Trans. Inform. Theory 20 (1974) 397–399."""
    if lines <= dimension:
        return 0.0
    return float(np.sqrt((lines - dimension) / (dimension * (lines - 1))))


def levenshtein_bound(dimension: int, lines: int) -> float:
    """V. I. Levenshtein, Problems of Cybernetics 40 (1983) 43–110, real lines, second degree."""
    square = (3 * lines - dimension**2 - 2 * dimension) / (
        (dimension + 2) * max(lines - dimension, 1)
    )
    return float(np.sqrt(max(square, 0.0))) if lines > dimension * (dimension + 1) / 2 else 0.0


def additions(data: KernelData, num_classes: int, in_features: int | None = None) -> int:
    """Additions for one input row: n(b − 1 + k) a block, less where a block's rows are few.

    Only the first of P_b's rows that are needed are formed. If even the first 2^r rows of H_{2^k}
    suffice, the input is folded to 2^r sums first: N − 2^r + r · 2^r additions (b = 1), where
    N is in_features, or n.
    """
    b, k, n = data.base_order, data.log2, data.order
    rows = num_classes + data.row_offset
    blocks, rest = divmod(rows, n * (2 if data.negate else 1))
    rest = min(rest, n)
    total = blocks * n * (b - 1 + k)
    if rest and b == 1:
        r = (rest - 1).bit_length()
        total += max((in_features or n) - (1 << r), 0) + (r << r)
    elif rest:
        total += n * k + (-(-rest >> k) << k) * (b - 1)
    return total + (2 * num_classes if data.center else 0)


def extremes(codebook: Codebook) -> Extremes:
    """Proven where the family proves it, else measured, else sampled."""
    c, n, known = codebook.num_classes, codebook.in_features, codebook.cosines
    if known is not None:
        return Extremes(known.largest, known.coherence, "exact", known.identical_pairs)
    if c * c * n <= GRAM_WORK:
        return _of_rows(codebook, np.arange(c), "measured")
    data = codebook.kernel
    if data is not None and data.negate and data.blocks > 1:
        return _of_blocks(data, n, c)
    sample = np.linspace(0, c - 1, SAMPLE_ROWS).astype(np.int64)
    return _of_rows(codebook, sample, "sampled")


def _of_rows(codebook: Codebook, ids: NDArray[np.int64], method: str) -> Extremes:
    """From the products of these rows."""
    largest, magnitude, identical = -1.0, -1.0, 0
    for cosines in pair_cosines(codebook, ids):
        largest = max(largest, float(cosines.max()))
        identical += int((cosines == 1).sum())
        magnitude = max(magnitude, float(np.abs(cosines[cosines > -1]).max(initial=-1)))
    if len(ids) < 2:
        return Extremes(None, None, method, 0)
    return Extremes(largest, magnitude if magnitude >= 0 else None, method, identical)


def pair_cosines(codebook: Codebook, ids: NDArray[np.int64]) -> Iterator[NDArray[np.float64]]:
    """The cosines of all pairs of these classes, each once, in chunks; ±1 is exact."""
    rows = codebook.rows(ids).astype(np.float32)
    step = max(1, CHUNK // len(ids))
    for start in range(0, len(ids) - 1, step):
        gram = rows[start : start + step] @ rows[start + 1 :].T
        cosines = gram[np.triu(np.ones(gram.shape, bool))].astype(np.float64)
        cosines /= codebook.in_features
        if codebook.dtype == np.float32:  # entries are rounded
            unit = np.abs(cosines) > 1 - 1e-6
            cosines[unit] = np.sign(cosines[unit])
        yield cosines


def _of_blocks(data: KernelData, in_features: int, num_classes: int) -> Extremes:
    """From the products of blocks, each followed by its negation, so that both signs occur.

    Where row 0 is skipped, its negation alone is a class, which matters for the largest cosine only
    if a row of the last block lacks its negation too and no other pair has the same product.
    If there are too many pairs of blocks, evenly spaced blocks are a sample.
    """
    assert data.signs is not None
    order, n = Order(data.base_order, data.log2), data.order
    masks = np.unpackbits(data.signs, axis=1, count=n, bitorder="little")
    count, rest = len(masks), num_classes + data.row_offset - 2 * n * (len(masks) - 1)
    work = n * (order.base**2 + order.log2)
    method = "measured"
    if num_classes > EXACT_UP_TO or count**2 / 2 * work > BLOCK_WORK:
        blocks = int(np.clip((2 * SAMPLE_WORK / work) ** 0.5, 2, count))
        method = "sampled" if blocks < count else "measured"
        masks = masks[np.linspace(0, count - 1, blocks).astype(np.int64)]
    lone: slice | None = None  # base rows of the last block whose first rows are such rows
    if data.row_offset and order.log2 == 0:
        lone = slice(max(0, rest - n), order.base)
    elif data.row_offset and rest <= n and rest % (1 << order.log2) == 1:
        lone = slice(rest >> order.log2, order.base)
    found = largest = 0.0
    for j in range(1, len(masks)):
        last = rest if j == len(masks) - 1 else n
        base_rows = min(order.base, -(-last >> order.log2))
        products = block_products(order, masks[:j] ^ masks[j], base_rows, in_features)
        found = max(found, float(products.max()))
        if j == len(masks) - 1 and lone is not None:
            bits = masks[:1] ^ masks[j]
            products[:1] = block_products(order, bits, base_rows, in_features, lone)
        largest = max(largest, float(products.max()))
    dropped = n - in_features
    if found < dropped:  # two rows of one block that agree in the dropped columns
        found = dropped
        # b = 1: rows i and i + n/2. Otherwise, if many columns are dropped, there may be none.
        method = method if order.base == 1 or 2**dropped < n else "sampled"
    largest = max(largest, dropped)
    return Extremes(largest / in_features, found / in_features, method, int(found == in_features))


def block_products(
    order: Order,
    bits: Bits,
    base_rows: int | None = None,
    columns: int | None = None,
    lone: slice | None = None,
) -> NDArray[np.float32]:
    """max |⟨w, w'⟩| over the rows w of H_n D and w' of H_n D', for each mask D D' in `bits`.

    With D D' = (d_c), c < b, in slices of length 2^k: ⟨w, w'⟩ = Σ_c P[i, c] P[i', c] WHT(d_c)[s],
    where every s ∈ [0, 2^k) occurs. Only the first `base_rows` of P serve for w', and only the
    first `columns` of H_n count. Of row 0 with the first rows w' of the base rows `lone`, only
    negative products count.
    """
    p = base_matrix(order.base).astype(np.float32)
    size = 1 << order.log2
    found = np.empty(len(bits), np.float32)
    step = max(1, CHUNK // (order.n * order.base))
    for start in range(0, len(bits), step):
        masked = signs(bits[start : start + step]).astype(np.float32)
        if columns is not None:
            masked[:, columns:] = 0
        slices = walsh_hadamard(masked.reshape(-1, order.base, size))
        rows = (slices.transpose(0, 2, 1)[:, :, None, :] * p).reshape(-1, order.base)
        products = (rows @ p[:base_rows].T).reshape(len(masked), size, order.base, -1)
        if lone is not None:
            products[:, 0, 0, lone] = np.minimum(products[:, 0, 0, lone], 0)
        found[start : start + step] = np.abs(products).max(axis=(1, 2, 3))
    return found


def walsh_hadamard(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Along the last axis, in natural order."""
    shape, width = values.shape, 1
    while width < shape[-1]:
        pairs = values.reshape(*shape[:-1], -1, 2, width)
        even, odd = pairs[..., 0, :], pairs[..., 1, :]
        values = np.stack([even + odd, even - odd], axis=-2).reshape(shape)
        width *= 2
    return values


def signs(bits: Bits) -> NDArray[np.int8]:
    """0/1 to +1/−1."""
    return 1 - 2 * bits.view(np.int8)


def histogram(codebook: Codebook, bins: int) -> Histogram:
    """Of all pairs of classes, or of those of SAMPLE_ROWS evenly spaced classes."""
    bins = integer("bins", bins, 1, 2**16)
    c = codebook.num_classes
    ids = np.arange(c)
    if c > SAMPLE_ROWS:
        ids = np.linspace(0, c - 1, SAMPLE_ROWS).astype(np.int64)
    edges = np.linspace(-1, 1, bins + 1)
    counts = np.zeros(bins, np.int64)
    for cosines in pair_cosines(codebook, ids):
        counts += np.histogram(cosines, edges)[0]
    return Histogram(edges, counts, len(ids))
