"""How fast a trained model gets used to a fixed head: accuracy against epochs after the swap.

    python examples/adapt.py                     # docs/adapt.csv and docs/adapt.png

Trains a network with a dense head, replaces the head, and trains on, in four ways; beside them,
the same network with its dense head, and one with a fixed head from the start. Two tasks:

- Fashion-MNIST, 10 000 training images, 128 features, 10 classes, from the files of Debian's
  dataset-fashion-mnist (`apt-get install dataset-fashion-mnist`, or --fashion with the four files);
- the next word of Python's documentation texts, 256 features, 400 classes, which comes with Python.

Nothing is downloaded.
"""

from __future__ import annotations

import copy
import gzip
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, it has only its own folder

from bench import tables  # noqa: E402
from bench.accuracy.tasks import Split, next_word, next_word_body  # noqa: E402
from fixclf_infer import adapt, replace_head  # noqa: E402

BATCH = 128


@dataclass(frozen=True)
class Task:
    name: str
    data: Callable[[], Split]
    model: Callable[[], nn.Sequential]
    rate: float  # the highest, of training and of adapting
    epochs: int  # of training


def fashion(folder: Path) -> Split:
    """Pixels in [−1, 1]: 10 000 to train on, 10 000 to test on."""

    def read(name: str, offset: int) -> np.ndarray:
        data = gzip.decompress((folder / f"{name}-ubyte.gz").read_bytes())
        return np.frombuffer(data, np.uint8, offset=offset)

    def part(name: str) -> tuple[Tensor, Tensor]:
        images = read(f"{name}-images-idx3", 16).reshape(-1, 1, 28, 28)[:10_000]
        labels = read(f"{name}-labels-idx1", 8)[:10_000].astype(np.int64)
        return torch.from_numpy(images / np.float32(127.5) - 1), torch.from_numpy(labels)

    return Split(*part("train"), *part("t10k"))


def fashion_model() -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 128)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def words() -> Split:
    """At most 32 000 windows to train on and 10 000 to test on, in random order."""
    data, generator = next_word(400), torch.Generator().manual_seed(0)
    train = torch.randperm(len(data.train_y), generator=generator)[:32_000]
    test = torch.randperm(len(data.test_y), generator=generator)[:10_000]
    return Split(data.train_x[train], data.train_y[train], data.test_x[test], data.test_y[test])


def words_model() -> nn.Sequential:
    return nn.Sequential(*next_word_body(256, 400), nn.Linear(256, 400))


def accuracy(model: nn.Module, data: Split) -> float:
    model.eval()
    with torch.no_grad():
        best = torch.cat([model(x).argmax(-1) for x in data.test_x.split(1000)])
    return (best == data.test_y).float().mean().item()


def train(
    model: nn.Sequential, data: Split, epochs: int, rate: float, teacher: nn.Module | None = None
) -> list[float]:
    """Test accuracy before the first epoch and after each. With a teacher, half of the loss is the
    divergence from its probabilities."""
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-2)
    steps = epochs * (len(data.train_x) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    body, head = model[:-1], model[-1]
    found = [accuracy(model, data)]
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(data.train_x)).split(BATCH)[: steps // epochs]:
            x, target = body(data.train_x[rows]), data.train_y[rows]
            if isinstance(head, nn.Linear):
                loss = nn.functional.cross_entropy(head(x), target)
            else:
                loss = head.loss(x, target)  # no logits are kept
            if teacher is not None:
                with torch.no_grad():
                    answers = teacher(data.train_x[rows])
                loss = (loss + adapt.distillation(head, x, answers)) / 2
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
        found.append(accuracy(model, data))
    return found


WAYS = {  # what is warmed up, and whether the dense model teaches
    "train": ("", False),
    "bias first, then train": ("bias", False),
    "α and bias first, then train": ("α and bias", False),
    "distil": ("", True),
}


def curves(task: Task, seed: int, epochs: int) -> dict[str, list[float]]:
    data = task.data()
    torch.manual_seed(seed)
    dense = task.model()
    train(dense, data, task.epochs, task.rate)
    dense.eval()
    found = {"dense, goes on": train(copy.deepcopy(dense), data, epochs, task.rate)}
    for way, (warm, distil) in WAYS.items():
        torch.manual_seed(seed)
        model = copy.deepcopy(dense)
        head = replace_head(model).head
        if warm:
            batches = zip(data.train_x.split(1000), data.train_y.split(1000), strict=True)
            adapt.warm_up(model, head, batches, alpha="α" in warm)
        found[way] = train(model, data, epochs, task.rate, dense if distil else None)
    torch.manual_seed(seed)
    model = task.model()
    replace_head(model)
    found["fixed from scratch"] = train(model, data, epochs, task.rate)
    return found


COLORS = {
    "dense, goes on": "#8c8c8c",
    "train": "#0072b2",
    "bias first, then train": "#56b4e9",
    "α and bias first, then train": "#e69f00",
    "distil": "#d55e00",
    "fixed from scratch": "#009e73",
}


def plot(path: Path, rows: list[dict[str, object]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    figure, panels = plt.subplots(
        1, len(tasks), figsize=(5.6 * len(tasks), 4.4), layout="constrained", squeeze=False
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        low = 1.0
        for way, color in COLORS.items():
            mine = [r for r in rows if r["task"] == task and r["way"] == way]
            seeds = len({r["seed"] for r in mine})
            values = 100 * np.array([r["accuracy"] for r in mine], float).reshape(seeds, -1)
            epochs = np.arange(values.shape[1])
            style = "--" if way in ("dense, goes on", "fixed from scratch") else "-"
            axes.plot(epochs, values.mean(0), style, color=color, label=way, linewidth=1.8)
            axes.fill_between(
                epochs, values.min(0), values.max(0), color=color, alpha=0.12, linewidth=0
            )
            low = min(low, values[:, 1:].min() / 100)
        top = max(100 * float(str(r["accuracy"])) for r in rows if r["task"] == task)
        axes.set_ylim(100 * low - 0.06 * (top - 100 * low), top + 0.06 * (top - 100 * low))
        axes.set_title(task, fontsize=10, loc="left")
        axes.set_xlabel("epochs after the swap", fontsize=9)
        axes.set_ylabel("test accuracy, %", fontsize=9)
        axes.grid(True, color="#e6e6e6")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][-1].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main(
    output: Annotated[Path, typer.Option(help="Folder of adapt.csv and adapt.png.")] = ROOT
    / "docs",
    fashion_mnist: Annotated[
        Path, typer.Option("--fashion", help="Folder of Fashion-MNIST's four files.")
    ] = Path("/usr/share/datasets/fashion-mnist"),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs after the swap.")] = 6,
) -> None:
    """Train, swap, adapt, and write the curves."""
    tasks = [Task("next word, 256 → 400", words, words_model, 3e-3, 4)]
    if fashion_mnist.is_dir():
        get = lambda: fashion(fashion_mnist)  # noqa: E731
        tasks.insert(0, Task("Fashion-MNIST, 128 → 10", get, fashion_model, 3e-3, 8))
    else:
        print(f"without Fashion-MNIST: {fashion_mnist} does not exist")
    rows: list[dict[str, object]] = []
    for task in tasks:
        for seed in range(seeds):
            for way, values in curves(task, seed, epochs).items():
                print(f"{task.name}, seed {seed}, {way}:", *(f"{100 * v:.1f}" for v in values))
                rows += [
                    {"task": task.name, "seed": seed, "way": way, "epoch": i, "accuracy": v}
                    for i, v in enumerate(values)
                ]
    output.mkdir(parents=True, exist_ok=True)
    tables.write_csv(output / "adapt.csv", rows)
    plot(output / "adapt.png", rows)


if __name__ == "__main__":
    typer.run(main)
