"""`verify`: is a file sound, and do the library, the portable body and float64 agree?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from .. import reference
from ..epilogue import Epilogue
from .metadata import recorded_codebooks
from .model import (
    Constants,
    check,
    constants,
    head_nodes,
    key,
    known_types,
    load,
    where,
    without_function,
)
from .runtime import session
from .schema import Head

F64 = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Result:
    """One way to run one head, or the whole model."""

    what: str  # the head's node, or "model"
    way: str  # "library" or "portable"
    error: float  # largest, against float64; of "model": against the other way
    bound: float  # what `error` may be; of "model": infinity
    latency: float  # seconds for one row on one thread, median

    @property
    def ok(self) -> bool:
        """Whether the error is within its bound."""
        return self.error <= self.bound


@dataclass(frozen=True)
class Verification:
    """What `verify` found: each head's codebook, and each run."""

    codebooks: dict[str, str]
    results: tuple[Result, ...]

    @property
    def ok(self) -> bool:
        """Whether every result is."""
        return all(result.ok for result in self.results)


def verify(
    path: str | Path, *, library: bool = True, batch: int = 17, calls: int = 200, seed: int = 0
) -> Verification:
    """Checks an ONNX file, then runs it on random inputs.

    The checks are onnx's checker, its shape inference, and those of format, bits and recorded
    codebooks. Then each head's node alone runs on normal features, by the library and by the file's
    portable body, each compared with float64 on the codebook that the metadata records (on the
    file's bits where it records none). Bounds are the package's, for scale s = |α| + max|b|: logits
    4 · 2⁻²³ s, log-probabilities 4 · 2⁻²³ (2s + log C), probabilities 10⁻⁶ max(1, s/16); 16-bit
    results one rounding more. At last the whole model runs both ways, on normal numbers for floats
    and zeros for integers.

    Args:
        path: of the file.
        library: False: leave the library out.
        batch: rows of the heads' inputs.
        calls: timed, of one row each.
        seed: of the inputs.

    Raises:
        ValueError: what is wrong with the file, in one sentence.
        ImportError: onnxruntime or the library is missing.
    """
    path = Path(path)
    model = load(path)
    heads = check(model, path.parent)
    if not heads:
        raise ValueError(f"{path} has no head of domain ai.fixclf")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"onnx refuses {path}: {str(error).splitlines()[0]}") from error
    ways = ["library"] * library + ["portable"] * (not without_function(model))
    if not ways:
        raise ValueError(f"{path} has no portable body, expected one with library=False")
    recorded = {key(book): book for book in recorded_codebooks(model)}
    for unused in recorded.keys() - {key(head.codebook) for head in heads}:
        raise ValueError(
            f"the metadata records {recorded[unused].kind!r}, but no head has its bits"
        )
    rng = np.random.default_rng(seed)
    codebooks, results = {}, []
    for node, head in zip(head_nodes(model), heads, strict=True):
        name = node.name or node.output[0]
        book = recorded.get(key(head.codebook))
        codebooks[name] = "not recorded" if book is None else f"{book.kind}, version {book.version}"
        values = _parameters(node, head, constants(model, path.parent))
        alone, dtype, shape = _alone(model, node, values)
        x = _features(dtype, [batch, *[1] * (len(shape) - 2)][: len(shape) - 1], head, rng)
        alpha, bias = float(values["alpha"].item()), values.get("bias")
        want = reference.codebook_logits(x, book or head.codebook, alpha, bias)
        scale = abs(alpha) + (0.0 if bias is None else _largest(bias))
        with TemporaryDirectory() as folder:
            file = Path(folder) / "head.onnx"
            onnx.save(alone, file)
            for way in ways:
                outputs, latency = _run(file, way, {"x": x}, calls)
                largest, bound = _compare(head, outputs, want, scale, dtype)
                results.append(Result(name, way, largest, bound, latency))
    feeds = {i.name: _random(i, rng) for i in _inputs(model)}
    runs = [_run(path, way, feeds, calls) for way in ways]
    difference = max(_difference(a, b) for a, b in zip(runs[0][0], runs[-1][0], strict=True))
    for way, (_, latency) in zip(ways, runs, strict=True):
        results.append(Result("model", way, difference, math.inf, latency))
    return Verification(codebooks, tuple(results))


def _parameters(node: NodeProto, head: Head, value: Constants) -> Arrays:
    """alpha, bias, signs and base as far as the node has them; 1 and 0 for α and b that the model
    computes."""
    names = zip(("alpha", "bias", "signs", "base"), node.input[1:], strict=False)
    found = {name: value(given) for name, given in names if given}
    stand_ins = {"alpha": np.float32(1), "bias": np.zeros(head.codebook.num_classes, np.float32)}
    return {n: np.asarray(stand_ins[n] if v is None else v) for n, v in found.items()}


def _alone(
    model: ModelProto, node: NodeProto, values: Arrays
) -> tuple[ModelProto, np.dtype[Any], list[int | str]]:
    """The node as a model, and type and shape of its X. The model has float32 at its edge, because
    ONNX Runtime's Python API has no bfloat16 arrays."""
    element, shape = known_types(model, [node.input[0]]).get(node.input[0], (0, []))
    if not shape:
        raise ValueError(f"{where(node)}: the type or the rank of X is unknown")
    inner = NodeProto()
    inner.CopyFrom(node)
    present = [n if n in values else "" for n in ("alpha", "bias", "signs", "base")]
    inner.input[:] = ["X", *present[: len(node.input) - 1]]
    nodes = [helper.make_node("Cast", ["x"], ["X"], to=element), inner]
    if node.op_type == "FixedHead":
        inner.output[:] = ["Y"]
        nodes.append(helper.make_node("Cast", ["Y"], ["y"], to=TensorProto.FLOAT))
        outputs = {"y": TensorProto.FLOAT}
    else:
        kinds = (TensorProto.FLOAT, TensorProto.INT64, TensorProto.FLOAT)
        outputs = dict(zip(inner.output, kinds, strict=True))
    free = [f"d{i}" for i in range(len(shape) - 1)]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*free, shape[-1]])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    alone = helper.make_model(
        graph,
        opset_imports=model.opset_import,
        functions=model.functions,
        ir_version=model.ir_version,
    )
    return alone, helper.tensor_dtype_to_np_dtype(element), shape


def _features(
    dtype: np.dtype[Any], lead: list[int], head: Head, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Normal features that the dtype holds exactly."""
    x = rng.standard_normal((*lead, head.codebook.in_features))
    if dtype == np.int8:
        x = np.clip(40 * x, -127, 127)
    return x.astype(dtype).astype(np.float32)


def _compare(
    head: Head, outputs: list[NDArray[Any]], z: F64, scale: float, dtype: np.dtype[Any]
) -> tuple[float, float]:
    """The largest error of a head's outputs for the logits z, and its bound (see `verify`)."""
    log_bound = 4 * 2.0**-23 * (2 * scale + math.log(head.codebook.num_classes))
    if head.k:
        values, indices, logsumexp = outputs
        total = reference.logsumexp(z)
        best = np.sort(z, axis=-1)[..., : -head.k - 1 : -1]
        chosen = np.take_along_axis(z, indices, -1)
        shift = total if head.log_probabilities else 0.0
        wrong = [values - (best - shift), values - (chosen - shift), logsumexp - total[..., 0]]
        return max(_largest(w) for w in wrong), log_bound
    (y,) = outputs
    want = reference.apply_epilogue(z, head.epilogue)
    bound = {
        Epilogue.LOGITS: 4 * 2.0**-23 * scale,
        Epilogue.LOG_SOFTMAX: log_bound,
    }.get(head.epilogue, 1e-6 * max(1.0, scale / 16))
    if dtype.itemsize == 2:
        bound += _largest(want) * (2.0**-11 if dtype == np.float16 else 2.0**-8)
    return _largest(y - want), bound


def _run(path: Path, way: str, feeds: Arrays, calls: int) -> tuple[list[NDArray[Any]], float]:
    """Outputs for the feeds, and the median time for their first row."""
    runtime = session(path, threads=1, library=way == "library")
    try:
        outputs = runtime.run(None, feeds)
        row = {name: x[:1] if x.ndim > 1 else x for name, x in feeds.items()}
        times = []
        for _ in range(calls):
            start = perf_counter()
            runtime.run(None, row)
            times.append(perf_counter() - start)
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ValueError(f"{path} fails on random inputs: {str(error).splitlines()[0]}") from error
    return outputs, median(times)


def _inputs(model: ModelProto) -> list[ValueInfoProto]:
    initialisers = {t.name for t in model.graph.initializer}
    return [i for i in model.graph.input if i.name not in initialisers]


def _random(value: ValueInfoProto, rng: np.random.Generator) -> NDArray[Any]:
    """An input: 1 for each unknown dimension."""
    tensor = value.type.tensor_type
    shape = [d.dim_value or 1 for d in tensor.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if np.issubdtype(dtype, np.floating):
        return np.asarray(rng.standard_normal(shape), dtype)
    return np.zeros(shape, dtype)


def _difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    return _largest(a.astype(np.float64) - b.astype(np.float64))


def _largest(values: NDArray[Any]) -> float:
    return float(np.abs(values).max(initial=0))
