"""What a model file says about its heads, checked: nodes, bits, types."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, numpy_helper

from ..codebooks import Codebook
from ..epilogue import MAX_TOPK, Epilogue
from ..fileformat import (
    OWN_FIELDS,
    between,
    check_fields,
    check_scale,
    read_codebook,
    renamed,
    sealed,
)
from .metadata import check_metadata
from .schema import ATTRIBUTES, DOMAINS, HEADS, Head

Constants = Callable[[str], "np.ndarray[Any, Any] | None"]

_ELEMENTS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT8)


def load(path: str | Path) -> ModelProto:
    """The model, tensors in other files left there.

    Raises FileNotFoundError, or ValueError when the file is no ONNX model.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ValueError(f"{path} is not an ONNX model") from error
    if not model.graph.node:
        raise ValueError(f"{path} is not an ONNX model, or has no nodes")
    if any(isinstance(text, bytes) for text in _texts(model)):
        raise ValueError(f"{path} is damaged: a name in it is not UTF-8")
    return model


def _texts(model: ModelProto) -> Iterator[str | bytes]:
    """The names of the main graph and the metadata. protobuf gives bytes for what is no text."""
    for property_ in model.metadata_props:
        yield from (property_.key, property_.value)
    for tensor in model.graph.initializer:
        yield tensor.name
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        yield value.name
    for node in model.graph.node:
        yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
        for given in node.attribute:
            yield given.name


def constants(model: ModelProto, folder: str | Path = "") -> Constants:
    """Value by name of what is an initialiser, the output of Constant, or either cast to float32,
    as tools put it before heads that they leave out of a conversion; None for other names.

    folder: where the model lies, for tensors in other files.
    """
    tensors = {t.name: t for t in model.graph.initializer}
    casts = {}
    for node in model.graph.node:
        if node.op_type == "Constant" and [a.name for a in node.attribute] == ["value"]:
            tensors[node.output[0]] = node.attribute[0].t
        if node.op_type == "Cast" and attribute(node, "to").i == TensorProto.FLOAT:
            casts[node.output[0]] = node.input[0]
    tensors.update({name: tensors[of] for name, of in casts.items() if of in tensors})

    def value(name: str) -> np.ndarray[Any, Any] | None:
        if name not in tensors:
            return None
        try:
            return numpy_helper.to_array(tensors[name], str(folder))
        except Exception as error:  # of a damaged tensor it raises a dozen kinds
            raise ValueError(f"the tensor {name!r} can't be read: {error}") from error

    return value


def head_nodes(model: ModelProto) -> list[NodeProto]:
    """The FixedHead and FixedHeadTopK nodes of the main graph.

    Raises ValueError for one that a tool has renamed: the library would not run it.
    """
    nodes = [n for n in model.graph.node if n.domain in DOMAINS]
    for node in nodes:
        if node.op_type not in HEADS and node.op_type.endswith(HEADS):
            raise ValueError(renamed("the model", node.op_type))
    return [n for n in nodes if n.op_type in HEADS]


def seal(nodes: Iterable[NodeProto], constant: Constants) -> None:
    """Gives heads of the newest format their checksums, which readers compare."""
    for node in nodes:
        arrays = (constant(name) if name else None for name in [*node.input, *[""] * 5][1:5])
        fields = {name: attribute(node, name).i for name in ATTRIBUTES[node.op_type]}
        for name, value in sealed(fields, *arrays).items():
            attribute(node, name).i = value


def without_function(model: ModelProto) -> list[str]:
    """Names of the operators of ai.fixclf that run with the library only."""
    there = {(f.domain, f.name) for f in model.functions}
    ours = [n for n in model.graph.node if n.domain in DOMAINS]
    return sorted({n.op_type for n in ours if (n.domain, n.op_type) not in there})


def types(model: ModelProto) -> dict[str, tuple[int, list[int | str]]]:
    """Element type and shape (names or "" for unknown sizes) of each value that records them."""
    graph = model.graph
    found = {t.name: (t.data_type, list[int | str](t.dims)) for t in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shape = [
                d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim
            ]
            found[value.name] = (tensor.elem_type, shape)
    return found


def known_types(
    model: ModelProto, names: Collection[str]
) -> dict[str, tuple[int, list[int | str]]]:
    """`types`, by shape inference where one of the names has no recorded type."""
    known = types(model)
    if all(name in known for name in names):
        return known
    return types(onnx.shape_inference.infer_shapes(model))


def check(model: ModelProto, folder: str | Path = "") -> list[Head]:
    """The model's heads, each read and checked.

    Raises ValueError, one sentence, for what `check_metadata` and `read_head` refuse and for
    features of a wrong type or rank.
    """
    check_metadata(model)
    for node in model.graph.node:
        if node.domain in DOMAINS and node.op_type == "HadamardTransform":
            _check_transform(node)
    known, value = types(model), constants(model, folder)
    heads = []
    for node in head_nodes(model):
        heads.append(head := read_head(node, value))
        if node.input[0] not in known:
            continue
        element, shape = known[node.input[0]]
        name = _type_name(element)
        if element not in _ELEMENTS:
            allowed = ", ".join(map(TensorProto.DataType.Name, _ELEMENTS))
            raise ValueError(f"{where(node)}: X is {name}, expected one of {allowed}")
        if not shape or not fits(shape[-1], head.codebook.in_features):
            raise ValueError(
                f"{where(node)}: X is {shape}, expected [..., {head.codebook.in_features}]"
            )
    return heads


def _type_name(element: int) -> str:
    known = element in TensorProto.DataType.values()
    return TensorProto.DataType.Name(element) if known else f"of type {element}"


def _check_transform(node: NodeProto) -> None:
    given = {a.name: a.type for a in node.attribute}
    if given != {"scale": AttributeProto.FLOAT}:
        names = ", ".join(given) or "none"
        raise ValueError(f"{where(node)}: attributes are {names}, expected scale, a float")


def fits(size: int | str, expected: int) -> bool:
    """Whether a recorded size, which is a name or "" where it is unknown, can be the expected."""
    return size == expected or isinstance(size, str)


def key(book: Codebook) -> tuple[object, ...]:
    """Of a ±1 codebook: equal where the kernels' data are."""
    data = book.kernel
    assert data is not None
    bits = [None if b is None else b.tobytes() for b in (data.signs, data.base)]
    sizes = (book.in_features, book.num_classes, data.base_order, data.log2, data.negate)
    return (*sizes, data.center, data.row_offset, data.column_offset, *bits)


def where(node: NodeProto) -> str:
    """How errors name a node."""
    return f"{node.op_type} {node.name or ''.join(node.output[:1])!r}"


def attribute(node: NodeProto, name: str) -> AttributeProto:
    """Raises ValueError where there is none."""
    found: AttributeProto
    for found in node.attribute:
        if found.name == name:
            return found
    raise ValueError(f"{where(node)}: attribute {name} is missing")


def read_head(node: NodeProto, constant: Constants) -> Head:
    """The head that a FixedHead or FixedHeadTopK node describes.

    constant: value of an initialiser by its name, None for a value that is computed.

    Raises ValueError, naming node and attribute or input, for a newer format version, attributes
    that are missing, unknown or out of range, inputs of a wrong type or shape, a missing bias, and
    values that do not have their checksum.
    """
    for a in node.attribute:
        if a.type != AttributeProto.INT:
            raise ValueError(f"{where(node)}: attribute {a.name} is no integer")
    if len(node.attribute) != len({a.name for a in node.attribute}):
        raise ValueError(f"{where(node)}: an attribute is there twice")
    fields = {a.name: a.i for a in node.attribute}
    values = check_fields(where(node), fields, OWN_FIELDS[node.op_type])
    inputs = [*node.input, *[""] * 5][:5]
    _, alpha, bias, signs, base = (constant(name) if name else None for name in inputs)
    if not inputs[1]:
        raise ValueError(f"{where(node)}: alpha is missing")
    if bool(inputs[2]) != bool(values["has_bias"]):
        what = "bias is missing" if values["has_bias"] else "a bias is given"
        raise ValueError(f"{where(node)}: {what}, but has_bias is {values['has_bias']}")
    for name, given, bits in (("signs", inputs[3], signs), ("base", inputs[4], base)):
        if given and bits is None:
            raise ValueError(f"{where(node)}: {name} is computed, expected an initialiser")
    if node.op_type == "FixedHead":
        if values["epilogue"] not in list(Epilogue):
            raise ValueError(
                f"{where(node)}: epilogue is {values['epilogue']}, expected one of "
                f"{', '.join(f'{int(e)} ({e.name.lower()})' for e in Epilogue)}"
            )
    else:
        between(where(node), "k", values["k"], 1, min(max(1, values["num_classes"]), MAX_TOPK))
    book = read_codebook(where(node), values, signs, base)
    check_scale(where(node), values, alpha, bias)
    head = Head(book, bool(inputs[2]))
    if node.op_type == "FixedHead":
        return replace(head, epilogue=Epilogue(values["epilogue"]))
    return replace(head, k=values["k"], log_probabilities=bool(values["log_probabilities"]))
