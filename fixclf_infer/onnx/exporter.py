"""`export`: a PyTorch model with fixed heads to one ONNX file."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir
import onnxscript
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..epilogue import MAX_TOPK, Epilogue
from ..fileformat import FORMAT_VERSION
from ..nn import FixedClassifier
from ..ops import Geometry
from .body import append_bodies
from .metadata import record
from .model import attribute, check, constants, head_nodes, key, load, seal, where
from .schema import ATTRIBUTES, DOMAIN, OPSET, SCHEMAS

Outputs = Literal["logits", "softmax", "topk"]
OPSETS = range(18, 24)

_standard: Any = onnxscript.opset18
_PLACES = numpy_helper.from_array(np.arange(8, dtype=np.uint8))
_ONE = numpy_helper.from_array(np.ones(1, np.uint8))

# Weights of more bytes go to a second file: protobuf's limit for one is 2 GiB.
_ONE_FILE = 2**30 * 3 // 2


def export(
    model: nn.Module,
    example_inputs: Any,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    outputs: Outputs = "logits",
    k: int | None = None,
    portable: bool = True,
    opset: int = 18,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> None:
    """Writes a model that contains `FixedClassifier`s as ONNX, by torch's dynamo exporter.

    Each head becomes one node FixedHead of domain ai.fixclf; a dense codebook (orthonormal, matrix)
    becomes standard operators. The metadata records the identity of every ±1 codebook.

    Args:
        model: exported in eval mode.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments.
        path: of the file; weights of more than 1.5 GiB go to `<path>.data` beside it.
        dynamic_batch: the first dimension of every example tensor is the batch, of any size.
        outputs: what the heads give instead of logits. Every head's logits must be an output of the
            model then, and nothing else. "softmax": probabilities [..., C] under the same name.
            "topk": for output y the three y_values (float32 [..., k], descending), y_indices
            (int64 [..., k]) and y_logsumexp (float32 [...]).
        k: with "topk" only, 1 to min(C, 1024).
        portable: append the operators as functions of standard ones, so that the file also runs
            without `library_path()`.
        opset: of the standard operators, 18 to 23.
        input_names, output_names: as in `torch.onnx.export`.

    Raises:
        ValueError: an argument above; a head without normalisation, on a range of its classes, or
            on float64 features.
    """
    if opset not in OPSETS:
        raise ValueError(f"opset is {opset}, expected {OPSETS[0]} to {OPSETS[-1]}")
    if outputs not in ("logits", "softmax", "topk"):
        raise ValueError(f"outputs is {outputs!r}, expected 'logits', 'softmax' or 'topk'")
    if (k is None) == (outputs == "topk"):
        raise ValueError(f"k is {k}, expected an integer with outputs='topk' and only then")
    args, kwargs = _arguments(example_inputs)
    if dynamic_batch:
        args, kwargs = tree_map(_at_least_two, (args, kwargs))

    def shapes(batch: Any) -> Any:
        """`batch` for the first dimension of every tensor."""
        return tree_map(
            lambda x: {0: batch} if isinstance(x, Tensor) and x.dim() and dynamic_batch else None,
            kwargs or args,
        )

    # A compiled model is exported as it was before.
    model = getattr(model, "_orig_mod", model)
    eagerly = torch.compiler.set_stance("force_eager")
    with _eval_mode(model), torch.no_grad(), eagerly:
        program = torch.export.export(
            model, args, kwargs, dynamic_shapes=shapes(torch.export.Dim("batch"))
        )
    _refuse(program)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.onnx.export knows no fixed head")
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=shapes("batch"),
            input_names=input_names,
            output_names=output_names,
            custom_translation_table=_TRANSLATIONS,
            verbose=False,
        )
    assert exported is not None
    tensors = (*program.state_dict.values(), *program.constants.values())
    size = sum(t.nbytes for t in tensors if isinstance(t, Tensor))
    folder = Path(path).parent
    if size > _ONE_FILE:
        exported.save(str(path), external_data=True)
        written = load(path)
    else:
        written = exported.model_proto
    for node in written.graph.node:
        del node.metadata_props[:]  # stack traces of the exporting machine
    if outputs != "logits":
        nodes = head_nodes(written)
        if not nodes:
            raise ValueError(f"outputs is {outputs!r}, but the model has no head of a ±1 codebook")
        for node in nodes:
            _replace_logits(written, node, k)
    seal(head_nodes(written), constants(written, folder))
    books = [m.codebook for m in model.modules() if isinstance(m, FixedClassifier)]
    used = {key(head.codebook) for head in check(written, folder)}
    record(written, (book for book in books if book.kernel is not None and key(book) in used))
    if portable:
        append_bodies(written, folder)
    onnx.save(written, str(path))


def _arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,), {}


def _at_least_two(x: Any) -> Any:
    """torch.export takes a dimension of 1 for a constant, so the example's row comes twice."""
    if isinstance(x, Tensor) and x.dim() and x.shape[0] == 1:
        return torch.cat([x, x])
    return x


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


_REFUSED = {
    torch.ops.fixclf.head_sample.default: "samples",
    torch.ops.fixclf.head_nll.default: "computes a loss",
}


def _refuse(program: torch.export.ExportedProgram) -> None:
    """What the ONNX operators do not cover, before torch's exporter wraps it in its own error."""
    for node in program.graph.nodes:
        if node.target in _REFUSED:
            raise ValueError(
                f"{node.name}: the model {_REFUSED[node.target]}, expected logits, probabilities, "
                "topk, argmax or log_prob, which ONNX files can hold"
            )
        if node.target not in _TRANSLATIONS:
            continue
        x = node.args[0].meta["val"]
        if x.dtype == torch.float64:
            raise ValueError(f"{node.name}: x is float64, expected float32, float16 or bfloat16")
        if node.target is torch.ops.fixclf.hadamard_transform.default:
            continue
        if x.dtype == torch.uint8:
            raise ValueError(f"{node.name}: x is packed signs, expected floats or int8")
        names = [a.name for a in node.target._schema.arguments]
        given = dict(zip(names, node.args, strict=False))
        book = Geometry(*given["geometry"])
        if not given["normalize"]:
            raise ValueError(f"{node.name}: normalize is False, expected True")
        if (book.class_begin, book.class_end) != (0, book.num_classes):
            raise ValueError(
                f"{node.name}: the head computes classes [{book.class_begin}, "
                f"{book.class_end}) only, expected all {book.num_classes}"
            )


def _op(name: str) -> onnxscript.values.Op:
    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, OPSET), name, SCHEMAS[name])


def _node(
    op_type: str,
    x: Any,
    alpha: Any,
    bias: Any,
    base: Any,
    signs: Any,
    geometry: Sequence[int],
    **own: int,
) -> Any:
    book = Geometry(*geometry)._asdict()
    del book["class_begin"], book["class_end"]
    # alpha, bias and bits have no values yet: the checksums come later.
    return _op(op_type)(
        x,
        alpha,
        bias,
        signs,
        base,
        format_version=FORMAT_VERSION,
        **book,
        has_bias=int(bias is not None),
        scale_checksum=0,
        **own,
        checksum=0,
    )


def _head(
    x: Any,
    alpha: Any,
    bias: Any,
    base: Any,
    signs: Any,
    geometry: Sequence[int],
    normalize: bool,
    epilogue: int,
    dtype: Any = None,
) -> Any:
    if dtype is not None and dtype != x.dtype:  # float32 from 16 bits
        x = _standard.Cast(x, to=TensorProto.FLOAT)
    return _node("FixedHead", x, alpha, bias, base, signs, geometry, epilogue=epilogue)


def _logits(
    x: Any, alpha: Any, bias: Any, base: Any, signs: Any, geometry: Sequence[int], allowed: Any
) -> Any:
    """Logits in float32, −∞ where a bit of the mask is 0: an array of [..., C]."""
    if x.dtype != onnx_ir.DataType.FLOAT:
        x = _standard.Cast(x, to=TensorProto.FLOAT)
    logits = int(Epilogue.LOGITS)
    z = _node("FixedHead", x, alpha, bias, base, signs, geometry, epilogue=logits)
    if allowed is None:
        return z
    places, one = (_standard.Constant(value=octets) for octets in (_PLACES, _ONE))
    bits = _standard.BitShift(_standard.Unsqueeze(allowed, [-1]), places, direction="RIGHT")
    flat = _standard.Reshape(_standard.BitwiseAnd(bits, one), [0] * (len(allowed.shape) - 1) + [-1])
    allowed = _standard.Slice(flat, [0], [Geometry(*geometry).num_classes], [-1])
    return _standard.Where(_standard.Cast(allowed, to=TensorProto.BOOL), z, float("-inf"))


def _topk(
    x: Any,
    alpha: Any,
    bias: Any,
    base: Any,
    signs: Any,
    geometry: Sequence[int],
    normalize: bool,
    k: int,
    log_probabilities: bool = False,
    allowed: Any = None,
) -> Any:
    head = (x, alpha, bias, base, signs, geometry)
    if allowed is None:
        return _node("FixedHeadTopK", *head, k=k, log_probabilities=int(log_probabilities))
    z = _logits(*head, allowed)
    values, indices = _standard.TopK(z, [k])
    total = _standard.ReduceLogSumExp(z, [-1], keepdims=0)
    if log_probabilities:
        values = _standard.Sub(values, _standard.Unsqueeze(total, [-1]))
    return values, indices, total


def _argmax(
    x: Any,
    alpha: Any,
    bias: Any,
    base: Any,
    signs: Any,
    geometry: Sequence[int],
    normalize: bool,
    allowed: Any = None,
) -> Any:
    head = (x, alpha, bias, base, signs, geometry)
    if allowed is not None:
        return _standard.ArgMax(_logits(*head, allowed), axis=-1, keepdims=0)
    _, indices, _ = _node("FixedHeadTopK", *head, k=1, log_probabilities=0)
    return _standard.Squeeze(indices, [-1])


def _log_prob(
    x: Any,
    alpha: Any,
    bias: Any,
    base: Any,
    signs: Any,
    geometry: Sequence[int],
    normalize: bool,
    ids: Any,
    allowed: Any = None,
) -> Any:
    z = _logits(x, alpha, bias, base, signs, geometry, allowed)
    total = _standard.ReduceLogSumExp(z, [-1], keepdims=0)
    one_a_row = len(ids.shape) < len(x.shape)
    wide = _standard.Unsqueeze(ids, [-1]) if one_a_row else ids
    logits = _standard.GatherElements(z, wide, axis=-1)
    log_probs = _standard.Sub(logits, _standard.Unsqueeze(total, [-1]))
    if one_a_row:
        logits, log_probs = (_standard.Squeeze(each, [-1]) for each in (logits, log_probs))
    return log_probs, logits, total


def _transform(x: Any, scale: float = 1.0) -> Any:
    return _op("HadamardTransform")(x, scale=float(scale))


_TRANSLATIONS: dict[Any, Any] = {
    torch.ops.fixclf.head.default: _head,
    torch.ops.fixclf.head_topk.default: _topk,
    torch.ops.fixclf.head_argmax.default: _argmax,
    torch.ops.fixclf.head_log_prob.default: _log_prob,
    torch.ops.fixclf.hadamard_transform.default: _transform,
}


def _replace_logits(model: ModelProto, node: NodeProto, k: int | None) -> None:
    """Turns a head that gives logits into one that gives probabilities, or the top k."""
    graph, (logits,) = model.graph, node.output
    if node.op_type != "FixedHead" or attribute(node, "epilogue").i != Epilogue.LOGITS:
        raise ValueError(f"{where(node)} gives no logits, expected outputs='logits'")
    at = [i for i, output in enumerate(graph.output) if output.name == logits]
    used = [n.name for n in graph.node if logits in n.input]
    if not at or used:
        why = f"are used by {used[0]!r}" if at else "are no output of the model"
        raise ValueError(f"the logits of {where(node)} {why}, expected outputs='logits'")
    if k is None:
        attribute(node, "epilogue").i = Epilogue.SOFTMAX
        return
    classes = attribute(node, "num_classes").i
    if not 1 <= k <= min(classes, MAX_TOPK):
        raise ValueError(f"k is {k}, expected 1 to {min(classes, MAX_TOPK)} for {where(node)}")
    node.op_type = "FixedHeadTopK"
    values = {a.name: a.i for a in node.attribute} | {"k": k, "log_probabilities": 0}
    del node.attribute[:]
    node.attribute.extend(
        helper.make_attribute(name, values[name]) for name in ATTRIBUTES[node.op_type]
    )
    names = [f"{logits}_{part}" for part in ("values", "indices", "logsumexp")]
    node.output[:] = names
    lead = [d.dim_param or d.dim_value for d in graph.output[at[0]].type.tensor_type.shape.dim[:-1]]
    results = [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, dtype, shape in zip(
            names,
            (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT),
            ([*lead, k], [*lead, k], lead),
            strict=True,
        )
    ]
    outputs = [*graph.output]
    outputs[at[0] : at[0] + 1] = results
    del graph.output[:]
    graph.output.extend(outputs)
