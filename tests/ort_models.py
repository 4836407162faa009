"""Small ONNX models with the operators of the library, as bytes.

Features and results are float32 at the graph's edge, whatever the operator's dtype: Cast nodes
convert them, because ONNX Runtime's Python API has no bfloat16 arrays.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue

DOMAIN = "ai.fixclf"
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}
IR_VERSION, OPSET = 8, 18
Shape = Sequence[int | str | None] | None


def attributes(book: Codebook, *, bias: bool, **own: int) -> dict[str, int]:
    """Of format version 2, without the checksums."""
    data = book.kernel
    assert data is not None
    return {
        "format_version": 2,
        "in_features": book.in_features,
        "num_classes": book.num_classes,
        "base_order": data.base_order,
        "log2": data.log2,
        "negate": int(data.negate),
        "center": int(data.center),
        "row_offset": data.row_offset,
        "column_offset": data.column_offset,
        "has_bias": int(bias),
        "scale_checksum": 0,
        **own,
    }


def seal(attributes: dict[str, Any], inputs: Mapping[str, np.ndarray | None]) -> None:
    """Sets the checksums: CRC-32 of alpha and bias in float32, and of the other integers, 8 bytes
    each, and the bits."""
    arrays = [np.asarray(inputs[n], "<f4") for n in ("alpha", "bias") if inputs[n] is not None]
    attributes["scale_checksum"] = zlib.crc32(b"".join(a.tobytes() for a in arrays))
    parts = [int(i).to_bytes(8, "little", signed=True) for i in attributes.values()]
    parts += [inputs[n].tobytes() for n in ("signs", "base") if inputs[n] is not None]
    attributes["checksum"] = zlib.crc32(b"".join(parts))


def head_inputs(book: Codebook, alpha: float, bias: np.ndarray | None) -> dict[str, Any]:
    """The inputs after X; None for those that are absent."""
    assert book.kernel is not None
    return {
        "alpha": np.array(alpha, np.float32),
        "bias": bias,
        "signs": book.kernel.signs,
        "base": book.kernel.base,
    }


def operator(
    op: str,
    inputs: Mapping[str, np.ndarray | None],
    attributes: Mapping[str, Any],
    *,
    outputs: Mapping[str, Shape],
    x_shape: Shape,
    dtype: str = "float32",
    y_dtype: str | None = None,
    run_time: Iterable[str] = (),
) -> bytes:
    """One node: X, cast to `dtype`, and `inputs` as initializers (graph inputs those that
    `run_time` names). The first output is cast from `y_dtype` to float32."""
    y_dtype = y_dtype or ("float32" if dtype == "int8" else dtype)
    first, *others = outputs
    names = [name if value is not None else "" for name, value in inputs.items()]
    while names and not names[-1]:
        names.pop()
    nodes = [
        helper.make_node("Cast", ["X"], ["x"], to=TYPES[dtype]),
        helper.make_node(op, ["x", *names], ["y", *others], domain=DOMAIN, **attributes),
        helper.make_node("Cast", ["y"], [first], to=TensorProto.FLOAT),
    ]
    tensors = {name: value for name, value in inputs.items() if value is not None}
    graph_inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, x_shape)]
    for name in run_time:
        element = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
        shape = [None] * tensors[name].ndim
        graph_inputs.append(helper.make_tensor_value_info(name, element, shape))
    graph_outputs = [
        helper.make_tensor_value_info(
            name, TensorProto.INT64 if name == "indices" else TensorProto.FLOAT, shape
        )
        for name, shape in outputs.items()
    ]
    initializers = [
        numpy_helper.from_array(value, name)
        for name, value in tensors.items()
        if name not in run_time
    ]
    # ONNX Runtime 1.17 infers no type where an absent input precedes one that is there.
    y = helper.make_tensor_value_info("y", TYPES[y_dtype], None)
    return model(nodes, graph_inputs, graph_outputs, initializers, [y])


def head(
    book: Codebook,
    alpha: float = 3.0,
    bias: np.ndarray | None = None,
    epilogue: Epilogue = Epilogue.LOGITS,
    *,
    dtype: str = "float32",
    x_shape: Shape = None,
    run_time: Iterable[str] = (),
    replace: Mapping[str, Any] | None = None,
) -> bytes:
    """FixedHead; `replace` overrides attributes and inputs (None: absent) by name. The
    checksums are those of its attributes and of the inputs before they were replaced."""
    inputs, replace = head_inputs(book, alpha, bias), dict(replace or {})
    attrs: dict[str, Any] = attributes(book, bias=bias is not None, epilogue=int(epilogue))
    attrs |= {name: replace[name] for name in attrs if isinstance(replace.get(name), int)}
    seal(attrs, inputs)
    for name, value in replace.items():
        (inputs if name in inputs else attrs)[name] = value
    attrs = {name: value for name, value in attrs.items() if value is not None}
    x_shape = x_shape or ["batch", book.in_features]
    y_shape = [*x_shape[:-1], book.num_classes]
    return operator(
        "FixedHead",
        inputs,
        attrs,
        outputs={"Y": y_shape},
        x_shape=x_shape,
        dtype=dtype,
        run_time=run_time,
    )


def top_k(
    book: Codebook,
    k: int,
    alpha: float = 3.0,
    bias: np.ndarray | None = None,
    *,
    log_probabilities: int = 0,
    dtype: str = "float32",
    x_shape: Shape = None,
) -> bytes:
    """FixedHeadTopK."""
    inputs = head_inputs(book, alpha, bias)
    attrs = attributes(book, bias=bias is not None, k=k, log_probabilities=log_probabilities)
    seal(attrs, inputs)
    x_shape = x_shape or ["d0", "d1", book.in_features]
    outputs = {
        "values": [*x_shape[:-1], k],
        "indices": [*x_shape[:-1], k],
        "logsumexp": x_shape[:-1],
    }
    return operator(
        "FixedHeadTopK",
        inputs,
        attrs,
        outputs=outputs,
        x_shape=x_shape,
        dtype=dtype,
        y_dtype="float32",
    )


def transform(x_shape: Shape, scale: float | None, dtype: str) -> bytes:
    """HadamardTransform; scale None: the attribute is absent."""
    attrs = {} if scale is None else {"scale": scale}
    outputs = {"Y": x_shape}
    return operator("HadamardTransform", {}, attrs, outputs=outputs, x_shape=x_shape, dtype=dtype)


def model(
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    initializers: list[Any],
    value_info: Sequence[Any] = (),
) -> bytes:
    """A serialized model of the given graph."""
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers, value_info=value_info)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    return bytes(proto.SerializeToString())
