"""How α and the bias of a FixedClassifier are learned, read, set and kept."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from fixclf_infer.nn import FixedClassifier
from fixclf_infer.nn.classifier import default_alpha


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


class Plain(nn.Module):
    """The same function with α as a parameter of one number."""

    def __init__(self, head: FixedClassifier) -> None:
        super().__init__()
        self.register_buffer("rows", torch.from_numpy(head.codebook.matrix()).float())
        self.alpha = nn.Parameter(head.alpha.detach().clone())
        self.bias = nn.Parameter(head.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        unit = nn.functional.normalize(x, dim=-1) / math.sqrt(x.shape[-1])
        return self.alpha * unit @ self.rows.T + self.bias


# Pace.

STEPS, START = 150, 2.0
RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "SGD with decay": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-3),
    "Adam": lambda p: torch.optim.Adam(p, 2e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, 2e-3, weight_decay=0.05),
}


def train(last: nn.Module, rule: str, clip: float = math.inf) -> tuple[float, float]:
    """On scikit-learn's digits; α at the end, and the loss over all of them."""
    data = load_digits()
    x, y = torch.from_numpy(data.data / 16).float(), torch.from_numpy(data.target)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), last)
    optimiser = RULES[rule](model.parameters())
    for chosen in torch.randint(len(x), (STEPS, 64)):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[chosen]), y[chosen]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
    with torch.no_grad():
        return last.alpha.item(), nn.functional.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("rule", ["Adam", "AdamW"])
def test_alpha_keeps_pace_with_adam(rule: str) -> None:
    """As a parameter of its own α can't go far: by about the rate a step."""
    head = FixedClassifier(16, 10, alpha=START)
    slow, slow_loss = train(Plain(head), rule)
    alpha, loss = train(head, rule)
    assert 0 < slow - START < 2.2e-3 * STEPS
    assert alpha - START > 6 * (slow - START)
    assert loss < slow_loss / 2


@pytest.mark.parametrize("rule", ["SGD", "SGD with decay"])
@pytest.mark.parametrize("clip", [math.inf, 0.5])
def test_gradient_steps_are_those_of_alpha_itself(rule: str, clip: float) -> None:
    """The gradient's norm too, which clipping looks at."""
    head = FixedClassifier(16, 10, alpha=START)
    want = train(Plain(head), rule, clip)
    assert train(head, rule, clip) == pytest.approx(want, rel=1e-2)
    assert want[0] > 1.5 * START


def test_the_numbers_behind_alpha_stay_equal() -> None:
    """Or α would depend on the order of their sum."""
    head = FixedClassifier(16, 10, alpha=START)
    train(head, "AdamW")
    assert (head.alpha_spread == head.alpha_spread[0, 0]).all()
    assert head.alpha.item() == 8 * head.alpha_spread[0, 0].item()


def test_gradient_of_alpha() -> None:
    head = FixedClassifier(16, 60, alpha=3.0, dtype=torch.float64)
    with torch.no_grad():
        head.alpha_spread.normal_()
    s = head.alpha_spread.detach().clone().requires_grad_()
    assert head.alpha.item() == pytest.approx(s.sum().item() / 8, abs=1e-14)
    x, y = torch.randn(7, 16, dtype=torch.float64), torch.randint(60, (7,))
    nn.functional.cross_entropy(head(x), y).backward()
    rows = torch.from_numpy(head.codebook.matrix()).double()
    z = s.sum() / 8 * nn.functional.normalize(x, dim=-1) @ rows.T / 4
    nn.functional.cross_entropy(z, y).backward()
    torch.testing.assert_close(head.alpha_spread.grad, s.grad, rtol=1e-9, atol=1e-12)
    # head.alpha is differentiable itself, for a penalty on it.
    (penalty,) = torch.autograd.grad(head.alpha.square().sum(), head.alpha_spread)
    torch.testing.assert_close(penalty, (head.alpha / 4).expand_as(penalty))


# Reading and setting.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_alpha_is_what_it_was_set_to(dtype: torch.dtype) -> None:
    head = FixedClassifier(8, 4, dtype=dtype)
    values = torch.cat([torch.randn(200) * 30, torch.tensor([0.0, 1e-3, -2.5])]).to(dtype)
    if dtype != torch.float16:
        values = torch.cat([values, torch.tensor([3e38, -1e-30], dtype=dtype)])
    for value in values:
        head.alpha = value
        assert torch.equal(head.alpha, value.reshape(1))
        assert torch.equal(head.state_dict()["alpha"], value.reshape(1))
        other = FixedClassifier(8, 4, dtype=dtype)
        other.load_state_dict(head.state_dict())
        assert torch.equal(other.alpha, value.reshape(1))
        with torch.no_grad():
            assert torch.equal(other.alpha, value.reshape(1))


def test_setting_alpha() -> None:
    for learned in (True, False):
        head = FixedClassifier(8, 4, learn_alpha=learned)
        for value in (3, 4.5, torch.tensor(5.0), torch.tensor([6.0]), nn.Parameter(torch.ones(1))):
            head.alpha = value
            assert head.alpha.shape == (1,) and head.alpha.item() == float(value)
            assert head.alpha.requires_grad == learned
        for wrong, error, message in (
            (torch.ones(2), ValueError, r"alpha has shape \[2\], expected one element"),
            ("high", TypeError, "alpha is 'high', expected a number or a tensor of one element"),
            (math.nan, ValueError, "alpha is nan, expected a finite number"),
        ):
            with pytest.raises(error, match=message):
                head.alpha = wrong
            assert head.alpha.item() == 1.0
        assert [name for name, _ in head.named_parameters()] == (
            ["alpha_spread", "bias"] if learned else ["bias"]
        )


def test_a_write_that_would_be_lost_is_an_error() -> None:
    head = FixedClassifier(8, 4, alpha=3.0)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"[Ii]nplace update"):
        head.alpha.fill_(7.0)
    assert head.alpha.item() == 3.0


def _step(head: FixedClassifier) -> None:
    rule = torch.optim.Adam([head.alpha_spread], 0.5)
    with torch.enable_grad():
        head(torch.ones(1, 16)).sum().backward()
    rule.step()


def _data(head: FixedClassifier) -> None:
    head.alpha_spread.data.fill_(0.25)


def _other_data(head: FixedClassifier) -> None:
    head.alpha_spread.data = torch.full((1, 64), 0.5)


def _part(head: FixedClassifier) -> None:
    head.alpha_spread.data[0, 63] += 1


def _alias(head: FixedClassifier) -> None:
    head.alpha_spread.detach().numpy()[:] = 2.0


def _parameter(head: FixedClassifier) -> None:
    head.alpha_spread = nn.Parameter(torch.full((1, 64), 3.0))


CHANGES = {
    "a step": _step,
    "data": _data,
    "other data": _other_data,
    "a part": _part,
    "another view of the memory": _alias,
    "another parameter": _parameter,
    "alpha": lambda head: setattr(head, "alpha", -4.0),
    "a state_dict": lambda head: head.load_state_dict({"alpha": torch.tensor(9.0)}, strict=False),
    "alpha and back": lambda head: [setattr(head, "alpha", value) for value in (1.0, 7.0)],
    "shared memory": lambda head: head.share_memory() and _data(head),
    "another dtype": lambda head: head.double(),
    "meta": lambda head: head.to("meta").to_empty(device="cpu"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_alpha_without_gradients_is_never_stale(change: Callable[..., object]) -> None:
    head, x = FixedClassifier(16, 60, alpha=7.0).eval(), torch.randn(3, 16)
    with torch.no_grad():
        for _ in range(2):
            head(x)
        change(head)
        want = 2 * head.alpha_spread.double().sum() / 16
        rows = torch.from_numpy(head.codebook.matrix()).double()
        z = want / 4 * nn.functional.normalize(x.double(), dim=-1) @ rows.T
        if head.bias is not None:
            z = z + head.bias
        for _ in range(2):
            torch.testing.assert_close(head(x).double(), z, rtol=1e-5, atol=1e-5)
            assert torch.equal(head.topk(x, 1)[0][:, 0], head(x).amax(-1).to(head.alpha.dtype))


def test_other_parameters_than_the_head_s() -> None:
    head, x = FixedClassifier(16, 60, alpha=7.0), torch.randn(3, 16)
    other = FixedClassifier(16, 60, alpha=2.0)
    with torch.no_grad():
        want = head(x), other(x)
        got = torch.func.functional_call(head, dict(other.named_parameters()), (x,))
        assert torch.equal(got, want[1]) and torch.equal(head(x), want[0])


def test_compiled_without_gradients() -> None:
    torch._dynamo.reset()
    head, x = FixedClassifier(16, 60, alpha=7.0), torch.randn(3, 16)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for alpha in (7.0, 2.0):
            head.alpha = alpha
            assert torch.equal(compiled(x), head(x))
            assert torch.equal(head(x), FixedClassifier(16, 60, alpha=alpha)(x))


# Checkpoints.


def test_alpha_is_what_a_checkpoint_holds() -> None:
    head = FixedClassifier(8, 4, alpha=3.0)
    state = copy.deepcopy(head.state_dict())
    assert state["alpha"].tolist() == [3.0]
    state["alpha"].fill_(4.0)
    assert head.alpha.item() == 3.0
    head.load_state_dict(state)
    assert head.alpha.item() == 4.0 and "alpha" in state
    older = {name: value for name, value in state.items() if name != "alpha_spread"}
    for alpha in (torch.tensor([5.0]), torch.tensor(6.0), torch.tensor([7], dtype=torch.int64)):
        assert not any(head.load_state_dict({**older, "alpha": alpha}))
        assert head.alpha.item() == float(alpha)
    del state["alpha"]
    head.load_state_dict(state)  # α / 8 as it was
    assert head.alpha.item() == 3.0
    with pytest.raises(RuntimeError, match=r"alpha has shape \[2\], expected one element"):
        head.load_state_dict({**older, "alpha": torch.ones(2)})
    assert head.alpha.item() == 3.0


def test_checkpoints_of_a_changed_alpha() -> None:
    """Pruned or parametrised, the numbers behind α have other names, and count."""

    def parametrised() -> FixedClassifier:
        head = FixedClassifier(8, 4, alpha=-3.0)
        parametrize.register_parametrization(head, "alpha_spread", nn.ReLU())
        return head

    def pruned() -> FixedClassifier:
        head = FixedClassifier(8, 4, alpha=3.0)
        return prune.l1_unstructured(head, "alpha_spread", 0.25)

    for make in (parametrised, pruned):
        head, other = make(), make()
        for parameter in head.parameters():
            parameter.data.add_(1)
        other.load_state_dict(head.state_dict())
        x = torch.randn(3, 8)
        assert torch.equal(other(x), head(x))
        assert not torch.allclose(other(x), make()(x))


@pytest.mark.parametrize("assign", [False, True])
def test_learned_and_fixed_alpha_load_each_other(assign: bool) -> None:
    for saved, into in ((True, False), (False, True)):
        head = FixedClassifier(8, 4, alpha=3.0, learn_alpha=saved)
        other = FixedClassifier(8, 4, learn_alpha=into)
        other.load_state_dict(head.state_dict(), assign=assign)
        assert other.alpha.item() == 3.0
        assert other.alpha.requires_grad == into


def test_older_checkpoints_in_accelerate(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    import safetensors.torch

    model = nn.Sequential(nn.Linear(8, 16), FixedClassifier(16, 60, alpha=3.0))
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("alpha_spread")}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    other = nn.Sequential(nn.Linear(8, 16), FixedClassifier(16, 60))
    accelerate.load_checkpoint_in_model(other, str(tmp_path / "model.safetensors"))
    x = torch.randn(2, 8)
    assert torch.equal(other(x), model(x))
    assert other[1].alpha.item() == 3.0 and not list(other.buffers())


def test_older_checkpoints_in_transformers(tmp_path: Path) -> None:
    """What a file has as α alone must outlast the memory that the missing parameter gets."""
    transformers = pytest.importorskip("transformers")
    import safetensors.torch

    class Config(transformers.PretrainedConfig):
        model_type = "fixclf_training_test"

    class Model(transformers.PreTrainedModel):
        config_class = Config

        def __init__(self, config: Config) -> None:
            super().__init__(config)
            self.classifier = FixedClassifier(16, 60, alpha=7.0)
            self.post_init()

    model = Model(Config())
    model.classifier.alpha = 3.0
    model.save_pretrained(tmp_path)
    assert Model.from_pretrained(tmp_path).classifier.alpha.item() == 3.0
    path = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(path)
    for missing, want in (("alpha_spread", 3.0), ("alpha", 7.0)):
        state.pop(f"classifier.{missing}")
        safetensors.torch.save_file(state, path, {"format": "pt"})
        loaded = Model.from_pretrained(tmp_path)
        assert loaded.classifier.alpha.item() == want
        assert not list(loaded.buffers())


def test_copies_do_not_share_alpha(tmp_path: Path) -> None:
    head, x = FixedClassifier(16, 60, alpha=7.0), torch.randn(3, 16)
    with torch.no_grad():
        want = head(x)
        torch.save(head, tmp_path / "head.pt")
        for other in (
            copy.deepcopy(head),
            torch.load(tmp_path / "head.pt", weights_only=False),
        ):
            other.alpha = 1.0
            assert torch.equal(head(x), want) and not torch.equal(other(x), want)


# The bias.


def test_bias_init() -> None:
    zero = torch.zeros(1, 8)
    assert not FixedClassifier(8, 4).bias.any()
    assert not FixedClassifier(8, 4, bias_init="zeros").bias.any()
    uniform = FixedClassifier(8, 4, bias_init="uniform")
    assert uniform.bias.tolist() == pytest.approx([-math.log(4)] * 4)
    assert uniform(zero).sigmoid()[0].tolist() == pytest.approx([1 / 5] * 4)  # odds of 1 : 4
    for counts in ([1, 2, 3, 4], torch.tensor([0.1, 0.2, 0.3, 0.4]), np.array([10, 20, 30, 40])):
        head = FixedClassifier(8, 4, bias_init=counts)
        assert head.predict_proba(zero)[0].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
        with torch.no_grad():
            head.bias.zero_()
        head.reset_parameters()
        assert head.predict_proba(zero)[0, 3].item() == pytest.approx(0.4)
        with torch.device("meta"):
            empty = FixedClassifier(8, 4, bias_init=counts)
        assert torch.equal(empty.to_empty(device="cpu").bias, head.bias)


def test_set_prior() -> None:
    head = FixedClassifier(8, 4)
    before = head.bias
    head.set_prior(torch.tensor([6, 0, 2, 1]))
    assert head.bias is before and head.bias.requires_grad
    # The class that never occurs counts as half of the rarest.
    want = [6 / 9.5, 0.5 / 9.5, 2 / 9.5, 1 / 9.5]
    assert head.predict_proba(torch.zeros(1, 8))[0].tolist() == pytest.approx(want)
    head.set_prior([1e-300, 1e300, 0, 1])
    assert head.bias.isfinite().all()


WRONG_COUNTS = {
    "too few": ([1, 2, 3], r"has shape \[3\], expected \[4\]"),
    "a table": (torch.ones(4, 1), r"has shape \[4, 1\], expected \[4\]"),
    "negative": ([1, 2, -3, 4], r"\[2\] is -3, expected a finite number of at least 0"),
    "NaN": ([1, math.nan, 3, 4], r"\[1\] is nan, expected a finite number of at least 0"),
    "infinite": ([1, 2, 3, math.inf], r"\[3\] is inf, expected a finite number of at least 0"),
    "zeros": ([0, 0, 0, 0], "is all 0, expected a class that occurs"),
    "no numbers": (["a", "b", "c", "d"], "is a list without numbers, expected 4 counts"),
}


@pytest.mark.parametrize(("counts", "message"), WRONG_COUNTS.values(), ids=WRONG_COUNTS)
def test_wrong_counts(counts: object, message: str) -> None:
    head = FixedClassifier(8, 4, bias_init=[1, 2, 3, 4])
    before = head.bias.detach().clone()
    with pytest.raises(ValueError, match="counts ?" + message):
        head.set_prior(counts)
    assert torch.equal(head.bias, before)
    with pytest.raises(ValueError, match="bias_init ?" + message):
        FixedClassifier(8, 4, bias_init=counts)


def test_no_bias_to_start() -> None:
    with pytest.raises(ValueError, match=r"set_prior sets the bias, .* bias=False"):
        FixedClassifier(8, 4, bias=False).set_prior([1, 2, 3, 4])
    for start in ("uniform", [1, 2, 3, 4]):
        with pytest.raises(ValueError, match=r"bias_init .* bias is False"):
            FixedClassifier(8, 4, bias=False, bias_init=start)
    with pytest.raises(ValueError, match="bias_init is 'normal', expected 'zeros', 'uniform' or 4"):
        FixedClassifier(8, 4, bias_init="normal")


# Groups.


def test_parameter_groups() -> None:
    """α decays and the bias does not: with no gradient a step of AdamW is the decay alone."""
    head = FixedClassifier(8, 4, alpha=10.0, bias_init=[1, 2, 3, 4])
    body = nn.Linear(3, 8)
    groups = [{"params": body.parameters()}, *head.parameter_groups(0.1, weight_decay=0.5)]
    rule = torch.optim.AdamW(groups, 1e-3)
    bias = head.bias.detach().clone()
    for parameter in (*body.parameters(), *head.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    rule.step()
    assert head.alpha.item() == pytest.approx(10 * (1 - 0.1 * 0.5))
    assert torch.equal(head.bias, bias)
    fixed = FixedClassifier(8, 4, bias=False, learn_alpha=False)
    assert fixed.parameter_groups(0.1) == []
    for arguments, message in (
        ((-1.0,), "lr is -1.0, expected a finite number of at least 0"),
        ((0.1, math.nan), "weight_decay is nan, expected a finite number of at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            head.parameter_groups(*arguments)


def test_default_alpha_is_where_a_learned_one_starts() -> None:
    head = FixedClassifier(8, 4)
    assert head.alpha.item() == pytest.approx(default_alpha(4))
    head.alpha = 1.0
    head.reset_parameters()
    assert head.alpha.item() == pytest.approx(default_alpha(4))
