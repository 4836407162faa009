"""Kerdock sets and their form for odd m: sign masks of lowest coherence for order 2^m.

Construction. Block a is `H_n D_a` followed by its negation, n = 2^m, where D_a holds the signs
(−1)^{Q_a(j)} of a quadratic form in the bits of the column j.
* m even: a, x ∈ GF(2^{m−1}), j = (ε, x) with ε the top bit, and
  Q_a(x, ε) = Σ_{i=1}^{(m−2)/2} Tr((ax)^{2^i + 1}) + ε Tr(ax).
* m odd: a, x ∈ GF(2^m), j = x, and Q_a(x) = Tr(a x³).
The field is `BinaryField`, an element's bits being its coefficients. The masks are those of
a = 1, 2, …; that of Q_0 = 0 is left out: its block is H_n, with a row of +1 and one of −1, which
with non-negative features always and never win. So a row's sum is ±√n (m even) or 0 or ±√(2n)
(m odd). The first mask is that of `orthoplex`, whose classes keep their rows.

Guarantee. Rows of one block are orthogonal or opposite. Rows of blocks a ≠ a' have inner product
± the Walsh–Hadamard transform of (−1)^{Q_a + Q_a'} at some point. For m even that form has full
rank m, so every value is ±√n; for m odd it has rank m − 1, so the values are 0 and ±√(2n), and
both occur, more than once. Hence, as soon as there are two blocks (C > 2n), largest cosine and
coherence are exactly 1/√n (m even, which meets Levenshtein's bound asymptotically) and √(2/n)
(m odd). Where N < n (n is the next power of two, the last columns are dropped), at most n − N is
added to an inner product, and rows of one block do differ by n − N; the cosines are then measured.

Limits. n/2 − 1 masks, C ≤ n² − 2n (m even, m ≥ 2); n − 1 masks, C ≤ 2n² − 2n (m odd, m ≥ 3). From
there on, "auto" takes `delsarte_goethals` if that reaches C.

A. M. Kerdock, "A class of low-rate nonlinear binary codes", Inform. and Control 20 (1972)
182–187. R. Gold, "Maximal recursive sequences with 3-valued recursive cross-correlation
functions", IEEE Trans. Inform. Theory 14 (1968) 154–156. A. R. Calderbank, P. J. Cameron,
W. M. Kantor, J. J. Seidel, "Z4-Kerdock codes, orthogonal spreads, and extremal Euclidean
line-sets", Proc. London Math. Soc. 75 (1997) 436–480.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .base import Codebook, Cosines
from .galois import BinaryField
from .kernel import Bits, KernelData, pack
from .orders import Order, power_of_two, prices

VERSION = 3


def build(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    order = power_of_two(in_features)
    most = capacity(order, in_features, digits=1)
    if num_classes > most:
        raise ValueError(
            f"num_classes must be at most {most} for kind='kerdock' with in_features="
            f"{in_features} (order {order}), got {num_classes}"
        )
    reason = (
        f"C = {num_classes} and order {order}: "
        f"{'Kerdock' if order.log2 % 2 == 0 else 'Gold'} masks keep every cosine of whole rows "
        f"at or below {coherence(order.log2, 1):.4g}{prices(order, in_features)}."
    )
    return assemble("kerdock", VERSION, order, in_features, num_classes, seed, 1, reason)


def assemble(
    kind: str,
    version: int,
    order: Order,
    in_features: int,
    num_classes: int,
    seed: int,
    digits: int,
    reason: str,
) -> Codebook:
    """The codebook of the first masks but mask 0, whose indices have that many digits."""
    masks = pack(forms(order.log2, 1 + np.arange(-(-num_classes // (2 * order.n)))))
    cosines = None
    if in_features == order.n and len(masks) > 1:
        value = coherence(order.log2, digits)
        cosines = Cosines(value, value)
    data = KernelData(1, order.log2, None, masks, True, False, 0, 0)
    return Codebook(kind, version, in_features, num_classes, seed, data, None, reason, cosines)


def capacity(order: Order, in_features: int, digits: int) -> int:
    """Number of classes that indices of that many digits reach; 0 where it proves nothing."""
    m = order.log2
    if order.base > 1 or m < 2 or not 1 <= digits <= m // 2:
        return 0
    if not distinct(order, in_features, digits):
        return 0
    return 2 * order.n * ((1 << digits * field_degree(m)) - 1)


def distinct(order: Order, in_features: int, digits: int) -> bool:
    """Whether the first N > n/2 columns are sure to tell all rows apart, those of mask 0 included,
    so that no row of another mask is constant.

    Two rows differ by a form whose rank is m, m − 1 or 2h as in `coherence`. On the first half of
    the columns, a hyperplane, the rank falls by 2 at most: a form of rank 2 is no constant there.
    Or the inner product is at most coherence · n, and at most the dropped columns more.
    """
    m = order.log2
    rank = 2 * (m // 2 - digits + 1)
    reach = coherence(m, digits) * order.n + (order.n - in_features)
    return rank >= 4 or reach < in_features


def field_degree(m: int) -> int:
    """One digit of a form's index is an element of GF(2^this)."""
    return m if m % 2 else m - 1


def coherence(m: int, digits: int) -> float:
    """2^{−h} if the difference of two forms with such indices has rank at least 2h."""
    return 2.0 ** (digits - 1 - m // 2)


def forms(m: int, indices: NDArray[np.int64]) -> Bits:
    """Quadratic forms on GF(2)^m, evaluated everywhere: [len(indices), 2^m] of 0 and 1.

    The digits of an index to the base 2^field_degree(m) are a, δ_1, δ_2, …: the form is Q_a plus
    Σ_r Tr(δ_r x^{e_r}), e_r = 2^r + 1 (m even) or 2^{r+1} + 1 (m odd). The set of forms with at
    most d digits is closed under addition for m odd; in both cases the difference of two of them
    has rank at least m − 2(d − 1) (m even) or m + 1 − 2d (m odd).
    """
    field = BinaryField(field_degree(m))
    x = np.arange(field.size)
    bits = np.zeros((len(indices), 1 << m), np.uint8)
    halves = bits.reshape(len(indices), -1, field.size)  # [index, ε, x]; one ε for m odd
    digit, rest, r = indices % field.size, indices // field.size, 0
    if m % 2 == 0:
        y = field.multiply(digit[:, None], x)
        table = np.zeros(field.size, np.uint8)
        for i in range(1, m // 2):
            table ^= field.trace(field.power(x, 2**i + 1))
        halves ^= table[y][:, None, :]
        halves[:, 1] ^= field.trace(x)[y]
        digit, rest, r = rest % field.size, rest // field.size, 1
    while r == 0 or digit.any() or rest.any():
        power = field.power(x, 2 ** (r + m % 2) + 1)
        halves ^= field.trace(x)[field.multiply(digit[:, None], power)][:, None, :]
        digit, rest, r = rest % field.size, rest // field.size, r + 1
    return bits
