"""`fixclf verify`: is an ONNX file with fixed heads sound, how exact and how fast is it?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .app import app, one_line_errors


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(help="An ONNX file.")],
    library: Annotated[bool, typer.Option(help="Run the library of operators as well.")] = True,
    calls: Annotated[int, typer.Option(min=1, help="How many calls are timed.")] = 200,
) -> None:
    """Check a model, and compare the library, the portable body and float64 on random inputs."""
    with one_line_errors():
        from ..onnx import verify as run

        found = run(path, library=library, calls=calls)
    console = Console()
    for head, codebook in found.codebooks.items():
        console.print(f"{head}: codebook {codebook}", highlight=False)
    table = Table("", "by", "largest error", "bound", "µs a row", "")
    table.caption = "model: its outputs by one way compared with the other"
    for r in found.results:
        bound = f"{r.bound:.1e}" if r.bound < float("inf") else ""
        verdict = ("ok" if r.ok else "WRONG") if bound else ""
        table.add_row(r.what, r.way, f"{r.error:.1e}", bound, f"{r.latency * 1e6:.1f}", verdict)
    console.print(table)
    raise typer.Exit(0 if found.ok else 1)
