"""Paley's Hadamard matrices.

Construction. χ is the quadratic character of GF(q) and Q[x, y] = χ(x − y), so that
Q Qᵀ = qI − J and Q J = 0. S is Q bordered by ones, with Sᵀ = −S if q ≡ 3 (mod 4) and Sᵀ = S if
q ≡ 1 (mod 4), and S Sᵀ = qI.
* I, order q + 1, q ≡ 3 (mod 4): H = I + S.
* II, order 2(q + 1), q ≡ 1 (mod 4): H = [[S + I, S − I], [S − I, −S − I]].

Limits. q a prime power. Guarantee. H Hᵀ = nI.

R. E. A. C. Paley, "On orthogonal matrices", J. Math. and Physics 12 (1933) 311–320.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .galois import prime_power, primitive_powers


def paley(order: int) -> NDArray[np.int8] | None:
    """Paley's matrix of this order (I before II), or None."""
    if order >= 4 and order % 4 == 0 and prime_power(order - 1):
        return np.eye(order, dtype=np.int8) + _bordered(order - 1)
    q = order // 2 - 1
    if order >= 4 and order % 4 == 0 and q % 4 == 1 and prime_power(q):
        s, one = _bordered(q), np.eye(q + 1, dtype=np.int8)
        return np.block([[s + one, s - one], [s - one, -s - one]])
    return None


def _bordered(q: int) -> NDArray[np.int8]:
    """S of order q + 1."""
    p, k = prime_power(q) or (q, 1)
    character = np.full(q, -1, np.int8)
    character[0] = 0
    character[primitive_powers(p, k)[::2]] = 1
    x = np.arange(q)
    difference = np.zeros((q, q), np.int64)
    for unit in p ** np.arange(k):
        digit = x // unit % p
        difference += (digit[:, None] - digit[None, :]) % p * unit
    s = np.zeros((q + 1, q + 1), np.int8)
    s[0, 1:] = 1
    s[1:, 0] = 1 if q % 4 == 1 else -1
    s[1:, 1:] = character[difference]
    return s
