"""Warming up and distilling: against optima and divergences in float64, and on real digits."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fixclf_infer import adapt, reference, replace_head
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier, FixedClassifier2d


class Named(nn.Module):
    """Called by keyword, as transformers' models are."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *, images: Tensor) -> Tensor:
        return self.model(images)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data = load_digits()
    x, y = torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target).long()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return x[order[:1200]], y[order[:1200]], x[order[1200:]], y[order[1200:]]


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 10)
    )


def optimum(head: FixedClassifier, x: Tensor, y: Tensor, alpha: float | None) -> float:
    """The smallest mean cross-entropy over b, and α where it is None, in float64."""
    rows, xs, ys = np.asarray(head.codebook.matrix()), x.numpy(), y.numpy()
    cosines = reference.head(xs, rows, 1.0, None, Epilogue.LOGITS)

    def loss(values: np.ndarray) -> float:
        a, b = (values[0], values[1:]) if alpha is None else (alpha, values)
        z = a * cosines + b
        top = z.max(-1, keepdims=True)
        lse = np.log(np.exp(z - top).sum(-1)) + top[:, 0]
        return float((lse - z[np.arange(len(ys)), ys]).mean())

    return float(minimize(loss, np.zeros(len(rows) + (alpha is None)), method="BFGS").fun)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("keyword", [False, True])
def test_warm_up(digits: tuple[Tensor, ...], alpha: bool, keyword: bool) -> None:
    x, y = digits[0][:300], digits[1][:300] % 3  # frequencies that differ, seven classes never
    y = y.clone()
    y[:10] = torch.arange(10)  # or each once: the minimum is finite
    model: nn.Module = network()
    head = replace_head(model, alpha=4.0).head
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features = model[:-1].eval()(x).detach()
    model.train()
    if keyword:
        model = Named(model)
        batches = [
            ({"images": part}, target)
            for part, target in zip(x.split(64), y.split(64), strict=True)
        ]
    else:
        batches = list(zip(x.split(64), y.split(64), strict=True))
    found = adapt.warm_up(model, head, batches, alpha=alpha)
    want = optimum(head, features, y, None if alpha else 4.0)
    assert found == pytest.approx(want, abs=2e-4)
    logits = head(features)
    assert nn.functional.cross_entropy(logits, y).item() == pytest.approx(found, abs=1e-5)
    assert (head.alpha.item() != 4.0) == alpha
    # The rest of the model is as it was, its running means and training mode, too.
    assert model.training and all(module.training for module in model.modules())
    inner = model.model if keyword else model
    for name, value in inner.state_dict().items():
        if not name.startswith("4."):
            assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())
    assert not head._forward_pre_hooks


def test_warm_up_of_feature_maps() -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 5, 1))
    head = replace_head(model).head
    assert isinstance(head, FixedClassifier2d)
    x, y = torch.randn(4, 2, 6, 6), torch.randint(5, (4, 6, 6))
    found = adapt.warm_up(model, head, [(x, y)])
    features = model[0](x).detach().movedim(1, -1).reshape(-1, 8)
    assert found == pytest.approx(optimum(head, features, y.flatten(), head.alpha.item()), abs=2e-4)


def test_warm_up_refuses(digits: tuple[Tensor, ...]) -> None:
    x, y = digits[0][:20], digits[1][:20]
    model = network()
    head = replace_head(model).head
    state = copy.deepcopy(model.state_dict())
    other = FixedClassifier(64, 10)
    for arguments, match in (
        ((model, head, []), "batches is empty"),
        ((model, other, [(x, y)]), "model does not call head"),
        ((model, FixedClassifier(64, 10, bias=False), [(x, y)]), "head learns no bias"),
    ):
        with pytest.raises(ValueError, match=match):
            adapt.warm_up(*arguments)
    still = FixedClassifier(64, 10, bias=False, learn_alpha=False)
    with pytest.raises(ValueError, match="head learns no alpha and no bias"):
        adapt.warm_up(model, still, [(x, y)], alpha=True)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not head._forward_pre_hooks and not other._forward_pre_hooks


@pytest.mark.parametrize("codebook", ["kerdock", "orthonormal"])
@pytest.mark.parametrize("k", [1, 7, 100, None])
def test_distillation(codebook: str, k: int | None) -> None:
    torch.manual_seed(4)
    head = FixedClassifier(16, 100, codebook=codebook, alpha=6.0, dtype=torch.float64)
    nn.init.normal_(head.bias)
    x = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    teacher = (3 * torch.randn(2, 3, 100, dtype=torch.float64)).requires_grad_()
    loss = adapt.distillation(head, x, teacher, k)
    got = torch.autograd.grad(loss, [x, *head.parameters()])
    # With all logits.
    q = teacher.detach().softmax(-1)
    kept = q.argsort(-1, descending=True)[..., : k or 64]
    q = torch.zeros_like(q).scatter(-1, kept, q.gather(-1, kept))
    q = q / q.sum(-1, keepdim=True)
    log_p = head(x).log_softmax(-1)
    want = (torch.special.xlogy(q, q) - q * log_p).sum(-1).mean()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(got, torch.autograd.grad(want, [x, *head.parameters()]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    if k == 100:
        same = adapt.distillation(head, x, head(x), k)
        torch.testing.assert_close(same, torch.zeros_like(same), atol=1e-6, rtol=0)


def test_distillation_refuses() -> None:
    head, x = FixedClassifier(16, 10), torch.randn(3, 16)
    with pytest.raises(ValueError, match=r"teacher has shape \[3, 9\], expected \[3, 10\]"):
        adapt.distillation(head, x, torch.randn(3, 9))
    for k in (0, 11):
        with pytest.raises(ValueError, match=f"k is {k}, expected 1 to 10"):
            adapt.distillation(head, x, torch.randn(3, 10), k)


def test_a_trained_model_recovers(digits: tuple[Tensor, ...]) -> None:
    """The recipe of docs/training.md."""
    x, y, test_x, test_y = digits
    model = network()

    def train(epochs: int, loss_of) -> float:
        optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
        for _ in range(epochs):
            model.train()
            for rows in torch.randperm(len(x)).split(64):
                optimiser.zero_grad()
                loss_of(rows).backward()
                optimiser.step()
        model.eval()
        return (model(test_x).argmax(-1) == test_y).float().mean().item()

    dense = train(8, lambda rows: nn.functional.cross_entropy(model(x[rows]), y[rows]))
    teacher = copy.deepcopy(model)
    done = replace_head(model)
    with torch.no_grad():
        swapped = (model(test_x).argmax(-1) == test_y).float().mean().item()
    adapt.warm_up(model, done.head, [(x, y)])

    def loss(rows: Tensor) -> Tensor:
        features = model[:-1](x[rows])
        with torch.no_grad():
            answers = teacher(x[rows])
        return done.head.loss(features, y[rows]) + adapt.distillation(done.head, features, answers)

    adapted = train(4, loss)
    assert dense > 0.95
    assert swapped < 0.5
    assert adapted > dense - 0.02
