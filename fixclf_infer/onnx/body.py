"""The operators as functions of standard ONNX operators, for hosts without our library.

A file that holds both runs everywhere: with the library registered ONNX Runtime takes its kernel,
without it ONNX Runtime inlines the function. H_n = P_b ⊗ H_f ⊗ H_g ⊗ … is applied factor by factor,
each at most 64 × 64 (or b × b) and stored as bits, so the body stays small and no [C, N] appears.

A function is made for one geometry and rank of X, and for floats or int8. A model can hold one for
each domain and name, and kernels are found by these two as well: every further shape in a model
goes to one of the further `DOMAINS`, where the library has the same operators. (Overloads of
functions would need an ONNX Runtime after 1.23, and `onnx.reference` takes one for the other.)

Numerics: float32 inside. ‖x‖ neither over- nor underflows; a zero row gives the bias; a row with
NaN or Inf gives NaN. Agrees with the kernel within its tolerance, not bitwise. An empty batch is
for the kernel: ONNX Runtime's own MatMul and Pad refuse it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper

from ..codebooks.kernel import Bits, pack, parity
from ..epilogue import Epilogue
from .model import attribute, constants, known_types, read_head, where
from .schema import DOMAINS, HEADS, OPSET, SCHEMAS, Head

# Largest log2 of a Kronecker factor of H: at 6 two factors reach 4096. Smaller ones need more
# nodes, whose overhead is most of the time at batch 1.
_LOG2_FACTOR = 6

# The oldest version of ONNX's file format that has functions.
_IR_FUNCTIONS = 8


class _Body:
    """The nodes of a function, in order; each has one output."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def __call__(self, op_type: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Appends a node; returns the name of its output."""
        output = output or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    # Constants are attributes, not tensors, which tools move to other files (with a threshold of 0
    # all of them): shape inference reads none there.

    def number(self, value: float) -> str:
        return self("Constant", value_float=float(value))

    def integers(self, *values: int) -> str:
        return self("Constant", value_ints=values)

    def octets(self, values: Bits) -> str:
        """uint8 of that shape."""
        flat = self.cast(self.integers(*values.ravel().tolist()), TensorProto.UINT8)
        return self.reshape(flat, *values.shape) if values.ndim != 1 else flat

    def reshape(self, x: str, *shape: int) -> str:
        """A 0 keeps the dimension of x there."""
        return self("Reshape", x, self.integers(*shape))

    def slice(self, x: str, begin: int, end: int, axis: int) -> str:
        return self("Slice", x, *(self.integers(i) for i in (begin, end, axis)))

    def cast(self, x: str, to: int, output: str = "") -> str:
        return self("Cast", x, output=output, to=to)

    def signs(self, bits: str, rows: int, columns: int) -> str:
        """±1 [rows, columns] from packed bits [rows, ⌈columns/8⌉]. Constant: folded at load."""
        octets = self("Unsqueeze", bits, self.integers(-1))
        places = self.octets(np.arange(8, dtype=np.uint8))
        shifted = self("BitShift", octets, places, direction="RIGHT")
        one = self.octets(np.ones(1, np.uint8))
        bit = self.cast(self("BitwiseAnd", shifted, one), TensorProto.FLOAT)
        flips = self("Sub", self.number(1), self("Mul", self.number(2), bit))
        stored = -(-columns // 8) * 8
        flips = self.reshape(flips, rows, stored)
        return flips if stored == columns else self.slice(flips, 0, columns, 1)

    def sylvester(self, log2: int) -> str:
        """H_{2^log2}."""
        index = np.arange(1 << log2)
        bits = pack(parity(index[:, None] & index[None, :]))
        return self.signs(self.octets(bits), 1 << log2, 1 << log2)

    def transform(self, x: str, lead: list[int], log2: int, rows: int) -> str:
        """Rows 0 … `rows` − 1 of H_{2^log2} x for x [*lead, 2^log2], `rows` a power of two.

        Where fewer rows than 2^log2 are wanted, x is folded first: H = H_{…} ⊗ H_rows, and the
        first row of the left factor is all ones.
        """
        if rows < 1 << log2:
            x = self.reshape(x, *lead, (1 << log2) // rows, rows)
            x = self("ReduceSum", x, self.integers(-2), keepdims=0)
        log2 = rows.bit_length() - 1
        count = -(-log2 // _LOG2_FACTOR)
        factors = [log2 // count + (i < log2 % count) for i in range(count)] if count else []
        for i, factor in enumerate(factors[:-1]):
            done = [1 << f for f in factors[: i + 1]]
            x = self.reshape(x, *lead, *done, rows // math.prod(done))
            x = self("MatMul", self.sylvester(factor), x)
        if factors:
            x = self("MatMul", x, self.sylvester(factors[-1]))
        return self.reshape(x, *lead, rows) if count > 1 else x

    def projection(self, x: str, lead: list[int], head: Head) -> str:
        """W x [*lead, C], from x [*lead, N]: any size, no scale."""
        data, classes = head.data, head.codebook.num_classes
        n, end = data.order, data.row_offset + classes
        before = data.column_offset
        after = n - head.codebook.in_features - before
        if before or after:
            kept = [0] * len(lead)
            x = self("Pad", x, self.integers(*kept, before, *kept, after))
        outer = lead
        if data.signs is not None:
            x = self("Unsqueeze", x, self.integers(-2))
            x = self("Mul", x, self.signs("signs", data.blocks, n))
            outer = [*lead, data.blocks]

        # One block, [H; −H] or H: no more rows of H than the classes need.
        rows = min(n, end) if data.blocks == 1 else n
        size = 1 << data.log2
        if data.base is None:
            rows = 1 << (rows - 1).bit_length()
            x = self.transform(x, outer, data.log2, rows)
        else:
            used = -(-rows // size)
            base = self.signs("base", data.base_order, data.base_order)
            if used < data.base_order:
                base = self.slice(base, 0, used, 0)
            x = self("MatMul", base, self.reshape(x, *outer, data.base_order, size))
            inner = min(size, 1 << (rows - 1).bit_length())
            x = self.transform(x, [*outer, used], data.log2, inner)
            rows = used * inner
            x = self.reshape(x, *outer, rows)
        if data.negate and (data.blocks > 1 or end > n):
            x = self("Concat", x, self("Neg", x), axis=-1)
            rows *= 2

        if data.signs is not None:
            rows *= data.blocks
            x = self.reshape(x, *lead, rows)
        if (data.row_offset, classes) != (0, rows):
            x = self.slice(x, data.row_offset, end, -1)
        if data.center:
            x = self("Sub", x, self("ReduceMean", x, self.integers(-1)))
        return x

    def logits(self, head: Head, rank: int) -> str:
        """α ⟨w_i, x̂⟩ / √N + b_i in float32.

        With u = x / max(max|x|, eps), x̂ = u / max(‖u‖, 1): u has no element above 1, and ‖u‖ < 1
        only where eps replaces ‖x‖. The division by max(‖u‖, 1) goes into the scale of W u.
        """
        x, alpha = (self.cast(name, TensorProto.FLOAT) for name in ("X", "alpha"))
        largest = self("ReduceMax", self("Abs", x), self.integers(-1))
        u = self("Div", x, self("Max", largest, self.number(1e-12)))
        length = self("Max", self("ReduceL2", u, self.integers(-1)), self.number(1))
        classes = head.codebook.num_classes
        factor = 1 / math.sqrt(head.codebook.in_features)
        if head.data.center:
            factor *= math.sqrt(classes / (classes - 1))
        scale = self("Div", self("Mul", alpha, self.number(factor)), length)
        z = self("Mul", self.projection(u, [0] * (rank - 1), head), scale)
        return self("Add", z, self.cast("bias", TensorProto.FLOAT)) if head.has_bias else z


_EPILOGUES = {
    Epilogue.LOGITS: "Identity",
    Epilogue.SOFTMAX: "Softmax",
    Epilogue.LOG_SOFTMAX: "LogSoftmax",
    Epilogue.SIGMOID: "Sigmoid",
}


def head_function(
    head: Head, rank: int, integers: bool, opset: int, attributes: Iterable[str]
) -> FunctionProto:
    """Function for a head on X of that rank, in that version of the standard operators. Its inputs
    are those of `Head.node`.

    integers: X is int8, and Y float32; otherwise Y is of X's type, whatever it is.
    attributes: the names of the node's.
    """
    body = _Body()
    z = body.logits(head, rank)
    if head.k:
        # Not a constant for shape inference, which in ONNX Runtime up to 1.23 misreads it.
        k = body.cast(body.integers(head.k), TensorProto.INT64)
        values = "raw" if head.log_probabilities else "values"
        body.nodes.append(helper.make_node("TopK", [z, k], [values, "indices"]))
        body("ReduceLogSumExp", z, body.integers(-1), output="logsumexp", keepdims=0)
        if head.log_probabilities:
            total = body("Unsqueeze", "logsumexp", body.integers(-1))
            body("Sub", "raw", total, output="values")
    else:
        axis = {"axis": -1} if "Softmax" in _EPILOGUES[head.epilogue] else {}
        y = body(_EPILOGUES[head.epilogue], z, output="Y" if integers else "", **axis)
        if not integers:
            body("CastLike", y, "X", output="Y")
    present = (True, True, head.has_bias, head.data.signs is not None, head.data.base is not None)
    return _function(head.op_type, _arity(present), body, opset, attributes)


def transform_function(scale: float, columns: int, rank: int, opset: int) -> FunctionProto:
    """Function of HadamardTransform for X [..., columns]."""
    body = _Body()
    x = body.cast("X", TensorProto.FLOAT)
    y = body.transform(x, [0] * (rank - 1), columns.bit_length() - 1, columns)
    body("CastLike", body("Mul", y, body.number(scale)), "X", output="Y")
    return _function("HadamardTransform", 1, body, opset, ["scale"])


def _arity(present: tuple[bool, ...]) -> int:
    return max(i for i, there in enumerate(present) if there) + 1


def _function(
    op_type: str, arity: int, body: _Body, opset: int, attributes: Iterable[str]
) -> FunctionProto:
    schema = SCHEMAS[op_type]
    return helper.make_function(
        DOMAINS[0],
        op_type,
        [i.name for i in schema.inputs][:arity],
        [o.name for o in schema.outputs],
        body.nodes,
        [helper.make_opsetid("", opset)],
        attributes=list(attributes),
    )


def append_bodies(model: ModelProto, folder: str | Path = "") -> None:
    """Gives every node of ours in the model's main graph its function.

    Raises ValueError for a head that `read_head` refuses, for an X of unknown type or rank, and for
    more different shapes of one operator than there are `DOMAINS`.
    """
    nodes = [node for node in model.graph.node if node.domain in DOMAINS]
    _import_domains(model, nodes)  # shape inference wants them
    known = known_types(model, {node.input[0] for node in nodes})
    value = constants(model, folder)
    opset = next(o.version for o in model.opset_import if o.domain == "")
    functions: dict[bytes, FunctionProto] = {}
    for node in nodes:
        element, shape = known.get(node.input[0], (0, []))
        if not shape:
            raise ValueError(f"{where(node)}: the type or the rank of X is unknown")
        if node.op_type in HEADS:
            head, names = read_head(node, value), [a.name for a in node.attribute]
            integers = element == TensorProto.INT8
            function = head_function(head, len(shape), integers, opset, names)
        elif isinstance(columns := shape[-1], int):
            scale = attribute(node, "scale").f
            function = transform_function(scale, columns, len(shape), opset)
        else:
            raise ValueError(f"{where(node)}: the last dimension of X is unknown")
        content = function.SerializeToString(deterministic=True)
        if content not in functions:
            others = sum(f.name == function.name for f in functions.values())
            if others == len(DOMAINS):
                raise ValueError(
                    f"{where(node)}: the model has more than {len(DOMAINS)} different shapes of "
                    "this operator, expected at most that many with portable=True"
                )
            function.domain = DOMAINS[others]
            functions[content] = function
        node.domain = functions[content].domain
    kept = [f for f in model.functions if f.domain not in DOMAINS]
    del model.functions[:]
    model.functions.extend([*kept, *functions.values()])
    _import_domains(model, nodes)
    model.ir_version = max(
        _IR_FUNCTIONS, helper.find_min_ir_version_for(model.opset_import, ignore_unknown=True)
    )


def _import_domains(model: ModelProto, nodes: list[NodeProto]) -> None:
    imports = {o.domain: o.version for o in model.opset_import if o.domain not in DOMAINS}
    imports |= {node.domain: OPSET for node in nodes}
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in imports.items())
