"""The interface of fixclf_infer.codebooks: identities, reports, errors."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from scipy.linalg import hadamard as scipy_hadamard

from fixclf_infer.codebooks import (
    FAMILIES,
    Codebook,
    KernelData,
    codebook,
    from_identity,
    versions,
)
from fixclf_infer.codebooks.base import MAX_CLASSES, MAX_FEATURES
from fixclf_infer.codebooks.measure import (
    additions,
    block_products,
    levenshtein_bound,
    rankin_bound,
    welch_bound,
)
from fixclf_infer.codebooks.orders import base_matrix, find_order

# These never change: a different digest means that stored models get other class vectors. Versions
# before the present one come back from identities.
GOLDEN = """
hadamard 3 512 511 0 ebcf3095368c5bc80a0e729cfe70ac47d760fc39a0ca3d315fd35171080a4e87
hadamard 3 2048 10 0 dcbab706fd8a254067f762434b96c054371e6289d51a607807a2ef6b452e71bc
hadamard 3 92 91 0 fb1e8197353c398e11d7509531b3e20b04ccccaa5492d31fb2bd8a1d803fcf8a
hadamard 3 960 959 0 3f6749869a52ec3e313255b0c4d95b8021592e54919433d294034d442c716b02
hadamard 3 10 11 0 158caa369ba55eb576453d30fe367aa316ac5892f85be468d6791db8f85e8601
orthoplex 3 512 512 0 fc38f96d289c0c1c6baa544baddd5b32c1e45894d03e4f93749d50b5f7e1a246
orthoplex 3 512 1000 0 02c73752697f89597075c92b3bc02f4d3d3217e06f0f2593d9bb35244bd6a490
orthoplex 3 768 1536 0 682a88b3f66540b125b501876a742bef786e8cfa3248290f0e35293a0903c989
orthoplex 3 1000 1000 0 d8c22987be1d718624fd90431994fcf780ca024bc368c4d1e17b797f47019c9b
orthoplex 3 3 6 0 f1de03711155c93aab95fb9f7caf07a2754d0ac46be23e92c2cf39eb986502c5
kerdock 3 64 3968 0 4c35b57e5781819e99be44bc014953883056cd7843d8ba193fe1a696b67319b4
kerdock 3 500 100000 0 369a7582426bea8767a0388157637136fbb039d6a52da7e2400a8980d0a96c4f
delsarte_goethals 3 64 4096 0 3d2979745e6b2006d7ca159df2fd29cd3653e31b2404f7d88c180f9d96959cb9
search 3 384 1000 0 f7e8f2e32ff21d87ef546e55e11cf0eaa5f80aff6077d23c1696321e5a860975
search 3 384 1000 1 1647b75ba36654d21f372b9121824aabd042b94e4af858ea5748613dd7ac30c8
search 3 768 60000 0 7c9caaa2cfa85ebb5893d392accd16e6bf0bcfdda25d67000ec70b13f3cf4310
search 3 20 1000 0 6c9fa37bd78c59a844302d546f191823de5dc6640c46a52ee9031c0ab1ef1679
search 3 4 16 0 da011cd616f35c77e6bdd4eb8c5a5ef9fdbd71dce7737b10fefa715a47c85282
etf 2 64 10 0 871763a1a6eeff263c4bbaef51d7060f86d9c6c013e094f10d273d7b00926abe
etf 2 64 64 0 387253f9f12414c7c6c30f425946b3ec10dda9412bdbdea692efb3aa9cc81683
etf 2 1023 1024 0 6c80a5f41b6987faf82da8f8c4f46592580e9b7b13485013b998468871e09277
hadamard 2 512 512 0 226279da1d6e6e611be88df31ae67ff6e6e17e72f836a42e8b7955e1fae037fa
hadamard 2 512 100 0 0b84bf1fc3a49795633ed9c0f7b7b141b2f09e5c360d7045c37eab77457d1aec
hadamard 2 92 92 0 a8ce754b3d57aa04855a73d2f86217a9c0d172427d982a4ce57e0dce01bf1988
hadamard 2 960 960 0 8cc2ecc11687bc69f78e79ae3d418962ca8eb6ee8e0323103d7d7214fe47dcf0
hadamard 2 10 12 0 684d3e4d6aa5d3056fd53e22c16dc642f19871f74b4b8e6ec72ece2ad53cf2f6
orthoplex 2 512 1000 0 15200f61c26c343a69f11d3f2f5bf49dbe8f4448208492bd3187018c1e27d55d
orthoplex 2 768 1000 0 91609715e16b1346e8e9b10de9b19ef00a045b4cd1ee6222df13c12d1309946c
orthoplex 2 768 1536 0 618eb456285c3d568a1e051572132a3dc0c4ff7c82362249ec72d8e6feacea47
kerdock 2 64 4096 0 7e29847e7d622811f7c4bf565260871645970fc8d2a64d66c8b579fa2ed92484
delsarte_goethals 2 64 4096 0 bd08bd738d56de340c55ad21325994585729e1dd77bc4728466b58250438b430
search 2 384 1000 0 a387ab16e58486ba97b36a2cadf6f7624d93bf744fa0dd2c38066f85cb1174da
search 2 384 1000 1 06faf84dcc784bd55c32dce469cb92c37803b2579917d79c086c08c24d2d030b
search 2 768 60000 0 09c9591e5517defd33cc5e94fb016974926e26394d135e10bd708a957e2597b4
search 2 20 1000 0 ff69b67d2c8b4a772c6c6b3cd15e0af129f5eaea90716cc2aaed0bc0d0efea7d
etf 1 64 10 0 62c3983a0d2256cb0f2a1437b2ab2b675e3cffa8ddba8d73c9493f4ba73242a6
etf 1 1023 1024 0 d2918c458a6ddb41d954bc19b608503cd7950b918c2ef9768638e7d1c6f5068f
orthonormal 1 32 10 0 3d6970a73f54c969692bf26b54285d44a985efdaf482feadf38d00bb2f2bcfb5
hoffer 1 512 1000 0 26855f2da649d307f24ca69ddf461297edaeb21ed6826812482402d0c1db8abd
brevitas 1 512 1000 0 9d919bf7c90b789eac2c0232c2fe5187d3ba5d79013def3a8ae43ef37c5feb4e
"""


@pytest.mark.filterwarnings("ignore:kind=")
@pytest.mark.parametrize("line", GOLDEN.split("\n")[1:-1], ids=lambda line: line[:-65])
def test_golden_digests(line: str) -> None:
    kind, version, features, classes, seed, digest = line.split()
    identity = {
        "kind": kind,
        "version": int(version),
        "in_features": int(features),
        "num_classes": int(classes),
        "seed": int(seed),
        "digest": digest,
    }
    assert from_identity(identity).digest == digest
    if int(version) == versions(kind)[-1]:
        assert codebook(int(features), int(classes), kind, seed=int(seed)).identity() == identity


@pytest.mark.filterwarnings("ignore:kind=")
@pytest.mark.parametrize("kind", FAMILIES)
def test_identity_rebuilds_the_codebook(kind: str) -> None:
    features, classes = {"delsarte_goethals": (16, 300), "kerdock": (16, 100)}.get(kind, (16, 12))
    book = codebook(features, classes, kind, seed=5)
    identity = json.loads(json.dumps(book.identity()))
    assert identity == {
        "kind": kind,
        "version": book.version,
        "in_features": features,
        "num_classes": classes,
        "seed": 5,
        "digest": book.digest,
    }
    again = from_identity(identity)
    assert np.array_equal(again.matrix(), book.matrix()) and again.digest == book.digest


def test_auto_stores_the_kind_that_it_stands_for() -> None:
    assert codebook(512, 1000).identity()["kind"] == "orthoplex"


def test_identity_of_a_user_matrix_needs_the_matrix() -> None:
    rows = np.eye(4, 6)
    identity = codebook(6, 4, "matrix", matrix=rows).identity()
    assert from_identity(identity, matrix=rows).digest == identity["digest"]
    with pytest.raises(ValueError, match="matrix must be given"):
        from_identity(identity)
    with pytest.raises(ValueError, match="identity must have the digest"):
        from_identity(identity, matrix=np.eye(4, 6)[::-1])


@pytest.mark.parametrize("key, value", [("version", 99), ("digest", "0" * 64)])
def test_identity_mismatch_names_both(key: str, value: object) -> None:
    book = codebook(16, 10)
    with pytest.raises(ValueError) as error:
        from_identity(book.identity() | {key: value})
    assert str(value) in str(error.value) and str(getattr(book, key)) in str(error.value)


def test_identity_with_a_missing_key() -> None:
    identity = codebook(16, 10).identity()
    del identity["digest"]
    with pytest.raises(ValueError, match=r"got none of \['digest'\]"):
        from_identity(identity)


def test_digest_covers_every_bit() -> None:
    book = codebook(384, 1000)
    data = book.kernel
    assert data is not None and data.signs is not None and data.base is not None
    for name in ("signs", "base"):
        changed = getattr(data, name).copy()
        changed[-1, -1] ^= 1
        fields = {**vars(data), name: changed}
        other = Codebook(book.kind, book.version, 384, 1000, 0, KernelData(**fields))
        assert other.digest != book.digest


BAD = [
    ((0, 10), {}, ValueError, r"in_features must lie in \[1, 65536\], got 0"),
    ((-3, 10), {}, ValueError, "in_features must lie in .* got -3"),
    ((MAX_FEATURES + 1, 10), {}, ValueError, "in_features must lie in .* got 65537"),
    ((16, 0), {}, ValueError, r"num_classes must lie in \[1, 16777216\], got 0"),
    ((16, MAX_CLASSES + 1), {}, ValueError, "num_classes must lie in"),
    ((16.0, 10), {}, TypeError, "in_features must be an integer, got 16.0 of type float"),
    ((16, "10"), {}, TypeError, "num_classes must be an integer, got '10' of type str"),
    ((True, 10), {}, TypeError, "in_features must be an integer, got True"),
    ((16, 10), {"seed": -1}, ValueError, "seed must lie in .* got -1"),
    ((16, 10), {"seed": 0.5}, TypeError, "seed must be an integer"),
    ((16, 10, "walsh"), {}, ValueError, "kind must be one of auto, hadamard, .* got 'walsh'"),
    ((16, 10, None), {}, ValueError, "kind must be one of .* got None"),
    ((16, 16, "hadamard"), {}, ValueError, "at most 15 .* got 16; kind='orthoplex' has more"),
    ((16, 33, "orthoplex"), {}, ValueError, "num_classes must be at most 32 .* got 33"),
    ((16, 225, "kerdock"), {}, ValueError, "num_classes must be at most 224 .* got 225"),
    ((5, 9, "kerdock"), {}, ValueError, r"at most 0 .* \(order 8 = 1 \* 2\^3\), got 9"),
    ((16, 2017, "delsarte_goethals"), {}, ValueError, "at most 2016 .* got 2017"),
    ((4, 17), {}, ValueError, r"at most 2\^in_features = 16 for in_features=4"),
    ((16, 18, "etf"), {}, ValueError, r"num_classes must lie in \[2, 17\] .* got 18"),
    ((16, 1, "etf"), {}, ValueError, r"num_classes must lie in \[2, 17\] .* got 1"),
    ((16, 17, "etf"), {}, ValueError, "must be a Hadamard order .* nearest orders are 12 and 16"),
    (
        (10, 3, "etf"),
        {},
        ValueError,
        "num_classes=3; the nearest orders are 8 and 12",
    ),
    (
        (10, 5),
        {"exact": True},
        ValueError,
        "must be a Hadamard order .* got 10 and None; .* is 12",
    ),
    ((668, 5), {"exact": True}, ValueError, "got 668 and None; the next such order is 672"),
    ((12, 5), {"exact": True, "max_base": 1}, ValueError, "max_base None, got 12 and 1"),
    ((12, 5), {"max_base": 0}, ValueError, r"max_base must lie in \[1, 512\], got 0"),
    ((12, 5), {"capacity": 4}, ValueError, r"capacity must lie in \[5, 16777216\], got 4"),
    ((4, 3, "matrix"), {}, ValueError, "matrix must be given with kind='matrix' only, got none"),
    ((4, 3), {"matrix": np.eye(3, 4)}, ValueError, "matrix must be given .* got one and 'auto'"),
    ((4, 3, "matrix"), {"matrix": np.eye(4)}, ValueError, r"shape .* = \(3, 4\), got \(4, 4\)"),
    ((2, 2, "matrix"), {"matrix": [["a", "b"]] * 2}, TypeError, "real numbers, got dtype"),
    ((2, 2, "matrix"), {"matrix": np.eye(2) * 1j}, TypeError, "real numbers, got dtype complex"),
    ((2, 2, "matrix"), {"matrix": [[1, 0], [0, 0]]}, ValueError, "nonzero rows, got row 1"),
    ((2, 2, "matrix"), {"matrix": [[1, np.nan], [0, 1]]}, ValueError, "got row 0 otherwise"),
    ((2, 2, "matrix"), {"matrix": [[1, 2], [2, 4]]}, ValueError, "got 1 equal pairs"),
    ((65536, 2**14, "orthonormal"), {}, ValueError, "num_classes must be at most 4096 .*16384"),
]


@pytest.mark.parametrize("args, options, error, message", BAD)
def test_bad_input(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        codebook(*args, **options)
    assert "\n" not in str(raised.value)


def test_used_up_rows() -> None:
    with pytest.raises(ValueError, match=r"no further distinct rows were found\), got 512"):
        codebook(9, 512)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        ([0, 10], ValueError, r"ids must lie in \[0, 10\), got 10"),
        ([-1], ValueError, "got -1"),
        ([0.5], TypeError, r"got shape \(1,\) of float64"),
        (3, TypeError, r"got shape \(\) of int64"),
        ([[1, 2]], TypeError, r"got shape \(1, 2\)"),
    ],
)
def test_bad_ids(ids: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codebook(16, 10).rows(ids)  # type: ignore[arg-type]


def test_no_ids() -> None:
    assert codebook(16, 10).rows([]).shape == (0, 16)


def test_matrix_of_too_many_classes() -> None:
    book = codebook(1024, 10**7)
    with pytest.raises(ValueError, match=r"10000000 x 1024 entries, .* use rows\(ids\)"):
        book.matrix()
    assert book.rows([0, 10**7 - 1]).shape == (2, 1024)


def test_types() -> None:
    assert codebook(16, 10).matrix().dtype == codebook(16, 10).dtype == np.int8
    for kind in ("etf", "orthonormal"):
        assert codebook(16, 10, kind).matrix().dtype == codebook(16, 10, kind).dtype == np.float32
    data = codebook(384, 1000).kernel
    assert data is not None and data.base is not None and data.signs is not None
    assert (data.base_order, data.log2, data.order, data.blocks) == (12, 5, 384, 2)
    assert data.rows == 4 * 384
    assert data.base.dtype == data.signs.dtype == np.uint8
    assert data.base.shape == (12, 2) and data.signs.shape == (2, 48)
    assert codebook(512, 1000).kernel.base is None  # type: ignore[union-attr]


def test_max_base_and_exact_choose_the_order() -> None:
    usual, exact = codebook(1000, 1000), codebook(1000, 1000, exact=True)
    assert (usual.kind, usual.order, exact.order) == ("hadamard", 1024, 1000)
    assert "500,000" in usual.explain() and "10,240 additions" in usual.explain()
    assert codebook(768, 700, max_base=1).order == 1024 and codebook(768, 700).order == 768
    for book in (usual, exact, codebook(768, 700, max_base=1), codebook(768, 10)):
        assert from_identity(json.loads(json.dumps(book.identity()))).digest == book.digest
    assert "max_base" not in usual.identity() and exact.identity()["max_base"] == 512


@pytest.mark.parametrize("features, classes, additions", [(768, 10, 816), (376, 7, 392)])
def test_few_classes_fold(features: int, classes: int, additions: int) -> None:
    book = codebook(features, classes)
    rows = book.matrix().astype(np.int64)
    assert np.array_equal(rows @ rows.T, features * np.eye(classes))
    assert (rows.sum(axis=1) == 0).all()
    report = book.report()
    assert (report.additions_per_row, report.coherence, report.method) == (additions, 0, "exact")


@pytest.mark.parametrize(
    "features, classes, coherence", [(500, 100_000, 0.088), (960, 20_000, 64 / 960)]
)
def test_truncated_kerdock_sets(features: int, classes: int, coherence: float) -> None:
    report = codebook(features, classes).report()
    assert report.kind == "kerdock" and report.coherence == pytest.approx(coherence, abs=1e-4)
    assert report.additions_per_row < classes * features / 100


# Reports


def test_report() -> None:
    report = codebook(512, 1000).report()
    assert (report.kind, report.order, report.base_order, report.log2) == ("orthoplex", 512, 1, 9)
    assert (report.blocks, report.mask_bytes, report.identical_pairs) == (1, 64, 0)
    assert report.additions_per_row == 512 * 9
    assert (report.largest_cosine, report.rankin_bound, report.welch_bound) == (0, 0, 0)
    report = codebook(1024, 10**6).report()
    assert report.mask_bytes == 489 * 128
    assert report.additions_per_row == 489 * 1024 * 10
    assert report.coherence == 1 / 32 and report.coherence_ratio == pytest.approx(1, abs=0.03)
    text = str(report)
    assert "largest cosine" in text and "0.03125" in text


def test_report_of_one_class() -> None:
    report = codebook(16, 1).report()
    assert report.coherence is None and report.rankin_bound is None
    assert codebook(10, 1).report().largest_cosine is None


def test_methods_are_labelled() -> None:
    assert codebook(512, 10**6).report().method == "exact"
    assert codebook(384, 60_000).report().method == "measured"
    assert codebook(384, 10**6).report().method == "sampled"


def test_measuring_by_blocks_equals_measuring_by_rows() -> None:
    for features, classes in [(62, 900), (94, 1500), (20, 900), (36, 1000), (190, 2000)]:
        book = codebook(features, classes)
        rows = book.matrix().astype(np.float64)
        gram = (rows @ rows.T / features)[np.triu_indices(classes, 1)]
        by_blocks = _by_blocks(book)
        assert book.cosines is None
        assert by_blocks == pytest.approx((gram.max(), np.abs(gram[gram > -1]).max()))
        report = book.report()
        assert by_blocks == pytest.approx((report.largest_cosine, report.coherence))


def _by_blocks(book: Codebook) -> tuple[float | None, float | None]:
    from fixclf_infer.codebooks.measure import _of_blocks

    assert book.kernel is not None
    found = _of_blocks(book.kernel, book.in_features, book.num_classes)
    assert found.method == "measured"
    return found.largest, found.coherence


@pytest.mark.parametrize("features", [12, 20, 24, 40])
def test_measuring_by_blocks_knows_that_row_0_is_skipped(features: int) -> None:
    order = find_order(features)
    assert order is not None
    differ = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        signs = np.packbits(rng.integers(0, 2, (2, features), np.uint8), 1, bitorder="little")
        signs[0] = 0
        data = KernelData(order.base, order.log2, order.bits, signs, True, False, 1, 0)
        rest = 1 + seed % (2 * features - 1)
        book = Codebook("random", 0, features, 2 * features - 1 + rest, 0, data)
        rows = book.matrix().astype(np.float64)
        gram = (rows @ rows.T / features)[np.triu_indices(len(rows), 1)]
        coherence = np.abs(gram[np.abs(gram) < 1]).max()
        if np.abs(gram).max() == 1 and (np.abs(gram) == 1).sum() != rest_opposites(features, rest):
            continue  # a line twice
        differ += coherence > gram.max()
        assert _by_blocks(book) == pytest.approx((gram.max(), coherence))
    assert differ > 0 or features != 20  # where it shows


def rest_opposites(features: int, rest: int) -> int:
    """Pairs of opposite classes in a first block without row 0 and `rest` rows of a second."""
    return features - 1 + max(0, rest - features)


def test_block_products_against_matrices() -> None:
    rng = np.random.default_rng(0)
    for n in (8, 12, 40, 96):
        order = find_order(n)
        assert order is not None
        matrix = np.kron(base_matrix(order.base), scipy_hadamard(1 << order.log2)).astype(float)
        bits = rng.integers(0, 2, (5, n), np.uint8)
        products = [np.abs((matrix * (1 - 2.0 * mask)) @ matrix.T).max() for mask in bits]
        assert block_products(order, bits) == pytest.approx(products)
        cut = [
            np.abs((matrix * (1 - 2.0 * mask))[:, : n - 3] @ matrix[:, : n - 3].T).max()
            for mask in bits
        ]
        assert block_products(order, bits, columns=n - 3) == pytest.approx(cut)


def test_bounds() -> None:
    assert rankin_bound(8, 9) == -1 / 8 and rankin_bound(8, 10) == 0 and rankin_bound(8, 1) is None
    assert welch_bound(8, 8) == 0
    assert welch_bound(7, 28) == pytest.approx(1 / 3)  # 28 equiangular lines in R^7
    assert levenshtein_bound(7, 28) == 0
    assert levenshtein_bound(8, 120) == pytest.approx(1 / 2)  # E8
    n = 16  # a Kerdock set with the standard basis meets the bound
    assert levenshtein_bound(n, n * n // 2 + n) == pytest.approx(n**-0.5)


@pytest.mark.parametrize(
    "features, classes, kind, expected",
    [
        (512, 511, "hadamard", 512 * 9),
        (2048, 10, "hadamard", 2048 - 16 + 16 * 4),
        (12, 11, "hadamard", 12 * 11),
        (768, 767, "hadamard", 768 * (11 + 6)),
        (768, 65, "hadamard", 768 * 6 + 2 * 64 * 11),
        (16, 33, "kerdock", 16 * 4 + 15),
        (16, 34, "kerdock", 16 * 4 + 14 + 2),
        (16, 10, "etf", 16 * 4 + 20),
    ],
)
def test_additions(features: int, classes: int, kind: str, expected: int) -> None:
    data = codebook(features, classes, kind).kernel
    assert data is not None and additions(data, classes) == expected


def test_histogram() -> None:
    histogram = codebook(16, 256).histogram(bins=5)
    pairs = 256 * 255 // 2
    assert histogram.classes == 256 and histogram.counts.sum() == pairs
    assert histogram.counts[0] == 128  # opposite classes
    assert histogram.edges == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])
    sampled = codebook(64, 100_000).histogram()
    assert sampled.classes == 4096 and sampled.counts.sum() == 4096 * 4095 // 2
    with pytest.raises(ValueError, match=r"bins must lie in .* got 0"):
        codebook(16, 10).histogram(0)


def test_import_is_light() -> None:
    code = (
        "import sys, time, numpy; before = set(sys.modules); start = time.perf_counter();"
        "import fixclf_infer.codebooks; seconds = time.perf_counter() - start;"
        "assert not {'torch', 'scipy'} & set(sys.modules); assert seconds < 0.3, seconds"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
