"""Adapting a trained model to a fixed head: after `replace_head`, fit the head's bias with the body
as it is, then train everything, towards the probabilities of the old head if they are at hand.

docs/training.md has the recipe and what each part of it is worth.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .nn import FixedClassifier, FixedClassifier2d


@contextmanager
def features_of(head: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after each call of the model, what went into its head: x [..., N]."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = [inputs[0]]

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def warm_up(
    model: nn.Module,
    head: FixedClassifier,
    batches: Iterable[tuple[Any, Tensor]],
    *,
    alpha: bool = False,
    steps: int = 50,
) -> float:
    """Fits the bias to the features that the model has now; returns the mean cross-entropy.

    With the body fixed, cross-entropy is convex in b, and in α and b: z is linear in them. So the
    features of all batches are computed once, in eval mode, and L-BFGS finds the minimum. The head
    learns what it can without the body: how frequent the classes are.

    α stays. Its own minimum is near 0, and may be below, as long as the body does not know the
    codebook; fitting it, too, helped one task of docs/training.md and harmed the other.

    Args:
        model: calls `head` once for a batch. Its training mode, and what is not the head's, stay.
        head: a `FixedClassifier` or `FixedClassifier2d` inside of it.
        batches: pairs of inputs (a tensor, or a mapping for keyword arguments) and classes int64
            [...]; the features of all of them are in memory together.
        alpha: whether α is fitted, too.
        steps: at most so many iterations.

    Raises:
        ValueError: there are no batches, the head has nothing to fit, or the model does not call
            it. The model is then as it was.
    """
    wanted = list(head.parameters()) if alpha else [head.bias]
    learned = [p for p in wanted if p is not None and p.requires_grad]
    if not learned:
        what = "alpha and no bias" if alpha else "bias"
        raise ValueError(f"head learns no {what}, so there is nothing to warm up")
    xs, targets = [], []
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), features_of(head) as seen:
            for inputs, target in batches:
                seen.clear()
                model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
                if not seen:
                    raise ValueError("model does not call head, expected the head of this model")
                x = seen[0].movedim(1, -1) if isinstance(head, FixedClassifier2d) else seen[0]
                xs.append(x.reshape(-1, x.shape[-1]))
                targets.append(target.flatten())
    finally:
        model.train(training)
    if not xs:
        raise ValueError("batches is empty, expected at least one pair of inputs and classes")
    x, target = torch.cat(xs), torch.cat(targets)
    optimiser = torch.optim.LBFGS(learned, max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = FixedClassifier.loss(head, x, target)
        torch.autograd.backward(value, inputs=learned)
        return value

    with torch.enable_grad():
        optimiser.step(loss)  # type: ignore[no-untyped-call]
        optimiser.zero_grad()
    with torch.no_grad():
        return FixedClassifier.loss(head, x, target).item()


def distillation(head: FixedClassifier, x: Tensor, teacher: Tensor, k: int | None = None) -> Tensor:
    """Mean of Σ_j q_j (log q_j − log p_j) over the k classes that the teacher finds most probable,
    q being its probabilities among these and p the head's among all; with k = C the
    Kullback–Leibler divergence (Hinton, Vinyals and Dean 2015, §2, at temperature 1), 0 where both
    agree.

    No [..., C] of the head is made: `head.log_prob` computes what is needed.

    Args:
        x: features [..., N], differentiable.
        teacher: logits [..., C] of another head; no gradient goes there.
        k: 1 to C; min(C, 64) when None.

    Raises:
        ValueError: k is out of range, or teacher has another shape.
    """
    classes = head.num_classes
    if teacher.shape != (*x.shape[:-1], classes):
        raise ValueError(
            f"teacher has shape {list(teacher.shape)}, expected {[*x.shape[:-1], classes]}"
        )
    count = min(classes, 64) if k is None else k
    if not 1 <= count <= classes:
        raise ValueError(f"k is {k}, expected 1 to {classes}")
    values, ids = teacher.detach().float().topk(count, -1)
    log_q = values.log_softmax(-1)
    log_p = head.log_prob(x, ids)
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean()
