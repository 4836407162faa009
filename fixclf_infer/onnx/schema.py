"""The operators of domain `ai.fixclf`: schemas, attributes, and a node from a codebook.

    FixedHead(X, alpha, bias?, signs?, base?) → Y
    FixedHeadTopK(X, alpha, bias?, signs?, base?) → values, indices, logsumexp
    HadamardTransform(X) → Y

X is [..., N] of float32, float16, bfloat16 or int8; z_i = α ⟨w_i, x̂⟩ / √N + b_i. Y is [..., C] of
X's type (float32 for int8). alpha and bias are of any float type. A codebook travels as the kernels
read it: integers in attributes, the packed bits of `KernelData.signs` and `.base` as inputs;
`fileformat` says what the attributes and the two checksums are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto, helper
from onnx.defs import OpSchema

from ..codebooks import Codebook, KernelData
from ..epilogue import Epilogue
from ..fileformat import FLOATS, FORMAT_VERSION, OWN_FIELDS, field_names, fields_of

DOMAIN = "ai.fixclf"
# The library has every operator in each of these; `body` says why.
DOMAINS = (DOMAIN, *(f"{DOMAIN}.{i}" for i in range(2, 9)))
OPSET = 1

HEADS = tuple(OWN_FIELDS)

# Of the newest format.
ATTRIBUTES = {
    **{name: field_names(FORMAT_VERSION, own) for name, own in OWN_FIELDS.items()},
    "HadamardTransform": ("scale",),
}


_ANY_FLOAT = [{"float32": "float", "float64": "double"}.get(name, name) for name in FLOATS]


def _schema(
    name: str, inputs: Sequence[str], outputs: Sequence[tuple[str, str]], types: Sequence[str]
) -> OpSchema:
    parameter, option = OpSchema.FormalParameter, OpSchema.FormalParameterOption
    kind = {"X": "T", "alpha": "A", "bias": "B"}
    kind |= {"signs": "tensor(uint8)", "base": "tensor(uint8)"}
    required = ("X", "alpha")
    number = OpSchema.AttrType.FLOAT if name == "HadamardTransform" else OpSchema.AttrType.INT
    return OpSchema(
        name,
        DOMAIN,
        OPSET,
        inputs=[
            parameter(i, kind[i], param_option=option.Single if i in required else option.Optional)
            for i in inputs
        ],
        outputs=[parameter(o, t) for o, t in outputs],
        type_constraints=[
            (name, [f"tensor({t})" for t in allowed], "")
            for name, allowed in (("T", types), ("A", _ANY_FLOAT), ("B", _ANY_FLOAT))
            if name in (kind[i] for i in inputs)
        ],
        attributes=[OpSchema.Attribute(a, number, "") for a in ATTRIBUTES[name]],
    )


_INPUTS = ("X", "alpha", "bias", "signs", "base")
_FLOATS = ("float", "float16", "bfloat16")
_TOP_K = (("values", "tensor(float)"), ("indices", "tensor(int64)"), ("logsumexp", "tensor(float)"))
SCHEMAS = {
    "FixedHead": _schema("FixedHead", _INPUTS, [("Y", "T")], (*_FLOATS, "int8")),
    "FixedHeadTopK": _schema("FixedHeadTopK", _INPUTS, _TOP_K, (*_FLOATS, "int8")),
    "HadamardTransform": _schema("HadamardTransform", ["X"], [("Y", "T")], _FLOATS),
}


@dataclass(frozen=True)
class Head:
    """What one node computes. k = 0 stands for FixedHead, k ≥ 1 for FixedHeadTopK."""

    codebook: Codebook
    has_bias: bool
    epilogue: Epilogue = Epilogue.LOGITS
    k: int = 0
    log_probabilities: bool = False

    @property
    def data(self) -> KernelData:
        """What kernels see of the codebook."""
        assert self.codebook.kernel is not None
        return self.codebook.kernel

    @property
    def op_type(self) -> str:
        """The operator: with k the top k classes, else a value a class."""
        return "FixedHeadTopK" if self.k else "FixedHead"

    def attributes(self) -> dict[str, int]:
        """Of the node, its checksums still 0."""
        own = {"epilogue": int(self.epilogue)}
        if self.k:
            own = {"k": self.k, "log_probabilities": int(self.log_probabilities)}
        return fields_of(self.codebook, self.has_bias, own)

    def node(
        self,
        x: str,
        alpha: str,
        bias: str = "",
        signs: str = "",
        base: str = "",
        *,
        outputs: Sequence[str],
        name: str = "",
    ) -> NodeProto:
        """The node on values of these names; "" for inputs that this head does not have. Its
        checksums come by `model.seal`."""
        inputs = [x, alpha, bias, signs, base]
        while not inputs[-1]:
            inputs.pop()
        node = helper.make_node(self.op_type, inputs, outputs, name, domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(*a) for a in self.attributes().items())
        return node
