"""Coherence and additions of the default codebook, before and now: `python -m bench.codebooks`.

Writes docs/codebooks.csv: for each pair (N, C) the kind, the additions for one row of features and
the coherence of the codebook that "auto" took in version 2 (before) and of today's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fixclf_infer.codebooks import Codebook, codebook, measure, version2
from fixclf_infer.codebooks.orders import cover

from . import tables
from .progress import bar

WIDTHS = (
    *(8, 16, 20, 28, 48, 60, 64, 96, 100, 120, 128, 188, 192, 252, 256, 320, 376, 384, 448, 500),
    *(512, 576, 640, 720, 768, 896, 960, 997, 1000, 1024, 1152, 1280, 1344, 1408, 1536, 1920),
    *(2048, 2208),
)
FILE = Path(__file__).parent.parent / "docs" / "codebooks.csv"


def classes(features: int) -> list[int]:
    """Few, half, one less than N, N, some more, 2N, five times as many, 10^4."""
    sizes = {features // 2, features - 1, features, 3 * features // 2, 2 * features, 5 * features}
    return sorted(sizes | {7} | ({10_000} if features >= 64 else set()))


def before(features: int, num_classes: int) -> Codebook:
    """The first kind of version 2 that reached num_classes without the all-ones row."""
    n = cover(features).n
    kinds = ["hadamard"] * (num_classes <= n) + ["orthoplex"] * (num_classes < 2 * n)
    for kind in [*kinds, "kerdock", "delsarte_goethals", "orthoplex"]:
        try:
            book = version2.EARLIER[kind, 2](features, num_classes, 0)
        except ValueError:
            continue
        if book.kernel is not None and (kind != "kerdock" or book.kernel.row_offset == 1):
            return book
    return version2.EARLIER["search", 2](features, num_classes, 0)


def line(features: int, num_classes: int) -> dict[str, object]:
    found: dict[str, object] = {"N": features, "C": num_classes}
    for when, book in (
        ("before", before(features, num_classes)),
        ("now", codebook(features, num_classes)),
    ):
        report = book.report()
        found |= {
            f"kind {when}": book.kind,
            f"order {when}": book.order,
            f"base {when}": report.base_order,
            f"additions {when}": report.additions_per_row,
            f"coherence {when}": round(report.coherence or 0.0, 4),
            f"method {when}": report.method,
        }
    return found


def main(
    output: Annotated[Path, typer.Option(help="The table.")] = FILE,
    work: Annotated[int, typer.Option(help="Most additions to compare a pair's blocks.")] = 2**31,
) -> None:
    """Compare all pairs; fails if one is worse in both."""
    measure.BLOCK_WORK = work
    measure.SAMPLE_WORK = work // 2
    pairs = [(n, c) for n in WIDTHS for c in classes(n)]
    rows = []
    with bar() as progress:
        task = progress.add_task("codebooks", total=len(pairs))
        for n, c in pairs:
            progress.update(task, advance=1, description=f"{n} → {c}")
            rows.append(line(n, c))
    tables.write_csv(output, rows)
    worse = [
        (row["N"], row["C"])
        for row in rows
        if float(str(row["additions now"])) > float(str(row["additions before"]))
        and float(str(row["coherence now"])) > float(str(row["coherence before"]))
    ]
    print(f"{len(rows)} pairs, worse in both: {worse}")
    if worse:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
