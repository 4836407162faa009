"""`fixclf info` and the application that the other commands join."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    help="Classifier heads without weights.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """The package's own errors are one clear sentence: print that, and exit with status 1."""
    try:
        yield
    except (ValueError, TypeError, ImportError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from None


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="The version.")
    ] = False,
) -> None:
    """Classifier heads without weights."""


@app.command()
def info() -> None:
    """Which kernels this installation and machine can run, and which they will."""
    from .. import __version__
    from ..backends import describe

    table = Table(title=f"fixclf_infer {__version__}", show_header=False)
    with one_line_errors():
        facts = describe()
    for name, value in facts.items():
        table.add_row(name, value)
    Console().print(table)
