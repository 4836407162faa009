"""A head alone as a model: what a device or a server that has the features loads."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto, TensorProto, helper, numpy_helper

from .body import append_bodies
from .metadata import record
from .model import constants, seal
from .schema import DOMAIN, OPSET, Head

_ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "int8": TensorProto.INT8,
}


def head_model(
    head: Head,
    alpha: float,
    bias: ArrayLike | None = None,
    *,
    dtype: str = "float32",
    portable: bool = True,
    opset: int = 18,
) -> ModelProto:
    """Model of one head: X [batch, N] → Y [batch, C], or values, indices and logsumexp with k.

    Args:
        head: codebook and output.
        alpha: α.
        bias: b, [C], given exactly if `head.has_bias`.
        dtype: of X: float32, float16, bfloat16 or int8; Y has the same, float32 for int8.
        portable, opset: as in `export`.

    Raises ValueError for another dtype, or a bias that is missing or of another shape.
    """
    book, data = head.codebook, head.data
    if dtype not in _ELEMENTS:
        raise ValueError(f"dtype is {dtype!r}, expected one of {', '.join(_ELEMENTS)}")
    values = None if bias is None else np.asarray(bias, np.float32)
    expected = (book.num_classes,) if head.has_bias else None
    shape = None if values is None else values.shape
    if shape != expected:
        raise ValueError(f"bias has shape {shape}, expected {expected}")
    arrays = {"alpha": np.float32(alpha), "bias": values, "signs": data.signs, "base": data.base}
    present = {name: np.asarray(a) for name, a in arrays.items() if a is not None}
    element = _ELEMENTS[dtype]
    outputs: dict[str, tuple[int, list[str | int | None]]]
    if head.k:
        outputs = {
            "values": (TensorProto.FLOAT, ["batch", head.k]),
            "indices": (TensorProto.INT64, ["batch", head.k]),
            "logsumexp": (TensorProto.FLOAT, ["batch"]),
        }
    else:
        given = TensorProto.FLOAT if dtype == "int8" else element
        outputs = {"Y": (given, ["batch", book.num_classes])}
    inputs = (name if name in present else "" for name in arrays)
    node = head.node("X", *inputs, outputs=list(outputs), name="head")
    graph = helper.make_graph(
        [node],
        "head",
        [helper.make_tensor_value_info("X", element, ["batch", book.in_features])],
        [helper.make_tensor_value_info(name, *type_) for name, type_ in outputs.items()],
        [numpy_helper.from_array(a, name) for name, a in present.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, OPSET)],
        ir_version=8,
        producer_name="fixclf_infer",
    )
    seal(model.graph.node, constants(model))
    record(model, [book])
    if portable:
        append_bodies(model)
    return model
