"""`fixclf codebook`: what a codebook costs and how far apart its classes are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .app import app, one_line_errors


@app.command()
def codebook(
    in_features: Annotated[int, typer.Argument(help="N, the number of features.")],
    num_classes: Annotated[int, typer.Argument(help="C, the number of classes.")],
    kind: Annotated[str, typer.Option(help="A family, or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the families that make random choices.")] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="N itself as the order, or an error.")
    ] = False,
    max_base: Annotated[
        int | None,
        typer.Option(help="Largest base of an order, instead of weighing additions and cosines."),
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(help="Classes it may grow to without a change of rows.")
    ] = None,
    histogram: Annotated[
        Path | None, typer.Option(help="Save a histogram of the classes' cosines (PNG, PDF, SVG).")
    ] = None,
) -> None:
    """Report of a codebook: why it, what another width would give, cost, cosines, bounds."""
    from ..codebooks import codebook as build

    console = Console()
    with one_line_errors():
        with console.status(f"codebook for N={in_features}, C={num_classes}"):
            book = build(
                in_features,
                num_classes,
                kind,
                seed=seed,
                exact=exact,
                max_base=max_base,
                capacity=capacity,
            )
            report = book.report()
        console.print(book.explain(report.coherence), highlight=False)
        console.print(str(report), highlight=False)
        if histogram is not None:
            with console.status("histogram"):
                _save_histogram(book.histogram(), histogram)
            console.print(f"wrote {histogram}")


def _save_histogram(data: object, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("--histogram needs matplotlib; pip install matplotlib") from None
    from ..codebooks.measure import Histogram

    assert isinstance(data, Histogram)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(data.counts, data.edges, fill=True)
    axes.set(xlabel="cosine between two classes", ylabel="pairs", yscale="log")
    axes.set_title(f"{data.classes} classes")
    figure.savefig(path)
