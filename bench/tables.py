"""One table, three forms: on the terminal, as CSV (raw numbers) and as markdown (for people)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

Row = Mapping[str, object]
Sections = Mapping[str, Sequence[Mapping[str, str]]]

RESULTS = Path(__file__).parent / "results"

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


def results_folder(facts: Mapping[str, str], output: Path | None) -> Path:
    """`output`, or the folder of this CPU and instruction set; made if need be."""
    folder = output or RESULTS / slug(f"{facts['cpu']} {facts['isa']}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def slug(text: str) -> str:
    """A file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def write_report(
    path: Path, title: str, module: str, facts: Mapping[str, str], notes: str, sections: Sections
) -> None:
    """What `python -m module` found, as markdown: the machine, notes, a table for each section."""
    text = "".join(f"## {name}\n\n{markdown(table)}\n" for name, table in sections.items())
    path.write_text(f"# {title}\n\n`python -m {module}`\n\n{record(facts)}\n{notes}\n{text}")


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
