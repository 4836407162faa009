"""One table, three forms: on the terminal, as CSV (raw numbers) and as markdown (for people)."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

Row = Mapping[str, object]

console = Console()
if not console.is_terminal:
    console = Console(width=120)


def show(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows of equal keys; the first column is left-aligned, the others right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """A markdown table of rows of equal keys."""
    head = list(rows[0])
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(row.values()) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def record(facts: Mapping[str, str]) -> str:
    """The machine, as a markdown line."""
    return " · ".join(f"{key} {value}" for key, value in facts.items()) + "\n"


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Rows to a file; columns in order of first appearance, empty where a row has none."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def size(nbytes: int) -> str:
    """Bytes with a unit."""
    value = float(nbytes)
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
