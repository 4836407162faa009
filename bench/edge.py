"""A head on a device: bytes of its file, and time a row from NumPy: `python -m bench.edge`.

One thread. Writes edge.md into the folder of `bench.report`; docs/edge.md has its table.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from fixclf_infer import codebook, reference
from fixclf_infer.edge import FixedHead, set_num_threads

from . import tables, timing

SIZES = ((64, 10), (256, 1000), (512, 10_000), (1024, 1_000_000))


def row(features: int, classes: int, path: Path, seconds: float) -> dict[str, str]:
    rng = np.random.default_rng(0)
    book = codebook(features, classes)
    bias = rng.standard_normal(classes).astype(np.float32)
    FixedHead(book, 10.0).save(path)
    without = path.stat().st_size
    FixedHead(book, 10.0, bias).save(path)
    head, x = FixedHead.load(path), rng.standard_normal((1, features)).astype(np.float32)
    values, indices, _ = head.topk(x, 5)
    want = reference.logits(x, book.rows(indices[0]), 10.0, bias[indices[0]])
    if not np.abs(values - want).max() <= 1e-4:
        raise AssertionError(f"top-5 of {features} → {classes} is off")
    calls: dict[str, timing.Call] = {
        "argmax": partial(head.argmax, x),
        "top-5": partial(head.topk, x, 5),
    }
    times = timing.measure(calls, seconds=seconds)
    return {
        "features → classes": f"{features} → {classes:,}".replace(",", " "),
        "file without bias": tables.size(without),
        "file with bias": tables.size(path.stat().st_size),
        "dense float32 weights": tables.size(4 * features * classes),
        **{name: timing.duration(t.median) for name, t in times.items()},
    }


NOTES = "One thread, one row, the call from Python included; medians; checked against float64.\n"


def main(
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="To measure each size for.")] = 2.0,
) -> None:
    """Measure and write the table."""
    set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(*size, Path(folder) / "head.npz", seconds) for size in SIZES]
    tables.show("A head on a device", rows)
    machine = timing.machine()
    path = tables.results_folder(machine, output) / "edge.md"
    title = f"A head on a device, {machine['cpu']}, {machine['isa']}"
    tables.write_report(path, title, "bench.edge", machine, NOTES, {"Files and times": rows})


if __name__ == "__main__":
    typer.run(main)
