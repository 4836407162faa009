"""Finite fields GF(p^k), as the powers of a primitive element."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray


def prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k, or None."""
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    k = 0
    while p > 1 and q % p == 0:
        q, k = q // p, k + 1
    return (p, k) if k and q == 1 else None


@cache
def primitive_powers(p: int, k: int) -> NDArray[np.int64]:
    """The nonzero elements of GF(p^k) in the order 1, g, g², … of a primitive element g.

    An element is the integer whose base-p digits are its coefficients, and g is a root of the
    first polynomial x^k = t_{k−1} x^{k−1} + … + t_0 that makes it primitive, in lexicographic
    order of (t_{k−1}, …, t_0). So the result is a function of (p, k) alone.
    """
    for coefficients in product(range(p), repeat=k):
        if coefficients[-1]:
            powers = _powers(p, coefficients[::-1])
            if len(powers) == p**k - 1:
                return np.array(powers)
    raise AssertionError(f"GF({p}^{k}) has a primitive polynomial")


def _powers(p: int, tail: tuple[int, ...]) -> list[int]:
    """1, x, x², … modulo x^k − tail (tail[0] ≠ 0), before the first power that is 1 again."""
    high = p ** (len(tail) - 1)
    multiples = [sum(c * t % p * p**i for i, t in enumerate(tail)) for c in range(p)]
    powers, value = [1], _times_x(1, high, multiples, p)
    while value != 1:
        powers.append(value)
        value = _times_x(value, high, multiples, p)
    return powers


def _times_x(value: int, high: int, multiples: list[int], p: int) -> int:
    lead, rest = divmod(value, high)
    return _add(rest * p, multiples[lead], p)


def _add(a: int, b: int, p: int) -> int:
    if p == 2:
        return a ^ b
    total, unit = 0, 1
    while a or b:
        total += (a + b) % p * unit
        a, b, unit = a // p, b // p, unit * p
    return total


class BinaryField:
    """GF(2^m): addition is XOR, multiplication goes through logarithms."""

    def __init__(self, m: int) -> None:
        self.m = m
        self.size = 1 << m
        self.exp = primitive_powers(2, m)
        self.log = np.zeros(self.size, np.int64)
        self.log[self.exp] = np.arange(self.size - 1)

    def multiply(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
        product = self.exp[(self.log[a] + self.log[b]) % (self.size - 1)]
        return np.where((a == 0) | (b == 0), 0, product)

    def power(self, a: NDArray[np.int64], exponent: int) -> NDArray[np.int64]:
        """a^exponent for exponent ≥ 1."""
        return np.where(a == 0, 0, self.exp[self.log[a] * exponent % (self.size - 1)])

    def trace(self, a: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Tr(a) = a + a² + a⁴ + … ∈ {0, 1}."""
        total = a.copy()
        for _ in range(self.m - 1):
            a = self.power(a, 2)
            total ^= a
        return total.astype(np.uint8)
