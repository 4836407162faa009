"""`python -m bench.alpha_study`: how α and the bias are best learned; to bench/results/alpha/.

Four tasks: scikit-learn's digits (16 features), two of bench.accuracy (2000 words as classes), and
500 kanji drawn with Debian's fonts, tested on families that were not trained on. A head is a dense
product with the matrix of `fixclf_infer.codebook`: the same function as FixedClassifier. The
rate of the body is chosen for each task and optimiser on a validation tenth, with α as a
plain parameter, so no other form of α is favoured.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn import functional

from fixclf_infer import codebook

from . import tables, timing
from .accuracy import tasks
from .accuracy.tasks import Split, Task
from .accuracy.train import validation
from .progress import bar

matplotlib.use("Agg")
from matplotlib import pyplot as plt

OUTPUT = tables.RESULTS / "alpha"
FONTS = Path("/usr/share/fonts")
PACKAGES = "fonts-noto-cjk fonts-ipafont fonts-mplus fonts-motoya-l-cedar fonts-motoya-l-maruberi"
PACKAGES += " fonts-horai-umefont fonts-kiloji"
TRAINED_FACES = (
    *("opentype/ipafont-gothic/ipag.ttf", "opentype/ipafont-mincho/ipam.ttf"),
    *("opentype/noto/NotoSansCJK-Regular.ttc", "opentype/noto/NotoSerifCJK-Regular.ttc"),
)
TESTED_FACES = (
    *("opentype/mplus/Mplus1-Light.otf", "opentype/mplus/Mplus1-Bold.otf"),
    *("truetype/motoya-l-maruberi/MTLmr3m.ttf", "truetype/horai-umefont/ume-hgo4.ttf"),
    "truetype/kiloji/kiloji.ttf",
)
PIXELS = 24
VALIDATION_SEED = 1000


def kanji_characters(size: int) -> list[str]:
    """Evenly spaced ones of the first level of JIS X 0208."""
    rows, cells = range(0xB0, 0xCF), range(0xA1, 0xFF)
    level = [bytes((row, cell)).decode("euc_jp") for row in rows for cell in cells]
    return [level[i * len(level) // size] for i in range(size)]


@cache
def kanji(size: int) -> Split:
    """Characters of 24×24 pixels. Those to train on are also moved by a pixel: nine of each."""

    def faces(paths: Sequence[str], moves: Iterable[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        drawn = torch.stack([glyphs(FONTS / path, size) for path in paths])
        moved = torch.cat([drawn.roll(move, (-2, -1)) for move in moves])
        return moved.flatten(0, 1).unsqueeze(1), torch.arange(size).repeat(len(moved))

    around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return Split(*faces(TRAINED_FACES, around), *faces(TESTED_FACES, [(0, 0)]))


def glyphs(path: Path, size: int) -> Tensor:
    """[size, 24, 24] of one face."""
    if not path.exists():
        raise typer.BadParameter(f"no font {path}: apt-get install {PACKAGES}")
    font, images = ImageFont.truetype(str(path), PIXELS - 3), []
    for character in kanji_characters(size):
        image = Image.new("L", (PIXELS, PIXELS))
        draw = ImageDraw.Draw(image)
        draw.text((PIXELS / 2, PIXELS / 2), character, fill=255, font=font, anchor="mm")
        images.append(np.asarray(image, np.float32) / 255)
    return torch.from_numpy(np.stack(images))


def kanji_body(features: int) -> list[nn.Module]:
    def layer(before: int, after: int, kernel: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, kernel, 2, kernel // 2, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    return [
        *(*layer(1, 16, 5), *layer(16, 32, 3), *layer(32, 64, 3), nn.Flatten()),
        *(nn.Linear(576, features), nn.BatchNorm1d(features)),
    ]


def word_task(name: str, features: int, steps: int) -> Task:
    (task,) = [t for t in tasks.TASKS if t.name == name and t.num_classes == 2000]
    return replace(task, features=(features,), steps=steps)


TASKS: dict[str, Task] = {
    "digits": Task("digits", 10, (16,), tasks.digits, tasks.digits_body, 400, 64, ()),
    "misspelled": word_task("misspelled word", 64, 700),
    "next word": word_task("next word", 64, 700),
    "kanji": Task("kanji", 1000, (256,), lambda: kanji(1000), kanji_body, 1000, 64, ()),
}
# The highest of the schedule, from which the one of each task is chosen; and common ones.
RATES = {
    "SGD": (0.03, 0.1, 0.3, 1.0, 3.0),
    "Adam": (3e-3, 1e-2, 3e-2, 1e-1),
    "AdamW": (3e-3, 1e-2, 3e-2, 1e-1),
    "Adam, 0.003": (3e-3,),  # kanji alone
    "Adam, 0.001": (1e-3,),
}
DECAY = {"SGD": 5e-4, "Adam": 1e-5, "AdamW": 5e-2}  # of the body, and of α where it decays


@dataclass(frozen=True)
class Form:
    """α = multiplier · Σ p or exp(Σ p) over `copies` equal numbers p, which are learned at `rate`
    times the body's rate. α starts at `start` times log(99 (C − 1))."""

    multiplier: float = 1.0
    copies: int = 1
    log: bool = False
    start: float = 1.0
    rate: float = 1.0


FORMS = {
    "plain": Form(),
    "log α": Form(log=True),
    "4 ρ": Form(4.0),
    "8 ρ": Form(8.0),
    "16 ρ": Form(16.0),
    "Σ of 64": Form(1 / 8, 64),
    "Σ of 256": Form(1 / 16, 256),
    "start × 2": Form(start=2.0),
    "rate × 10": Form(rate=10.0),
}
ALSO_UNDECAYED = ("plain", "log α", "Σ of 64")
ON_KANJI = ("plain", "log α", "Σ of 64", "start × 2")  # the slowest


@dataclass(frozen=True)
class Trial:
    """One training."""

    task: str
    optimiser: str
    form: str
    decay_alpha: bool = True
    bias: str = "zeros"
    bias_rate: float = 1.0
    decay_bias: bool = False
    objective: str = "softmax"
    seed: int = 0


class Head(nn.Module):
    """α W x̂ / √N + b, a dense product."""

    def __init__(self, matrix: Tensor, form: Form, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix / math.sqrt(matrix.shape[1]))
        start = form.start * math.log(99 * max(len(matrix) - 1, 1))
        self.form = form
        raw = (math.log(start) if form.log else start / form.multiplier) / form.copies
        self.raw = nn.Parameter(torch.full((form.copies,), raw))
        self.bias = nn.Parameter(bias)

    @property
    def alpha(self) -> Tensor:
        total = self.raw.sum(0, keepdim=True)
        return total.exp() if self.form.log else self.form.multiplier * total

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.matrix, Tensor)
        unit = functional.normalize(x, dim=-1)
        return functional.linear(self.alpha * unit, self.matrix, self.bias)


def start_of_bias(kind: str, targets: Tensor, num_classes: int) -> Tensor:
    if kind == "zeros":
        return torch.zeros(num_classes)
    if kind == "uniform":
        return torch.full((num_classes,), -math.log(num_classes))
    counts = torch.bincount(targets, minlength=num_classes) + 1.0
    return (counts / counts.sum()).log()


def softmax_loss(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target)


def sigmoid_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Summed over the classes."""
    one_hot = functional.one_hot(target, logits.shape[1]).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, one_hot, reduction="sum") / len(
        target
    )


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": softmax_loss,
    "sigmoid": sigmoid_loss,
}


def optimiser(trial: Trial, body: nn.Module, head: Head, rate: float) -> torch.optim.Optimizer:
    name = trial.optimiser.partition(",")[0]
    decay = DECAY[name]
    alpha_rate = rate * FORMS[trial.form].rate
    groups = [
        {"params": list(body.parameters()), "lr": rate, "weight_decay": decay},
        {"params": [head.raw], "lr": alpha_rate, "weight_decay": decay * trial.decay_alpha},
        {
            "params": [head.bias],
            "lr": rate * trial.bias_rate,
            "weight_decay": decay * trial.decay_bias,
        },
    ]
    if name == "SGD":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.Adam(groups) if name == "Adam" else torch.optim.AdamW(groups)


def train(trial: Trial, rate: float, data: Split) -> dict[str, float]:
    """Accuracy in percent and negative log-likelihood of the test set, and α."""
    task = TASKS[trial.task]
    (features,) = task.features
    torch.manual_seed(trial.seed)
    body = nn.Sequential(*task.body(features))
    matrix = torch.from_numpy(codebook(features, task.num_classes).matrix()).float()
    head = Head(
        matrix, FORMS[trial.form], start_of_bias(trial.bias, data.train_y, task.num_classes)
    )
    rule = optimiser(trial, body, head, rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        rule, [group["lr"] for group in rule.param_groups], task.steps, cycle_momentum=False
    )
    generator = torch.Generator().manual_seed(trial.seed)
    loss = LOSSES[trial.objective]
    for chosen in torch.randint(len(data.train_x), (task.steps, task.batch), generator=generator):
        rule.zero_grad()
        torch.autograd.backward(loss(head(body(data.train_x[chosen])), data.train_y[chosen]))
        rule.step()
        schedule.step()
    return {**test(nn.Sequential(body, head), data), "alpha": head.alpha.item()}


def test(model: nn.Module, data: Split) -> dict[str, float]:
    model.eval()
    right, total = 0, 0.0
    with torch.inference_mode():
        for begin in range(0, len(data.test_x), 1024):
            y = data.test_y[begin : begin + 1024]
            z = model(data.test_x[begin : begin + 1024])
            right += int((z.argmax(-1) == y).sum())
            total += float(softmax_loss(z, y)) * len(y)
    return {"accuracy": 100 * right / len(data.test_y), "nll": total / len(data.test_y)}


def rate_of(task: str, rule: str) -> float:
    """The one with the best likelihood on the validation tenth, α a plain parameter."""
    part = validation(TASKS[task].data())
    trial = Trial(task, rule, "plain", seed=VALIDATION_SEED)

    def score(rate: float) -> float:
        nll = train(trial, rate, part)["nll"]
        return nll if math.isfinite(nll) else math.inf

    return min(RATES[rule], key=score)


def trials(seeds: int) -> list[Trial]:
    """What is trained."""
    plans = []
    for task in TASKS:
        for rule in RATES:
            if rule == "Adam, 0.003" and task != "kanji":
                continue
            plans += [Trial(task, rule, f) for f in FORMS if task != "kanji" or f in ON_KANJI]
            if task != "kanji" and "," not in rule:
                plans += [Trial(task, rule, form, decay_alpha=False) for form in ALSO_UNDECAYED]
                plans += biases(task, rule)
            if task == "next word" and rule == "Adam, 0.001":
                plans += [Trial(task, rule, "Σ of 64", bias="counts")]
    each = [(task, seed) for task in TASKS for seed in range(seeds)]
    return [replace(plan, seed=seed) for task, seed in each for plan in plans if plan.task == task]


def biases(task: str, rule: str) -> list[Trial]:
    """Words are skewed; a uniform prior is for the sigmoid."""
    if task == "next word":
        return [
            Trial(task, rule, "Σ of 64", True, bias, bias_rate, decay)
            for bias in ("zeros", "counts")
            for bias_rate in (1.0, 10.0)
            for decay in (False, True)
            if bias == "counts" or bias_rate != 1.0 or decay
        ]
    return [
        Trial(task, rule, "Σ of 64", bias=bias, objective="sigmoid")
        for bias in ("zeros", "uniform")
    ]


Row = dict[str, str]
Cell = Callable[[Sequence[Row]], str]


def columns(trial: Trial) -> Row:
    return {name: str(value) for name, value in asdict(trial).items()}


def read(path: Path) -> dict[tuple[str, ...], Row]:
    """What is done, by its trial."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        names = list(columns(Trial("", "", "")))
        return {tuple(row[name] for name in names): row for row in csv.DictReader(file)}


def mean(rows: Sequence[Row], name: str) -> float:
    return statistics.mean(float(row[name]) for row in rows)


def spread(rows: Sequence[Row], name: str, digits: int) -> str:
    """Mean ± standard deviation over the seeds."""
    values = [float(row[name]) for row in rows]
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def table(
    rows: Sequence[Row], names: Sequence[str], column: Callable[[Row], str], cell: Cell
) -> list[Row]:
    """One line for each task and optimiser."""
    found: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        line = found.setdefault((row["task"], row["optimiser"]), {})
        line.setdefault(column(row), []).append(row)
    result = []
    for (task, rule), cells in found.items():
        rate = "" if "," in rule else f", {next(iter(cells.values()))[0]['rate']}"
        texts = {name: cell(cells[name]) if name in cells else "–" for name in names}
        result.append({"": f"{task}, {rule}{rate}"} | texts)
    return result


def sections(rows: Sequence[Row]) -> dict[str, list[Row]]:
    softmax = [row for row in rows if row["objective"] == "softmax"]
    words = [row for row in softmax if row["task"] == "next word" and row["form"] == "Σ of 64"]
    started = {"zeros": "zeros", "counts": "prior"}

    def nll(cells: Sequence[Row]) -> str:
        return spread(cells, "nll", 3)

    def accuracy(cells: Sequence[Row]) -> str:
        return spread(cells, "accuracy", 1)

    def alpha(cells: Sequence[Row]) -> str:
        return f"{mean(cells, 'alpha'):.3g}"

    def both(cells: Sequence[Row]) -> str:
        return f"{mean(cells, 'nll'):.3f}, α {mean(cells, 'alpha'):.3g}"

    def form(row: Row) -> str:
        return row["form"]

    def bias(row: Row) -> str:
        faster = ", rate × 10" if float(row["bias_rate"]) > 1 else ""
        return started[row["bias"]] + faster + (", decays" if row["decay_bias"] == "True" else "")

    def decay(row: Row) -> str:
        return row["form"] + (", decays" if row["decay_alpha"] == "True" else "")

    plain = [row for row in softmax if bias(row) == "zeros" and row["decay_alpha"] == "True"]
    decays = [
        row
        for row in softmax
        if bias(row) == "zeros"
        and row["form"] in ALSO_UNDECAYED
        and row["task"] != "kanji"
        and "," not in row["optimiser"]
    ]
    sigmoid = [row for row in rows if row["objective"] == "sigmoid"]
    kinds = [f"{name}{end}" for name in ALSO_UNDECAYED for end in (", decays", "")]
    ends = ("", ", decays", ", rate × 10", ", rate × 10, decays")
    biased = [row for row in words if row["decay_alpha"] == "True"]
    return {
        "Forms of α: accuracy": table(plain, list(FORMS), form, accuracy),
        "Forms of α: negative log-likelihood": table(plain, list(FORMS), form, nll),
        "Forms of α: α at the end": table(plain, list(FORMS), form, alpha),
        "Decay of α: negative log-likelihood, α at the end": table(decays, kinds, decay, both),
        "Bias, next word: negative log-likelihood": table(
            biased, [f"{name}{end}" for name in ("zeros", "prior") for end in ends], bias, nll
        ),
        "Bias of a sigmoid loss: accuracy": table(
            sigmoid, ["zeros", "uniform"], lambda row: row["bias"], accuracy
        ),
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Likelihood against that of the plain form, and α; a mark for each training."""
    shown = dict(zip(("plain", "log α", "8 ρ", "Σ of 64", "start × 2"), "osv*^", strict=True))
    usual = ("softmax", "zeros", "1.0", "False", "True")
    names = ("objective", "bias", "bias_rate", "decay_bias", "decay_alpha")
    chosen = [
        row for row in rows if row["form"] in shown and tuple(row[name] for name in names) == usual
    ]
    present = [task for task in TASKS if any(row["task"] == task for row in chosen)]
    figure, axes = plt.subplots(
        2, len(present), figsize=(3.4 * len(present), 6), layout="constrained", squeeze=False
    )
    for task, (above, below) in zip(present, axes.T, strict=True):
        rules = [r for r in RATES if any((x["task"], x["optimiser"]) == (task, r) for x in chosen)]
        for x, rule in enumerate(rules):
            of = {
                form: [
                    row
                    for row in chosen
                    if (row["task"], row["optimiser"], row["form"]) == (task, rule, form)
                ]
                for form in shown
            }
            base = mean(of["plain"], "nll")
            for i, (form, mark) in enumerate(shown.items()):
                style = {"c": f"C{i}", "marker": mark, "s": 64 if mark == "*" else 22}
                places = [x + 0.14 * (i - 2)] * len(of[form])
                ratios = [min(float(row["nll"]) / base, 2.0) for row in of[form]]
                above.scatter(places, ratios, **style)
                alphas = [max(float(row["alpha"]), 0.1) for row in of[form]]
                below.scatter(places, alphas, **style, label=form if x == 0 else None)
        for axis in (above, below):
            axis.set_xticks(range(len(rules)), [rule.replace(", ", "\n") for rule in rules])
            axis.set_yscale("log")
            axis.grid(axis="y", alpha=0.3)
        above.set_title(f"{task}, {TASKS[task].features[0]} → {TASKS[task].num_classes}")
        above.set_yticks([0.35, 0.5, 0.7, 1, 1.4, 2], ["0.35", "0.5", "0.7", "1", "1.4", "≥ 2"])
        above.set_ylim(0.3, 2.1)
        above.minorticks_off()
        below.set_ylim(0.08, 150)
        below.set_yticks([0.1, 1, 10, 100], ["≤ 0.1", "1", "10", "100"])
    axes[0, 0].set_ylabel("negative log-likelihood / that of plain")
    axes[1, 0].set_ylabel("α at the end")
    axes[1, -1].legend(fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


NOTES = """\
Mean over {seeds} seeds, ± standard deviation. The number after an optimiser is the highest rate of
its schedule (one cycle), with the best likelihood on a validation tenth among {rates} for SGD
(momentum 0.9) and {adam} for the others, with α as a plain parameter; "Adam, 0.001" and "Adam,
0.003" are not chosen. Weight decay: SGD {sgd}, Adam {l2}, AdamW {decoupled}. All forms start at
log(99 (C − 1)), but for "start × 2". "k ρ": α = k ρ. "Σ of K": α is the sum of K numbers over √K.
"rate × 10": α as it is, at ten times the rate. "prior": the bias starts at the logarithm of the
classes' frequencies.
"""


def write(output: Path, rows: Sequence[Row], seeds: int) -> None:
    found = sections(rows)
    for title, lines in found.items():
        tables.show(title, lines)
    notes = NOTES.format(
        seeds=seeds,
        rates=", ".join(f"{rate:g}" for rate in RATES["SGD"]),
        adam=", ".join(f"{rate:g}" for rate in RATES["Adam"]),
        sgd=DECAY["SGD"],
        l2=DECAY["Adam"],
        decoupled=DECAY["AdamW"],
    )
    tables.write_report(
        output / "results.md",
        "How α and the bias are learned",
        "bench.alpha_study",
        timing.machine(),
        notes,
        found,
    )
    draw(rows, output / "results.png")


def main(
    output: Annotated[Path, typer.Option(help="Folder of the results.")] = OUTPUT,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    only: Annotated[str, typer.Option(help="The task of this name.")] = "",
    report: Annotated[bool, typer.Option("--report", help="Only of what results.csv has.")] = False,
) -> None:
    """Train what results.csv lacks; it grows as trainings are done."""
    torch.set_num_threads(1)
    path = output / "results.csv"
    known = read(path)
    keys = {tuple(columns(trial).values()): trial for trial in trials(seeds)}
    rates = {(row["task"], row["optimiser"]): float(row["rate"]) for row in known.values()}
    todo = [key for key in keys if key not in known and only in ("", keys[key].task)]
    with bar() as progress:
        line = progress.add_task("", total=len(todo))
        for key in () if report else todo:
            trial = keys[key]
            name = f"{trial.task}, {trial.optimiser}, {trial.form}"
            progress.update(line, advance=1, description=name)
            case = (trial.task, trial.optimiser)
            if case not in rates:
                rates[case] = rate_of(*case)
            scores = train(trial, rates[case], TASKS[trial.task].data())
            found = {"rate": rates[case], **scores}
            known[key] = columns(trial) | {k: f"{v:.6g}" for k, v in found.items()}
            tables.write_csv(path, [known[key] for key in keys if key in known])
    write(output, [known[key] for key in keys if key in known], seeds)


if __name__ == "__main__":
    typer.run(main)
