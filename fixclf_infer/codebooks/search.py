"""Masks for composite orders, and for any C that the algebraic families do not reach.

Construction. Block j is `H_n D_j` followed by its negation, n = b · 2^k. No optimal set is known
for b > 1; ours has two layers, with q = 2^{k−1} (k even ≥ 2), 2^k (k odd ≥ 3) or 1 (k ≤ 1).
1. Twisted Kerdock masks, j < q: D_j = g_j ⊗ κ_j, with κ_j mask j of the `kerdock` set of order 2^k
   and g_j word j of a linear code of length b. Each generator of the code is the best of some
   candidates: the one whose coset has the lowest β(g) = max_{i,i'} |Σ_c g_c P[i, c] P[i', c]| / b.
2. Translates, j ≥ q: D_j = R_h D_{j mod q} with h = ⌊j/q⌋. Each R_h is the best of some random
   masks: the one with the lowest coherence between its translate and those before. The number of
   candidates falls as h grows, which bounds the work; late translates are plain random ones.
Candidates are SHAKE-128 of (n, seed, step). Mask j depends on (N, seed) and the masks before it
only, so classes keep their rows when C grows. Class i is row i + 1, since with non-negative
features the cosine of row 0, all ones, is near the maximum for every input; where no further mask
is found and C needs every row, class i is row i.

Guarantee. The inner product of rows of blocks j ≠ j' < q factors into |Σ_c g_j g_j' P P'| · |W|, W
a Walsh–Hadamard value of κ_j κ_j'. So their coherence is exactly max β(g_j g_j') times that of the
Kerdock set, 2^{−k/2} (k even) or √2 · 2^{−k/2} (k odd): often half that of random masks
(docs/codebooks.md). Translates have a measured coherence, without a bound in advance. For k odd a
Kerdock set is closed under addition: two translates show q different products, not q², which
lowers their coherence too.
Rows are distinct: for j < q because β ≤ 1, for N ≤ 128 by comparison, and else because random rows
coincide with a probability of 2^{−N} a pair.

Limits. None but the number of different ±1 rows; where a small N is used up, it says so.

Kerdock: see `kerdock`. SHAKE-128: FIPS 202 (2015).
"""

from __future__ import annotations

from functools import cache
from hashlib import shake_128

import numpy as np

from .base import Bits, Codebook, Cosines, KernelData, first_row, pack
from .kerdock import coherence, field_degree, forms
from .measure import block_products, walsh_hadamard
from .orders import Order, base_matrix, cover, dropped

VERSION = 2
CANDIDATES = 64  # of one step, at most (twice as many for a generator)
WORK = 1e9  # operations spent on the candidates of one step, at most
ATTEMPTS = 1000  # candidates after which a small N counts as used up
COMPARE_UP_TO = 128  # features up to which rows are compared


def build(in_features: int, num_classes: int, seed: int, exact: bool) -> Codebook:
    order = cover(in_features, exact)
    count = -(-(num_classes + 1) // (2 * order.n))
    q = min(count, _structured(order, in_features))
    words = _code(order, seed, q)
    masks = (words[:q, :, None] ^ _kerdock(order, q)).reshape(q, -1)
    cosines = None
    if in_features == order.n and count == q > 1:
        last_rows = min(order.n, num_classes + 1 - 2 * order.n * (count - 1))
        value = _twisted_coherence(order, words, count, -(-last_rows >> order.log2))
        cosines = Cosines(value, value)
    if count > q:
        masks = _extend(masks, order, in_features, count, seed)
        count = len(masks)
    rows = 2 * order.n * count
    if num_classes > rows:
        raise ValueError(
            f"num_classes must be at most {rows} for in_features={in_features} with "
            f"seed={seed} (no further distinct rows were found), got {num_classes}"
        )
    first = first_row(rows, num_classes)
    data = KernelData(order.base, order.log2, order.bits, pack(masks), True, False, first, 0)
    translates = f" and {count - q} translates of them, found by search" if count > q else ""
    every = "" if first else "; every row is needed, the all-ones row too"
    reason = (
        f"C = {num_classes} and order {order.n} = {order.base} * 2^{order.log2}: no optimal set of "
        f"masks is known; these are {q} twisted Kerdock masks{translates}"
        f"{dropped(order, in_features)}{every}."
    )
    return Codebook("search", VERSION, in_features, num_classes, seed, data, None, reason, cosines)


def _structured(order: Order, in_features: int) -> int:
    """q if twisted Kerdock masks are sure to give distinct rows, else 1 (the mask 0)."""
    if order.log2 < 2:
        return 1
    reach = coherence(order.log2, 1) * order.n + (order.n - in_features)
    return 1 << field_degree(order.log2) if reach < in_features else 1


def _kerdock(order: Order, count: int) -> Bits:
    """The first masks of the Kerdock set of order 2^k, [count, 1, 2^k]."""
    if count == 1:
        return np.zeros((1, 1, 1 << order.log2), np.uint8)
    return forms(order.log2, np.arange(count))[:, None, :]


def _code(order: Order, seed: int, count: int) -> Bits:
    """Words of a linear code of length b with low β; word i ^ j is the sum of words i and j."""
    base = Order(order.base, 0)
    words = np.zeros((1, order.base), np.uint8)
    if order.base == 1:
        return words.repeat(1 << (count - 1).bit_length(), axis=0)
    while len(words) < count:
        tries = int(np.clip(WORK // (len(words) * order.base**3), 1, 2 * CANDIDATES))
        tag = f"code {order.n} {seed} {len(words)}"
        candidates = _random_bits(tag, tries * order.base).reshape(tries, 1, order.base)
        cosets = candidates ^ words
        beta = [block_products(base, coset) for coset in cosets]
        best = min(range(tries), key=lambda i: (beta[i].max(), beta[i].sum()))
        words = np.concatenate([words, cosets[best]])
    return words


def _twisted_coherence(order: Order, words: Bits, count: int, last_base_rows: int) -> float:
    """Of the first `count` twisted Kerdock masks; the last block has only those base rows.

    The pairs of j < 2^r reach every sum but 0 of 2^r words, those of j < i every sum but 0 of
    the 2^⌈log2 i⌉ words that it fits into.
    """
    base, last = Order(order.base, 0), count - 1
    complete = block_products(base, words[1 : 1 << (last - 1).bit_length()])
    partial = block_products(base, words[:last] ^ words[last], last_base_rows)
    beta = max(float(complete.max(initial=0)), float(partial.max())) / order.base
    return beta * coherence(order.log2, 1)


def _extend(first: Bits, order: Order, in_features: int, count: int, seed: int) -> Bits:
    """`first`, followed by translates of it: `count` masks, or as many as are found."""
    n, q = order.n, len(first)
    products = [first] if order.log2 % 2 else [first[i:] ^ first[i] for i in range(q)]
    work = sum(map(len, products)) * n * (order.base**2 + order.log2)
    translations = [np.zeros(n, np.uint8)]
    seen = set(_lines(order, in_features, first))
    while len(translations) * q < count:
        h = len(translations)
        tries = int(np.clip(WORK // (work * h**2), 1, CANDIDATES))
        best, least, found = None, np.inf, 0
        for attempt in range(ATTEMPTS):
            mask = _random_bits(f"mask {n} {seed} {h} {attempt}", n)
            if not seen.isdisjoint(_lines(order, in_features, first ^ mask)):
                continue
            worst = 0.0
            if tries > 1:
                worst = max(
                    float(block_products(order, p ^ t ^ mask, columns=in_features).max())
                    for t in translations
                    for p in products
                )
            if worst < least:
                best, least = mask, worst
            found += 1
            if found == tries:
                break
        if best is None:
            break
        translations.append(best)
        seen.update(_lines(order, in_features, first ^ best))
    return (np.array(translations)[:, None] ^ first).reshape(-1, n)[:count]


def _lines(order: Order, in_features: int, masks: Bits) -> list[bytes]:
    """A key for each row of these blocks, shared by a row and its negation; none for large N."""
    if in_features > COMPARE_UP_TO:
        return []
    bits = _hadamard_bits(order)[:, :in_features] ^ masks[:, None, :in_features]
    return [row.tobytes() for row in pack(bits ^ bits[..., :1]).reshape(-1, -(-in_features // 8))]


@cache
def _hadamard_bits(order: Order) -> Bits:
    """H_n as 0/1, for small n."""
    sylvester = walsh_hadamard(np.eye(1 << order.log2, dtype=np.float32))
    return (np.kron(base_matrix(order.base), sylvester) < 0).astype(np.uint8)


def _random_bits(tag: str, count: int) -> Bits:
    data = np.frombuffer(shake_128(tag.encode()).digest(-(-count // 8)), np.uint8)
    return np.unpackbits(data, count=count, bitorder="little")
