"""Dense ±1 heads of other packages, found in their exports and replaced."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_tools  # noqa: F401  # skips without onnx
import pytest
import scipy.linalg
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_tools import WAYS, operators
from torch import Tensor, nn

from fixclf_infer import codebook
from fixclf_infer.codebooks import Codebook
from fixclf_infer.onnx import Replaced, replace_dense_heads, session, verify


class Hoffer(nn.Module):
    """The head of github.com/eladhoffer/fix_your_classifier; with `whole` that of Brevitas, which
    divides by the norm of the whole batch."""

    def __init__(self, n: int, c: int, bias: bool = True, whole: bool = False) -> None:
        super().__init__()
        order = 1 << (max(n, c) - 1).bit_length()
        self.register_buffer("proj", torch.from_numpy(scipy.linalg.hadamard(order)).float())
        self.n, self.c, self.whole = n, c, whole
        self.scale = nn.Parameter(torch.tensor(c**-0.5))
        self.bias = nn.Parameter(torch.linspace(-1, 1, c)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        norm = x.norm(p="fro", keepdim=True) if self.whole else x.norm(2, -1, keepdim=True)
        out = -self.scale * nn.functional.linear(x / (norm + 1e-8), self.proj[: self.c, : self.n])
        return out if self.bias is None else out + self.bias.view(1, -1)


def network(head: Hoffer) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, head.n), nn.ReLU(), head, nn.Softmax(-1)).eval()


def export(model: nn.Module, path: Path, dynamo: bool, batch: int | None = None) -> None:
    """As these packages' users would, with torch alone; batch: None for any."""
    x = torch.randn(batch or 2, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = ({0: torch.export.Dim("batch")},) if batch is None else None
            torch.onnx.export(
                model,
                (x,),
                path,
                dynamo=True,
                dynamic_shapes=shapes,
                input_names=["x"],
                opset_version=18,
                external_data=False,
                verbose=False,
            )
        else:
            axes = {"x": {0: "batch"}} if batch is None else None
            torch.onnx.export(
                model,
                (x,),
                path,
                dynamo=False,
                opset_version=18,
                dynamic_axes=axes,
                input_names=["x"],
            )


def check(path: Path, x: np.ndarray, want: np.ndarray, library: bool) -> None:
    (got,) = session(path, library=library).run(None, {"x": x})
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "torchscript"])
@pytest.mark.parametrize("n, c, bias", [(64, 10, True), (48, 100, False)])
def test_the_original_head(
    n: int, c: int, bias: bool, dynamo: bool, library: bool, tmp_path: Path
) -> None:
    model = network(Hoffer(n, c, bias))
    export(model, tmp_path / "dense.onnx", dynamo)
    (found,) = replace_dense_heads(tmp_path / "dense.onnx", tmp_path / "fixed.onnx")
    assert (found.codebook, found.in_features, found.num_classes) == ("hoffer", n, c)
    assert found.has_bias is bias
    assert found.alpha == pytest.approx(-((n / c) ** 0.5), rel=1e-5)
    assert operators(tmp_path / "fixed.onnx") == ["Gemm", "Relu", "FixedHead", "Softmax"]
    x = torch.randn(5, 16)
    check(tmp_path / "fixed.onnx", x.numpy(), model(x).detach().numpy(), library)
    assert verify(tmp_path / "fixed.onnx", library=library, calls=1).ok
    size = (tmp_path / "fixed.onnx").stat().st_size
    assert size < (tmp_path / "dense.onnx").stat().st_size + 12_000  # the matrix is gone


def test_the_head_of_brevitas(tmp_path: Path) -> None:
    """A norm of the whole batch is that of a row where the batch is always 1."""
    model = network(Hoffer(64, 10, bias=False, whole=True))
    export(model, tmp_path / "one.onnx", True, batch=1)
    (found,) = replace_dense_heads(tmp_path / "one.onnx", tmp_path / "fixed.onnx")
    assert found.codebook == "hoffer"  # the same rows
    x = torch.randn(1, 16)
    check(tmp_path / "fixed.onnx", x.numpy(), model(x).detach().numpy(), False)

    export(model, tmp_path / "any.onnx", True)
    message = (
        "multiplies by the codebook 'hoffer', but what .* divided by the norm of their own row"
    )
    with pytest.raises(ValueError, match=message):
        replace_dense_heads(tmp_path / "any.onnx", tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


def dense(
    matrix: np.ndarray, path: Path, *, normalize: bool = True, bias: bool = False
) -> np.ndarray:
    """Writes x → matrix x̂ + b as a Gemm, features normalised by LpNormalization; returns b."""
    c, n = matrix.shape
    b = np.linspace(-1, 1, c, dtype=np.float32) * bias
    nodes = [
        helper.make_node("LpNormalization" if normalize else "Identity", ["x"], ["u"]),
        helper.make_node("Gemm", ["u", "w", "b"], ["z"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", n])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", c])],
        [numpy_helper.from_array(matrix.astype(np.float32), "w"), numpy_helper.from_array(b, "b")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return b


def rows(*size: Any) -> tuple[np.ndarray, Codebook]:
    book = codebook(*size)
    return book.matrix().astype(np.float64), book


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize(
    "kind, n, c",
    [
        ("hadamard", 12, 7),
        ("hadamard", 100, 37),
        ("orthoplex", 64, 100),
        ("kerdock", 16, 100),
        ("search", 12, 100),
        ("etf", 15, 16),
    ],
)
def test_every_family(kind: str, n: int, c: int, library: bool, tmp_path: Path) -> None:
    matrix, book = rows(n, c, kind)
    b = dense(-0.25 * matrix, tmp_path / "dense.onnx", bias=True)
    found = replace_dense_heads(tmp_path / "dense.onnx", tmp_path / "fixed.onnx")
    assert found == [Replaced("head", kind, n, c, pytest.approx(-0.25 * n**0.5), True)]
    x = np.random.default_rng(0).standard_normal((5, n)).astype(np.float32)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    check(tmp_path / "fixed.onnx", x, -0.25 * u @ matrix.T + b, library)
    found_book = verify(tmp_path / "fixed.onnx", library=library, calls=1).codebooks["head"]
    assert found_book == f"{kind}, version {book.version}"


def test_rows_of_sylvesters_matrix_that_no_kind_has(tmp_path: Path) -> None:
    matrix = scipy.linalg.hadamard(32)[1:20, 1:32]
    dense(matrix, tmp_path / "dense.onnx")
    (found,) = replace_dense_heads(tmp_path / "dense.onnx", tmp_path / "fixed.onnx")
    assert (found.codebook, found.has_bias) == ("sylvester", False)
    x = np.random.default_rng(0).standard_normal((5, 31)).astype(np.float32)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    check(tmp_path / "fixed.onnx", x, u @ matrix.T, False)


def _random_signs() -> np.ndarray:
    return np.random.default_rng(0).choice([-1.0, 1.0], (10, 16))


def _one_entry_wrong() -> np.ndarray:
    matrix, _ = rows(16, 10)
    matrix[4, 3] *= -1
    return matrix


@pytest.mark.parametrize(
    "matrix, normalize, message",
    [
        (_random_signs(), True, "the ±1 matrix of Gemm 'head' is no known codebook"),
        (_one_entry_wrong(), True, "the ±1 matrix of Gemm 'head' is no known codebook"),
        (rows(16, 10)[0], False, "Gemm 'head' multiplies by the codebook 'hadamard', but what it"),
        (np.eye(8), True, "no MatMul or Gemm has a constant ±1 matrix"),
    ],
)
def test_refusals(matrix: np.ndarray, normalize: bool, message: str, tmp_path: Path) -> None:
    dense(matrix, tmp_path / "dense.onnx", normalize=normalize)
    with pytest.raises(ValueError, match=message):
        replace_dense_heads(tmp_path / "dense.onnx", tmp_path / "fixed.onnx")
    assert not (tmp_path / "fixed.onnx").exists()
