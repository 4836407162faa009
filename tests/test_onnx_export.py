"""Export of torch models with fixed heads, run in ONNX Runtime and compared with torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_tools
import pytest
import torch
from cases import check_head, expand
from onnx import checker
from onnx_tools import WAYS, needs_domains, operators
from torch import Tensor, nn

from fixclf_infer import codebook, ops
from fixclf_infer.codebooks import from_identity
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier
from fixclf_infer.onnx import export, session, verify
from fixclf_infer.onnx.schema import DOMAINS

BATCHES = (1, 3, 17)


class Two(nn.Module):
    """Two ± heads of different shapes and a dense one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(8, 16)
        self.many = FixedClassifier(16, 100)
        self.few = FixedClassifier(12, 24, bias=False)
        self.dense = FixedClassifier(16, 5, codebook="orthonormal")
        nn.init.normal_(self.many.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.body(x).relu()
        return self.many(features), self.few(features[:, :12]), self.dense(features)


class Block(nn.Module):
    """A residual block: two 3 × 3 convolutions."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inner, outer, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outer),
            nn.ReLU(),
            nn.Conv2d(outer, outer, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outer),
        )
        self.shortcut = nn.Conv2d(inner, outer, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return (self.path(x) + self.shortcut(x)).relu()


def resnet() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1),
        Block(16, 32, 1),
        Block(32, 64, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        FixedClassifier(64, 100),
    )


def vision_transformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        num_labels=1000,
    )
    model = transformers.ViTForImageClassification(config)
    model.classifier = FixedClassifier(48, 1000)
    return model


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    path = tmp_path_factory.mktemp("two") / "two.onnx"
    model = Two()
    export(model, torch.randn(2, 8), path)
    return model, path


def run(path: Path, library: bool, *inputs: Tensor) -> list[np.ndarray]:
    runtime = session(path, threads=1, library=library)
    names = [i.name for i in runtime.get_inputs()]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return runtime.run(None, feeds)


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize("batch", BATCHES)
def test_several_heads(two: tuple[nn.Module, Path], batch: int, library: bool) -> None:
    model, path = two
    x = torch.randn(batch, 8)
    many, few, dense = run(path, library, x)
    features = model.body(x).relu().detach()
    for head, part, got in ((model.many, features, many), (model.few, features[:, :12], few)):
        bias = None if head.bias is None else head.bias.detach().numpy()
        w = expand(head.codebook)
        check_head(got, part.numpy(), w, head.alpha.item(), bias, Epilogue.LOGITS)
    np.testing.assert_allclose(dense, model.dense(features).detach(), atol=1e-5)


def test_the_file(two: tuple[nn.Module, Path]) -> None:
    model, path = two
    file = onnx.load(path)
    checker.check_model(file, full_check=True)
    heads = [n for n in file.graph.node if n.domain in DOMAINS]
    assert [n.op_type for n in heads] == ["FixedHead", "FixedHead"]
    assert not any(n.metadata_props for n in file.graph.node)
    assert [d.dim_param for d in file.graph.input[0].type.tensor_type.shape.dim] == ["batch", ""]
    metadata = {p.key: p.value for p in file.metadata_props}
    recorded = [
        from_identity(json.loads(value))
        for key, value in metadata.items()
        if key.startswith("ai.fixclf.codebook.")
    ]
    assert [b.digest for b in recorded] == [m.codebook.digest for m in (model.many, model.few)]


@needs_domains
def test_the_library_runs_every_head(two: tuple[nn.Module, Path], tmp_path: Path) -> None:
    """ONNX Runtime keeps nodes that have a kernel and inlines the others."""
    options = onnx_tools.ort.SessionOptions()
    options.register_custom_ops_library(str(onnx_tools.library_path()))
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnx_tools.ort.InferenceSession(str(two[1]), options, providers=["CPUExecutionProvider"])
    assert operators(tmp_path / "optimized.onnx").count("FixedHead") == 2


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize("make", [resnet, vision_transformer])
def test_vision_models(make: Callable[[], nn.Module], library: bool, tmp_path: Path) -> None:
    model = make()
    export(model, torch.randn(2, 3, 32, 32), tmp_path / "model.onnx")
    assert model.training  # as before
    model.eval()
    for batch in BATCHES:
        x = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            want = model(x)
        want = getattr(want, "logits", want).numpy()
        (got,) = run(tmp_path / "model.onnx", library, x)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())


def small(num_classes: int = 10, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), FixedClassifier(16, num_classes, **arguments))


@pytest.mark.parametrize("library", WAYS)
def test_softmax(library: bool, tmp_path: Path) -> None:
    model = small()
    export(model, torch.randn(2, 4), tmp_path / "m.onnx", outputs="softmax")
    x = torch.randn(5, 4)
    (got,) = run(tmp_path / "m.onnx", library, x)
    np.testing.assert_allclose(got, model(x).softmax(-1).detach(), atol=1e-6)
    assert operators(tmp_path / "m.onnx") == ["Gemm", "FixedHead"]


@pytest.mark.parametrize("library", WAYS)
def test_top_k(library: bool, tmp_path: Path) -> None:
    model = small()
    export(
        model, torch.randn(2, 4), tmp_path / "m.onnx", outputs="topk", k=3, output_names=["scores"]
    )
    runtime = session(tmp_path / "m.onnx", library=library)
    names = [o.name for o in runtime.get_outputs()]
    assert names == ["scores_values", "scores_indices", "scores_logsumexp"]
    x = torch.randn(5, 4)
    values, indices, logsumexp = run(tmp_path / "m.onnx", library, x)
    z = model(x).detach()
    np.testing.assert_allclose(values, z.topk(3).values, atol=1e-5)
    assert np.array_equal(indices, z.topk(3).indices)
    np.testing.assert_allclose(logsumexp, z.logsumexp(-1), atol=1e-5)


@pytest.mark.parametrize("library", WAYS)
def test_predict_proba_in_the_model(library: bool, tmp_path: Path) -> None:
    """An epilogue of the model's own, in float32 from 16-bit features, and a half module."""

    class Probabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = FixedClassifier(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head.predict_proba(x, dtype=torch.float32)

    model = Probabilities().half()
    x = torch.randn(5, 16).half()
    export(model, x, tmp_path / "m.onnx")
    (got,) = run(tmp_path / "m.onnx", library, x)
    head = model.head
    w, alpha = expand(head.codebook), head.alpha.item()
    check_head(got, x.float().numpy(), w, alpha, None, Epilogue.SOFTMAX)


@pytest.mark.parametrize("opset", [18, 20, 21, 23])
def test_opsets(opset: int, tmp_path: Path) -> None:
    model = small()
    export(model, torch.randn(2, 4), tmp_path / "m.onnx", opset=opset)
    checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)
    x = torch.randn(3, 4)
    got = run(tmp_path / "m.onnx", False, x)
    np.testing.assert_allclose(got[0], model(x).detach(), atol=1e-5)
    (version,) = [o.version for o in onnx.load(tmp_path / "m.onnx").opset_import if o.domain == ""]
    assert version == opset


def test_without_the_portable_body(tmp_path: Path) -> None:
    export(small(), torch.randn(2, 4), tmp_path / "m.onnx", portable=False)
    assert not onnx.load(tmp_path / "m.onnx").functions
    with pytest.raises(ValueError, match=r"m\.onnx has no portable body for FixedHead; export it"):
        session(tmp_path / "m.onnx", library=False)


def test_inputs_by_name_fixed_batch_and_batch_of_one(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = FixedClassifier(8, 5)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.head(a - 2 * b)

    model = Named()
    path = tmp_path / "m.onnx"
    for dynamic in (True, False):
        export(model, {"a": torch.randn(1, 8), "b": torch.randn(1, 8)}, path, dynamic_batch=dynamic)
        shapes = [i.shape for i in session(path, library=False).get_inputs()]
        assert shapes == ([["batch", 8]] * 2 if dynamic else [[1, 8]] * 2)
        a, b = torch.randn(2, 1, 8)
        (got,) = run(path, False, a, b)
        np.testing.assert_allclose(got, model(a, b).detach(), atol=1e-5)


def test_rank_three_and_the_transform(tmp_path: Path) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = FixedClassifier(16, 30)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(ops.hadamard_transform(x, 0.25) + x)

    model = Tokens()
    export(model, torch.randn(2, 7, 16), tmp_path / "m.onnx")
    assert operators(tmp_path / "m.onnx") == ["HadamardTransform", "Add", "FixedHead"]
    x = torch.randn(3, 7, 16)
    (got,) = run(tmp_path / "m.onnx", False, x)
    np.testing.assert_allclose(got, model(x).detach(), atol=1e-5)


class Inner(nn.Module):
    """Logits that are used within the model."""

    def __init__(self) -> None:
        super().__init__()
        self.head = FixedClassifier(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x).relu()


class Shared(Inner):
    def forward(self, x: Tensor) -> Any:
        z = self.head(x)
        return z, z.relu()


class Raw(nn.Module):
    def __init__(self, classes: range | None, normalize: bool) -> None:
        super().__init__()
        base, signs, self.geometry = ops.codebook_arguments(codebook(4, 3), classes)
        assert base is None and signs is None
        self.normalize = normalize

    def forward(self, x: Tensor) -> Tensor:
        one = torch.ones(())
        return torch.ops.fixclf.head(x, one, None, None, None, self.geometry, self.normalize, 0)


@pytest.mark.parametrize(
    "model, arguments, message",
    [
        (small(), {"opset": 17}, "opset is 17, expected 18 to 23"),
        (small(), {"outputs": "argmax"}, "outputs is 'argmax', expected 'logits', 'softmax' or"),
        (small(), {"outputs": "topk"}, "k is None, expected an integer with outputs='topk'"),
        (small(), {"k": 3}, "k is 3, expected an integer with outputs='topk' and only then"),
        (small(), {"outputs": "topk", "k": 11}, "k is 11, expected 1 to 10 for FixedHead 'node_h"),
        (Inner(), {"outputs": "softmax"}, "the logits of FixedHead 'node_head' are no output of"),
        (Shared(), {"outputs": "softmax"}, "the logits of FixedHead 'node_head' are used by"),
        (small(codebook="orthonormal"), {"outputs": "softmax"}, "the model has no head of a ±1"),
        (small().double(), {}, "head: x is float64, expected float32, float16 or bfloat16"),
        (Raw(range(1, 3), True), {}, r"computes classes \[1, 3\) only, expected all 3"),
        (Raw(None, False), {}, "head: normalize is False, expected True"),
    ],
)
def test_refusals(
    model: nn.Module, arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    x = torch.randn(2, 4, dtype=next((p.dtype for p in model.parameters()), torch.float32))
    with pytest.raises(ValueError, match=message):
        export(model, x, tmp_path / "m.onnx", **arguments)
    assert not (tmp_path / "m.onnx").exists()


def test_large_weights_go_to_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fixclf_infer.onnx.exporter._ONE_FILE", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 256), FixedClassifier(256, 5000))
    path = tmp_path / "m.onnx"
    export(model, torch.randn(2, 4), path, outputs="softmax")
    assert path.with_name("m.onnx.data").exists()
    assert verify(path, library=False, calls=1).ok
    x = torch.randn(3, 4)
    np.testing.assert_allclose(run(path, False, x)[0], model(x).softmax(-1).detach(), atol=1e-6)


# Models that call more than the head.


class Reductions(nn.Module):
    """Everything a forward may call, with a mask of its own and one that comes with the input."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = FixedClassifier(16, 30, codebook=kind)
        nn.init.normal_(self.head.bias)
        self.register_buffer("own", torch.arange(30) % 3 != 1)

    def forward(self, x: Tensor, ids: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        head, many = self.head, torch.stack([ids, ids.flip(0)], -1)
        return (
            *head.topk(x, 4),
            *head.topk(x, 4, log_probabilities=True),
            *head.topk(x, 4, allowed=self.own),
            *head.topk(x, 4, log_probabilities=True, allowed=allowed),
            head.argmax(x),
            head.argmax(x, allowed=allowed),
            head.log_prob(x, ids),
            head.log_prob(x, many, allowed=self.own),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_topk_argmax_and_log_prob_in_forward(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Reductions("auto")
    assert model.own[0] and not model.own[1]

    def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(batch)
        allowed = torch.rand(batch, 30) < 0.6
        allowed[:, 7] = True
        ids = 3 * torch.arange(batch) % 30
        return torch.randn(batch, 16).to(dtype), ids, allowed

    export(model, inputs(2), tmp_path / "m.onnx")
    kinds = operators(tmp_path / "m.onnx")
    assert kinds.count("FixedHeadTopK") == 3 and kinds.count("FixedHead") == 1  # logits, shared
    for library in (False, True) if onnx_tools.LIBRARY else (False,):
        for batch in (1, 5):
            want = model(*inputs(batch))
            got = run(tmp_path / "m.onnx", library, *inputs(batch))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b.detach().numpy(), atol=2e-5)


@pytest.mark.parametrize(
    "call, what",
    [
        (lambda head, x: head.sample(x), "samples"),
        (lambda head, x: head.loss(x, x[:, 0].long()), "computes a loss"),
    ],
)
def test_what_a_file_does_not_hold(
    call: Callable[[FixedClassifier, Tensor], Tensor], what: str, tmp_path: Path
) -> None:
    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = FixedClassifier(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            return call(self.head, x)

    with pytest.raises(ValueError, match=f"the model {what}, expected logits, probabilities, top"):
        export(Calls(), torch.zeros(2, 16), tmp_path / "m.onnx")


@pytest.mark.parametrize("whole", [True, False])
def test_a_compiled_model(whole: bool, tmp_path: Path) -> None:
    model = small()
    x = torch.randn(3, 4)
    want = model(x).detach()
    if whole:
        model = torch.compile(model)
    else:
        model[1] = torch.compile(model[1])
    export(model, torch.randn(2, 4), tmp_path / "m.onnx")
    (got,) = run(tmp_path / "m.onnx", False, x)
    np.testing.assert_allclose(got, want, atol=1e-4)


def test_torch_onnx_export_says_what_to_call(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"call fixclf_infer\.onnx\.export instead"),
        pytest.raises(Exception, match="fixclf"),
    ):
        torch.onnx.export(small(), (torch.randn(2, 4),), tmp_path / "m.onnx", dynamo=True)
