"""Files of ours that other tools have changed: what they do right must run, whatever they do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_tools import LIBRARY, WAYS, needs_library, operators, run_ort

from fixclf_infer import codebook, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.edge import FixedHead
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.onnx import Head, head_model, library_path, merge_models, session, verify

BOOK = codebook(12, 20, "search")  # sign masks and a base matrix
ALPHA, BIAS = 7.3, np.linspace(-1, 1, 20, dtype=np.float32)
X = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)


def model_of(book: Codebook = BOOK, **options: Any) -> ModelProto:
    bias = np.linspace(-1, 1, book.num_classes, dtype=np.float32)
    return head_model(Head(book, True, **options), ALPHA, bias)


def body_and_head(**options: Any) -> ModelProto:
    """A product before the head: something for tools to convert."""
    model = model_of(**options)
    model.graph.node[0].input[0] = "h"
    model.graph.node.insert(0, helper.make_node("MatMul", ["X", "w"], ["h"]))
    model.graph.initializer.append(numpy_helper.from_array(np.eye(12, dtype=np.float32), "w"))
    model.graph.value_info.append(helper.make_tensor_value_info("h", 1, ["batch", 12]))
    return model


def logits(book: Codebook = BOOK) -> np.ndarray:
    bias = np.linspace(-1, 1, book.num_classes, dtype=np.float32)
    return reference.logits(X, book.matrix(), ALPHA, bias)


def run(path: Path, library: bool) -> list[np.ndarray]:
    runtime = session(path, library=library)
    (given,) = runtime.get_inputs()
    x = X.astype(np.float16 if given.type == "tensor(float16)" else np.float32)
    return list(runtime.run(None, {given.name: x}))


# Converters to 16 bits.


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize(
    "options",
    [{}, {"keep_io_types": True}, {"op_block_list": ["FixedHead"]}],
    ids=["all", "keep_io_types", "op_block_list"],
)
def test_float16_of_onnxruntime(options: dict[str, Any], library: bool, tmp_path: Path) -> None:
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    model = float16.convert_float_to_float16(body_and_head(epilogue=Epilogue.SOFTMAX), **options)
    onnx.save(model, tmp_path / "half.onnx")
    (y,) = run(tmp_path / "half.onnx", library)
    want = reference.apply_epilogue(logits(), Epilogue.SOFTMAX)
    np.testing.assert_allclose(y, want, atol=3e-3)
    head = FixedHead.load(tmp_path / "half.onnx")
    np.testing.assert_allclose(head.predict_proba(X), want, atol=3e-3)


@pytest.mark.parametrize("library", WAYS)
def test_float16_around_topk(library: bool, tmp_path: Path) -> None:
    """Its results are always float32, which such converters do not know of a foreign operator."""
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    model = float16.convert_float_to_float16(
        body_and_head(k=3), keep_io_types=True, op_block_list=["FixedHeadTopK"]
    )
    onnx.save(model, tmp_path / "half.onnx")
    values, indices, _ = run(tmp_path / "half.onnx", library)
    np.testing.assert_array_equal(indices, np.argsort(-logits(), axis=-1)[:, :3])
    np.testing.assert_allclose(values, np.take_along_axis(logits(), indices, -1), atol=2e-2)


@pytest.mark.parametrize("library", WAYS)
@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_alpha_and_bias_of_any_float_type(element: int, library: bool, tmp_path: Path) -> None:
    model = model_of()
    dtype = helper.tensor_dtype_to_np_dtype(element)
    for tensor in model.graph.initializer[:2]:
        values = numpy_helper.to_array(tensor).astype(dtype)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "head.onnx")
    want = logits()
    for got in (
        run(tmp_path / "head.onnx", library)[0],
        FixedHead.load(tmp_path / "head.onnx").logits(X),
    ):
        np.testing.assert_allclose(got, want, atol=1e-5 if element == TensorProto.DOUBLE else 0.05)


# Tensors in other files.


@pytest.fixture
def external(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(
        model_of(),
        path,
        save_as_external_data=True,
        location="model.data",
        size_threshold=0,
        convert_attribute=True,
    )
    return path


@pytest.mark.parametrize("library", WAYS)
def test_every_tensor_in_another_file(external: Path, library: bool) -> None:
    np.testing.assert_allclose(run(external, library)[0], logits(), atol=1e-5)
    assert verify(external, library=library, calls=1).ok
    np.testing.assert_allclose(FixedHead.load(external).logits(X), logits(), atol=1e-5)


def outside(model: ModelProto) -> None:
    model.graph.initializer[1].external_data[0].value = "../model.data"


def longer(model: ModelProto) -> None:
    entries = {e.key: e for e in model.graph.initializer[1].external_data}
    entries["offset"].value = str(10**6)


def negative(model: ModelProto) -> None:
    entries = {e.key: e for e in model.graph.initializer[1].external_data}
    entries["offset"].value = "-4"


@pytest.mark.parametrize(
    "edit, message",
    [
        (outside, r"bias is in '\.\./model\.data', expected a file in the folder of the model"),
        (longer, "bias is at .* behind the end of that file"),
        (negative, "bias is at .* expected 80 bytes at an offset"),
    ],
)
def test_edge_reads_inside_of_the_folder_only(
    edit: Callable[[ModelProto], None], message: str, external: Path
) -> None:
    (external.parent.parent / "model.data").write_bytes(bytes(10**4))
    model = onnx.load(external, load_external_data=False)
    edit(model)
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=message):
        FixedHead.load(external)
    (external.parent.parent / "model.data").unlink()


# Merging.


def test_merging_two_models(tmp_path: Path) -> None:
    """With other codebooks and shapes, prefixed: metadata, functions and kernels of both."""
    first, second = model_of(), model_of(codebook(12, 30))
    merged = merge_models(first, second, [], prefix1="a_", prefix2="b_")
    onnx.save(merged, tmp_path / "merged.onnx")
    assert len([p for p in merged.metadata_props if "codebook" in p.key]) == 2
    for library in (False, True) if LIBRARY else (False,):
        runtime = session(tmp_path / "merged.onnx", library=library)
        got = runtime.run(["a_Y", "b_Y"], {"a_X": X, "b_X": X})
        for y, book in zip(got, (BOOK, codebook(12, 30)), strict=True):
            np.testing.assert_allclose(y, logits(book), atol=1e-5)
        assert verify(tmp_path / "merged.onnx", library=library, calls=1).ok
    assert FixedHead.load(tmp_path / "merged.onnx", "a_head").num_classes == 20


def test_merging_a_body_and_a_head() -> None:
    graph = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["h"])],
        "body",
        [helper.make_tensor_value_info("x", 1, ["batch", 12])],
        [helper.make_tensor_value_info("h", 1, ["batch", 12])],
    )
    opset = helper.make_opsetid("", 18)
    body = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    merged = merge_models(body, model_of(), [("h", "X")])
    merged.graph.input[0].name = merged.graph.node[0].input[0] = "X"
    want = reference.logits(-X, BOOK.matrix(), ALPHA, BIAS)
    np.testing.assert_allclose(run_ort(merged, X)[0], want, atol=1e-5)


def test_merging_files_of_the_first_format() -> None:
    files = Path(__file__).parent / "files"
    first, second = onnx.load(files / "format1.onnx"), onnx.load(files / "format1_topk.onnx")
    merged = merge_models(first, second, [], prefix1="a_", prefix2="b_")
    assert {f.name for f in merged.functions} == {"FixedHead", "FixedHeadTopK"}
    assert [p.key.startswith("ai.fixclf.codebook.") for p in merged.metadata_props] == [True]


def test_what_onnx_compose_renamed_is_an_error(tmp_path: Path) -> None:
    """Nothing runs instead of the kernel silently."""
    onnx.save(onnx.compose.add_prefix(model_of(), "a_"), tmp_path / "a.onnx")
    message = r"a node a_FixedHead, expected one of .* \(fixclf_infer.onnx.merge_models keeps them"
    for use in (session, verify, FixedHead.load):
        with pytest.raises(ValueError, match=message):
            use(tmp_path / "a.onnx")


# ONNX Runtime's own format.


@needs_library
def test_ort_format(tmp_path: Path) -> None:
    import onnxruntime

    onnx.save(model_of(), tmp_path / "head.onnx")
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(library_path()))
    options.optimized_model_filepath = str(tmp_path / "head.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(tmp_path / "head.onnx"), options, ["CPUExecutionProvider"])
    (y,) = session(tmp_path / "head.ort").run(None, {"X": X})
    np.testing.assert_allclose(y, logits(), atol=1e-5)
    with pytest.raises(ValueError, match=r"head\.ort is in ONNX Runtime's own format, expected th"):
        FixedHead.load(tmp_path / "head.ort")


# Quantization: the lines of docs/onnx.md.


@needs_library
def test_static_quantization(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    preparation = pytest.importorskip("onnxruntime.quantization.shape_inference")
    onnx.save(body_and_head(), tmp_path / "model.onnx")

    class Data(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rows = iter([{"X": X}])

        def get_next(self) -> Any:
            return next(self.rows, None)

    # Optimising would put the portable body in the place of the head.
    preparation.quant_pre_process(
        tmp_path / "model.onnx",
        tmp_path / "ready.onnx",
        skip_symbolic_shape=True,
        skip_optimization=True,
    )
    quantization.quantize_static(
        tmp_path / "ready.onnx", tmp_path / "int8.onnx", Data(), nodes_to_exclude=["head"]
    )
    assert {"QuantizeLinear", "FixedHead"} <= set(operators(tmp_path / "int8.onnx"))
    np.testing.assert_allclose(run(tmp_path / "int8.onnx", True)[0], logits(), atol=0.2)
