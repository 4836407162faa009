"""FixedClassifier as a drop-in for torch.nn.Linear."""

from __future__ import annotations

import copy
import json
import math
import pickle

import numpy as np
import pytest
import torch
from backends import to_numpy
from cases import check_head, expand
from tolerances import EPS, assert_norm_within, gradient
from torch import nn

import fixclf_infer
from fixclf_infer import codebook
from fixclf_infer.codebooks import FAMILIES
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier
from fixclf_infer.nn.classifier import default_alpha

# kind → (N, C) that the family has.
KINDS = {
    "auto": (64, 100),
    "hadamard": (48, 30),
    "orthoplex": (64, 100),
    "kerdock": (16, 100),
    "delsarte_goethals": (32, 1500),
    "search": (12, 100),
    "etf": (64, 10),
    "orthonormal": (20, 30),
    "hoffer": (20, 10),
    "brevitas": (20, 10),
}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(3)


def make(kind: str, **options) -> FixedClassifier:
    """With a bias and α as training leaves them."""
    if kind == "matrix":
        rows = np.random.default_rng(0).standard_normal((4, 6))
        head = FixedClassifier(6, 4, codebook=codebook(6, 4, "matrix", matrix=rows), **options)
    else:
        head = FixedClassifier(*KINDS[kind], codebook=kind, **options)
    with torch.no_grad():
        head.alpha = 7.25
        if head.bias is not None:
            head.bias.copy_(torch.randn(head.out_features))
    return head


def check(head: FixedClassifier, got: torch.Tensor, x: torch.Tensor, epilogue: Epilogue) -> None:
    """Against the oracle, with the α and the bias that the module holds."""
    # `matrix()` of a centred codebook is rounded to float32; the kernels are not.
    book = head.codebook
    rows = expand(book) if book.kernel is not None else book.matrix().astype(np.float64)
    bias = None if head.bias is None else head.bias.detach().double().numpy()
    flat = to_numpy(x).reshape(-1, head.in_features)
    got = to_numpy(got).reshape(-1, head.out_features)
    check_head(got, flat, rows, head.alpha.item(), bias, epilogue, book.kind)


def test_every_family_is_tested() -> None:
    assert set(KINDS) == {"auto", *FAMILIES}


@pytest.mark.parametrize("kind", [*KINDS, "matrix"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [True, False])
def test_outputs(kind: str, dtype: torch.dtype, bias: bool) -> None:
    head = make(kind, bias=bias)
    x = torch.randn(3, head.in_features).to(dtype)
    for method, epilogue in (
        (head.forward, Epilogue.LOGITS),
        (head.predict_proba, Epilogue.SOFTMAX),
        (head.predict_log_proba, Epilogue.LOG_SOFTMAX),
    ):
        got = method(x)
        assert got.dtype == dtype
        check(head, got, x, epilogue)
    if dtype not in (torch.float32, torch.float64):
        wide = head.predict_proba(x, dtype=torch.float32)
        assert wide.dtype == torch.float32
        check(head, wide, x, Epilogue.SOFTMAX)


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (2, 3), (2, 0, 3), (2, 1, 3, 2)])
def test_inputs_of_any_dimension(kind: str, shape: tuple[int, ...]) -> None:
    head = make(kind)
    x = torch.randn(*shape, head.in_features)
    got = head(x)
    assert got.shape == (*shape, head.out_features)
    check(head, got, x, Epilogue.LOGITS)
    linear = nn.Linear(head.in_features, head.out_features)
    assert linear(x).shape == got.shape


def test_attributes_of_linear() -> None:
    head = FixedClassifier(20, 7)
    linear = nn.Linear(20, 7)
    assert (head.in_features, head.out_features) == (linear.in_features, linear.out_features)
    assert head.num_classes == 7
    assert head.bias.shape == linear.bias.shape
    assert all(p.requires_grad and p.dtype == torch.float32 for p in head.parameters())
    assert [name for name, _ in head.named_parameters()] == ["alpha_spread", "bias"]
    text = repr(head)
    assert "in_features=20" in text and "num_classes=7" in text and "'hadamard'" in text
    assert FixedClassifier(20, 7, bias=False).bias is None


def test_alpha() -> None:
    # Cosine 1 to one class and 0 to all others has probability 0.99.
    head = FixedClassifier(64, 40)
    assert head.alpha.item() == pytest.approx(math.log(99 * 39), rel=1e-6)
    row = torch.from_numpy(head.codebook.rows([11])).float()
    assert head.predict_proba(row)[0, 11].item() == pytest.approx(0.99, abs=1e-6)
    assert default_alpha(1) == pytest.approx(math.log(99))
    assert FixedClassifier(8, 4, alpha=-2.5).alpha.item() == -2.5
    assert (FixedClassifier(8, 4).bias == 0).all()


@pytest.mark.parametrize("bias", [True, False])
def test_alpha_that_is_not_learned(bias: bool) -> None:
    head = FixedClassifier(8, 4, alpha=3.0, learn_alpha=False, bias=bias)
    assert [name for name, _ in head.named_parameters()] == (["bias"] if bias else [])
    assert "alpha" in dict(head.named_buffers()) and "alpha" in head.state_dict()
    x = torch.randn(2, 8, requires_grad=True)
    head(x).sum().backward()
    assert not head.alpha.requires_grad and x.grad.abs().sum() > 0
    check(head, head(x), x.detach(), Epilogue.LOGITS)


def test_a_codebook_object_is_used_as_it_is() -> None:
    book = codebook(16, 100, "search", seed=5)
    head = FixedClassifier(16, 100, codebook=book)
    assert head.codebook is book
    x = torch.randn(2, 16)
    check(head, head(x), x, Epilogue.LOGITS)


@pytest.mark.parametrize("kind", ["hadamard", "kerdock", "etf", "orthonormal"])
def test_probabilities_are_the_softmax_of_logits(kind: str) -> None:
    head = make(kind)
    x = torch.randn(50, head.in_features)
    torch.testing.assert_close(head.predict_proba(x), head(x).softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        head.predict_log_proba(x), head(x).log_softmax(-1), rtol=0, atol=5e-6
    )
    assert torch.equal(head.predict_proba(x).argmax(-1), head(x).argmax(-1))


# Dtypes, copies, checkpoints.


@pytest.mark.parametrize("kind", ["hadamard", "kerdock", "etf", "orthonormal", "matrix"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_conversion_to_another_dtype(kind: str, dtype: torch.dtype) -> None:
    head = make(kind)
    converted = copy.deepcopy(head).to(dtype)
    assert converted.alpha.dtype == converted.bias.dtype == dtype
    x = torch.randn(3, head.in_features).to(dtype)
    got = converted(x)
    assert got.dtype == dtype
    check(converted, got, x, Epilogue.LOGITS)
    wide = converted.predict_proba(x, dtype=torch.float64 if dtype == torch.float64 else None)
    check(converted, wide, x, Epilogue.SOFTMAX)
    got.sum().backward()
    assert converted.alpha_spread.grad.dtype == converted.bias.grad.dtype == dtype


@pytest.mark.parametrize("kind", ["hadamard", "kerdock", "orthonormal", "matrix"])
def test_conversion_leaves_the_codebook_alone(kind: str) -> None:
    """Only α and the bias lose bits on the way through a narrower dtype."""
    head = make(kind)
    with torch.no_grad():
        head.bias.copy_(head.bias.half())
    x = torch.randn(3, head.in_features)
    want = head(x)
    for there in (torch.float16, torch.float64):
        assert torch.equal(copy.deepcopy(head).to(there).float()(x), want)


def test_constructor_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        head = FixedClassifier(8, 4, dtype=dtype)
        assert head.alpha.dtype == head.bias.dtype == dtype
        x = torch.randn(2, 8).to(dtype)
        check(head, head(x), x, Epilogue.LOGITS)


@pytest.mark.parametrize("kind", ["hadamard", "kerdock", "etf", "orthonormal", "matrix"])
@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save of the module"])
def test_copies(kind: str, how: str, tmp_path) -> None:
    head = make(kind)
    x = torch.randn(4, head.in_features)
    if how == "deepcopy":
        other = copy.deepcopy(head)
    elif how == "pickle":
        other = pickle.loads(pickle.dumps(head))
    else:
        torch.save(head, tmp_path / "head.pt")
        other = torch.load(tmp_path / "head.pt", weights_only=False)
    assert torch.equal(other(x), head(x))
    assert other.codebook.identity() == head.codebook.identity()
    other.alpha = other.alpha + 1
    assert not torch.equal(other(x), head(x))
    assert head.alpha.item() == 7.25


@pytest.mark.parametrize("kind", ["hadamard", "kerdock", "orthonormal"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learn_alpha", [True, False])
def test_state_dict_is_small_and_complete(
    kind: str, bias: bool, learn_alpha: bool, tmp_path
) -> None:
    head = make(kind, bias=bias, learn_alpha=learn_alpha)
    state = head.state_dict()
    learned = {"alpha_spread"} if learn_alpha else set()
    assert set(state) == {"alpha", "_extra_state"} | ({"bias"} if bias else set()) | learned
    identity = json.loads(bytes(state["_extra_state"].byte().tolist()))
    assert identity == head.codebook.identity()
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    other = FixedClassifier(
        *KINDS[kind], codebook=kind, bias=bias, learn_alpha=learn_alpha, alpha=1.0
    )
    assert not other.load_state_dict(loaded, strict=True).missing_keys
    x = torch.randn(4, head.in_features)
    assert torch.equal(other(x), head(x))


@pytest.mark.parametrize(
    ("saved", "into"),
    [
        ("kerdock", "search"),
        ("search", "kerdock"),
        ("orthonormal", "kerdock"),
        ("kerdock", "orthonormal"),
    ],
)
def test_a_checkpoint_of_another_kind_rebuilds_the_codebook(saved: str, into: str) -> None:
    head = FixedClassifier(16, 100, codebook=saved, alpha=5.0)
    other = FixedClassifier(16, 100, codebook=into)
    x = torch.randn(4, 16)
    assert not torch.allclose(other(x), head(x))
    other.load_state_dict(head.state_dict())
    assert other.codebook.kind == saved
    assert torch.equal(other(x), head(x))
    assert set(other.state_dict()) == {"alpha", "alpha_spread", "bias", "_extra_state"}
    assert other.state_dict()["_extra_state"].tolist() == head.state_dict()["_extra_state"].tolist()


def test_a_checkpoint_of_another_seed_rebuilds_the_codebook() -> None:
    seeds = [codebook(12, 100, "search", seed=seed) for seed in (1, 2)]
    head, other = (FixedClassifier(12, 100, codebook=book) for book in seeds)
    x = torch.randn(2, 12)
    assert not torch.equal(other(x), head(x))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other(x), head(x))
    assert other.codebook.seed == 1


def changed_identity(head: FixedClassifier, **changes) -> dict[str, torch.Tensor]:
    state = head.state_dict()
    identity = {**json.loads(bytes(state["_extra_state"].byte().tolist())), **changes}
    state["_extra_state"] = torch.tensor(list(json.dumps(identity).encode()), dtype=torch.uint8)
    return state


def test_loading_checks_the_identity() -> None:
    head = FixedClassifier(16, 10)
    with pytest.raises(ValueError, match=r"num_classes=12, but this FixedClassifier has 10"):
        head.load_state_dict(changed_identity(head, num_classes=12))
    with pytest.raises(ValueError, match=r"in_features=8, but this FixedClassifier has 16"):
        head.load_state_dict(changed_identity(head, in_features=8))
    digest = head.codebook.digest
    with pytest.raises(ValueError, match=f"digest .* {digest}, got 0123"):
        head.load_state_dict(changed_identity(head, digest="0123"))
    with pytest.raises(ValueError, match=r"version .* here, .*, got 99"):
        head.load_state_dict(changed_identity(head, version=99))
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'fourier'"):
        head.load_state_dict(changed_identity(head, kind="fourier"))
    state = head.state_dict()
    for bad in (torch.zeros(3, dtype=torch.uint8), torch.randn(2), torch.tensor([91, 93])):
        state["_extra_state"] = bad
        with pytest.raises(ValueError, match="codebook"):
            head.load_state_dict(state)


def test_loading_another_shape_is_an_error_that_names_both() -> None:
    small, large = FixedClassifier(16, 10), FixedClassifier(16, 12)
    with pytest.raises((ValueError, RuntimeError), match=r"12.*10|10.*12"):
        small.load_state_dict(large.state_dict())


def test_strict_loading() -> None:
    head, linear = FixedClassifier(16, 10), nn.Linear(16, 10)
    with pytest.raises(RuntimeError, match="weight"):
        head.load_state_dict(linear.state_dict())
    with pytest.raises(RuntimeError, match=r"Missing key.*\"alpha\""):
        head.load_state_dict({k: v for k, v in head.state_dict().items() if "alpha" not in k})
    with pytest.raises(RuntimeError, match="_extra_state"):
        head.load_state_dict({"alpha": head.alpha, "bias": head.bias})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        FixedClassifier(16, 10, bias=False).load_state_dict(head.state_dict())


def test_inside_a_network(tmp_path) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 24), nn.ReLU(), FixedClassifier(24, 30))

    model, other = network(), network()
    assert {"2.alpha", "2.bias", "2._extra_state"} < set(model.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    x = torch.randn(6, 4)
    assert torch.equal(other(x), model(x))
    assert torch.equal(model.eval()(x), model.train()(x))


# Training.


@pytest.mark.parametrize("kind", ["hadamard", "orthoplex", "kerdock", "etf", "orthonormal"])
@pytest.mark.parametrize("autocast", [False, True])
def test_training_reduces_the_loss(kind: str, autocast: bool) -> None:
    features, classes = KINDS[kind]
    model = nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, features), FixedClassifier(features, classes)
    )
    if kind != "hadamard":
        model[3] = FixedClassifier(features, classes, codebook=kind)
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    x, y = torch.randn(64, 10), torch.randint(0, classes, (64,))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x).float(), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    for name, p in model.named_parameters():
        assert not torch.equal(p, before[name]), name


def test_gradients_are_those_of_a_dense_layer() -> None:
    head = make("kerdock")
    x = torch.randn(5, 16, requires_grad=True)
    y = torch.randint(0, 100, (5,))
    loss = nn.functional.cross_entropy(head(x), y)
    got = list(torch.autograd.grad(loss, [x, head.alpha_spread, head.bias]))
    assert got[1].eq(got[1][0, 0]).all()
    got[1] = got[1][0, :1] * 8  # of α = Σ s / 8
    exact = [t.detach().double().requires_grad_() for t in (x, head.alpha, head.bias)]
    unit = nn.functional.normalize(exact[0], dim=-1)
    rows = torch.from_numpy(head.codebook.matrix()).double()
    z = exact[1] * (unit @ rows.T) / 4 + exact[2]
    want = torch.autograd.grad(nn.functional.cross_entropy(z, y), exact)
    for g, w in zip(got, want, strict=True):
        bound = gradient(w.numpy(), "float32") + (2 * EPS["float32"] if w.ndim == 0 else 0)
        assert_norm_within("gradient of the module float32", g.numpy(), w.numpy(), bound)


@pytest.mark.parametrize("kind", ["hadamard", "kerdock"])
def test_autocast_changes_no_bits(kind: str) -> None:
    head = make(kind)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(4, head.in_features).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(head(x), head.forward(x))
            inside = head(x)
        assert inside.dtype == dtype
        assert torch.equal(inside, head(x))


def test_frozen_head() -> None:
    head = FixedClassifier(16, 10).requires_grad_(False)
    x = torch.randn(3, 16, requires_grad=True)
    out = head(x)
    assert out.requires_grad
    out.sum().backward()
    assert head.alpha_spread.grad is None and head.bias.grad is None and x.grad is not None
    assert not head(x.detach()).requires_grad


def test_compiled_module() -> None:
    torch._dynamo.reset()
    head = make("kerdock")
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (2, 5, 1, 40):
        x = torch.randn(batch, 16)
        assert torch.equal(compiled(x), head(x))


def test_on_the_meta_device() -> None:
    head = FixedClassifier(16, 100, codebook="kerdock", device="meta")
    assert head.alpha.is_meta and head.bias.is_meta
    out = head(torch.empty(5, 16, device="meta"))
    assert out.is_meta and out.shape == (5, 100)


def test_meta_then_checkpoint() -> None:
    """As large models are loaded: made without memory, then given their state."""
    head = make("kerdock")
    other = FixedClassifier(16, 100, codebook="kerdock", device="meta").to_empty(device="cpu")
    other.load_state_dict(head.state_dict())
    x = torch.randn(3, 16)
    assert torch.equal(other(x), head(x))


def test_the_package_offers_it() -> None:
    assert fixclf_infer.nn.FixedClassifier is FixedClassifier
