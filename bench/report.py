"""The speeds that this project has set itself, asked for and measured: `python -m bench.report`.

Measures the head and the transform beside their peers (interleaved, one thread unless said, checked
against float64 first) and the memory, and writes report.md, report.png, timings.csv and targets.csv
into a folder named after the CPU. README and docs/performance.md take their numbers from there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import matplotlib
import torch
import typer

from fixclf_infer import _native
from fixclf_infer.epilogue import Epilogue

from . import memory, native, peers, tables, timing, transforms
from .progress import bar
from .targets import Target

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

Times = dict[str, timing.Timing]

DENSE = ("dense", "dense bfloat16", "dense int8")
MAIN = peers.Case(2048, 1000, 256)
SINGLE = peers.Case(2048, 1000, 1)
MANY = peers.Case(512, 100_000, 32, epilogue=Epilogue.LOGITS)
# Which peers each case meets.
CASES: dict[peers.Case, tuple[str, ...]] = {
    MAIN: ("fixclf", *DENSE, "copy"),
    SINGLE: ("fixclf", "fixclf module", *DENSE, "copy"),
    peers.Case(768, 1000, 256): ("fixclf", *DENSE, "copy"),
    peers.Case(1280, 1000, 256): ("fixclf", *DENSE, "copy"),
    peers.Case(512, 1000, 256): ("fixclf", *DENSE, "copy"),
    MANY: ("fixclf", "dense", "write"),
    peers.Case(960, 1000, 1): ("fixclf", *DENSE, "copy"),
}
# At least so many times as fast as torch's dense float32 head, on AVX2 and on AVX-512.
DENSE_TARGETS: dict[peers.Case, tuple[float, float]] = {
    MAIN: (50, 65),
    SINGLE: (20, 20),
    peers.Case(768, 1000, 256): (16, 20),
    peers.Case(1280, 1000, 256): (20, 28),
    peers.Case(512, 1000, 256): (18, 24),
    MANY: (20, 20),
    peers.Case(960, 1000, 1): (10, 10),
}
SIZES = range(4, 19)
MEMORY_BATCH = 16384
TEMPORARY = f"memory besides the output, B={MEMORY_BATCH}"


@dataclass
class Results:
    """Everything measured, in seconds a call (heads) or a row (transforms), or bytes."""

    heads: dict[peers.Case, Times]
    threads: Times
    isas: Times
    transforms: dict[int, Times]
    temporary: dict[str, int]
    scratch: int


def measure(seconds: float) -> Results:
    """Run everything; about `seconds` for each case."""
    results = Results({}, {}, {}, {}, {}, 0)
    steps = len(CASES) + 3 + len(SIZES)
    with bar() as progress:
        task = progress.add_task("", total=steps)
        for case, names in CASES.items():
            progress.update(task, description=f"N={case.in_features} C={case.num_classes}")
            results.heads[case] = peers.compare(case, names, seconds)
            progress.advance(task)
        progress.update(task, description="two threads")
        if (os.cpu_count() or 1) > 1:
            results.threads = two_threads(seconds)
        progress.advance(task)
        progress.update(task, description="head on each ISA")
        results.isas = each_isa(seconds)
        progress.advance(task)
        for log_n in SIZES:
            progress.update(task, description=f"transform 2^{log_n}")
            variants = {name: build(log_n) for name, build in transforms.peers().items()}
            results.transforms[log_n] = timing.measure(variants, seconds=seconds)
            progress.advance(task)
        progress.update(task, description="memory")
        results.temporary, results.scratch = memory_use()
        progress.advance(task)
    return results


def two_threads(seconds: float) -> Times:
    variants = {
        f"{threads} thread{'s' * (threads > 1)}": peers.build(
            peers.Case(**{**vars(MAIN), "threads": threads}), "fixclf"
        )
        for threads in (1, 2)
    }
    with torch.inference_mode():
        return timing.measure(variants, seconds=seconds)


def each_isa(seconds: float) -> Times:
    """The head on NumPy arrays, on every supported ISA."""
    used = _native.isa()
    variants = {isa: peers.forced(MAIN, isa) for isa in _native.supported_isas()}
    times = timing.measure(variants, seconds=seconds)
    _native.set_isa(used)
    return times


def memory_use() -> tuple[dict[str, int], int]:
    """Peak bytes besides the output, by peer; bytes of scratch that a thread keeps."""
    torch.set_num_threads(1)
    case = peers.Case(MAIN.in_features, MAIN.num_classes, MEMORY_BATCH)
    output = 4 * case.batch * case.num_classes
    with torch.inference_mode():
        peaks = {
            name: memory.peak_temporary(peers.PEERS[name](case), output)
            for name in ("fixclf", "dense", "dense int8")
        }
        return peaks, memory.scratch(MAIN.in_features, MAIN.num_classes)


def ratio(times: Mapping[str, timing.Timing], slow: str, fast: str) -> float | None:
    """How many times as fast `fast` is."""
    if slow not in times or fast not in times:
        return None
    return times[slow].median / times[fast].median


def worst(results: Results, isa: str, sizes: Sequence[int]) -> tuple[float | None, str]:
    """The least advantage over FFHT among the sizes, and where."""
    found = {k: ratio(results.transforms[k], "ffht", f"fixclf {isa}") for k in sizes}
    known = {k: v for k, v in found.items() if v is not None}
    if not known:
        return None, ""
    least = min(known, key=lambda k: known[k])
    return known[least], f"least at 2^{least}, most {max(known.values()):.2f} ×"


def targets(results: Results) -> list[Target]:
    """What the project asks of itself, by instruction set."""
    isa = _native.isa()
    wide = isa == "v4"
    rows: list[Target] = []

    def transform(name: str, asked: float, used: str, sizes: Sequence[int]) -> None:
        value, remark = worst(results, used, sizes)
        rows.append(Target(name, f"speed / FFHT, {used}", asked, True, value, remark=remark))

    transform("transform 2^7–2^14", 1.6 if wide else 1.2, isa, range(7, 15))
    transform("transform 2^4–2^6", 1.0, isa, range(4, 7))
    transform("transform 2^15–2^18", 1.0, isa, range(15, 19))
    if "v3" in _native.supported_isas():
        transform("transform 2^4–2^18, v3", 1.0, "v3", SIZES)
    for case, (narrow_asked, wide_asked) in DENSE_TARGETS.items():
        asked = wide_asked if wide else narrow_asked
        times = results.heads[case]
        rows.append(
            Target(
                label(case), "speed / dense float32", asked, True, ratio(times, "dense", "fixclf")
            )
        )
        if case is MAIN:
            best = min(DENSE, key=lambda name: times[name].median)
            value = ratio(times, best, "fixclf")
            rows.append(
                Target(
                    label(case),
                    "speed / best dense",
                    17 if wide else 14,
                    True,
                    value,
                    remark=f"the best is {best}",
                )
            )
            value = ratio(times, "fixclf", "copy")
            rows.append(
                Target(label(case), "time / copy of its bytes", 1.9 if wide else 2.2, False, value)
            )
        if case is SINGLE:
            value = times["fixclf"].median * 1e6
            asked = 4.5 if wide else 5
            rows.append(Target(label(case), "time, torch.ops", asked, False, value, "µs"))
            value = times["fixclf module"].median * 1e6
            rows.append(Target(label(case), "time, module", asked + 1, False, value, "µs"))
        if case is MANY:
            value = ratio(times, "fixclf", "write")
            rows.append(Target(label(case), "time / writing the logits", 2, False, value))
    if wide:
        value = ratio(results.isas, "v3", "v4")
        rows.append(Target(label(MAIN) + ", NumPy", "speed, v4 / v3", 1, True, value))
    value = ratio(results.threads, "1 thread", "2 threads")
    rows.append(Target(label(MAIN), "speed, 2 threads / 1", 1.7, True, value))
    peak, dense = (results.temporary[name] / 1e6 for name in ("fixclf", "dense"))
    remark = f"dense: {dense:.3g} MB"
    rows.append(Target(TEMPORARY, "peak, resolved to 0.5 MB", 0.5, False, peak, "MB", remark))
    order = peers.fixed_head(MAIN).codebook.order
    limit, scratch = 2 * order * 4 / 1000, results.scratch / 1000
    rows.append(Target("scratch of a thread", "2·order·4", limit, False, scratch, "KB"))
    return rows


def label(case: peers.Case) -> str:
    epilogue = "" if case.epilogue is Epilogue.SOFTMAX else f" {case.epilogue.name.lower()}"
    return f"N={case.in_features} C={case.num_classes} B={case.batch}{epilogue}"


def timing_rows(results: Results) -> list[dict[str, object]]:
    """Every timing, for the CSV."""
    rows: list[dict[str, object]] = []
    for case, times in results.heads.items():
        fields = {**vars(case), "epilogue": case.epilogue.name.lower()}
        rows += [{"what": "head", **fields, "peer": k, **vars(t)} for k, t in times.items()]
    main = {**vars(MAIN), "epilogue": MAIN.epilogue.name.lower()}
    for name, t in results.threads.items():
        rows.append({"what": "head", **main, "threads": name[0], "peer": "fixclf", **vars(t)})
    for isa, t in results.isas.items():
        rows.append({"what": "head, NumPy", **main, "peer": f"fixclf {isa}", **vars(t)})
    for log_n, times in results.transforms.items():
        fields = {"in_features": 1 << log_n, "dtype": "float32", "threads": 1}
        rows += [{"what": "transform", **fields, "peer": k, **vars(t)} for k, t in times.items()]
    return rows


def head_table(results: Results) -> list[dict[str, str]]:
    """Microseconds a row, and the ratio to the fused head."""
    names = list(dict.fromkeys(name for times in results.heads.values() for name in times))
    rows = []
    for case, times in results.heads.items():
        row = {"head": label(case)}
        for name in names:
            if name not in times:
                row[name] = "–"
                continue
            value = timing.duration(times[name].median / case.batch)
            factor = times[name].median / times["fixclf"].median
            row[name] = value if name == "fixclf" else f"{value} ({factor:.3g}×)"
        rows.append(row)
    return rows


def transform_table(results: Results) -> list[dict[str, str]]:
    """Time a row, with the ratio of FFHT's to it."""
    rows = []
    for log_n, times in results.transforms.items():
        row = {"n": f"2^{log_n}"}
        for name, t in times.items():
            factor = ratio(times, "ffht", name) if name.startswith("fixclf") else None
            row[name] = timing.duration(t.median) + (f" ({factor:.2f}×)" if factor else "")
        rows.append(row)
    return rows


def isa_table(results: Results) -> list[dict[str, str]]:
    return [
        {"isa": isa, "a row": timing.duration(t.median / MAIN.batch), "a call": str(t)}
        for isa, t in results.isas.items()
    ]


def plot(path: Path, results: Results, machine: Mapping[str, str]) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12, 5), width_ratios=[1, 1.25], layout="constrained"
    )
    plot_transforms(left, results)
    plot_heads(right, results)
    figure.supxlabel(
        f"{machine['cpu']}, {machine['isa']} kernels, 1 thread; torch {machine['torch']}; medians; "
        f"{machine['date']}",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_transforms(axes: Axes, results: Results) -> None:
    """Numbers transformed in a nanosecond, by size."""
    styles = {
        "ffht": ("#d55e00", "--"),
        "copy": ("#b0b0b0", ":"),
        "fixclf torch.ops": ("#009e73", "-"),
    }
    blues = iter(["#c6dbef", "#6baed6", "#2171b5", "#08306b"])
    for name in next(iter(results.transforms.values())):
        times = {k: times[name].median for k, times in results.transforms.items()}
        color, line = styles.get(name) or (next(blues), "-")
        rates = [(1 << k) / t / 1e9 for k, t in times.items()]
        axes.plot(list(times), rates, line, color=color, marker="o", markersize=3, label=name)
    axes.set_yscale("log")
    axes.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.set_xticks(list(SIZES)[::2], [f"$2^{{{k}}}$" for k in list(SIZES)[::2]])
    axes.set_xlabel("order n")
    axes.set_ylabel("numbers transformed a nanosecond")
    axes.set_title("Transform, float32", loc="left", fontsize=10)
    axes.legend(frameon=False, fontsize=8, ncols=2)
    _clean(axes)


def plot_heads(axes: Axes, results: Results) -> None:
    """Time a row, by case and peer."""
    colors = {
        "fixclf": "#0072b2", "fixclf module": "#56b4e9", "dense": "#4d4d4d",
        "dense bfloat16": "#8c8c8c", "dense int8": "#c0c0c0", "copy": "#e69f00", "write": "#e69f00",
    }  # fmt: skip
    height = 0.8 / 6
    for i, (case, times) in enumerate(results.heads.items()):
        for j, (name, t) in enumerate(times.items()):
            y, value = -i - j * height, t.median / case.batch * 1e6
            axes.barh(y, value, height, color=colors[name])
            if name == "fixclf":
                axes.annotate(
                    f" {ratio(times, 'dense', name):.3g}× dense float32",
                    (value, y + 0.04), va="center",
                    fontsize=7, fontweight="bold",
                )  # fmt: skip
    axes.set_yticks(
        [-i - 0.3 for i in range(len(results.heads))], [label(c) for c in results.heads]
    )
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.set_xscale("log")
    axes.set_xlabel("µs a row (log scale)")
    axes.set_title("Head, float32 features, softmax unless said", loc="left", fontsize=10)
    shown = dict.fromkeys(name for times in results.heads.values() for name in times)
    handles = [Rectangle((0, 0), 1, 1, color=colors[name]) for name in shown]
    figure_labels = ["copy or write (floor)" if name == "copy" else name for name in shown]
    kept = [k for k, name in enumerate(shown) if name != "write"]
    axes.legend(
        [handles[k] for k in kept], [figure_labels[k] for k in kept],
        frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.1), ncols=3,
    )  # fmt: skip
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(True, axis="x" if axes.get_xscale() == "log" else "y", color="#e6e6e6")


NOTES = """\
Every result was checked against float64 before it was timed. Peers are timed in turn, in one
process; medians. "copy" copies as many bytes as the head reads and writes together, B·(N + C)·4, to
another buffer: each byte is read once and written once. "write" fills a buffer of the output's
size. The heads run through torch.ops and allocate their outputs. Transforms named after an ISA, and
FFHT, run in place in a C loop, 16 KB or one row at a time; `fixclf torch.ops` runs out of place on
1 MB; times are a row's, and (×) is FFHT's time over it.
"""


def main(
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    ffht: Annotated[Path | None, typer.Option(help="FFHT's shared library.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="To measure each case for.")] = 2.0,
) -> None:
    """Measure, print asked-for beside measured, and write tables and a plot."""
    if ffht is not None:
        os.environ[native.VARIABLE] = str(ffht)
    if native.ffht_library() is None:
        tables.console.print(f"[yellow]{native.LEFT_OUT}, nor does --ffht[/yellow]")
    torch.set_num_threads(1)
    results = measure(seconds)
    torch.set_num_threads(1)
    machine = timing.machine()
    rows = targets(results)
    sections = {
        "Asked for and measured": [target.row() for target in rows],
        "Head, time a row (× the fused head)": head_table(results),
        "Head on each ISA, from NumPy, N=2048 C=1000 B=256": isa_table(results),
        "Transform, time a row (speed / FFHT)": transform_table(results),
    }
    for heading, table in sections.items():
        tables.show(heading, table)

    folder = tables.results_folder(machine, output)
    left_out = "" if native.ffht_library() else f"{native.LEFT_OUT}.\n\n"
    title = f"Speed on {machine['cpu']}, {machine['isa']}"
    notes = left_out + NOTES
    tables.write_report(folder / "report.md", title, "bench.report", machine, notes, sections)
    tables.write_csv(folder / "timings.csv", [{**r, **machine} for r in timing_rows(results)])
    tables.write_csv(folder / "targets.csv", [{**vars(t), "met": t.met} for t in rows])
    plot(folder / "report.png", results, machine)
    for file in ("report.md", "report.png", "timings.csv", "targets.csv"):
        tables.console.print(f"  wrote {folder / file}", highlight=False)
    failed = [target for target in rows if target.met is False]
    tables.console.print(f"\n[bold]{len(rows) - len(failed)} of {len(rows)} rows met[/bold]")


if __name__ == "__main__":
    typer.run(main)
