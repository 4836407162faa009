"""`make bench-gpu`: the CUDA kernels against copies of the same bytes, cuBLAS and torch.

Every result is checked before it is timed. Times are medians of CUDA events, with the 20th and 80th
percentile, the L2 cache overwritten before each run. Writes bench/results/<device>/gpu.csv and
gpu.md. `--dry-run` runs every case once, in tiny sizes on the CPU, and writes nothing.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fixclf_infer import hadamard_transform
from fixclf_infer.nn import FixedClassifier

RESULTS = Path(__file__).parent / "results"


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

    def measure(self, case: str, variant: str, run: Callable[[], Any]) -> None:
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
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3

    def graphed(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """The same work as one CUDA graph."""
        if self.device == "cpu":
            return run
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        return graph.replay


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
    error = (got.double() - want.double()).abs().max().item()
    if not error <= tolerance:
        raise AssertionError(f"results differ by {error}, expected at most {tolerance}")


def transforms(bench: Bench, tiny: bool) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        for log2 in (8,) if tiny else range(8, 14):
            rows = 4 if tiny else (1 << 27) >> log2
            x = torch.randn(rows, 1 << log2, device=bench.device).to(dtype)
            y = torch.empty_like(x)
            twice = hadamard_transform(hadamard_transform(x, 2**-log2))
            close(twice, x, 0.1 if dtype == torch.bfloat16 else 1e-4)
            case = f"transform N={1 << log2} B={rows} {str(dtype)[6:]}"
            bench.measure(case, "floor: copy", lambda y=y, x=x: y.copy_(x))
            bench.measure(case, "fixclf", lambda x=x: hadamard_transform(x))


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
        close(head.predict_proba(x), dense(), 0.02)
        bench.measure(case, "floor: copy of the bytes", lambda: source.clone())
        bench.measure(case, "fixclf", lambda: head.predict_proba(x))
        bench.measure(case, "cuBLAS + softmax", dense)


def latency(bench: Bench, tiny: bool) -> None:
    n, c = (64, 50) if tiny else (2048, 1000)
    head = head_of(bench, n, c)
    x = torch.randn(1, n, device=bench.device, dtype=torch.bfloat16)
    with torch.no_grad():
        run = bench.graphed(lambda: head.predict_proba(x))
        bench.measure(f"softmax N={n} C={c} B=1, CUDA graph", "fixclf", run)


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
        close(head.topk(x, 5)[0], dense()[0], 0.2)
        bench.measure(case, "fixclf", lambda: head.topk(x, 5))
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

    close(fixed(), dense(), 0.05)
    bench.measure(case, "fixclf", fixed)
    bench.measure(case, "dense cross entropy", dense)


CASES = (transforms, softmax, latency, topk, loss)


def table(records: list[Record], title: str) -> Iterator[str]:
    yield f"# {title}\n"
    yield "| case | variant | median µs | p20 | p80 | peak MiB |"
    yield "|---|---|---|---|---|---|"
    for r in records:
        yield (
            f"| {r.case} | {r.variant} | {r.median_us:.2f} | {r.p20_us:.2f} | {r.p80_us:.2f} "
            f"| {r.peak_mib:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --dry-run runs the cases in tiny sizes on the CPU")
    bench = Bench("cpu" if options.dry_run else "cuda", 1 if options.dry_run else options.repeats)
    for case in CASES:
        case(bench, options.dry_run)
    if options.dry_run:
        return
    name = torch.cuda.get_device_name()
    folder = RESULTS / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "gpu.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Record)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in bench.records)
    title = f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    (folder / "gpu.md").write_text("\n".join(table(bench.records, title)) + "\n")
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
