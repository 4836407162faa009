"""Objectives of the fixed head against their dense forms, forward and backward:
`python -m bench.objectives`.

512 → 33 278 classes (WikiText-2's), 256 rows, one thread; each fused loss is first compared with
the same objective of the head's own logits. Writes objectives.md into the folder of `bench.report`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn import functional

from fixclf_infer.nn import FixedClassifier
from fixclf_infer.nn.objectives import (
    CosFace,
    Objective,
    SigmoidCrossEntropy,
    SoftmaxCrossEntropy,
    SquaredError,
    ZLoss,
)

from . import memory, peers, tables, timing
from .reductions import LOSS, one_thread

Dense = Callable[[Tensor, Tensor], Tensor]


def _sigmoid(z: Tensor, t: Tensor) -> Tensor:
    hot = torch.zeros_like(z).scatter(1, t[:, None], 1.0)
    return functional.binary_cross_entropy_with_logits(z, hot, reduction="sum") / len(z)


def _squares(z: Tensor, t: Tensor) -> Tensor:
    at = z.gather(1, t[:, None])
    return (15 * (at - 30).square() + z.square().sum(-1, keepdim=True) - at.square()).mean()


def _z_loss(z: Tensor, t: Tensor) -> Tensor:
    return functional.cross_entropy(z, t) + 1e-4 * z.logsumexp(-1).square().mean()


def _cosface(z: Tensor, t: Tensor) -> Tensor:
    at = z.gather(1, t[:, None])
    return functional.cross_entropy(z.scatter(1, t[:, None], at - 0.35), t)


# As users write them for a dense head.
OBJECTIVES: dict[str, tuple[Dense, Objective]] = {
    "softmax cross-entropy": (functional.cross_entropy, SoftmaxCrossEntropy()),
    "z-loss": (_z_loss, ZLoss()),
    "CosFace": (_cosface, CosFace()),
    "sigmoid cross-entropy": (_sigmoid, SigmoidCrossEntropy()),
    "squared error": (_squares, SquaredError()),
}


def backward(loss: Callable[[], Tensor]) -> Tensor:
    value = loss()
    value.backward()  # type: ignore[no-untyped-call]
    return value.detach()


def row(name: str, seconds: float) -> dict[str, str]:
    dense_form, objective = OBJECTIVES[name]
    head, layer = peers.fixed_head(LOSS), peers.dense_head(LOSS)
    head.requires_grad_(True), layer.requires_grad_(True)
    x = LOSS.features().requires_grad_(True)
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(LOSS.num_classes, (LOSS.batch,), generator=generator)
    check(head, x, target, objective)
    fused = partial(backward, partial(head.loss, x, target, objective=objective))
    dense = partial(backward, lambda: dense_form(layer(x), target))
    times = timing.measure(
        {"dense": one_thread(dense), "fused": one_thread(fused)}, seconds=seconds
    )
    torch.set_num_threads(1)
    used = memory.peak_temporary(dense, 0), memory.peak_temporary(fused, 0)
    return {
        "objective": name,
        "dense": timing.duration(times["dense"].median),
        "fused": timing.duration(times["fused"].median),
        "times faster": f"{times['dense'].median / times['fused'].median:.0f}",
        "memory, dense": tables.size(used[0]),
        "memory, fused": tables.size(used[1]),
        "times less": f"{used[0] / max(used[1], 1):.0f}",
    }


def check(head: FixedClassifier, x: Tensor, target: Tensor, objective: Objective) -> None:
    """Eight rows against the objective of the logits in float64; AssertionError otherwise."""
    rows = x[:8].detach().double()
    got = head.loss(rows.float(), target[:8], objective=objective)
    want = objective(head(rows), target[:8], alpha=head.alpha, bias=head.bias)
    if not torch.allclose(got.double(), want, rtol=1e-5):
        raise AssertionError(f"{objective} is {got.item()}, expected {want.item()}")


NOTES = (
    f"{LOSS.in_features} → {LOSS.num_classes} classes, {LOSS.batch} rows, float32, one thread, "
    "forward and backward; medians, interleaved. Dense is nn.Linear with the objective in plain "
    "torch; memory is the peak beyond what lives through the call.\n"
)


def main(
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="To measure each for.")] = 6.0,
) -> None:
    """Measure and write the table."""
    torch.set_num_threads(1)
    rows = [row(name, seconds) for name in OBJECTIVES]
    tables.show("Objectives, forward and backward", rows)
    machine = timing.machine()
    path = tables.results_folder(machine, output) / "objectives.md"
    title = f"Objectives without logits, {machine['cpu']}, {machine['isa']}"
    tables.write_report(path, title, "bench.objectives", machine, NOTES, {"Times": rows})


if __name__ == "__main__":
    typer.run(main)
