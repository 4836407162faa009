"""What a codebook says about other widths and about growth, compared with codebooks built and
measured."""

from __future__ import annotations

import numpy as np
import pytest
from typer.testing import CliRunner

from fixclf_infer.cli import app
from fixclf_infer.codebooks import Codebook, codebook
from fixclf_infer.codebooks.advice import better_width, grows_to, proven
from fixclf_infer.codebooks.base import MAX_CLASSES


def gram_coherence(book: Codebook) -> float:
    """By all products: the largest |cosine| of two classes that are not opposite."""
    rows = book.matrix().astype(np.float64)
    cosines = np.abs(rows @ rows.T)[np.triu_indices(len(rows), 1)] / book.in_features
    return float(cosines[cosines < 1].max(initial=0))


@pytest.mark.parametrize(
    "n, c, expected",
    [
        (64, 63, 0.0),  # hadamard
        (96, 10, 0.0),  # columns that repeat
        (48, 96, 0.0),  # orthoplex of a composite order
        (64, 300, 0.125),  # kerdock, m even
        (32, 300, 0.25),  # Gold, m odd
        (16, 300, 0.5),  # delsarte_goethals
        (60, 300, None),  # truncated
        (48, 200, None),  # search
        (50, 40, None),  # dropped columns
    ],
)
def test_what_is_proven(n: int, c: int, expected: float | None) -> None:
    found = proven(n, c)
    if found is None:
        assert expected is None
        return
    book = codebook(n, c)
    assert found.coherence == expected == gram_coherence(book)
    assert (found.in_features, found.kind) == (n, book.kind)
    assert found.additions == book.report().additions_per_row


@pytest.mark.parametrize(
    "n, c, width",
    [(60, 300, 64), (120, 700, 128), (50, 40, 52), (70, 500, 64), (40, 200, 32), (1000, 10, 1008)],
)
def test_a_better_width_is_better(n: int, c: int, width: int) -> None:
    book = codebook(n, c)
    found = better_width(book)
    assert found is not None and found.in_features == width
    here = book.report()
    assert found.coherence == gram_coherence(codebook(width, c)) < here.coherence
    assert found.additions <= here.additions_per_row * 9 / 8
    assert f"{width} features would have coherence {found.coherence:.4g}" in book.explain()


def test_no_nearer_width_is_better() -> None:
    n, c = 58, 300
    found = better_width(codebook(n, c))
    assert found is not None
    for width in range(4 * (n // 8) + 20, n + abs(found.in_features - n)):
        if width != n and abs(width - n) < abs(found.in_features - n):
            other = proven(width, c)
            assert other is None or other.coherence > found.coherence


@pytest.mark.parametrize(
    "n, c, kind",
    [
        (64, 40, "auto"),  # exactly orthogonal
        (128, 18710, "auto"),  # no power of two near
        (60, 300, "hoffer"),
        (60, 30, "orthonormal"),
        (50, 2, "auto"),  # dropped columns that happen to cost nothing
        (60, 1, "auto"),
    ],
)
def test_no_better_width(n: int, c: int, kind: str) -> None:
    with pytest.warns(UserWarning) if kind == "hoffer" else np.errstate():
        book = codebook(n, c, kind)
    assert better_width(book) is None
    assert "features would have" not in book.explain()


def same_rows(n: int, c: int, few: int | None, many: int, capacity: int | None = None) -> bool:
    ids = range(c)
    book = codebook(n, c, capacity=few)
    return np.array_equal(
        book.rows(list(ids)), codebook(n, many, capacity=capacity).rows(list(ids))
    )


@pytest.mark.parametrize(
    "n, c, capacity, most",
    [
        (64, 10, None, 63),
        (64, 63, None, 63),
        (64, 64, None, MAX_CLASSES),
        (96, 10, None, 31),  # few classes fold, the order 96 follows
        (96, 40, None, 95),
        (96, 96, None, MAX_CLASSES),
        (60, 10, None, 59),
        (120, 7, None, 7),
        (120, 150, None, 240),  # order 120, and then order 128
        (120, 10, 5000, MAX_CLASSES),
    ],
)
def test_growth(n: int, c: int, capacity: int | None, most: int) -> None:
    book = codebook(n, c, capacity=capacity)
    found = grows_to(book)
    assert found == most
    for many in sorted({c, (c + min(most, 4000)) // 2, min(most, 4000)}):
        assert same_rows(n, c, capacity, many, max(many, capacity or 0))
    if most < MAX_CLASSES:
        assert not same_rows(n, c, capacity, most + 1)
        assert f"up to C = {most:,}: if there will be more" in book.explain()
        assert f"capacity={most + 1} or more" in book.explain()
        # What is asked for now has the rows of then.
        assert same_rows(n, c, most + 1, most + 1)
    else:
        assert "Classes keep their rows however many are added." in book.explain()


def test_the_command_names_the_better_width() -> None:
    result = CliRunner(env={"COLUMNS": "1000"}).invoke(app, ["codebook", "120", "18710"])
    assert result.exit_code == 0
    text = (
        "128 features would have coherence 0.125 (here 0.2) for 65,664 additions a row "
        "(here 65,656)."
    )
    assert text in " ".join(result.stdout.split())
    # The order 120 itself, as codebooks had it before truncated Kerdock sets.
    book = codebook(120, 18710, "search", max_base=512)
    report = book.report()
    assert (round(report.coherence, 3), report.additions_per_row) == (0.467, 561_600)
    assert "(here 0.4667) for 65,664" in book.explain(report.coherence)


def test_explain_is_cheap_knowledge(monkeypatch: pytest.MonkeyPatch) -> None:
    from fixclf_infer.codebooks import measure

    book = codebook(1000, 50_000)

    def fail(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr(measure, "extremes", fail)
    monkeypatch.setattr(measure, "block_products", fail)
    assert "1024 features would have coherence 0.03125" in book.explain()
