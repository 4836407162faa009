"""What the tests of fixclf_infer.onnx share. Importing it skips a module where onnx is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from onnx import ModelProto, TensorProto, helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from fixclf_infer.onnx import library_path  # noqa: E402

try:
    LIBRARY = library_path().read_bytes()
except ImportError:
    LIBRARY = b""

needs_library = pytest.mark.skipif(not LIBRARY, reason="built without libfixclf_onnxruntime.so")
needs_topk = pytest.mark.skipif(
    b"FixedHeadTopK" not in LIBRARY, reason="the library has no FixedHeadTopK yet"
)
needs_domains = pytest.mark.skipif(
    b"ai.fixclf.2" not in LIBRARY, reason="the library does not have its operators in ai.fixclf.2"
)
WAYS = [pytest.param(True, marks=needs_library, id="library"), pytest.param(False, id="portable")]


def run_ort(model: ModelProto, x: np.ndarray, library: bool = False) -> list[np.ndarray]:
    """Outputs for the input X. bfloat16 comes and goes as float32, exactly: ONNX Runtime's Python
    API has no such arrays."""
    casted = _with_casts(model) if x.dtype.name == "bfloat16" else model
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if library:
        options.register_custom_ops_library(str(library_path()))
    session = ort.InferenceSession(
        casted.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    outputs = session.run(None, {"X": x if casted is model else x.astype(np.float32)})
    if casted is not model and len(outputs) == 1:
        return [outputs[0].astype(x.dtype)]
    return outputs


def run_reference(model: ModelProto, x: np.ndarray) -> list[np.ndarray]:
    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(None, {"X": x})


def _with_casts(model: ModelProto) -> ModelProto:
    wide = ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    (node,) = graph.node
    graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    node.input[0] = "narrow"
    graph.node.insert(0, helper.make_node("Cast", ["X"], ["narrow"], to=TensorProto.BFLOAT16))
    if graph.output[0].type.tensor_type.elem_type == TensorProto.BFLOAT16:
        graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT
        graph.node[1].output[0] = "Y16"
        graph.node.append(helper.make_node("Cast", ["Y16"], ["Y"], to=TensorProto.FLOAT))
    return wide


def operators(model: ModelProto | Path) -> list[str]:
    """Of the main graph."""
    model = onnx.load(model) if isinstance(model, Path) else model
    return [node.op_type for node in model.graph.node]


def set_rank(model: ModelProto, lead: Sequence[str]) -> None:
    """Gives X and Y of a head alone these leading dimensions."""
    for value in (model.graph.input[0], model.graph.output[0]):
        tensor = value.type.tensor_type
        size = tensor.shape.dim[-1].dim_value
        value.CopyFrom(helper.make_tensor_value_info(value.name, tensor.elem_type, [*lead, size]))


def change(path: Path, to: Path, edit: Any) -> Path:
    """A copy of a file with its ModelProto edited."""
    model = onnx.load(path)
    edit(model)
    onnx.save(model, to)
    return to
