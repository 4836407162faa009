"""`make demo`: train a fixed head beside a dense one on real data, serve both, write the evidence.

1. Trains a small convolutional network on scikit-learn's digits (8×8 pixels, 10 classes) with a
   dense head and with a FixedClassifier, several seeds.
2. Checks the served results against the float64 oracle, then times both heads at the widths of
   image classifiers.
3. Writes accuracy.csv, speed.csv, demo.md and demo.png.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from fixclf_infer import reference
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

from . import peers, tables, timing
from .progress import bar

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

FEATURES, CLASSES, EPOCHS, BATCH = 64, 10, 12, 64
HEADS = ("dense", "fixed")
COLORS = {"dense": "#8c8c8c", "fixed": "#0072b2"}
LABELS = {"dense": "nn.Linear (dense)", "fixed": "FixedClassifier"}
SHAPES = ((2048, 1000), (512, 500))
Data = tuple[Tensor, Tensor, Tensor, Tensor]
SpeedRow = dict[str, float | int | str]


def digits() -> Data:
    """Training images and labels, test images and labels (20 %, stratified)."""
    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    split = train_test_split(
        images, data.target, test_size=0.2, stratify=data.target, random_state=0
    )
    train_x, test_x, train_y, test_y = (torch.from_numpy(np.ascontiguousarray(a)) for a in split)
    return train_x, train_y.long(), test_x, test_y.long()


def network(head: str) -> nn.Sequential:
    """Two convolutions, the mean over the image as features, and the head."""
    last = nn.Linear(FEATURES, CLASSES) if head == "dense" else FixedClassifier(FEATURES, CLASSES)
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, FEATURES, 3, padding=1), nn.BatchNorm2d(FEATURES), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        last,
    )


def train(head: str, seed: int, data: Data) -> tuple[nn.Sequential, float]:
    """A trained network and its test accuracy."""
    torch.manual_seed(seed)
    train_x, train_y, test_x, test_y = data
    model = network(head)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batches = -(-len(train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, EPOCHS * batches)
    for _ in range(EPOCHS):
        order = torch.randperm(len(train_x))
        for begin in range(0, len(order), BATCH):
            rows = order[begin : begin + BATCH]
            optimizer.zero_grad()
            torch.autograd.backward(
                nn.functional.cross_entropy(model(train_x[rows]), train_y[rows])
            )
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.inference_mode():
        accuracy = (model(test_x).argmax(-1) == test_y).float().mean().item()
    return model, accuracy


def check_served(model: nn.Sequential, images: Tensor) -> float:
    """Largest error of the trained fixed head's probabilities against the float64 oracle."""
    head = model[-1]
    assert isinstance(head, FixedClassifier) and head.bias is not None
    with torch.inference_mode():
        x = model[:-1](images)
        served = head.predict_proba(x).numpy()
    bias = head.bias.detach().numpy()
    matrix, alpha = head.codebook.matrix(), float(head.alpha.detach())
    expected = reference.head(x.numpy(), matrix, alpha, bias, Epilogue.SOFTMAX)
    error = float(np.abs(served - expected).max())
    if not error <= 1e-6:
        raise AssertionError(f"served probabilities are off by {error:.3g}, allowed 1e-6")
    return error


def accuracies(seeds: int) -> tuple[dict[str, list[float]], float]:
    """Test accuracy of each head for each seed, and the largest error of the served fixed heads."""
    data = digits()
    results: dict[str, list[float]] = {head: [] for head in HEADS}
    worst = 0.0
    with bar() as progress:
        task = progress.add_task("", total=seeds * len(HEADS))
        for seed in range(seeds):
            for head in HEADS:
                progress.update(task, description=f"training, {head} head, seed {seed}")
                model, accuracy = train(head, seed, data)
                results[head].append(accuracy)
                if head == "fixed":
                    worst = max(worst, check_served(model, data[2]))
                progress.advance(task)
    return results, worst


def speeds() -> list[SpeedRow]:
    """Dense nn.Linear + softmax and FixedClassifier.predict_proba, checked, then interleaved."""
    cases = [
        peers.Case(n, c, batch, dtype)
        for n, c in SHAPES
        for batch in (1, 256)
        for dtype in ("float32", "bfloat16")
    ]
    rows: list[SpeedRow] = []
    with bar() as progress:
        task = progress.add_task("", total=len(cases))
        for case in cases:
            name = f"N={case.in_features} C={case.num_classes} batch {case.batch} {case.dtype}"
            progress.update(task, description=name)
            times = peers.compare(case, ["dense", "fixclf module"], seconds=2.0)
            dense, fixed = times["dense"], times["fixclf module"]
            itemsize = peers.DTYPES[case.dtype].itemsize
            rows.append(
                {
                    "N": case.in_features,
                    "C": case.num_classes,
                    "batch": case.batch,
                    "dtype": case.dtype,
                    "threads": case.threads,
                    **{f"dense_{k}": v for k, v in vars(dense).items()},
                    **{f"fixed_{k}": v for k, v in vars(fixed).items()},
                    "ratio": dense.median / fixed.median,
                    "dense_weight_bytes": (case.in_features + 1) * case.num_classes * itemsize,
                    "fixed_weight_bytes": peers.weight_bytes(peers.fixed_head(case)),
                }
            )
            progress.advance(task)
    return rows


def accuracy_table(results: dict[str, list[float]]) -> list[dict[str, str]]:
    return [
        {
            "head": head,
            "test accuracy, mean": f"{statistics.mean(values):.4f}",
            "standard deviation": f"{statistics.stdev(values):.4f}",
            "seeds": " ".join(f"{v:.4f}" for v in values),
        }
        for head, values in results.items()
    ]


def speed_table(rows: list[SpeedRow], spread: bool) -> list[dict[str, str]]:
    """For people; `spread` adds the 20th and 80th percentile."""

    def text(row: SpeedRow, head: str) -> str:
        middle, low, high = (
            timing.duration(float(row[f"{head}_{end}"])) for end in ("median", "low", "high")
        )
        return f"{middle} [{low}, {high}]" if spread else middle

    return [
        {
            "N → C": f"{row['N']} → {row['C']}",
            "batch": str(row["batch"]),
            "dtype": str(row["dtype"]),
            "dense": text(row, "dense"),
            "fixed": text(row, "fixed"),
            "ratio": f"{row['ratio']:.1f}×",
            "dense weights": tables.size(int(row["dense_weight_bytes"])),
            "fixed weights": tables.size(int(row["fixed_weight_bytes"])),
        }
        for row in rows
    ]


def plot(
    path: Path,
    results: dict[str, list[float]],
    rows: list[SpeedRow],
    machine: dict[str, str],
) -> None:
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11.5, 4.6), width_ratios=[1, 2.6], layout="constrained"
    )
    plot_accuracies(left, results)
    plot_speeds(right, rows)
    figure.suptitle(
        "A classifier head without weights", fontsize=14, fontweight="bold", x=0.01, ha="left"
    )
    figure.supxlabel(
        f"{machine['cpu']}, {machine['isa']} kernels, 1 thread; torch {machine['torch']}; "
        "median, whiskers 20th to 80th percentile",
        fontsize=8,
        color="#555555",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_accuracies(axes: Axes, results: dict[str, list[float]]) -> None:
    for i, head in enumerate(HEADS):
        values = results[head]
        shift = np.linspace(-0.12, 0.12, len(values))
        axes.scatter(i + shift, values, s=36, color=COLORS[head], alpha=0.75, linewidths=0)
        mean = statistics.mean(values)
        axes.hlines(mean, i - 0.25, i + 0.25, color=COLORS[head], linewidth=2)
        axes.annotate(f"{mean:.3f}", (i + 0.28, mean), va="center", fontsize=9)
    low = min(min(values) for values in results.values())
    axes.set_ylim(min(0.95, low - 0.01), 1.002)
    axes.set_xlim(-0.5, 1.65)
    axes.set_xticks(range(len(HEADS)), [f"{head}\nhead" for head in HEADS])
    axes.set_title(f"Test accuracy on digits, {len(values)} seeds", fontsize=10, loc="left")
    clean(axes)
    axes.yaxis.grid(True, color="#e6e6e6")


def plot_speeds(axes: Axes, rows: list[SpeedRow]) -> None:
    for i, row in enumerate(rows):
        for head, shift in (("dense", 0.19), ("fixed", -0.19)):
            middle, low, high = (float(row[f"{head}_{k}"]) * 1e6 for k in ("median", "low", "high"))
            y = len(rows) - 1 - i + shift
            axes.barh(y, middle, 0.36, color=COLORS[head], label=LABELS[head] if i == 0 else "")
            axes.hlines(y, low, high, color="black", linewidth=1)
            text = timing.duration(middle / 1e6)
            if head == "fixed":
                text += f"   {float(row['ratio']):.3g}× as fast"
            bold = "bold" if head == "fixed" else "normal"
            axes.annotate(
                text, (max(middle, high) * 1.12, y), va="center", fontsize=8, fontweight=bold
            )
    labels = [f"{r['N']} → {r['C']}, batch {r['batch']}\n{r['dtype']}" for r in rows]
    axes.set_yticks(range(len(rows)), labels[::-1], fontsize=8)
    axes.set_xscale("log")
    left, right = axes.get_xlim()
    axes.set_xlim(left, right * 4)
    axes.xaxis.set_major_formatter(lambda value, _: timing.duration(value / 1e6))
    axes.set_xlabel("time of one call (log scale)", fontsize=9)
    axes.set_title("Head with softmax, features → probabilities", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    clean(axes)


def clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def main(
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("demo-out"),
    seeds: Annotated[int, typer.Option(min=3, help="Trainings of each head.")] = 5,
) -> None:
    """Train, check, time, and write what came out."""
    results, error = accuracies(seeds)
    accuracy = accuracy_table(results)
    tables.show("Digits: the same network with either head", accuracy)
    tables.console.print(
        f"  served through torch.ops.fixclf: probabilities within {error:.1g} of float64\n"
    )
    rows = speeds()
    tables.show("One call: features to probabilities, 1 thread", speed_table(rows, spread=False))

    machine = timing.machine()
    output.mkdir(parents=True, exist_ok=True)
    tables.write_csv(
        output / "accuracy.csv",
        [
            {"head": head, "seed": seed, "accuracy": value}
            for head, values in results.items()
            for seed, value in enumerate(values)
        ],
    )
    tables.write_csv(output / "speed.csv", [{**row, **machine} for row in rows])
    ratios = [float(row["ratio"]) for row in rows if row["dtype"] == "float32"]
    gap = 100 * (statistics.mean(results["fixed"]) - statistics.mean(results["dense"]))
    weights = [tables.size(int(rows[0][f"{head}_weight_bytes"])) for head in ("fixed", "dense")]
    conclusion = (
        f"In float32 the fixed head is {min(ratios):.1f} to {max(ratios):.0f} times as fast as the "
        f"dense one, with {weights[0]} instead of {weights[1]} of weights at {rows[0]['N']} → "
        f"{rows[0]['C']}; accuracy on digits: {gap:+.2f} points."
    )
    text = (
        f"# fixclf_infer demo\n\n{conclusion}\n\n{tables.markdown(accuracy)}\n"
        f"{tables.markdown(speed_table(rows, spread=True))}\n{tables.record(machine)}"
    )
    (output / "demo.md").write_text(text)
    plot(output / "demo.png", results, rows, machine)
    for name, what in (
        ("demo.md", "both tables"),
        ("demo.png", "the plot"),
        ("accuracy.csv", "accuracy of every seed"),
        ("speed.csv", "every timing, with the machine"),
    ):
        tables.console.print(f"  wrote {output / name}: {what}", highlight=False)
    tables.console.print(f"\n[bold]{conclusion}[/bold]", highlight=False)


if __name__ == "__main__":
    typer.run(main)
