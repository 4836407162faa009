"""Heads of other packages: the logits of a FixedClassifier against their formulas in float64."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from fixclf_infer import interop
from fixclf_infer.codebooks import codebook
from fixclf_infer.codebooks.recognise import magnitude, recognise
from fixclf_infer.nn import FixedClassifier

SIZES = [(64, 10), (48, 100), (20, 20), (8, 40)]

pytestmark = pytest.mark.filterwarnings("ignore:kind=.*identical classes")


class HadamardHead(nn.Module):
    """The tensors and attributes of `HadamardProj`, and with `whole` of Brevitas' head."""

    def __init__(
        self, n: int, c: int, scale: float, bias: bool = True, whole: bool = False
    ) -> None:
        super().__init__()
        size = 1 << (max(n, c) - 1).bit_length()
        matrix = torch.from_numpy(scipy.linalg.hadamard(size))
        if whole:
            self.in_channels, self.out_channels = n, c
            self.register_buffer("proj", matrix.float())
            self.scale = nn.Parameter(torch.tensor(scale))
        else:
            self.input_size, self.output_size, self.proj = n, c, matrix
            self.scale = nn.Parameter(torch.tensor([scale]))
            self.bias = nn.Parameter(torch.linspace(-1, 1, c)) if bias else None
        self.sizes = n, c


def original(head: HadamardHead, x: Tensor, whole: bool = False) -> np.ndarray:
    """out = −s W x / (‖x‖ + 1e-8) + b in float64; whole: the norm of all rows together."""
    n, c = head.sizes
    rows = scipy.linalg.hadamard(len(head.proj))[:c, :n].astype(np.float64)
    values = x.double().numpy()
    norm = np.linalg.norm(values) if whole else np.linalg.norm(values, axis=-1, keepdims=True)
    out = -float(head.scale.detach()) * (values / (norm + 1e-8)) @ rows.T
    bias = getattr(head, "bias", None)
    return out if bias is None else out + bias.detach().double().numpy()


def features(n: int, rows: int = 7) -> Tensor:
    """Rows whose norms reach from 1e-4 to 1e4."""
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(0))
    return x * torch.logspace(-4, 4, rows)[:, None] / n**0.5


def exact_bound(head: FixedClassifier, x: Tensor, eps: float = 0.0) -> np.ndarray:
    """|α| (eps / ‖x‖ + 2⁻²¹) + 2⁻²¹ max|b|."""
    bias = 0.0 if head.bias is None else float(head.bias.detach().abs().max())
    norm = x.double().norm(dim=-1, keepdim=True).numpy()
    return abs(float(head.alpha.detach())) * (eps / norm + 2.0**-21) + 2.0**-21 * bias


def check(got: Tensor, want: np.ndarray, bound: Any) -> None:
    error = np.abs(got.detach().double().numpy() - want)
    assert error.max() > 0 or np.allclose(want, 0)  # float32 against float64
    assert np.all(error <= bound), (error / bound).max()


@pytest.mark.parametrize("scale", [0.31, -0.27])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n, c", SIZES)
def test_the_original(n: int, c: int, bias: bool, scale: float) -> None:
    theirs, x = HadamardHead(n, c, scale, bias).eval(), features(n)
    head = interop.from_hadamard_proj(theirs)
    assert head.codebook.kind == "hoffer" and not head.training
    assert float(head.alpha.detach()) == pytest.approx(-scale * n**0.5)
    want = original(theirs, x)
    check(head(x), want, exact_bound(head, x, 1e-8))
    # The same of a checkpoint of a whole model; the eps shows for the smallest row.
    state = {f"net.fc.{k}": v for k, v in theirs.state_dict().items()}
    again = interop.from_hadamard_proj(state, n, None if bias else c, prefix="net.fc.")
    torch.testing.assert_close(again(x), head(x), rtol=0, atol=0)
    whole = nn.ModuleDict({"fc": theirs})
    third = interop.from_hadamard_proj(whole, prefix="fc.")
    torch.testing.assert_close(third(x), head(x), rtol=0, atol=0)


def test_float64_keeps_float64() -> None:
    theirs, x = HadamardHead(48, 30, 0.3).double(), features(48).double() * 1e6
    head = interop.from_hadamard_proj(theirs)
    assert head.alpha.dtype == torch.float64
    np.testing.assert_allclose(head(x).detach().numpy(), original(theirs, x), rtol=0, atol=1e-10)


def test_the_eps_of_the_original_is_in_the_bound() -> None:
    """At ‖x‖ = 1e-7 it is a tenth of the logits, and no less is promised."""
    theirs = HadamardHead(16, 10, 1.0, bias=False)
    x = torch.ones(1, 16) * 2.5e-8
    head = interop.from_hadamard_proj(theirs)
    want = original(theirs, x)
    check(head(x), want, exact_bound(head, x, 1e-8))
    assert np.abs(head(x).detach().numpy() - want).max() > 0.05 * np.abs(want).max()


def test_the_random_orthogonal_head() -> None:
    class Proj(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([7.5]))
            self.bias = nn.Parameter(torch.linspace(-2, 2, 20))
            self.proj = nn.init.orthogonal_(torch.empty(20, 48))

    torch.manual_seed(3)
    theirs, x = Proj(), features(48)
    head = interop.from_proj(theirs)
    values = x.double().numpy()
    unit = values / np.linalg.norm(values, axis=-1, keepdims=True)
    want = 7.5 * unit @ theirs.proj.double().numpy().T + theirs.bias.detach().double().numpy()
    check(head(x), want, 2.0**-15 * 7.5 + 2.0**-20)
    with pytest.raises(ValueError, match="no tensor 'proj', which a state_dict of Proj does not"):
        interop.from_proj(theirs.state_dict())
    theirs.proj = nn.init.orthogonal_(torch.empty(20, 8))
    with pytest.raises(
        ValueError, match=r"proj has rows of norms from 0\.\d+ to 0\.\d+, but a fix"
    ):
        interop.from_proj(theirs)


@pytest.mark.parametrize("scale", [0.31, -0.27])
@pytest.mark.parametrize("n, c", SIZES)
def test_brevitas(n: int, c: int, scale: float) -> None:
    theirs, x = HadamardHead(n, c, scale, whole=True), features(n)
    head = interop.from_brevitas(theirs, batch_size=1)
    assert head.bias is None and head.codebook.kind == "brevitas"
    alone = np.concatenate([original(theirs, row[None], whole=True) for row in x])
    check(head(x), alone, exact_bound(head, x, 1e-8))
    state = interop.from_brevitas({"scale": theirs.scale}, n, c, batch_size=1)
    torch.testing.assert_close(state(x), head(x), rtol=0, atol=0)
    # In a batch: other logits, by one factor a row, and so the same order.
    together = original(theirs, x, whole=True)
    norms = x.double().norm(dim=1, keepdim=True).numpy()
    ratio = np.linalg.norm(x.double().numpy()) / norms
    np.testing.assert_allclose(together * ratio, alone, atol=1e-3 * np.abs(alone).max())
    assert np.abs(together - alone).max() > 0.5 * np.abs(alone).max()
    with pytest.raises(
        ValueError, match="batch_size must be 1: Brevitas divides by the norm of the"
    ):
        interop.from_brevitas(theirs, batch_size=32)


def simplex(n: int, c: int) -> Tensor:
    """[N, C] columns of norm 1, every cosine −1/(C−1)."""
    q, _ = torch.linalg.qr(torch.randn(n, c, generator=torch.Generator().manual_seed(1)).double())
    return math.sqrt(c / (c - 1)) * q @ (torch.eye(c) - 1 / c).double()


@pytest.mark.parametrize("name, transposed", [("etf_vec", 0), ("ori_M", 0), ("weight", 1)])
@pytest.mark.parametrize("n, c", [(64, 10), (33, 33), (20, 2)])
def test_etf(n: int, c: int, name: str, transposed: bool) -> None:
    matrix = simplex(n, c).float()
    state = {name: matrix.T if transposed else matrix, "logit_scale": torch.tensor(12.0)}
    x = features(n)
    head = interop.from_etf(state)
    unit = torch.nn.functional.normalize(x.double())
    check(head(x), (12 * unit @ matrix.double()).numpy(), 2.0**-15 * 12)
    one = interop.from_etf(state, scale=1.0, key=name)
    check(one(x), (unit @ matrix.double()).numpy(), 2.0**-15)


@pytest.mark.parametrize("factor", [0.25, -3.0])
@pytest.mark.parametrize(
    "n, c, kind", [(64, 10, "hadamard"), (48, 70, "orthoplex"), (16, 60, "kerdock")]
)
def test_a_linear_of_plus_and_minus_m(n: int, c: int, kind: str, factor: float) -> None:
    book = codebook(n, c, kind)
    layer = nn.Linear(n, c)
    with torch.no_grad():
        layer.weight.copy_(factor * torch.from_numpy(book.matrix()))
    w, b = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
    x = features(n)
    plain = interop.from_linear(layer, normalized=False)
    assert isinstance(plain, interop.FixedLinear) and plain.codebook.digest == book.digest
    norm = x.double().norm(dim=1, keepdim=True).numpy()
    bound = 2.0**-21 * (abs(factor) * n**0.5 * norm + np.abs(b).max())
    check(plain(x), x.double().numpy() @ w.T + b, bound)
    head = interop.from_linear(layer.state_dict(), normalized=True)
    assert isinstance(head, FixedClassifier) and head.codebook.digest == book.digest
    unit = nn.functional.normalize(x.double()).numpy()
    check(head(x), unit @ w.T + b, exact_bound(head, x))


def test_a_linear_of_orthogonal_rows() -> None:
    layer = nn.Linear(40, 12, bias=False)
    nn.init.orthogonal_(layer.weight, gain=5)
    x = features(40)
    head = interop.from_linear(layer, normalized=True)
    unit = nn.functional.normalize(x.double())
    check(head(x), (unit @ layer.weight.detach().double().T).numpy(), 2.0**-15 * 5)


def test_recognition_gives_sign_and_factor() -> None:
    rows = codebook(48, 60).matrix().astype(np.float64)
    for factor in (1.0, -0.125):
        found = recognise(factor * rows)
        assert found is not None
        np.testing.assert_array_equal(found[1] * found[0].matrix(), factor * rows)
    rows[3, 5] *= -1
    assert recognise(rows) is None and magnitude(rows) == 1
    rows[3, 5] *= 1.001
    assert magnitude(rows) is None and magnitude(np.zeros((2, 2))) is None


def _changed(state: dict[str, Tensor], **values: Any) -> dict[str, Tensor]:
    new = {**state, **values}
    return {k: v for k, v in new.items() if v is not None}


HOFFER = {"scale": torch.tensor([0.3]), "bias": torch.zeros(10)}
BAD: dict[str, tuple[Any, str]] = {
    "no scale": (
        lambda: interop.from_hadamard_proj({"bias": torch.zeros(10)}, 16),
        r"source has no tensor 'scale' \(a fixed_scale",
    ),
    "a prefix": (
        lambda: interop.from_hadamard_proj({"fc.scale": torch.ones(1)}, 16),
        r"no tensor 'scale'.*keys that end so: fc\.scale",
    ),
    "no width": (lambda: interop.from_hadamard_proj(HOFFER), "in_features must be given"),
    "no classes": (
        lambda: interop.from_hadamard_proj(_changed(HOFFER, bias=None), 16),
        "num_classes must be given",
    ),
    "another bias": (
        lambda: interop.from_hadamard_proj(HOFFER, 16, 12),
        r"bias has shape \[10\], expected \[12\]",
    ),
    "a trained matrix": (
        lambda: interop.from_hadamard_proj(_changed(HOFFER, proj=torch.randn(16, 16)), 16),
        "proj is not Sylvester's matrix",
    ),
    "a short matrix": (
        lambda: interop.from_hadamard_proj(_changed(HOFFER, proj=torch.ones(8, 8)), 16),
        r"proj has shape \[8, 8\], expected \[10, 16\] or more",
    ),
    "NaN": (
        lambda: interop.from_hadamard_proj(_changed(HOFFER, scale=torch.tensor([math.nan])), 16),
        "scale holds values that are not finite",
    ),
    "a scale a class": (
        lambda: interop.from_brevitas({"scale": torch.arange(3.0)}, 4, 3, batch_size=1),
        "scale has 3 different elements, but a fixed head has one α",
    ),
    "a running norm": (
        lambda: interop.from_brevitas(
            {"scale": torch.ones(()), "running_norm": torch.ones(())}, 4, 3, batch_size=1
        ),
        "running_norm is there",
    ),
    "no simplex": (
        lambda: interop.from_etf({"etf_vec": torch.eye(8)[:, :3] + 0.1}),
        r"etf_vec must have columns or rows with one cosine",
    ),
    "no matrix": (lambda: interop.from_etf({"x": torch.eye(3)}), "source must have one of etf_vec"),
    "two matrices": (
        lambda: interop.from_etf({"proto": torch.eye(3), "weight": torch.eye(3)}),
        r"got several of them \(proto, weight\)",
    ),
    "learned norms": (
        lambda: interop.from_etf({"proto": torch.eye(3), "learned_norm": 2 * torch.ones(1, 3)}),
        "learned_norm is not 1",
    ),
    "a learned weight": (
        lambda: interop.from_linear(nn.Linear(8, 4), normalized=True),
        "weight has rows of norms from",
    ),
    "not normalised": (
        lambda: interop.from_linear({"weight": torch.eye(4)}, normalized=False),
        "weight is no known ±m codebook",
    ),
    "a convolution": (
        lambda: interop.from_linear(nn.Conv2d(4, 4, 1), normalized=True),
        r"weight has shape \[4, 4, 1, 1\], expected \[classes, features\]",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refusals(case: str) -> None:
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_source_of_another_type() -> None:
    with pytest.raises(TypeError, match="source must be a module or a state_dict, got list"):
        interop.from_linear([1], normalized=True)  # type: ignore[arg-type]


def test_identical_classes_are_still_warned_of() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        interop.from_hadamard_proj(HadamardHead(8, 20, 1.0))
    assert any("16 pairs of identical classes" in str(w.message) for w in caught)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_fixed_linear(dtype: torch.dtype) -> None:
    layer = interop.FixedLinear(48, 30, dtype=dtype)
    rows = torch.from_numpy(layer.codebook.matrix()).double()
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-1, 1, 30))
    x = features(48).to(dtype).requires_grad_()
    z = layer(x)
    want = layer.alpha.detach().double() * (x.detach().double() @ rows.T) + layer.bias.double()
    scale = float(want.detach().abs().max())
    torch.testing.assert_close(
        z.double(), want, rtol=0, atol=scale * 2e-6 if dtype == torch.float32 else 1e-12 * scale
    )
    g = torch.randn_like(z)
    z.backward(g)
    grad = layer.alpha.detach().double() * g.double() @ rows
    torch.testing.assert_close(x.grad.double(), grad, rtol=1e-4, atol=1e-5)
    alpha = (g.double() * (x.detach().double() @ rows.T)).sum()
    assert float(layer.alpha.grad) == pytest.approx(float(alpha), rel=1e-3)


def test_fixed_linear_keeps_its_state(tmp_path: Any) -> None:
    import copy
    import pickle

    layer = interop.FixedLinear(48, 30, alpha=0.5)
    x = torch.randn(3, 48)
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other = interop.FixedLinear(48, 30, codebook="search")
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for each in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(each(x), layer(x), rtol=0, atol=0)
    compiled = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(compiled(x), layer(x), rtol=0, atol=0)
    with pytest.raises(
        ValueError, match="codebook has num_classes=30, but this FixedLinear has 31"
    ):
        interop.FixedLinear(48, 31, bias=False).load_state_dict(layer.state_dict(), strict=False)
    with pytest.raises(ValueError, match="codebook is dense"):
        interop.FixedLinear(8, 4, codebook="orthonormal")
    with pytest.raises(ValueError, match="alpha must be finite"):
        interop.FixedLinear(8, 4, alpha=math.inf)
