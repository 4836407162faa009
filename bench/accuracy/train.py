"""One training: the same network, data order and schedule for every head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from .heads import Head
from .tasks import Split, Task


@dataclass(frozen=True)
class Score:
    """Of the test set: share of right answers, and mean negative log-likelihood in nats."""

    accuracy: float
    loss: float


def train(
    task: Task, features: int, relu: bool, head: Head, seed: int, rate: float, data: Split
) -> Score:
    """Train and test once.

    relu: whether the features are non-negative, as those of most image classifiers are.
    rate: the highest of the schedule.
    """
    last = head(features, task.num_classes, seed)
    assert last is not None
    torch.manual_seed(seed)
    body = [*task.body(features), *([nn.ReLU()] if relu else [])]
    if isinstance(last, nn.Linear):
        last.reset_parameters()
    model = nn.Sequential(*body, last)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, task.steps)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(data.train_x), (task.steps, task.batch), generator=generator)
    for chosen in rows:
        optimizer.zero_grad()
        logits = model(data.train_x[chosen])
        torch.autograd.backward(nn.functional.cross_entropy(logits, data.train_y[chosen]))
        optimizer.step()
        schedule.step()
    return test(model, data)


def validation(data: Split) -> Split:
    """A tenth of the training data in place of the test data, and not trained on."""
    order = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(0))
    held, kept = order[: len(order) // 10], order[len(order) // 10 :]
    x, y = data.train_x, data.train_y
    return Split(x[kept], y[kept], x[held], y[held])


def test(model: nn.Module, data: Split) -> Score:
    model.eval()
    right, loss = 0, 0.0
    with torch.inference_mode():
        for begin in range(0, len(data.test_x), 2048):
            y = data.test_y[begin : begin + 2048]
            z = model(data.test_x[begin : begin + 2048])
            right += int((z.argmax(-1) == y).sum())
            loss += float(nn.functional.cross_entropy(z, y, reduction="sum"))
    return Score(right / len(data.test_y), loss / len(data.test_y))
