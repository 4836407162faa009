"""`replace_dense_heads`: fixed heads that were exported as dense products, found and replaced.

The original implementation and Brevitas (see `codebooks.hoffer`) export a head as a dense product
with a constant ±1 matrix. Its matrix is compared with every known codebook. What surrounds it is
recognised by what it does, not by its nodes: with x̂ = x / ‖x‖ it must give α ⟨w_i, x̂⟩ / √N + b_i.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from .. import reference
from ..codebooks import Codebook
from ..codebooks.recognise import magnitude, recognise
from .body import append_bodies
from .metadata import record
from .model import constants, fits, known_types, load, seal, where
from .schema import Head

# What may lie between the product and the logits, with a constant as the other operand.
_AFFINE = ("Add", "Cast", "Div", "Identity", "Mul", "Neg", "Sub")
# How many nodes a normalisation may have.
_MAX_BEFORE = 16


@dataclass(frozen=True)
class Replaced:
    """One head that was replaced."""

    node: str  # the MatMul or Gemm
    codebook: str  # its kind; "sylvester" for rows of Sylvester's matrix that no kind has
    in_features: int
    num_classes: int
    alpha: float
    has_bias: bool


def replace_dense_heads(model_path: str | Path, out: str | Path) -> list[Replaced]:
    """Writes to `out` the model with its dense fixed heads replaced by FixedHead, both ways to run
    it included.

    A head is a MatMul or Gemm with a constant matrix of entries ±m, equal to a known codebook up to
    its sign, on features that the model divides by their norm. A head that adds eps to the norm
    becomes one that takes the larger of the norm and 10⁻¹².

    Returns what was replaced. Raises ValueError, saying why, when no head can be.
    """
    path = Path(model_path)
    model = load(path)
    graph = _Graph(model, path.parent)
    replaced, refused = [], []
    for node in [n for n in model.graph.node if n.op_type in ("Gemm", "MatMul")]:
        matrix = graph.weight(node)
        if matrix is None:
            continue
        if magnitude(matrix) is None:
            continue
        known = recognise(matrix)
        if known is None:
            refused.append(f"the ±1 matrix of {where(node)} is no known codebook")
            continue
        book, _ = known
        try:
            replaced.append(_replace(graph, node, book))
        except ValueError as error:
            refused.append(str(error))
            continue
        record(model, [book])
    if not replaced:
        why = "; ".join(refused) or "no MatMul or Gemm has a constant ±1 matrix"
        raise ValueError(f"{path} has no head to replace: {why}")
    _clean(model)
    append_bodies(model, path.parent)
    onnx.save(model, str(out))
    return replaced


class _Graph:
    """A model's main graph by names."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self.model = model
        self.types = known_types(model, {i for n in model.graph.node for i in n.input})
        self.initialiser = constants(model, folder)
        self.producer = {o: n for n in model.graph.node for o in n.output}
        self.outputs = {o.name for o in model.graph.output}

    def constant(self, name: str) -> NDArray[Any] | None:
        """Value of a name that depends on initialisers only."""
        value = self.initialiser(name)
        if value is not None or name not in self.producer:
            return value
        node = self.producer[name]
        inputs = {i: self.constant(i) for i in node.input if i}
        if not inputs or any(v is None for v in inputs.values()):
            return None
        (result,) = ReferenceEvaluator(node).run([name], inputs)
        return np.asarray(result)

    def weight(self, node: NodeProto) -> NDArray[Any] | None:
        """The constant matrix of a product, [C, N]."""
        value = self.constant(node.input[1])
        if value is None or value.ndim != 2:
            return None
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return value if transposed else value.T

    def users(self, name: str) -> list[NodeProto]:
        return [n for n in self.model.graph.node if name in n.input]

    def after(self, node: NodeProto) -> list[str]:
        """Where the logits may be: the product, and what an affine map alone makes of it."""
        names = [node.output[0]]
        while names[-1] not in self.outputs:
            users = self.users(names[-1])
            if len(users) != 1 or users[0].op_type not in _AFFINE:
                break
            others = [i for i in users[0].input if i != names[-1]]
            if any(self.constant(i) is None for i in others):
                break
            names.append(users[0].output[0])
        return names

    def before(self, node: NodeProto) -> Iterator[str]:
        """Where the features may be: what the product depends on, nearest first."""
        queue = [node.input[0]]
        for name in queue:
            yield name
            for i in self.producer[name].input if name in self.producer else ():
                if i and i not in queue and self.constant(i) is None:
                    queue.append(i)
            if len(queue) > _MAX_BEFORE:
                return

    def between(self, x: str, z: str) -> ReferenceEvaluator | None:
        """The part of the model that makes z of x, None where z depends on anything else."""
        needed, queue = [], [z]
        for name in queue:
            if name == x or not name or self.initialiser(name) is not None:
                continue
            if name not in self.producer:
                return None
            if self.producer[name] not in needed:
                needed.append(self.producer[name])
                queue += self.producer[name].input
        nodes = [n for n in self.model.graph.node if n in needed]
        names = {i for n in nodes for i in n.input}
        initialisers = [
            numpy_helper.from_array(value, name)
            for name in sorted(names)
            if name and (value := self.initialiser(name)) is not None
        ]
        graph = helper.make_graph(
            nodes,
            "head",
            [helper.make_tensor_value_info(x, self.types[x][0], None)],
            [helper.make_tensor_value_info(z, self.types[x][0], None)],
            initialisers,
        )
        return ReferenceEvaluator(helper.make_model(graph, opset_imports=self.model.opset_import))


def _replace(graph: _Graph, node: NodeProto, book: Codebook) -> Replaced:
    """Puts FixedHead in the place of everything from the features to the logits."""
    for z in reversed(graph.after(node)):
        for x in graph.before(node):
            found = _fit(graph, x, z, book)
            if found is not None:
                _insert(graph, node, book, x, z, *found)
                return Replaced(
                    node.name,
                    book.kind,
                    book.in_features,
                    book.num_classes,
                    found[0],
                    found[1] is not None,
                )
    raise ValueError(
        f"{where(node)} multiplies by the codebook {book.kind!r}, but what it belongs to is not "
        "α ⟨w, x⟩ / (‖x‖ √N) + b: the features must be divided by the norm of their own row"
    )


def _fit(
    graph: _Graph, x: str, z: str, book: Codebook
) -> tuple[float, NDArray[np.float32] | None] | None:
    """α and b with which the head does what the model does between x and z, if there are such.

    x = ±w_0 gives ±α + b_0 for class 0. Then rows of different sizes are compared: a norm of the
    whole batch does not pass, unless the batch is always 1.
    """
    if x not in graph.types or not graph.types[x][1]:
        return None
    part, (element, shape) = graph.between(x, z), graph.types[x]
    if part is None or not fits(shape[-1], book.in_features):
        return None
    dtype = helper.tensor_dtype_to_np_dtype(element)
    lead = [size if isinstance(size, int) else 3 for size in shape[:-1]]

    def run(rows: NDArray[Any]) -> NDArray[np.float64]:
        features = np.broadcast_to(rows, (*lead, book.in_features)).astype(dtype)
        with np.errstate(all="ignore"):
            (result,) = part.run([z], {x: features})
        return np.asarray(result, np.float64)

    matrix, rng = book.matrix(), np.random.default_rng(0)
    try:
        plus, minus = run(matrix[0]), run(-matrix[0])
        features = rng.standard_normal((*lead, book.in_features))
        features *= 10 ** rng.uniform(-1, 2, (*lead, 1))
        got = run(features)
    except Exception:  # the evaluator's errors have no common class; x can't be the features
        return None
    if got.shape != (*lead, book.num_classes):
        return None
    alpha = float((plus - minus)[..., 0].flat[0]) / 2
    bias = ((plus + minus) / 2).reshape(-1, book.num_classes)[0].astype(np.float32)
    want = reference.logits(features.astype(dtype), matrix, alpha, bias)
    tolerance = 1e-5 if element == TensorProto.FLOAT else 1e-2
    if not np.abs(got - want).max() <= tolerance * (abs(alpha) + np.abs(bias).max()):
        return None
    return alpha, bias if np.abs(bias).max() > tolerance * abs(alpha) else None


def _insert(
    graph: _Graph,
    node: NodeProto,
    book: Codebook,
    x: str,
    z: str,
    alpha: float,
    bias: NDArray[np.float32] | None,
) -> None:
    head = Head(book, bias is not None)
    arrays: dict[str, Any] = {"alpha": np.float32(alpha), "bias": bias}
    arrays |= {"signs": head.data.signs, "base": head.data.base}
    values = {f"{z}_{name}": np.asarray(a) for name, a in arrays.items() if a is not None}
    for name, value in values.items():
        graph.model.graph.initializer.append(numpy_helper.from_array(value, name))
    names = (f"{z}_{name}" if a is not None else "" for name, a in arrays.items())
    new = head.node(x, *names, outputs=[z], name=node.name or f"{z}_head")
    seal([new], values.get)
    graph.producer[z].CopyFrom(new)


def _clean(model: ModelProto) -> None:
    """Removes nodes and initialisers that nothing needs any more."""
    graph = model.graph
    kept: list[NodeProto] = []
    needed = {o.name for o in graph.output}
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.insert(0, node)
            needed.update(node.input)
            for attribute in node.attribute:  # what a branch or a loop takes from outside
                for inner in attribute.g.node:
                    needed.update(inner.input)
    del graph.node[:]
    graph.node.extend(kept)
    made = {name for node in kept for name in node.output}
    for field, wanted in ((graph.initializer, needed), (graph.value_info, made)):
        left = [item for item in field if item.name in wanted]
        del field[:]
        field.extend(left)
