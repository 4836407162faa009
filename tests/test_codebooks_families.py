"""Every family keeps its mathematical promise, checked against explicit matrices."""

from __future__ import annotations

import itertools
import tracemalloc
from time import perf_counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import hadamard as scipy_hadamard

from fixclf_infer.codebooks import (
    Codebook,
    KernelData,
    choose,
    codebook,
    from_identity,
    orthoplex,
)
from fixclf_infer.codebooks.galois import BinaryField, prime_power, primitive_powers
from fixclf_infer.codebooks.kerdock import capacity as kerdock_limit
from fixclf_infer.codebooks.kerdock import coherence, field_degree, forms
from fixclf_infer.codebooks.orders import (
    base_matrix,
    choose_order,
    cover,
    find_order,
    power_of_two,
)

Matrix = NDArray[np.float64]
UNKNOWN = [188, 236, 268, 324, 356, 376, 404, 412, 428, 436, 452, 472, 508]  # up to 512


def expand(data: KernelData, in_features: int, num_classes: int) -> Matrix:
    """The rows that the kernels' data describe, by their definition and nothing else."""
    base: Matrix = np.ones((1, 1))
    if data.base is not None:
        bits = np.unpackbits(data.base, axis=1, bitorder="little")[:, : data.base_order]
        base = np.asarray(1.0 - 2.0 * bits, np.float64)
    matrix = np.kron(base, scipy_hadamard(1 << data.log2))
    stack = []
    for block in range(data.blocks):
        flips: Matrix = np.ones(data.order)
        if data.signs is not None:
            bits = np.unpackbits(data.signs[block], bitorder="little")[: data.order]
            flips = np.asarray(1.0 - 2.0 * bits, np.float64)
        stack.append(matrix * flips)
        if data.negate:
            stack.append(-matrix * flips)
    rows = np.concatenate(stack)
    assert len(rows) == data.rows
    rows = rows[data.row_offset : data.row_offset + num_classes]
    rows = rows[:, data.column_offset : data.column_offset + in_features]
    assert rows.shape == (num_classes, in_features)
    if data.center:
        rows = np.sqrt(num_classes / (num_classes - 1)) * (rows - rows.mean(axis=0))
    return rows


def extremes(book: Codebook) -> tuple[float, float, int]:
    """Largest cosine, coherence between lines, identical pairs: by the Gram matrix."""
    rows = book.matrix().astype(np.float64)
    gram = (rows @ rows.T / book.in_features)[np.triu_indices(len(rows), 1)]
    lines = np.abs(gram[gram > -1 + 1e-6])
    return gram.max(), lines.max(initial=-1), int((gram > 1 - 1e-6).sum())


# Orders


@pytest.mark.parametrize("q", [2, 4, 8, 9, 25, 27, 49, 81, 121, 125, 169, 243, 343, 512])
def test_primitive_powers_run_through_the_field(q: int) -> None:
    p, k = prime_power(q) or (0, 0)
    assert p**k == q
    assert sorted(primitive_powers(p, k)) == list(range(1, q))


@pytest.mark.parametrize("q", [0, 1, 6, 12, 100, 225])
def test_other_numbers_are_no_prime_powers(q: int) -> None:
    assert prime_power(q) is None


@pytest.mark.parametrize("m", range(1, 17))
def test_binary_field(m: int) -> None:
    field = BinaryField(m)
    a, b, c = np.random.default_rng(m).integers(0, field.size, (3, 500))
    multiply = field.multiply
    assert np.array_equal(multiply(a, b ^ c), multiply(a, b) ^ multiply(a, c))
    assert np.array_equal(multiply(multiply(a, b), c), multiply(a, multiply(b, c)))
    assert np.array_equal(field.power(a, 3), multiply(a, multiply(a, a)))
    trace = field.trace(np.arange(field.size))
    assert set(trace) == {0, 1}
    assert np.array_equal(trace[a ^ b], trace[a] ^ trace[b])
    assert 2 * trace.sum() == field.size


def test_every_order_up_to_1024_is_a_hadamard_matrix() -> None:
    claimed = [n for n in range(1, 1025) if find_order(n)]
    assert all(n in (1, 2) or n % 4 == 0 for n in claimed)
    for n in claimed:
        rows = codebook(n, max(1, n - 1), "hadamard" if n > 1 else "auto", exact=True).matrix()
        rows = np.concatenate([np.ones((1, n)), rows])[:n].astype(np.float32)
        assert np.array_equal(rows @ rows.T, n * np.eye(n, dtype=np.float32)), n
    assert [n for n in range(4, 513, 4) if n not in claimed] == UNKNOWN
    assert set(range(4, 101, 4)) <= set(claimed)
    widths = [192, 384, 576, 640, 672, 768, 896, 960, 1008]
    assert set(widths) <= set(claimed)


@pytest.mark.parametrize("n", [1280, 1408, 1536, 1664, 1792, 1920, 2048, 2208, 2560, 4032])
def test_usual_widths_have_orders(n: int) -> None:
    order = find_order(n)
    assert order is not None and order.n == n
    base = base_matrix(order.base).astype(np.int64)
    assert np.array_equal(base @ base.T, order.base * np.eye(order.base))


def test_bases_are_normalised_and_smallest() -> None:
    for n in range(4, 1025, 4):
        order = find_order(n)
        if order:
            base = base_matrix(order.base)
            assert (base[0] == 1).all() and (base[:, 0] == 1).all()
            smaller = [b for b in range(2, order.base) if n % b == 0 and (n // b).bit_count() == 1]
            assert order.base == 1 or not any(find_order(b) for b in smaller)


def test_sylvester_is_scipys() -> None:
    rows = scipy_hadamard(256)
    assert np.array_equal(codebook(256, 255, "hadamard").matrix(), rows[1:])


# Kerdock, Delsarte–Goethals


@pytest.mark.parametrize("m", [4, 6, 8])
def test_kerdock_even_is_bent(m: int) -> None:
    n = 1 << m
    masks = (1 - 2 * forms(m, np.arange(n // 2)).astype(int)).astype(np.float32)
    sylvester = scipy_hadamard(n).astype(np.float32)
    for i in range(n // 2 - 1):
        assert (np.abs(masks[i + 1 :] * masks[i] @ sylvester) == n**0.5).all()


@pytest.mark.parametrize("m", [3, 5, 7])
def test_kerdock_odd_is_almost_bent(m: int) -> None:
    n = 1 << m
    masks = (1 - 2 * forms(m, np.arange(n)).astype(int)).astype(np.float32)
    sylvester = scipy_hadamard(n).astype(np.float32)
    for i in range(n - 1):
        values = np.abs(masks[i + 1 :] * masks[i] @ sylvester)
        assert set(np.unique(values)) == {0.0, np.float32(2 * n) ** 0.5}


@pytest.mark.parametrize(
    "features, classes",
    [
        *[(8, 17), (8, 18), (8, 112), (16, 33), (16, 34), (16, 224), (32, 65), (32, 1984)],
        *[(64, 129), (64, 3968), (128, 5000)],
    ],
)
def test_kerdock_extremes(features: int, classes: int) -> None:
    book = codebook(features, classes)
    report = book.report()
    expected = (features if features.bit_length() % 2 else features / 2) ** -0.5
    assert (book.kind, report.method) == ("kerdock", "exact")
    assert (report.largest_cosine, report.coherence) == (expected, expected)
    assert extremes(book) == (expected, expected, 0)


@pytest.mark.parametrize("m", range(4, 10))
def test_every_row_of_a_kerdock_set_is_nearly_balanced(m: int) -> None:
    rows = codebook(1 << m, 8 << m, "kerdock").matrix()
    sums = np.abs(rows.sum(axis=1, dtype=np.int64))
    assert set(sums) == ({1 << m // 2} if m % 2 == 0 else {0, 1 << (m + 1) // 2})


@pytest.mark.parametrize(
    "m, digits",
    [(4, 2), (5, 2), (6, 2), (7, 2), (8, 2), (9, 2), (6, 3), (7, 3), (8, 3), (10, 2), (12, 2)],
)
def test_first_mask_with_more_digits_attains_the_bound(m: int, digits: int) -> None:
    first = 1 << (digits - 1) * field_degree(m)
    difference = forms(m, np.arange(1, min(first, 1 << 14 if digits == 3 else 1024))) ^ forms(
        m, np.array([first])
    )
    sylvester = scipy_hadamard(1 << m).astype(np.float32)
    worst = max(
        np.abs((1 - 2.0 * difference[i : i + 1024].astype(np.float32)) @ sylvester).max()
        for i in range(0, len(difference), 1024)
    )
    assert worst / 2**m == coherence(m, digits)


@pytest.mark.parametrize("m, digits", [(4, 2), (5, 2), (6, 2), (7, 2), (6, 3), (8, 2), (8, 3)])
def test_forms_keep_the_rank_bound(m: int, digits: int) -> None:
    count = 1 << digits * field_degree(m)
    pairs = np.random.default_rng(0).integers(0, count, (2, 4000))
    pairs = pairs[:, pairs[0] != pairs[1]]
    values = 1 - 2.0 * (forms(m, pairs[0]) ^ forms(m, pairs[1])).astype(np.float32)
    worst = np.abs(values @ scipy_hadamard(1 << m).astype(np.float32)).max()
    assert worst / 2**m <= coherence(m, digits)


def test_all_quadratic_forms_are_reached_once() -> None:
    for m in (4, 5):
        degree, digits = field_degree(m), m // 2
        every = forms(m, np.arange(1 << degree * digits))
        assert len(np.unique(every, axis=0)) == 2 ** (m * (m - 1) // 2)


def test_delsarte_goethals_extremes() -> None:
    for features, classes in [
        *[(16, 225), (16, 256), (16, 257), (16, 2016)],
        *[(32, 1985), (32, 2049), (32, 6000), (64, 3969), (64, 4096), (64, 4097)],
    ]:
        book = codebook(features, classes)
        report = book.report()
        largest, between_lines, identical = extremes(book)
        assert (book.kind, report.method, identical) == ("delsarte_goethals", "exact", 0)
        assert (report.largest_cosine, report.coherence) == (largest, between_lines)


# Composite orders


@pytest.mark.parametrize(
    "features, classes",
    [
        (48, 97),
        (48, 190),
        (48, 191),
        (96, 288),
        (96, 193),
        (96, 1000),
        (96, 1535),
        (192, 1000),
        (192, 3000),
        (384, 2000),
    ],
)
def test_twisted_kerdock_extremes_are_proven(features: int, classes: int) -> None:
    book = codebook(features, classes)
    report = book.report()
    assert (book.kind, report.method) == ("search", "exact")
    assert extremes(book) == pytest.approx((report.largest_cosine, report.coherence, 0), abs=1e-12)


@pytest.mark.parametrize(
    "features, classes", [(384, 1000), (384, 30_000), (768, 8000), (768, 60_000), (960, 8000)]
)
def test_search_beats_random_masks(features: int, classes: int) -> None:
    book = codebook(features, classes)
    order, data = find_order(features), book.kernel
    assert order is not None and data is not None and data.signs is not None
    found = book.report().coherence
    random = []
    for seed in range(3):
        signs = np.random.default_rng(seed).integers(0, 256, data.signs.shape, np.uint8)
        plain = KernelData(order.base, order.log2, order.bits, signs, True, False, 0, 0)
        random.append(Codebook("random", 0, features, classes, seed, plain).report().coherence)
    assert found is not None and all(found < coherence for coherence in random if coherence)


@pytest.mark.parametrize("features, classes", [(5, 20), (10, 60), (12, 400), (20, 2000)])
def test_small_features_have_distinct_rows(features: int, classes: int) -> None:
    book = codebook(features, classes)
    assert book.kind == "search"
    assert len(np.unique(book.matrix(), axis=0)) == classes


# ETF


@pytest.mark.parametrize("features, classes", [(16, 2), (16, 10), (64, 64), (12, 7), (92, 92)])
def test_etf_is_the_dense_simplex_up_to_rotation(features: int, classes: int) -> None:
    book = codebook(features, classes, "etf")
    rows = book.matrix().astype(np.float64) / features**0.5
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(features, classes)))[0]
    centre = np.eye(classes) - 1 / classes
    dense = (np.sqrt(classes / (classes - 1)) * basis @ centre).T
    assert rows @ rows.T == pytest.approx(dense @ dense.T, abs=1e-6)
    u, _, vt = np.linalg.svd(rows.T @ dense)
    assert rows @ (u @ vt) == pytest.approx(dense, abs=1e-5)
    assert book.kernel is not None and book.kernel.row_offset == int(classes < features)


@pytest.mark.parametrize("features", [1, 3, 7, 11, 15, 27, 91, 1023])
def test_full_simplex_without_the_constant_column(features: int) -> None:
    book = codebook(features, features + 1, "etf")
    rows = book.matrix().astype(np.int64)
    assert book.dtype == np.int8 and book.kernel is not None and book.kernel.column_offset == 1
    assert np.array_equal(rows @ rows.T, (features + 1) * np.eye(features + 1) - 1)


# Dense and legacy


@pytest.mark.parametrize("features, classes", [(20, 7), (64, 64), (33, 100)])
def test_orthonormal(features: int, classes: int) -> None:
    book = codebook(features, classes, "orthonormal", seed=3)
    rows = book.matrix().astype(np.float64) / features**0.5
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(classes), abs=1e-4)
    if classes <= features:
        assert rows @ rows.T == pytest.approx(np.eye(classes), abs=1e-4)
    other = codebook(features, classes, "orthonormal", seed=4)
    assert not np.array_equal(book.matrix(), other.matrix())
    assert book.kernel is None and book.dense is not None


def test_orthonormal_is_random_in_every_direction() -> None:
    entries = codebook(400, 300, "orthonormal").matrix().astype(np.float64)
    assert entries.mean() == pytest.approx(0, abs=0.01)
    assert (entries**4).mean() == pytest.approx(3, abs=0.05)  # as Gaussians
    projection = entries.T @ entries / 400  # a random subspace, so not axis-aligned
    assert np.diag(projection) == pytest.approx(np.full(400, 0.75), abs=0.15)


def test_user_matrix_keeps_directions() -> None:
    given_rows = np.random.default_rng(0).normal(size=(30, 12)) * 1e30
    rows = codebook(12, 30, "matrix", matrix=given_rows).matrix().astype(np.float64)
    unit = given_rows / np.linalg.norm(given_rows, axis=1, keepdims=True)
    assert rows / 12**0.5 == pytest.approx(unit, abs=1e-6)


@pytest.mark.parametrize("kind", ["hoffer", "brevitas"])
@pytest.mark.parametrize("features, classes", [(1, 1), (12, 9), (512, 1000), (768, 512), (5, 40)])
@pytest.mark.filterwarnings("ignore:kind=")
def test_legacy_is_truncated_sylvester(kind: str, features: int, classes: int) -> None:
    book = codebook(features, classes, kind)
    size = 2 ** int(np.ceil(np.log2(max(features, classes))))
    assert np.array_equal(book.matrix(), scipy_hadamard(size)[:classes, :features])
    if classes > 1:
        largest, between_lines, identical = extremes(book)
        report = book.report()
        assert report.identical_pairs == identical
        assert (report.largest_cosine, report.coherence) == pytest.approx((largest, between_lines))


def test_legacy_warns_with_the_number_of_identical_classes() -> None:
    with pytest.warns(UserWarning, match="488 pairs of identical classes"):
        codebook(512, 1000, "hoffer")


def test_truncation_costs_what_the_design_says() -> None:
    assert codebook(768, 512, "hoffer").report().coherence == pytest.approx(1 / 3)
    assert codebook(768, 512).report().coherence == 0


# Any pair


@settings(deadline=None, max_examples=60)
@given(features=st.integers(1, 70), classes=st.integers(1, 700), seed=st.integers(0, 3))
def test_any_pair(features: int, classes: int, seed: int) -> None:
    if features < 12:  # a greedy search cannot use up all rows
        classes = min(classes, 2 ** (features - 2) if features > 4 else 2**features)
    book = codebook(features, classes, seed=seed)
    rows = book.matrix()
    assert rows.shape == (classes, features) and set(np.unique(rows)) <= {-1, 1}
    assert len(np.unique(rows, axis=0)) == classes
    assert book.kernel is not None
    assert np.array_equal(rows, expand(book.kernel, features, classes))
    ids = np.random.default_rng(seed).integers(0, classes, 20)
    assert np.array_equal(book.rows(ids), rows[ids])
    fewer = codebook(features, -(-classes // 2), seed=seed, capacity=classes)
    assert np.array_equal(fewer.matrix(), rows[: fewer.num_classes])
    if classes > 1:
        largest, between_lines, identical = extremes(book)
        report = book.report()
        assert identical == report.identical_pairs == 0
        assert report.largest_cosine == pytest.approx(largest, abs=1e-12)
        assert (report.coherence or -1) == pytest.approx(between_lines or -1, abs=1e-12)
        assert report.rankin_bound is not None and largest >= report.rankin_bound - 1e-12
        if between_lines >= 0:
            assert between_lines >= max(report.welch_bound, report.levenshtein_bound) - 1e-12


@settings(deadline=None, max_examples=30)
@given(features=st.integers(1, 70), classes=st.integers(2, 70))
def test_any_etf_pair_matches_its_kernel_data(features: int, classes: int) -> None:
    try:
        book = codebook(features, classes, "etf")
    except ValueError:
        possible = classes <= features and find_order(features)
        assert not possible and not (classes == features + 1 and find_order(classes))
        return
    assert book.kernel is not None
    assert book.matrix() == pytest.approx(expand(book.kernel, features, classes), abs=1e-6)
    gram = book.matrix().astype(np.float64) @ book.matrix().T / features
    expected = np.full((classes, classes), -1 / (classes - 1))
    np.fill_diagonal(expected, 1)
    assert gram == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("features, classes", [(768, 3000), (960, 2500), (1000, 2100), (92, 800)])
def test_kernel_data_of_larger_pairs(features: int, classes: int) -> None:
    book = codebook(features, classes)
    assert book.kernel is not None
    assert np.array_equal(book.matrix(), expand(book.kernel, features, classes))


@pytest.mark.parametrize("features", [16, 24, 30, 32, 200])
def test_rows_stay_when_classes_are_added(features: int) -> None:
    n = choose_order(features, None).n
    for sizes in ([1, n // 2, n - 1], [n, n + 1, 2 * n, 2 * n + 1, 5 * n, 6 * n, 12 * n]):
        kinds = ["hadamard"] if sizes[-1] < n else ["orthoplex", "kerdock", "search"]
        books = [codebook(features, classes) for classes in sizes]
        assert {book.kind for book in books} <= {*kinds}
        for fewer, more in itertools.pairwise(books):
            ids = np.arange(fewer.num_classes)
            assert np.array_equal(fewer.rows(ids), more.rows(ids))


@pytest.mark.parametrize("features, capacity", [(16, 300), (24, 200), (768, 2000), (1000, 20_000)])
def test_capacity_keeps_the_rows(features: int, capacity: int) -> None:
    books = [codebook(features, c, capacity=capacity) for c in (10, features, features + 3)]
    most = codebook(features, capacity)
    for book in books:
        assert book.kind == most.kind
        assert np.array_equal(book.matrix(), most.rows(np.arange(book.num_classes)))


# No class that cannot win


def edges(features: int) -> list[int]:
    """Numbers of classes around the limits of the families."""
    n, power = choose_order(features, None).n, power_of_two(features)
    sizes = {1, 2, n - 1, n, n + 1, 2 * n, 2 * n + 1, kerdock_limit(power, features, 1)}
    most = 2**features - 2 if features < 16 else 10**4
    return sorted(c for c in sizes if 1 <= c <= most)


@pytest.mark.parametrize(
    "features", [*range(2, 13), 15, 16, 17, 31, 32, 33, 64, 96, 188, 384, 500, 512]
)
def test_no_default_codebook_has_a_constant_row(features: int) -> None:
    for classes in edges(features):
        sums = codebook(features, classes).matrix().sum(axis=1, dtype=np.int64)
        assert np.abs(sums).max() < features, (classes, np.flatnonzero(np.abs(sums) == features))


def test_no_width_up_to_512_has_a_constant_row() -> None:
    for features in range(2, 513):
        order = choose_order(features, None)
        for classes in (min(order.n - 1, 2**features - 2), orthoplex.limit(order, features)):
            rows = codebook(features, classes).matrix()
            assert np.abs(rows.sum(axis=1, dtype=np.int64)).max() < features, (features, classes)


@pytest.mark.parametrize(
    "features, classes",
    [
        (8, 10),
        (64, 64),
        (100, 100),
        (60, 120),
        (512, 1000),
        (512, 1024),
        (1024, 2000),
        (768, 1000),
        (2048, 1000),
        (256, 2000),
        (500, 3000),
    ],
)
def test_every_class_wins_on_features_of_a_relu(features: int, classes: int) -> None:
    """On its own row after a ReLU, and on noisy features near it: the row of −1 won nothing."""
    rows = codebook(features, classes).matrix().astype(np.float32)
    x = np.maximum(rows, 0)
    assert np.array_equal((x @ rows.T).argmax(axis=1), np.arange(classes))
    noise = np.abs(np.random.default_rng(0).normal(size=x.shape)).astype(np.float32)
    won = ((2 * x + noise) @ rows.T).argmax(axis=1)
    assert np.mean(won == np.arange(classes)) > (0.95 if features > 8 else 0.5)


def test_the_few_pairs_that_need_the_constant_rows() -> None:
    needing = []
    for features in range(1, 7):
        for classes in range(1, 2**features + 1):
            book = codebook(features, classes)
            rows = book.matrix()
            assert len(np.unique(rows, axis=0)) == classes
            constant = np.abs(rows.sum(axis=1, dtype=np.int64)) == features
            assert constant.any() == ("constant rows too" in book.explain())
            if constant.any():
                needing.append((features, classes))
    assert min(c for n, c in needing if n == 4) == 12
    assert [(n, c) for n, c in needing if n < 4] == [(1, 1), (1, 2), (2, 3), (2, 4), (3, 7), (3, 8)]


def test_search_is_prefix_stable_past_the_structured_masks() -> None:
    small, large = codebook(192, 6000, "search"), codebook(192, 9000, "search")
    assert np.array_equal(small.rows(np.arange(6000)), large.rows(np.arange(6000)))


@pytest.mark.parametrize(
    "features, classes, kind, max_base",
    [
        (512, 511, "hadamard", None),
        (512, 512, "orthoplex", None),
        (512, 1024, "orthoplex", None),
        (512, 1025, "kerdock", None),
        (512, 2 * 512**2 - 1024, "kerdock", None),
        (512, 2 * 512**2, "delsarte_goethals", None),
        (768, 10, "hadamard", 1),
        (768, 600, "hadamard", None),
        (768, 1536, "orthoplex", None),
        (768, 1537, "search", None),
        (4, 8, "orthoplex", None),
        (4, 9, "search", None),
        (2, 2, "orthoplex", None),
        (1, 1, "search", None),
        (1000, 1000, "hadamard", None),
        (1000, 2048, "orthoplex", None),
        (1000, 2049, "kerdock", None),
        (960, 960, "orthoplex", None),
        (960, 1921, "kerdock", None),
        (1023, 5000, "kerdock", None),
    ],
)
def test_auto(features: int, classes: int, kind: str, max_base: int | None) -> None:
    assert choose(features, classes) == (kind, max_base)
    book = codebook(features, classes)
    assert (book.kind, book.max_base) == (kind, max_base) and str(classes) in book.explain()
    assert from_identity(book.identity()).digest == book.digest


def test_dropped_columns_are_the_next_order() -> None:
    assert cover(188).n == 192
    book = codebook(188, 150)
    assert book.order == 192 and "4 of 192 columns are dropped" in book.explain()
    assert 0 < extremes(book)[1] <= 4 / 188


@pytest.mark.parametrize(
    "features, classes, seconds, megabytes",
    [(1024, 10**6, 2, 50), (1024, 10**7, 4, 200), (768, 10**6, 20, 50)],
)
def test_many_classes_build_fast_and_small(
    features: int, classes: int, seconds: float, megabytes: float
) -> None:
    start = perf_counter()
    book = codebook(features, classes)
    assert perf_counter() - start < seconds
    tracemalloc.start()
    codebook(features, classes)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < megabytes * 2**20
    assert book.kernel is not None and book.kernel.signs is not None
    assert book.kernel.signs.nbytes <= classes / 8
    ids = np.array([0, classes // 2, classes - 1])
    rows = book.rows(ids).astype(np.int64)
    assert (np.abs(rows @ rows.T - features * np.eye(3)) < features / 3).all()
