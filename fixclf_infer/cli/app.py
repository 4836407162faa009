"""`fixclf info` and the application that the other commands join."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Classifier heads without weights.", no_args_is_help=True, add_completion=False
)


@app.callback()
def main() -> None:
    """Classifier heads without weights."""


@app.command()
def info() -> None:
    """Which kernels this installation and machine can run, and which they will."""
    from .. import __version__
    from ..backends import describe

    table = Table(title=f"fixclf_infer {__version__}", show_header=False)
    for name, value in describe().items():
        table.add_row(name, value)
    Console().print(table)
