"""Two linear layers in a row, converted in place: the same outputs, and every refusal."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fixclf_infer import interop
from fixclf_infer.codebooks import codebook
from fixclf_infer.nn import FixedClassifier


def product(model: nn.Module, first: str, second: str) -> tuple[Tensor, Tensor]:
    """W₂ W₁ and W₂ b₁ + b₂ in float64, of dense layers or of what was made of them."""
    one, two = model.get_submodule(first), model.get_submodule(second)
    w1 = one.weight.detach().double()
    if isinstance(two, interop.FixedLinear):
        w2 = two.alpha.detach().double() * torch.from_numpy(two.codebook.matrix()).double()
    else:
        w2 = two.weight.detach().double()
    bias = torch.zeros(len(w2)).double()
    if one.bias is not None:
        bias = bias + w2 @ one.bias.detach().double()
    if two.bias is not None:
        bias = bias + two.bias.detach().double()
    return w2 @ w1, bias


def sequential(n: int, d: int, c: int, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(16, n), nn.ReLU(), nn.Linear(n, d, bias), nn.Identity(), nn.Linear(d, c, bias)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "n, d, c, order",
    [(40, 64, 10, 12), (40, 64, 64, 64), (100, 33, 12, 12), (50, 256, 100, 100), (30, 20, 20, 20)],
)
def test_the_same_outputs(
    n: int, d: int, c: int, order: int, bias: bool, dtype: torch.dtype
) -> None:
    model = sequential(n, d, c, bias).to(dtype).eval()
    before, x = copy.deepcopy(model), torch.randn(9, 16).to(dtype)
    found = interop.convert_linear_pair(model)
    assert (found.first, found.second, found.codebook.order) == ("2", "4", order)
    assert isinstance(model[4], interop.FixedLinear) and model[2].weight.dtype == dtype
    # The weights, in float64: what their rounding may change.
    (want, b), (got, b_now) = product(before, "2", "4"), product(model, "2", "4")
    u = torch.finfo(dtype).eps / 2
    norm = float(want.norm())
    assert float((got - want).norm(dim=1).max()) <= u * norm * (1 + 1e-6) + 1e-13 * norm
    assert float((b_now - b).abs().max()) <= u * float(b.abs().max()) + 1e-13
    # What comes out.
    h = before[:2](x).detach()
    exact = h.double() @ want.T + b
    bound = (n + 32) * u * norm * h.double().norm(dim=1, keepdim=True) + 2**3 * u * b.abs().max()
    if dtype == torch.bfloat16:  # the activations between the layers and the outputs round as well
        bound = bound + 4 * u * norm * h.double().norm(dim=1, keepdim=True) + u * exact.abs()
    assert torch.all((model(x).detach().double() - exact).abs() <= bound)


def test_the_costs_are_counted() -> None:
    model = sequential(40, 64, 10)
    before = sum(p.numel() for p in model[2:].parameters())
    found = interop.convert_linear_pair(model)
    now = sum(p.numel() for p in model[2:].parameters())
    assert (found.parameters, found.parameters_now) == (before, now) == (3274, 491)
    assert found.multiplications == 40 * 64 + 64 * 10 and found.multiplications_now == 40 * 12
    assert found.multiplications_merged == 40 * 10
    assert found.additions_now == found.codebook.report().additions_per_row
    assert "3,200 → 480 multiplications and" in str(found)
    assert "one merged dense layer: 400 multiplications" in str(found)


def test_modes_and_gradients_stay() -> None:
    model = sequential(40, 64, 10)
    model[2].eval().requires_grad_(False)
    interop.convert_linear_pair(model)
    assert not model[2].training and model[4].training
    assert not model[2].weight.requires_grad and model[4].alpha.requires_grad
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    x, target = torch.randn(32, 16), torch.randint(10, (32,))
    losses = []
    for _ in range(5):
        loss = nn.functional.cross_entropy(model(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


class Named(nn.Module):
    """Linear layers that no Sequential holds; `middle` says what lies between."""

    def __init__(self, middle: Callable[[Named, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.classifier = nn.Linear(40, 64), nn.Linear(64, 10)
        self.drop, self.act = nn.Dropout(0.5), nn.ReLU()
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x)
        e = self.drop(e) if self.middle is None else self.middle(self, e)
        return self.classifier(e)


def test_a_named_pair() -> None:
    model = Named().eval()
    x = torch.randn(5, 40)
    want = model(x)
    found = interop.convert_linear_pair(model, "embed", "classifier")
    assert found.multiplications_now == 480
    torch.testing.assert_close(model(x), want, rtol=0, atol=1e-6)


def untraceable(model: Named, e: Tensor) -> Tensor:
    return e if e.sum() > 0 else -e


REFUSED: dict[str, tuple[Callable[[], nn.Module], tuple[str, str] | None, str]] = {
    "none": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), None, "in a row.*got none"),
    "a non-linearity": (
        lambda: nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4)),
        None,
        "got none",
    ),
    "two": (
        lambda: nn.Sequential(nn.Linear(4, 64), nn.Linear(64, 64), nn.Linear(64, 4)),
        None,
        "got '0' and '1', '1' and '2'",
    ),
    "no saving": (
        lambda: nn.Sequential(nn.Linear(2048, 512), nn.Linear(512, 1000)),
        None,
        r"would not save: 2,097,152 multiplications a row \(1024 x 2048\) instead of 1,560,576 "
        r"\(512 x \(2048 \+ 1000\)\)",
    ),
    "dropout that drops": (Named, ("embed", "classifier"), "nothing may lie between.*got drop"),
    "a function": (
        lambda: Named(lambda m, e: e.relu()),
        ("embed", "classifier"),
        "nothing may lie between 'embed' and 'classifier', got relu",
    ),
    "a module": (
        lambda: Named(lambda m, e: m.act(e)),
        ("embed", "classifier"),
        "nothing may lie between 'embed' and 'classifier', got act",
    ),
    "another use": (
        lambda: Named(lambda m, e: e * m.embed.weight.norm()),
        ("embed", "classifier"),
        "'embed' must be used as a layer, but the model reads its weights",
    ),
    "a second call": (
        lambda: Named(lambda m, e: m.embed(e[..., :40])),
        ("embed", "classifier"),
        "'embed' must be called once in the model, got 2 calls",
    ),
    "an output used twice": (
        lambda: Named(lambda m, e: e + e.mean()),
        ("embed", "classifier"),
        "the output of 'embed' must go to 'classifier' alone, got 2 uses",
    ),
    "no trace": (
        lambda: Named(untraceable),
        ("embed", "classifier"),
        "torch.fx can't trace Named, and 'embed' and 'classifier' are no neighbours",
    ),
    "a name that is not there": (Named, ("embed", "head"), "second must name a module.*got 'head'"),
    "another module": (Named, ("embed", "act"), "second must be a torch.nn.Linear itself.*a ReLU"),
    "sizes": (Named, ("classifier", "embed"), "second must take the 10 features of first, got 40"),
    "one name": (Named, ("embed", ""), "second must be a torch.nn.Linear itself.*got '', a Named"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_leave_the_model_alone(case: str) -> None:
    build, names, message = REFUSED[case]
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        interop.convert_linear_pair(model, *(names or ()))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_shared_layers_hooks_and_values() -> None:
    def tied(model: nn.Sequential) -> None:
        model.other = nn.Linear(64, 40)
        model.other.weight = model[2].weight

    def shared(model: nn.Sequential) -> None:
        model.other = model[4]

    def hook(model: nn.Sequential) -> None:
        model[2].register_forward_hook(lambda *_: None)

    def nan(model: nn.Sequential) -> None:
        with torch.no_grad():
            model[2].bias[3] = math.nan

    def other_dtype(model: nn.Sequential) -> None:
        model[4].double()

    for change, message in (
        (tied, "first must be used once, but '2' or its weights are shared"),
        (shared, "second must be used once, but '4' or its weights are shared"),
        (hook, "first must have no hooks, which '2' has"),
        (nan, r"first must hold finite floating-point values, not 2\.bias"),
        (other_dtype, "first and second must have one dtype and device, got torch.float32 on cpu"),
    ):
        model = sequential(40, 64, 10)
        change(model)
        with pytest.raises(ValueError, match=message):
            interop.convert_linear_pair(model, "2", "4")
        assert type(model[2]) is type(model[4]) is nn.Linear
    with pytest.raises(ValueError, match="first and second must be given together, got '2' and No"):
        interop.convert_linear_pair(model, "2")


def etf_head(n: int, c: int, orthogonal: bool) -> FixedClassifier:
    q, _ = torch.linalg.qr(torch.randn(n, c).double())
    rows = q.T if orthogonal else math.sqrt(c / (c - 1)) * (torch.eye(c) - 1 / c).double() @ q.T
    return interop.from_etf({"weight": rows.float()}, scale=9.0)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("n, c", [(64, 10), (48, 47), (48, 48), (20, 2)])
def test_a_dense_head_is_rotated_away(n: int, c: int, orthogonal: bool) -> None:
    torch.manual_seed(0)
    head = etf_head(n, c, orthogonal)
    model = nn.Sequential(nn.Linear(30, n), head)
    model.requires_grad_(False)
    x = torch.randn(8, 30)
    rows = torch.from_numpy(head.codebook.matrix()).double()
    unit = nn.functional.normalize(model[0].double()(x.double()))
    want = head.alpha.double() * (unit @ rows.T) / n**0.5
    model[0].float()
    found = interop.convert_linear_pair(model)
    assert isinstance(model[1], FixedClassifier) and model[1].codebook.kernel is not None
    assert not model[1].alpha.requires_grad
    assert found.parameters - found.parameters_now == n * c
    assert found.multiplications - found.multiplications_now == n * c
    # 2⁻¹⁵ |α|, and the rounding of W₁ and of its product: its rows are well conditioned.
    torch.testing.assert_close(model(x).double(), want, rtol=0, atol=9 * 2.0**-15)


def test_a_dense_head_that_stays() -> None:
    torch.manual_seed(0)
    for head, message in (
        (etf_head(22, 7, False), "a Hadamard order, got 7 rows of 22 features"),
        (FixedClassifier(8, 30, codebook="orthonormal"), "second must have orthogonal or simplex"),
    ):
        model = nn.Sequential(nn.Linear(30, head.in_features), head)
        weight = model[0].weight.detach().clone()
        with pytest.raises(ValueError, match=message):
            interop.convert_linear_pair(model)
        assert model[1] is head and torch.equal(model[0].weight, weight)
    fixed = FixedClassifier(8, 4, codebook=codebook(8, 4))
    with pytest.raises(
        ValueError, match=r"second must be a torch\.nn\.Linear itself, or a FixedClass"
    ):
        interop.convert_linear_pair(nn.Sequential(nn.Linear(30, 8), fixed), "0", "1")
