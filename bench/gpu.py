"""`make bench-gpu`: the CUDA and Triton kernels beside copies of the same bytes, cuBLAS and torch,
eager and compiled.

Every result is checked before it is timed. Times are medians of CUDA events, with the 20th and 80th
percentile, the L2 cache overwritten before each run; all but the loss are replays of CUDA graphs,
so that no time of the host counts. Writes bench/results/<device>/gpu.csv and
gpu.md. `--dry-run` runs every case once, in tiny sizes on the CPU, and writes nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

import fixclf_infer
from fixclf_infer import hadamard_transform, reference
from fixclf_infer.nn import FixedClassifier

from . import tables, timing


@dataclass
class Record:
    case: str
    variant: str
    median_us: float
    p20_us: float
    p80_us: float
    peak_mib: float  # memory beyond what is there before the run


class Bench:
    def __init__(self, device: str, repeats: int) -> None:
        self.device, self.repeats = device, repeats
        self.records: list[Record] = []
        self.flush = torch.empty(1 if device == "cpu" else 64 << 20, device=device)

    def measure(self, case: str, variant: str, run: Callable[[], Any], graph: bool = True) -> None:
        cuda = self.device == "cuda"
        for _ in range(3 if cuda else 0):
            run()
        peak = 0.0
        if cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            torch.cuda.synchronize()
            peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        run = self.graphed(run) if graph else run
        times = [self._once(run, cuda) for _ in range(self.repeats)]
        cuts = statistics.quantiles(times, n=5) if len(times) > 1 else times * 4
        record = Record(case, variant, statistics.median(times), cuts[0], cuts[3], peak)
        self.records.append(record)
        print(f"{case:44} {variant:28} {record.median_us:10.2f} us {peak:9.1f} MiB", flush=True)

    def _once(self, run: Callable[[], Any], cuda: bool) -> float:
        if not cuda:
            begin = time.perf_counter()
            run()
            return (time.perf_counter() - begin) * 1e6
        self.flush.zero_()
        new_event: Callable[..., Any] = torch.cuda.Event
        start, end = new_event(enable_timing=True), new_event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    def graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same work as one CUDA graph."""
        if self.device == "cpu":
            return run
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def fixclf(self, case: str, run: Callable[[], Tensor], want: Tensor, tolerance: float) -> None:
        """The head or transform by each backend that this machine has, checked."""
        for backend in ("cuda", "triton"):
            if self.device == "cpu":
                close(run(), want, tolerance)
                return self.measure(case, "fixclf", run)
            try:
                use = fixclf_infer.use_backend(backend)
            except ImportError as error:
                print(f"{case:44} {backend} left out: {error}")
                continue
            with use:
                close(run(), want, tolerance)
                self.measure(case, f"fixclf {backend}", run)


def dense_weight(head: FixedClassifier, dtype: torch.dtype) -> Tensor:
    """α W / √N, which a dense head of the same function would hold; made of the head itself, in
    parts, so that it needs no more memory than the result."""
    n = head.in_features
    device = head.alpha.device
    weight = torch.empty(head.num_classes, n, dtype=dtype, device=device)
    with torch.no_grad():
        zero = head.bias
        for begin in range(0, n, 64):
            units = torch.eye(n, device=device)[begin : begin + 64]
            weight[:, begin : begin + 64] = (head(units) - zero).T.to(dtype)
    return weight


def head_of(bench: Bench, n: int, c: int) -> FixedClassifier:
    return FixedClassifier(n, c).to(bench.device)


def close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """The first rows of `got`, as many as are wanted."""
    error = (got[: len(want)].cpu().double() - want.cpu().double()).abs().max().item()
    if not error <= tolerance:
        raise AssertionError(f"results differ by {error}, expected at most {tolerance}")


def transforms(bench: Bench, tiny: bool) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for log2 in (8,) if tiny else range(8, 14):
            rows = 4 if tiny else (1 << 27) >> log2
            x = torch.randn(rows, 1 << log2, device=bench.device).to(dtype)
            y = torch.empty_like(x)
            scale = 2 ** (-log2 / 2)
            few = x[:16].cpu().double() @ torch.from_numpy(reference.hadamard_matrix(1 << log2))
            case = f"transform N={1 << log2} B={rows} {str(dtype)[6:]}"
            bench.measure(case, "floor: copy", partial(y.copy_, x))
            slack = 0.05 if dtype == torch.bfloat16 else 1e-4
            bench.fixclf(case, partial(hadamard_transform, x, scale), few * scale, slack)


def softmax(bench: Bench, tiny: bool) -> None:
    n, c, b = (64, 50, 4) if tiny else (2048, 1000, 4096)
    head = head_of(bench, n, c)
    weight = dense_weight(head, torch.bfloat16)
    x = torch.randn(b, n, device=bench.device, dtype=torch.bfloat16)
    case = f"softmax N={n} C={c} B={b} bfloat16"

    def dense() -> Tensor:
        unit = torch.nn.functional.normalize(x, dim=-1)
        return torch.nn.functional.linear(unit, weight).softmax(-1)

    bytes_moved = b * (n + c) * 2
    source = torch.empty(bytes_moved // 2, dtype=torch.uint8, device=bench.device)
    with torch.no_grad():
        bench.measure(case, "floor: copy of the bytes", lambda: source.clone())
        bench.fixclf(case, lambda: head.predict_proba(x), dense(), 0.02)
        bench.measure(case, "cuBLAS + softmax", dense)
        if bench.device == "cuda":
            bench.measure(case, "cuBLAS + softmax, compiled", torch.compile(dense))


def latency(bench: Bench, tiny: bool) -> None:
    n, c = (64, 50) if tiny else (2048, 1000)
    head = head_of(bench, n, c)
    x = torch.randn(1, n, device=bench.device, dtype=torch.bfloat16)
    with torch.no_grad():
        weight = dense_weight(head, torch.bfloat16)
        want = torch.nn.functional.linear(torch.nn.functional.normalize(x, dim=-1), weight)
        case = f"softmax N={n} C={c} B=1 bfloat16"
        bench.fixclf(case, lambda: head.predict_proba(x), want.softmax(-1), 0.02)


def topk(bench: Bench, tiny: bool) -> None:
    n, c, b = (16, 500, 3) if tiny else (1024, 1_000_000, 256)
    head = head_of(bench, n, c)
    weight = dense_weight(head, torch.bfloat16)
    x = torch.randn(b, n, device=bench.device, dtype=torch.bfloat16)
    case = f"top-5 N={n} C={c} B={b} bfloat16"

    def dense() -> tuple[Tensor, Tensor]:
        unit = torch.nn.functional.normalize(x, dim=-1)
        values, indices = torch.nn.functional.linear(unit, weight).topk(5)
        return values, indices

    with torch.no_grad():
        bench.fixclf(case, lambda: head.topk(x, 5)[0], dense()[0], 0.2)
        bench.measure(case, "cuBLAS + torch.topk", dense)


def loss(bench: Bench, tiny: bool) -> None:
    n, c, b = (16, 300, 5) if tiny else (2048, 100_000, 4096)
    head = head_of(bench, n, c)
    weight = dense_weight(head, torch.bfloat16).requires_grad_()
    x = torch.randn(b, n, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
    target = torch.randint(c, (b,), device=bench.device)
    case = f"loss fwd+bwd N={n} C={c} B={b} bfloat16"

    def fixed() -> Tensor:
        x.grad = None
        value = head.loss(x, target)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    def dense() -> Tensor:
        x.grad = weight.grad = None
        unit = torch.nn.functional.normalize(x, dim=-1)
        z = torch.nn.functional.linear(unit, weight)
        value = torch.nn.functional.cross_entropy(z.float(), target)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    close(fixed().reshape(1), dense().reshape(1), 0.05)
    bench.measure(case, "fixclf cuda", fixed, graph=False)
    bench.measure(case, "dense cross entropy", dense, graph=False)


CASES = (transforms, softmax, latency, topk, loss)


def table(records: list[Record]) -> list[dict[str, str]]:
    return [
        {
            "case": r.case,
            "variant": r.variant,
            "median µs": f"{r.median_us:.2f}",
            "p20": f"{r.p20_us:.2f}",
            "p80": f"{r.p80_us:.2f}",
            "peak MiB": f"{r.peak_mib:.1f}",
        }
        for r in records
    ]


NOTES = """\
Checked before it was timed; CUDA events, the L2 cache overwritten before each run; replays of CUDA
graphs, but for the loss. Peak: memory of torch's allocator beyond what was there before.
"""


def main(
    dry_run: Annotated[bool, typer.Option(help="Tiny sizes on the CPU, nothing written.")] = False,
    repeats: Annotated[int, typer.Option(min=2, help="Of each variant.")] = 50,
) -> None:
    """Measure on the CUDA device and write gpu.csv and gpu.md."""
    if not dry_run and not torch.cuda.is_available():
        raise typer.BadParameter("there is no CUDA device; --dry-run needs none")
    bench = Bench("cpu" if dry_run else "cuda", 1 if dry_run else repeats)
    for case in CASES:
        case(bench, dry_run)
    if dry_run:
        return
    name = torch.cuda.get_device_name()
    folder = tables.results_folder({}, tables.RESULTS / tables.slug(name))
    facts = {**timing.machine(), "gpu": name, "cuda": str(torch.version.cuda)}
    tables.write_csv(folder / "gpu.csv", [{**asdict(r), **facts} for r in bench.records])
    sections = {"Times": table(bench.records)}
    tables.write_report(folder / "gpu.md", f"Speed on {name}", "bench.gpu", facts, NOTES, sections)
    tables.console.print(f"  wrote {folder}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
