"""Top-k, argmax and the loss beside dense heads: `python -m bench.reductions`.

Asked for and measured, with the memory; writes reductions.md, reductions.csv and reductions.png
into the folder of `bench.report`. Everything is checked against float64 before it is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer
from torch import Tensor, nn

from fixclf_infer import ops, reference
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

from . import memory, peers, tables, timing
from .progress import bar
from .targets import Target

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MILLION = peers.Case(512, 1_000_000, 1, epilogue=Epilogue.LOGITS)
MANY = peers.Case(512, 100_000, 32, epilogue=Epilogue.LOGITS)
ARGMAX = peers.Case(2048, 1000, 256, epilogue=Epilogue.LOGITS)
LOSS = peers.Case(512, 33_278, 256, epilogue=Epilogue.LOGITS)


# Seconds: of calls in a row, as a server makes them; a thread that just woke up is slow.
SAMPLE = 5e-3


@dataclass(frozen=True)
class Measured:
    """One case: seconds a call, and bytes besides the outputs at the peak, by variant."""

    title: str
    case: peers.Case
    times: dict[str, timing.Timing]
    memory: dict[str, int] = field(default_factory=dict)

    def speed(self, slow: str, fast: str) -> float | None:
        if slow not in self.times or fast not in self.times:
            return None
        return self.times[slow].median / self.times[fast].median


def oracle(case: peers.Case, head: FixedClassifier, x: Tensor) -> np.ndarray:
    """The float64 logits of the last row."""
    assert head.bias is not None
    row = x[-1:].double().numpy()
    bias = head.bias.detach().double().numpy()
    alpha = head.alpha.item()
    z: np.ndarray = reference.codebook_logits(row, head.codebook, alpha, bias)[0]
    return z


def check_top(values: Tensor, indices: Tensor, z: np.ndarray) -> None:
    """The last row's best are the oracle's; AssertionError otherwise."""
    bound = 4 * 2.0**-23 * float(np.abs(z).max()) * 4
    want = np.sort(z)[::-1][: values.shape[-1]]
    picked = z[indices[-1].numpy()]
    error = max(np.abs(picked - want).max(), np.abs(values[-1].double().numpy() - want).max())
    if not error <= bound:
        raise AssertionError(f"top-k is off by {error:.3g}, allowed {bound:.3g}")


def check_dense_top(layer: nn.Linear, x: Tensor, values: Tensor) -> None:
    z = layer.weight @ x[-1] + layer.bias
    want = z.double().sort(descending=True).values[: values.shape[-1]]
    error = float((values[-1].double() - want).abs().max())
    if not error <= 1e-4:
        raise AssertionError(f"the dense top-k is off by {error:.3g}")


def top_k(case: peers.Case, k: int, seconds: float, threads: tuple[int, ...] = (1,)) -> Measured:
    """With the logsumexp on our side, without it on the dense one."""
    head, x = peers.fixed_head(case), case.features()
    arguments = head._inputs(x)
    layer = peers.dense_head(case)
    torch.set_num_threads(1)

    fixed = partial(ops.head_topk, *arguments, k)

    def dense() -> object:
        return layer(x).topk(k)

    with torch.inference_mode():
        values, indices, _ = ops.head_topk(*arguments, k)
        check_top(values, indices, oracle(case, head, x))
        check_dense_top(layer, x, layer(x).topk(k).values)
        variants: dict[str, timing.Variant] = {"dense float32": one_thread(dense)}
        for n in threads:
            name = "fixclf" if n == 1 else f"fixclf, {n} threads"
            variants[name] = timing.Variant(fixed, partial(torch.set_num_threads, n))
        times = timing.measure(variants, seconds=seconds, min_sample=SAMPLE)
        torch.set_num_threads(1)
        used = {
            "fixclf": memory.peak_temporary(fixed, 0),
            "dense float32": memory.peak_temporary(dense, 0),
        }
    classes = f"{case.num_classes:,}".replace(",", " ")
    title = f"top-{k}, {case.in_features} → {classes}, batch {case.batch}"
    return Measured(title, case, times, used)


def argmax(seconds: float) -> Measured:
    """Of float32, int8 and packed ±1 features."""
    case = ARGMAX
    head, x = peers.fixed_head(case), case.features()
    layer = peers.dense_head(case)
    int8 = (x * 40).clamp(-127, 127).to(torch.int8)
    features = {"fixclf": x, "fixclf int8": int8, "fixclf signs": ops.pack_signs(x)}
    meant = {"fixclf": x, "fixclf int8": int8, "fixclf signs": torch.where(x < 0, -1.0, 1.0)}
    variants = {"dense float32": one_thread(lambda: layer(x).argmax(-1))}
    with torch.inference_mode():
        for name, values in features.items():
            arguments = head._inputs(values)
            z = oracle(case, head, meant[name])
            best = int(ops.head_argmax(*arguments)[-1])
            if not z[best] >= z.max() - 1e-4:
                raise AssertionError(f"{name}: class {best} is not the best")

            variants[name] = one_thread(partial(ops.head_argmax, *arguments))
        times = timing.measure(variants, seconds=seconds, min_sample=SAMPLE)
    return Measured("argmax, 2048 → 1000, batch 256", case, times)


def loss(seconds: float) -> Measured:
    """Cross-entropy, forward and backward, with gradients for features and parameters."""
    case = LOSS
    head, layer = peers.fixed_head(case), peers.dense_head(case)
    head.requires_grad_(True)
    layer.requires_grad_(True)
    x = case.features().requires_grad_(True)
    target = torch.randint(
        case.num_classes, (case.batch,), generator=torch.Generator().manual_seed(2)
    )

    def fixed() -> Tensor:
        result = head.loss(x, target)
        result.backward()  # type: ignore[no-untyped-call]
        return result.detach()

    def dense() -> Tensor:
        result = nn.functional.cross_entropy(layer(x), target)
        result.backward()  # type: ignore[no-untyped-call]
        return result.detach()

    z = oracle(case, head, x.detach())
    want = float(np.logaddexp.reduce(z) - z[int(target[-1])])
    got = float(head.loss(x, target, "none")[-1].detach())
    if not abs(got - want) <= 1e-4:
        raise AssertionError(f"the loss is {got}, expected {want}")
    times = timing.measure(
        {"dense float32": one_thread(dense), "fixclf": one_thread(fixed)}, seconds=seconds
    )
    torch.set_num_threads(1)
    used = {
        "fixclf": memory.peak_temporary(fixed, 0),
        "dense float32": memory.peak_temporary(dense, 0),
    }
    return Measured("loss and gradients, 512 → 33 278, batch 256", case, times, used)


def one_thread(call: Callable[[], object]) -> timing.Variant:
    return timing.Variant(call, lambda: torch.set_num_threads(1))


def measure(seconds: float) -> dict[str, Measured]:
    steps: dict[str, Callable[[], Measured]] = {
        "million": lambda: top_k(MILLION, 10, seconds, (1, 2)),
        "many": lambda: top_k(MANY, 5, seconds),
        "argmax": lambda: argmax(seconds),
        "loss": lambda: loss(seconds),
    }
    results = {}
    with bar() as progress:
        task = progress.add_task("", total=len(steps))
        for name, step in steps.items():
            progress.update(task, description=name)
            results[name] = step()
            progress.advance(task)
    return results


def targets(results: dict[str, Measured]) -> list[Target]:
    rows: list[Target] = []

    def speed(name: str, asked: float, slow: str = "dense float32", fast: str = "fixclf") -> None:
        result = results[name]
        quantity = f"speed, {fast} / {slow}"
        rows.append(Target(result.title, quantity, asked, True, result.speed(slow, fast)))

    def time(name: str, asked: float, scale: float, unit: str, a_row: bool) -> None:
        result = results[name]
        value = result.times["fixclf"].median / (result.case.batch if a_row else 1) * scale
        quantity = "time a row" if a_row else "time"
        rows.append(Target(result.title, quantity, asked, False, value, unit))

    speed("million", 100)
    time("million", 1.5, 1e3, "ms", False)
    speed("million", 1.6, "fixclf", "fixclf, 2 threads")
    speed("many", 30)
    speed("argmax", 60)
    time("argmax", 0.6, 1e6, "µs", True)
    speed("argmax", 1.5, "fixclf", "fixclf int8")
    speed("argmax", 3, "fixclf", "fixclf signs")
    speed("loss", 20)
    for name in ("million", "many"):
        used = results[name].memory["fixclf"] / 2**20
        dense = results[name].memory["dense float32"] / 2**20
        remark = f"dense: {dense:.3g} MiB"
        title = results[name].title
        rows.append(Target(title, "memory at the peak", 1, False, used, "MiB", remark))
    used, dense = (results["loss"].memory[k] for k in ("fixclf", "dense float32"))
    remark = f"{used / 1e6:.3g} against {dense / 1e6:.3g} MB"
    value = dense / max(used, 1)
    title = results["loss"].title
    rows.append(Target(title, "memory at the peak, dense / ours", 50, True, value, remark=remark))
    return rows


def table(results: dict[str, Measured]) -> list[dict[str, str]]:
    return [
        {
            "case": result.title,
            "by": name,
            "a call": str(t),
            "a row": timing.duration(t.median / result.case.batch),
            "memory": tables.size(result.memory[name]) if name in result.memory else "–",
        }
        for result in results.values()
        for name, t in result.times.items()
    ]


def plot(path: Path, results: dict[str, Measured], machine: dict[str, str]) -> None:
    """Time a row, by case and variant."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    ticks, labels, y = [], [], 0.0
    for result in results.values():
        ticks.append(y - 0.5 * (len(result.times) - 1))
        labels.append(result.title)
        for name, t in result.times.items():
            value = t.median / result.case.batch * 1e6
            axes.barh(y, value, 0.9, color="#4d4d4d" if name.startswith("dense") else "#0072b2")
            factor = result.speed("dense float32", name)
            text = name if name.startswith("dense") else f"{name}: {factor:.3g}× dense"
            axes.annotate(f" {text}", (value, y), va="center", fontsize=8)
            y -= 1
        y -= 0.8
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xscale("log")
    axes.set_xlim(right=axes.get_xlim()[1] * 6)
    axes.set_xlabel("µs a row (log scale)")
    axes.set_title("Answers without logits", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, axis="x", color="#e6e6e6")
    figure.supxlabel(
        f"{machine['cpu']}, {machine['isa']} kernels, 1 thread unless said; torch "
        f"{machine['torch']}; medians; {machine['date']}",
        fontsize=8, color="#555555",
    )  # fmt: skip
    figure.savefig(path, dpi=150)
    plt.close(figure)


NOTES = """\
One thread unless said; every result was checked against float64 before it was timed. Peers are
timed in turn, in one process; medians with the 20th and 80th percentile. The dense head is
`nn.Linear` in float32, then `topk`, `argmax` or `cross_entropy`; ours also normalises the features
and, for top-k, gives the logsumexp. Memory: growth of the resident set at the peak of one call,
outputs included, exact to a few hundred KB.
"""


def main(
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="To measure each case for.")] = 4.0,
) -> None:
    """Measure, print asked for beside measured, and write tables and a plot."""
    torch.set_num_threads(1)
    results = measure(seconds)
    torch.set_num_threads(1)
    machine = timing.machine()
    rows = targets(results)
    sections = {"Asked for and measured": [r.row() for r in rows], "Times": table(results)}
    for heading, section in sections.items():
        tables.show(heading, section)
    folder = tables.results_folder(machine, output)
    title = f"Answers without logits on {machine['cpu']}, {machine['isa']}"
    path = folder / "reductions.md"
    tables.write_report(path, title, "bench.reductions", machine, NOTES, sections)
    timings = [
        {"what": r.title, **vars(r.case), "by": k, **vars(t), "memory": r.memory.get(k), **machine}
        for r in results.values()
        for k, t in r.times.items()
    ]
    tables.write_csv(folder / "reductions.csv", timings)
    plot(folder / "reductions.png", results, machine)
    for file in ("reductions.md", "reductions.csv", "reductions.png"):
        tables.console.print(f"  wrote {folder / file}", highlight=False)
    failed = [row for row in rows if row.met is False]
    tables.console.print(f"\n[bold]{len(rows) - len(failed)} of {len(rows)} rows met[/bold]")


if __name__ == "__main__":
    typer.run(main)
