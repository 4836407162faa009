"""`python -m bench.accuracy`: learned and fixed heads on real data, to results.md and results.csv.

Every head gets the same network, data, order and schedule; the schedule's highest rate is the one
of the task's that does best on a validation tenth of the training data, in one training with a
seed of its own. Then the head is trained anew for each seed and tested.
"""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Annotated

import torch
import typer

from .. import tables, timing
from ..progress import bar
from .heads import HEADS, ROWS, Head
from .tasks import TASKS, Split, Task, documents
from .train import Score, train, validation

Table = list[dict[str, str]]

VALIDATION_SEED = 1000


@dataclass(frozen=True)
class Plan:
    """One head on one task."""

    task: Task
    features: int
    relu: bool
    name: str
    head: Head

    @property
    def group(self) -> str:
        sign = "≥ 0" if self.relu else "any sign"
        return f"{self.task.name}, {self.features} → {self.task.num_classes}, {sign}"


@dataclass(frozen=True)
class Run:
    """Its scores, one a seed."""

    plan: Plan
    rate: float
    scores: list[Score]

    def text(self) -> str:
        """Accuracy in percent, mean ± standard deviation over the seeds."""
        values = [100 * score.accuracy for score in self.scores]
        return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"

    def loss(self) -> str:
        return f"{statistics.mean(score.loss for score in self.scores):.2f}"


def plans(only: str) -> list[Plan]:
    """What there is to train: a head that has no codebook for the pair is left out."""
    return [
        Plan(task, features, relu, name, head)
        for task in TASKS
        if only in task.name
        for features in task.features
        for relu in ((True, False) if task.both else (True,))
        for name, head in (HEADS | ROWS).items()
        if head(features, task.num_classes, 0) is not None
    ]


def run(plan: Plan, seeds: int) -> tuple[float, list[Score]]:
    """Choose the rate, then train for every seed; one thread, so that it can be repeated."""
    torch.set_num_threads(1)
    data = plan.task.data()

    def once(seed: int, rate: float, data: Split) -> Score:
        return train(plan.task, plan.features, plan.relu, plan.head, seed, rate, data)

    part = validation(data)
    rate = max(plan.task.rates, key=lambda rate: once(VALIDATION_SEED, rate, part).accuracy)
    return rate, [once(seed, rate, data) for seed in range(seeds)]


def run_apart(only: str, index: int, seeds: int) -> tuple[float, list[Score]]:
    """In another process, to which heads can't be sent."""
    return run(plans(only)[index], seeds)


def table(runs: Sequence[Run], names: Sequence[str], cell: Callable[[Run], str]) -> Table:
    """One line a task, one column a head."""
    groups: dict[str, dict[str, str]] = {}
    for run in runs:
        row = groups.setdefault(run.plan.group, {"": run.plan.group, **dict.fromkeys(names, "–")})
        if run.plan.name in names:
            row[run.plan.name] = cell(run)
    return list(groups.values())


def read(path: Path, todo: Sequence[Plan], seeds: int) -> dict[int, Run]:
    """The runs of these plans in a table that `write` wrote, by their place."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {}
    for i, plan in enumerate(todo):
        key = {name: str(value) for name, value in columns(plan).items()}
        mine = [row for row in rows if key.items() <= row.items()]
        if len(mine) == seeds:
            scores = [Score(float(row["accuracy"]), float(row["loss"])) for row in mine]
            found[i] = Run(plan, float(mine[0]["rate"]), scores)
    return found


def write(path: Path, runs: Sequence[Run]) -> None:
    rows = [
        columns(run.plan)
        | {"rate": run.rate, "seed": seed, "accuracy": score.accuracy, "loss": score.loss}
        for run in runs
        for seed, score in enumerate(run.scores)
    ]
    tables.write_csv(path, rows)


def columns(plan: Plan) -> dict[str, object]:
    """What names a plan in the table."""
    return {
        "task": plan.task.name,
        "C": plan.task.num_classes,
        "N": plan.features,
        "features": "nonnegative" if plan.relu else "any sign",
        "head": plan.name,
    }


NOTES = """\
Test accuracy in percent, mean ± standard deviation over {seeds} seeds, and the mean negative
log-likelihood in nats. Every head gets the same network, data, order and steps; the highest
learning rate of the schedule is chosen for each head on a validation tenth of the training data.
Fixed heads learn α and a bias. "N → C, ≥ 0": the features come from a ReLU; "any sign": from a
linear layer. "–": no codebook of that kind for the pair, or not trained. The digits are
scikit-learn's; words are those of the documentation texts of Python {python}'s standard library
({words} words).
Clusters are Gaussian ones around 100 random non-negative centres in 32 dimensions.
"hoffer" is the truncated Sylvester matrix in our head; with C > N its rows repeat. "version 2" is
"auto" of earlier releases: with C ≥ N one class is the row of −1. "auto, shuffled" gives the
classes the rows of "auto" in random order: words are numbered by their frequency.
"""


def main(
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = Path(__file__).parent,
    seeds: Annotated[int, typer.Option(min=2, help="Trainings of each head.")] = 5,
    only: Annotated[str, typer.Option(help="Tasks whose name contains this.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Heads that are trained at a time.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what results.csv has.")] = False,
    report: Annotated[bool, typer.Option("--report", help="Only of what results.csv has.")] = False,
) -> None:
    """Train and test every head on every task; results.csv grows as they are done."""
    output.mkdir(parents=True, exist_ok=True)
    todo = plans(only)
    known = read(output / "results.csv", todo, seeds) if resume or report else {}
    missing = [] if report else [i for i in range(len(todo)) if i not in known]
    with bar() as progress, ProcessPoolExecutor(jobs) as pool:
        line = progress.add_task("", total=len(missing))
        results = pool.map(run_apart, repeat(only), missing, repeat(seeds))
        for i, result in zip(missing, results, strict=True):
            progress.update(line, advance=1, description=f"{todo[i].group}, {todo[i].name}")
            known[i] = Run(todo[i], *result)
            write(output / "results.csv", [known[i] for i in sorted(known)])
    runs = [known[i] for i in sorted(known)]

    sections = {
        "Heads: accuracy": table(runs, list(HEADS), Run.text),
        "Heads: negative log-likelihood": table(runs, list(HEADS), Run.loss),
        "Rows of the codebook: accuracy": table(runs, list(ROWS), Run.text),
        "Rows of the codebook: negative log-likelihood": table(runs, list(ROWS), Run.loss),
    }
    for title, rows in sections.items():
        tables.show(title, rows)
    machine = timing.machine()
    words = sum(len(document) for document in documents())
    notes = NOTES.format(seeds=seeds, python=machine["python"], words=words)
    text = "".join(f"## {title}\n\n{tables.markdown(rows)}\n" for title, rows in sections.items())
    (output / "results.md").write_text(
        f"# Accuracy of fixed heads\n\n`python -m bench.accuracy`\n\n{notes}\n{text}"
        f"{tables.record(machine)}"
    )
    for file in ("results.md", "results.csv"):
        tables.console.print(f"  wrote {output / file}", highlight=False)


if __name__ == "__main__":
    typer.run(main)
