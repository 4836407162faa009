"""The head in ONNX Runtime, beside its own MatMul and Softmax: `python -m bench.ort`.

One thread; everything is checked against float64 first. Writes onnxruntime.md and onnxruntime.csv
into the folder of `bench.report`.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
import typer
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import fixclf_infer
from fixclf_infer import reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.onnx import Head, export, head_model, session

from . import tables, timing
from .progress import bar
from .targets import Target

Floats = NDArray[np.float32]
ALPHA = 11.5
CASES = ((2048, 1000, 1), (2048, 1000, 32), (512, 1000, 1), (2048, 10, 1), (1024, 100_000, 1))
MAIN = CASES[0]


def dense_model(weights: Floats, bias: Floats) -> onnx.ModelProto:
    """MatMul, Add and Softmax, as an exporter writes a dense head."""
    features, classes = weights.shape
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["X", "w"], ["p"]),
            helper.make_node("Add", ["p", "b"], ["z"]),
            helper.make_node("Softmax", ["z"], ["Y"]),
        ],
        "dense",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", features])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    opset = [helper.make_opsetid("", 18)]
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=opset, ir_version=8)
    return model


def runner(path: Path, library: bool) -> Any:
    if library:
        return session(path, threads=1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def calls(runner: Any, x: Floats, want: NDArray[np.float64]) -> dict[str, timing.Call]:
    """`run`, and `run_with_iobinding` on arrays that stay where they are; both checked."""
    binding, y = runner.io_binding(), np.empty(want.shape, np.float32)
    binding.bind_input("X", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    binding.bind_output("Y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    runner.run_with_iobinding(binding)
    for got in (runner.run(None, {"X": x})[0], y):
        error = float(np.abs(got - want).max())
        if not error <= 2e-6:
            raise AssertionError(f"off by {error:.3g} from float64")

    def bound() -> object:
        return runner.run_with_iobinding(binding), x, y  # the arrays live as long as the call

    return {"run": lambda: runner.run(None, {"X": x}), "bound": bound}


def compare(
    features: int, classes: int, batch: int, folder: Path, seconds: float
) -> dict[str, timing.Timing]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, features)).astype(np.float32)
    bias = rng.standard_normal(classes).astype(np.float32)
    book: Codebook = fixclf_infer.codebook(features, classes)
    onnx.save(head_model(Head(book, True, Epilogue.SOFTMAX), ALPHA, bias), folder / "head.onnx")
    weights = (rng.standard_normal((features, classes)) / np.sqrt(features)).astype(np.float32)
    onnx.save(dense_model(weights, bias), folder / "dense.onnx")
    z = reference.codebook_logits(x, book, ALPHA, bias)
    fixed = np.exp(z - reference.logsumexp(z))
    z = x.astype(np.float64) @ weights.astype(np.float64) + bias
    dense = np.exp(z - reference.logsumexp(z))
    variants = {}
    for name, file, library, want in (
        ("library", "head.onnx", True, fixed),
        ("portable", "head.onnx", False, fixed),
        ("MatMul+Softmax", "dense.onnx", False, dense),
    ):
        for way, call in calls(runner(folder / file, library), x, want).items():
            variants[f"{name}, {way}"] = call
    return timing.measure(variants, seconds=seconds)


def export_seconds(folder: Path) -> float:
    """Of a ResNet with 23.5 million parameters and the fixed head."""
    from transformers import ResNetConfig, ResNetModel

    from bench import torchvision_on_cpu  # noqa: F401

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = ResNetModel(ResNetConfig())
            self.head = fixclf_infer.nn.FixedClassifier(2048, 1000)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(self.body(x).pooler_output.flatten(1))
            return logits

    model = Network().eval()
    start = time.perf_counter()
    export(model, torch.randn(2, 3, 224, 224), folder / "resnet.onnx")
    return time.perf_counter() - start


def targets(times: dict[str, timing.Timing], exporting: float) -> list[Target]:
    n, c, b = MAIN
    what = f"N={n} C={c} B={b} softmax"
    rows = [
        Target(what, f"time a call, {way}", 8, False, times[f"library, {way}"].median * 1e6, "µs")
        for way in ("bound", "run")
    ]
    for name, asked in (("library", 10), ("portable", 4)):
        for way in ("bound", "run"):
            ratio = times[f"MatMul+Softmax, {way}"].median / times[f"{name}, {way}"].median
            rows.append(Target(what, f"speed, {name} / MatMul+Softmax, {way}", asked, True, ratio))
    rows.append(Target("ResNet-50 with the head", "time to export", 60, False, exporting, "s"))
    return rows


NOTES = """\
One thread; every result was checked against float64 before it was timed; interleaved, medians with
the 20th and 80th percentile. "bound": `run_with_iobinding` on arrays that stay where they are;
"run": `session.run(None, {"X": x})`, whose own cost in Python is about 5 µs.
"""


def main(
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="To measure each case for.")] = 3.0,
) -> None:
    """Measure, print asked for beside measured, and write tables."""
    torch.set_num_threads(1)
    results = {}
    with bar() as progress, tempfile.TemporaryDirectory() as temporary:
        task = progress.add_task("", total=len(CASES) + 1)
        for case in CASES:
            progress.update(task, description="N={} C={} B={}".format(*case))
            results[case] = compare(*case, Path(temporary), seconds)
            progress.advance(task)
        progress.update(task, description="export")
        exporting = export_seconds(Path(temporary))
        progress.advance(task)
    machine = {**timing.machine(), "onnxruntime": onnxruntime.__version__}
    rows = targets(results[MAIN], exporting)
    sections = {
        "Asked for and measured": [row.row() for row in rows],
        "A call": [
            {
                "case": "N={} C={} B={}".format(*case),
                **{name: str(t) for name, t in times.items()},
            }
            for case, times in results.items()
        ],
    }
    for heading, section in sections.items():
        tables.show(heading, section)
    folder = tables.results_folder(machine, output)
    title = f"ONNX Runtime on {machine['cpu']}, {machine['isa']}"
    path = folder / "onnxruntime.md"
    tables.write_report(path, title, "bench.ort", machine, NOTES, sections)
    tables.write_csv(
        folder / "onnxruntime.csv",
        [
            {"in_features": n, "num_classes": c, "batch": b, "by": by, **vars(t), **machine}
            for (n, c, b), times in results.items()
            for by, t in times.items()
        ],
    )
    failed = [row for row in rows if row.met is False]
    tables.console.print(f"\n[bold]{len(rows) - len(failed)} of {len(rows)} rows met[/bold]")


if __name__ == "__main__":
    typer.run(main)
