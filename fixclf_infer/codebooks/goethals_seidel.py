"""Hadamard matrices of order 4t from four circulants, for orders that Paley's do not reach.

Construction. A, B, C, D are circulants of order t with A Aᵀ + B Bᵀ + C Cᵀ + D Dᵀ = 4tI and R is
the exchange matrix. Then H = [[A, BR, CR, DR], [−BR, A, −DᵀR, CᵀR], [−CR, DᵀR, A, −BᵀR],
[−DR, −CᵀR, BᵀR, A]]. The first rows below were found as follows.
* t = 23, 29: exhaustive search over symmetric circulants (Williamson's matrices).
* t = 43, 73: search over unions of the cosets of a subgroup of Z_t^* (order 7 and 9).
* t = 39, 65, 93, 119: T-sequences of length 3, 5, 3, 7 composed with Williamson's matrices of
  order 13, 13, 31, 17 (Cooper and Wallis), read as circulants through Z_m × Z_t ≅ Z_mt.

Limits. t in `FIRST_ROWS`. Guarantee. H Hᵀ = nI.

J. Williamson, "Hadamard's determinant theorem and the sum of four squares", Duke Math. J. 11
(1944) 65–81. L. Baumert, S. W. Golomb, M. Hall, "Discovery of an Hadamard matrix of order 92",
Bull. AMS 68 (1962) 237–238. J. M. Goethals, J. J. Seidel, "A skew Hadamard matrix of order 36",
J. Austral. Math. Soc. 11 (1970) 343–344. J. Cooper, J. Wallis, "A construction for Hadamard
arrays", Bull. Austral. Math. Soc. 7 (1972) 269–277.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# t: first rows of A, B, C, D in hexadecimal; bit i set means that entry i is −1.
FIRST_ROWS = {
    23: "657ea6 465a62 583c1a 4e720",
    29: "cd3f2cc 653f298 53a1728 1045e882",
    39: "7271c9cffc 29187f1491 2ff2932e47 749f25d52b",
    43: "4b30a5af32c 5d18bc2e744 36761ef2a8 37a83bbfe7a",
    65: "161e6767d6157edc4 58280561866e23b7 6f53ec2a6d181255 1568d9fb68e21fc27",
    73: "48655f49c8bf9874e8 48745fdc48efe8b848 14cd3969c6b59a74e8 1ea675f4bd8bf9c76e8",
    93: "d0af1b99521aa2267bad93c c19fd31a1dcde84552d86ab "
    "1c6ebe67ac848345f946509f 1d7db2efd879f7e34bd10f09",
    119: "18b7bea71f9689c55db24a29f45e76 3ceb2a856db7d014725cd5c689c909 "
    "7840220562a17ac5925ef06ccfb171 5c1cf62730803314b5b06b83b0260f",
}


def goethals_seidel(order: int) -> NDArray[np.int8] | None:
    """The matrix of this order, or None."""
    t = order // 4
    if order % 4 or t not in FIRST_ROWS:
        return None
    shift = (np.arange(t)[None, :] - np.arange(t)[:, None]) % t
    a, b, c, d = (
        np.array([1 - 2 * (int(row, 16) >> i & 1) for i in range(t)], np.int8)[shift]
        for row in FIRST_ROWS[t].split()
    )
    br, cr, dr = b[:, ::-1], c[:, ::-1], d[:, ::-1]
    btr, ctr, dtr = b.T[:, ::-1], c.T[:, ::-1], d.T[:, ::-1]
    return np.block(
        [[a, br, cr, dr], [-br, a, -dtr, ctr], [-cr, dtr, a, -btr], [-dr, -ctr, btr, a]]
    )
