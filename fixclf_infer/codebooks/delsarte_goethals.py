"""Delsarte–Goethals sets: more masks for order 2^m than a Kerdock set has.

Construction. As `kerdock`, with Σ_{r=1}^{d−1} Tr(δ_r x^{e_r}) added to its forms: e_r = 2^r + 1 for
m even, 2^{r+1} + 1 for m odd. Masks are numbered with the digits (a, δ_1, δ_2, …) of their index,
lowest first, so a Kerdock set is the prefix and classes keep their rows when C outgrows it. Mask 0
is left out, as there.

Guarantee. Two forms with at most d digits differ by a form of rank at least m − 2(d − 1) (m even)
or m + 1 − 2d (m odd). So the coherence is at most 2^{d−1} times that of `kerdock`: 2/√n or √(8/n)
for d = 2. The bound is attained by the first mask with d digits against those before it, so it is
exact for every C. (d = 2, m even: masks 1 and 2^{m−1} + 1 differ by Tr(x³) on m − 1 bits, of rank
m − 2, and mask 2^{m−1} meets such a one before, as the tests compute. d = 2, m odd: the code dual
to the triple-error-correcting BCH code has words of that weight with δ_1 ≠ 0, and x → λx makes
δ_1 = 1. The tests compute d = 2 up to m = 12, and every case of d = 3 that the limits on C allow:
m = 6, 7, 8.)

Limits. n · 2^{d(m−1)+1} − 2n classes (m even) or n · 2^{dm+1} − 2n (m odd), d ≤ m/2; at
d = ⌊m/2⌋ the masks are all quadratic forms, the second-order Reed–Muller code.

P. Delsarte, J. M. Goethals, "Alternating bilinear forms over GF(q)", J. Combin. Theory A 19 (1975)
26–50. F. J. MacWilliams, N. J. A. Sloane, "The Theory of Error-Correcting Codes", chapter 15.
A. R. Hammons et al., "The Z4-linearity of Kerdock, Preparata, Goethals, and related codes", IEEE
Trans. Inform. Theory 40 (1994) 301–319.
"""

from __future__ import annotations

from .base import Codebook
from .kerdock import assemble, capacity, coherence
from .orders import power_of_two, prices

VERSION = 3


def build(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    order = power_of_two(in_features)
    most = limit(in_features)
    if num_classes > most:
        raise ValueError(
            f"num_classes must be at most {most} for kind='delsarte_goethals' with in_features="
            f"{in_features} (order {order}), got {num_classes}"
        )
    digits = 1
    while num_classes > capacity(order, in_features, digits):
        digits += 1
    reason = (
        f"C = {num_classes} needs more masks than the Kerdock set of order {order} has: "
        f"a Delsarte–Goethals set keeps every cosine of whole rows at or below "
        f"{coherence(order.log2, digits):.4g}{prices(order, in_features)}."
    )
    return assemble(
        "delsarte_goethals", VERSION, order, in_features, num_classes, seed, digits, reason
    )


def limit(in_features: int) -> int:
    """Number of classes that the family reaches."""
    order = power_of_two(in_features)
    digits = range(1, order.log2 // 2 + 1)
    return max((capacity(order, in_features, d) for d in digits), default=0)
