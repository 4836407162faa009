"""Masks for composite orders, and for any C that the algebraic families do not reach.

Construction. Block j is `H_n F D_j` followed by its negation, n = b · 2^k. No optimal set is known
for b > 1; ours has two layers, with q = 2^{k−1} (k even ≥ 2), 2^k (k odd ≥ 3) or 1 (k ≤ 1).
1. Twisted Kerdock masks, j < q: D_j = g_j ⊗ κ_j, with κ_j mask j of the `kerdock` set of order 2^k
   and g_j word j of a linear code of length b. Each generator of the code is the best of some
   candidates: the one whose coset has the lowest β(g) = max_{i,i'} |Σ_c g_c P[i, c] P[i', c]| / b.
2. Translates, j ≥ q: D_j = R_h D_{j mod q} with h = ⌊j/q⌋. Each R_h is the best of some random
   masks: the one with the lowest coherence between its translate and those before. The number of
   candidates falls as h grows, which bounds the work; late translates are plain random ones.
F is the same in all blocks, so that it changes no cosine: without it the first block would have a
row of +1 and one of −1, which with non-negative features always and never win. It is the one of
some random masks that leaves the rows most balanced. Candidates are SHAKE-128 of (n, seed, step).
Mask j depends on (N, seed) and the masks before it only, so classes keep their rows when C grows.
b = 1: F = 1 and mask 0 is left out, as in `kerdock`. Where a small N is used up otherwise, the rows
of H_n come last, the constant ones last among them.

Guarantee. The inner product of rows of blocks j ≠ j' < q factors into |Σ_c g_j g_j' P P'| · |W|, W
a Walsh–Hadamard value of κ_j κ_j'. So their coherence is exactly max β(g_j g_j') times that of the
Kerdock set, 2^{−k/2} (k even) or √2 · 2^{−k/2} (k odd): often half that of random masks
(docs/codebooks.md). Translates have a measured coherence, without a bound in advance. For k odd a
Kerdock set is closed under addition: two translates show q different products, not q², which
lowers their coherence too.
Rows are distinct and none is constant: for j < q because β ≤ 1, for N ≤ 128 by comparison, and else
because random rows coincide with a probability of 2^{−N} a pair.

Limits. None but the number of different ±1 rows; where a small N is used up, it says so.

Kerdock: see `kerdock`. SHAKE-128: FIPS 202 (2015).
"""

from __future__ import annotations

from functools import cache
from hashlib import shake_128

import numpy as np
from numpy.typing import NDArray

from .base import Codebook, Cosines
from .kerdock import capacity, coherence, field_degree, forms
from .kernel import Bits, KernelData, pack, parity
from .measure import block_products, signs, walsh_hadamard
from .orders import Order, base_matrix, choose_order, prices

VERSION = 3
CANDIDATES = 64  # of one step, at most (twice as many for a generator)
WORK = 1e9  # operations spent on the candidates of one step, at most
ATTEMPTS = 1000  # candidates after which a small N counts as used up
COMPARE_UP_TO = 128  # features up to which rows are compared


def build(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    order = choose_order(in_features, max_base)
    per_block = 2 * order.n
    count = -(-num_classes // per_block)
    masks = stack(order, in_features, seed, count)
    found, q = len(masks), structured(order, in_features) - (order.base == 1)
    every = ""
    if found < count:  # few features: what is left are the rows of H_n
        masks = np.concatenate([masks, last_row(order)[None]])
        if num_classes >= per_block * found + order.n:
            every = "; so many classes need the constant rows too"
    if num_classes > per_block * len(masks):
        raise ValueError(
            f"num_classes must be at most {per_block * len(masks)} for in_features={in_features} "
            f"with seed={seed} (no further distinct rows were found), got {num_classes}"
        )
    cosines = None
    if order.base > 1 and in_features == order.n and 1 < count <= q:
        last_rows = min(order.n, num_classes - per_block * (count - 1))
        words = code(order, seed, count)
        value = _twisted_coherence(order, words, count, -(-last_rows >> order.log2))
        cosines = Cosines(value, value)
    twisted = min(found, q)
    names = [f"{twisted} twisted Kerdock masks"] * (twisted > 0)
    names += [f"{found - twisted} translates, found by search"] * (found > twisted)
    names += [f"the rows of H_{order.n}"] * (found < count)
    return Codebook(
        kind="search",
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        kernel=KernelData(order.base, order.log2, order.bits, pack(masks), True, False, 0, 0),
        reason=f"C = {num_classes} and order {order}: no optimal set of masks is known; these are "
        f"{' and '.join(names)}{prices(order, in_features)}{every}.",
        cosines=cosines,
        max_base=max_base,
    )


def first_mask(order: Order, in_features: int) -> Bits | None:
    """The signs of the first block, here or in `kerdock`; None if all leave a constant row."""
    masks = stack(order, in_features, 0, 1)
    return masks[0] if len(masks) else None


def stack(order: Order, in_features: int, seed: int, count: int) -> Bits:
    """The signs of the blocks, [count, n], or as many as are found."""
    if order.base > 1:
        flips = _flips(order, in_features)
        return flips ^ masks_of(order, in_features, seed, count, flips)
    if count == 1 and capacity(order, in_features, 1):
        return forms(order.log2, np.array([1]))
    return masks_of(order, in_features, seed, count + 1)[1:]


@cache
def _flips(order: Order, in_features: int) -> Bits:
    """F. No mask 0 … q − 1 leaves a constant row with it."""
    q = structured(order, in_features) if in_features <= COMPARE_UP_TO else 1
    twisted = masks_of(order, in_features, 0, q)
    taken = set(_lines(order, in_features, twisted))
    best, least = None, in_features
    for attempt in range(CANDIDATES):
        mask = _random_bits(f"flips {order.n} {attempt}", order.n)
        largest = np.abs(row_sums(order, mask, in_features)).max()
        if largest < least and taken.isdisjoint(_line(mask, in_features)):
            best, least = mask, largest
    assert best is not None
    return best


def row_sums(order: Order, mask: Bits, in_features: int) -> NDArray[np.float32]:
    """The sum of each row of H_n D over the first columns, [n]."""
    masked = signs(mask).astype(np.float32)
    masked[in_features:] = 0
    slices = walsh_hadamard(masked.reshape(order.base, -1))
    return np.asarray(base_matrix(order.base).astype(np.float32) @ slices).reshape(-1)


def last_row(order: Order) -> Bits:
    """Row n − 1 of H_n as a mask: with it, H_n has its rows in another order, all ones last."""
    index = np.arange(1 << order.log2)
    return ((base_matrix(order.base)[-1:].T < 0) ^ parity(index)).reshape(-1).astype(np.uint8)


def masks_of(
    order: Order, in_features: int, seed: int, count: int, avoid: Bits | None = None
) -> Bits:
    """D_0 … D_{count − 1}, or as many as are found; `avoid` becomes no row of them."""
    q = min(count, structured(order, in_features))
    masks = (code(order, seed, q)[:q, :, None] ^ kerdock_masks(order, q)).reshape(q, -1)
    return extend(masks, order, in_features, count, seed, avoid) if count > q else masks


def structured(order: Order, in_features: int) -> int:
    """q if twisted Kerdock masks are sure to give distinct rows, else 1 (the mask 0)."""
    if order.base == 1:
        return 1 << field_degree(order.log2) if capacity(order, in_features, 1) else 1
    return 1 << field_degree(order.log2) if reach(order, in_features) < in_features else 1


def reach(order: Order, in_features: int) -> float:
    """The largest inner product of two rows of different blocks, at most."""
    if order.log2 < 2:
        return in_features
    return coherence(order.log2, 1) * order.n + (order.n - in_features)


def kerdock_masks(order: Order, count: int) -> Bits:
    """The first masks of the Kerdock set of order 2^k, [count, 1, 2^k]."""
    if count == 1:
        return np.zeros((1, 1, 1 << order.log2), np.uint8)
    return forms(order.log2, np.arange(count))[:, None, :]


def code(order: Order, seed: int, count: int) -> Bits:
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


def extend(
    first: Bits,
    order: Order,
    in_features: int,
    count: int,
    seed: int,
    avoid: Bits | None = None,
) -> Bits:
    """`first`, followed by translates of it: `count` masks, or as many as are found."""
    n, q = order.n, len(first)
    products = [first] if order.log2 % 2 else [first[i:] ^ first[i] for i in range(q)]
    work = sum(map(len, products)) * n * (order.base**2 + order.log2)
    translations = [np.zeros(n, np.uint8)]
    seen = set(_lines(order, in_features, first))
    if avoid is not None:
        seen.update(_line(avoid, in_features))
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
    return _line(bits, in_features)


def _line(bits: Bits, in_features: int) -> list[bytes]:
    """The keys of rows of 0/1."""
    bits = bits[..., :in_features]
    return [row.tobytes() for row in pack(bits ^ bits[..., :1]).reshape(-1, -(-in_features // 8))]


@cache
def _hadamard_bits(order: Order) -> Bits:
    """H_n as 0/1, for small n."""
    sylvester = walsh_hadamard(np.eye(1 << order.log2, dtype=np.float32))
    return (np.kron(base_matrix(order.base), sylvester) < 0).astype(np.uint8)


def _random_bits(tag: str, count: int) -> Bits:
    data = np.frombuffer(shake_128(tag.encode()).digest(-(-count // 8)), np.uint8)
    return np.unpackbits(data, count=count, bitorder="little")
