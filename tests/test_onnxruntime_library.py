"""The ONNX Runtime operator library, in ONNX Runtime, against the float64 oracle."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tolerances
from cases import CASES, EPILOGUES, NUMPY_DTYPES, Case, check_head, expand, scale_of, synthetic
from script import TESTS, run

from fixclf_infer import codebook, reference
from fixclf_infer.epilogue import Epilogue

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

import ort_models  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnxruntime.capi.onnxruntime_pybind11_state import (  # noqa: E402
    Fail,
    InvalidArgument,
    InvalidGraph,
    RuntimeException,
)

LIBRARY = TESTS.parent / "fixclf_infer" / "libfixclf_onnxruntime.so"

# What ONNX Runtime raises when a kernel can't be made.
CREATION_ERRORS = (Fail, RuntimeException, InvalidArgument, InvalidGraph)

BOOK = synthetic(30, 100, log2=5, blocks=2, negate=True)
BIAS = np.linspace(-1, 1, BOOK.num_classes, dtype=np.float32)
SIGNS = ort_models.head_inputs(BOOK, 3.0, BIAS)["signs"]


def session(model: bytes, threads: int = 1) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def evaluate(model: bytes, threads: int = 1, **feeds: Any) -> list[np.ndarray]:
    results: list[np.ndarray] = session(model, threads).run(None, feeds)
    return results


def features(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def check_logits(
    got: np.ndarray, x: np.ndarray, alpha: float = 3.0, bias: np.ndarray | None = BIAS
) -> None:
    check_head(got, x, expand(BOOK), alpha, bias, Epilogue.LOGITS)


# Results.

HEADS = [case for case in CASES if case.dtype != "float64" and not case.out]


@pytest.mark.parametrize("case", HEADS, ids=str)
def test_head(case: Case) -> None:
    x = case.features()
    model = ort_models.head(
        case.codebook, case.alpha, case.bias_values(), case.epilogue, dtype=case.dtype
    )
    (y,) = evaluate(model, X=x.astype(np.float32))
    case.check(y.astype(NUMPY_DTYPES[case.dtype]))  # exact: y was cast from that dtype


@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_int8_features(epilogue: Epilogue) -> None:
    x = np.random.default_rng(0).integers(-128, 128, (7, 30)).astype(np.float32)
    (y,) = evaluate(ort_models.head(BOOK, 3.0, BIAS, epilogue, dtype="int8"), X=x)
    check_head(y, x, expand(BOOK), 3.0, BIAS, epilogue)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("log_probabilities", [0, 1])
def test_top_k(dtype: str, log_probabilities: int) -> None:
    x = np.random.default_rng(0).integers(-8, 9, (2, 3, 30)).astype(np.float32)
    k = 7
    model = ort_models.top_k(BOOK, k, 3.0, BIAS, log_probabilities=log_probabilities, dtype=dtype)
    values, indices, logsumexp = evaluate(model, X=x)
    z = reference.logits(x, expand(BOOK), 3.0, BIAS)
    want = reference.logsumexp(z)
    scale = scale_of(expand(BOOK), 3.0, BIAS)
    bound = tolerances.log_probability(want, scale, "float32", "float32", z.shape[-1])
    tolerances.assert_within("top-k", logsumexp[..., None], want, bound)
    z = z - want if log_probabilities else z
    tolerances.assert_within("top-k", values, -np.sort(-z, axis=-1)[..., :k], bound)
    tolerances.assert_within("top-k", values, np.take_along_axis(z, indices, -1), bound)
    assert all(len(set(row)) == k for row in indices.reshape(-1, k))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("log2", [0, 3, 9])
def test_transform(dtype: str, log2: int) -> None:
    x = features(2, 3, 1 << log2).astype(NUMPY_DTYPES[dtype])
    (y,) = evaluate(ort_models.transform([2, "b", 1 << log2], 0.25, dtype), X=x.astype(np.float32))
    want = reference.hadamard_transform(x.astype(np.float64), 0.25)
    bound = tolerances.transform(want, log2, dtype)
    tolerances.assert_norm_within(f"transform {dtype}", y, want, bound)


def test_the_scale_of_a_transform_is_required() -> None:
    with pytest.raises(CREATION_ERRORS, match="the attribute scale is missing or no number"):
        session(ort_models.transform(["b", 4], None, "float32"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("run_time", [[], ["alpha", "bias"]])
def test_alpha_and_bias_of_any_float_type(dtype: str, run_time: list[str]) -> None:
    """As tools that convert a model to 16 bits leave them."""
    bias = BIAS.astype(NUMPY_DTYPES[dtype])
    bias[:3] = [6e-8, -1e-7, 60000 if dtype == "float16" else 1e30]  # subnormal in float16; large
    alpha = np.array([3.1], NUMPY_DTYPES[dtype])
    given = {"alpha": alpha, "bias": bias}
    model = ort_models.head(BOOK, 3.0, BIAS, replace=given, run_time=run_time)
    x = features(5, 30)
    if run_time and dtype == "bfloat16":  # ONNX Runtime's Python API has no such arrays
        pytest.skip("no bfloat16 feeds")
    (y,) = evaluate(model, X=x, **{name: given[name] for name in run_time})
    wide = bias.astype(np.float32)
    check_head(y, x, expand(BOOK), float(alpha[0]), wide, Epilogue.LOGITS)


@pytest.mark.parametrize("shape", [(30,), (5, 30), (2, 3, 30), (0, 30), (2, 0, 30)])
def test_ranks_and_empty_batches(shape: tuple[int, ...]) -> None:
    x = features(*shape)
    (y,) = evaluate(ort_models.head(BOOK, 3.0, BIAS, x_shape=[None] * len(shape)), X=x)
    check_logits(y, x)


def test_a_dynamic_batch_gives_the_same_rows_on_any_number_of_threads() -> None:
    model = ort_models.head(BOOK, 3.0, BIAS, Epilogue.SOFTMAX)
    one, four = session(model), session(model, threads=4)
    x = features(6000, 30)
    (want,) = one.run(None, {"X": x})
    for batch in (1, 3, 17, 6000):
        for runner in (one, four):
            (y,) = runner.run(None, {"X": x[:batch]})
            np.testing.assert_array_equal(y, want[:batch])


def test_several_threads_share_a_session() -> None:
    shared = session(ort_models.head(BOOK, 3.0, BIAS), threads=2)
    batches = [features(700 + i, 30, seed=i) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: shared.run(None, {"X": x})[0], batches))
    for x, y in zip(batches, results, strict=True):
        check_logits(y, x)


def test_two_heads_of_different_shape_and_dtype_in_one_model() -> None:
    first, second = codebook(30, 12), codebook(12, 24)
    nodes, initializers = [], []
    for book, source, target in ((first, "X", "hidden"), (second, "hidden16", "out16")):
        names = []
        inputs = ort_models.head_inputs(book, 3.0, None)
        attributes: dict[str, Any] = ort_models.attributes(book, bias=False, epilogue=0)
        ort_models.seal(attributes, inputs)
        for name, value in inputs.items():
            names.append(f"{name}_{target}" if value is not None else "")
            if value is not None:
                initializers.append(numpy_helper.from_array(value, names[-1]))
        nodes.append(
            helper.make_node(
                "FixedHead", [source, *names], [target], domain=ort_models.DOMAIN, **attributes
            )
        )
    nodes.insert(1, helper.make_node("Cast", ["hidden"], ["hidden16"], to=TensorProto.FLOAT16))
    nodes.append(helper.make_node("Cast", ["out16"], ["Y"], to=TensorProto.FLOAT))
    model = ort_models.model(
        nodes,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["b", 30])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("hidden", "Y")],
        initializers,
    )
    x = features(5, 30)
    hidden, y = evaluate(model, X=x)
    check_head(hidden, x, expand(first), 3.0, None, Epilogue.LOGITS)
    check_head(
        y.astype(np.float16), hidden.astype(np.float16), expand(second), 3.0, None, Epilogue.LOGITS
    )


@pytest.mark.parametrize("names", [("alpha",), ("bias",), ("signs",), ("alpha", "bias", "signs")])
def test_inputs_that_are_no_initializers(names: tuple[str, ...]) -> None:
    model = ort_models.head(BOOK, 3.0, BIAS, run_time=names)
    inputs = ort_models.head_inputs(BOOK, 3.0, BIAS)
    x = features(5, 30)
    (y,) = evaluate(model, X=x, **{name: inputs[name] for name in names})
    check_logits(y, x)


def test_a_base_matrix_that_is_no_initializer() -> None:
    book = codebook(12, 11)
    base = ort_models.head_inputs(book, 3.0, None)["base"]
    runner = session(ort_models.head(book, run_time=["base"]))
    x = features(3, 12)
    (y,) = runner.run(None, {"X": x, "base": base})
    check_head(y, x, expand(book), 3.0, None, Epilogue.LOGITS)
    with pytest.raises(InvalidArgument, match=r"the sign masks or the base matrix were changed"):
        runner.run(None, {"X": x, "base": base ^ 2})


# Shape inference.


def inferred(model: bytes) -> list[list[Any]]:
    """The outputs' shapes in ONNX Runtime, from a model that declares none."""
    proto = onnx.load_from_string(model)
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return [output.shape for output in session(proto.SerializeToString()).get_outputs()]


@pytest.mark.parametrize("shape", [["b", 30], [2, "b", 30], [4, 30], [30]])
def test_shapes_are_inferred(shape: list[Any]) -> None:
    assert inferred(ort_models.head(BOOK, 3.0, BIAS, x_shape=shape)) == [[*shape[:-1], 100]]
    shape = [*shape[:-1], 32]
    assert inferred(ort_models.transform(shape, 1.0, "float32")) == [shape]


def test_an_unnamed_dimension_gets_a_name_of_its_own() -> None:
    (shape,) = inferred(ort_models.head(BOOK, 3.0, BIAS, x_shape=[None, None, 30]))
    assert len(set(shape)) == 3 and shape[-1] == 100
    assert all(isinstance(name, str) and name for name in shape[:-1])


def test_shapes_of_top_k_are_inferred() -> None:
    model = ort_models.top_k(BOOK, 5, 3.0, BIAS, x_shape=[2, "b", 30])
    assert inferred(model) == [[2, "b", 5], [2, "b", 5], [2, "b"]]


# Bad input.


BAD_MODELS: list[tuple[str, dict[str, Any]]] = [
    ("format_version is 3, expected 1 to 2: .* newer fixclf_infer", {"format_version": 3}),
    ("format_version is 0, expected 1 to 2$", {"format_version": 0}),
    ("the attribute epilogue is missing or no integer", {"epilogue": None}),
    ("the attribute scale_checksum is missing or no integer", {"scale_checksum": None}),
    ("alpha or bias is not what the model was written with", {"alpha": np.array(2, np.float32)}),
    ("alpha or bias is not what the model was written with", {"bias": BIAS + 1}),
    ("the attribute num_classes is missing or no integer", {"num_classes": None}),
    ("the attribute checksum is missing or no integer", {"checksum": 0.5}),
    ("the sign masks or the base matrix were changed", {"signs": SIGNS ^ 1}),
    ("the sign masks or the base matrix were changed", {"checksum": 1}),
    ("bias is missing", {"bias": None}),
    ("bias is given, but has_bias is 0", {"has_bias": 0}),
    ("has_bias is 2, expected 0 or 1", {"has_bias": 2}),
    ("negate is -1, expected 0 or 1", {"negate": -1}),
    ("center is 7, expected 0 or 1", {"center": 7}),
    (r"epilogue is 4, expected one of 0 \(logits\)", {"epilogue": 4}),
    (r"epilogue is -1, expected one of 0 \(logits\)", {"epilogue": -1}),
    ("num_classes is 0, expected 1", {"num_classes": 0}),
    ("num_classes is 1000 .* have 128 distinct rows", {"num_classes": 1000}),
    ("num_classes is 100 .* have 64 distinct rows", {"signs": None}),
    (r"base_order \* 2\^log2 = 1 \* 2\^63", {"log2": 63}),
    ("base_order is -3", {"base_order": -3}),
    ("base must be given exactly when base_order is not 1", {"base_order": 4, "log2": 3}),
    ("base must be given exactly", {"base": np.zeros((4, 1), np.uint8)}),
    ("row_offset is -1", {"row_offset": -1}),
    ("column_offset is 5", {"column_offset": 5}),
    (r"signs has the shape \[8\], expected a matrix", {"signs": SIGNS.ravel()}),
    ("signs has 4 rows of 2 bytes, expected 4 x 4", {"signs": SIGNS.reshape(4, 2)}),
    ("bias has 99 elements, expected one for each of 100", {"bias": BIAS[:99]}),
    (r"bias has the shape \[1, 100\], expected a vector", {"bias": BIAS[None]}),
    (r"alpha has the shape \[2\], expected one element", {"alpha": np.ones(2, np.float32)}),
    (r"alpha has the shape \[1, 1\]", {"alpha": np.ones((1, 1), np.float32)}),
    ("alpha is nan, expected a finite float32", {"alpha": np.array(np.nan)}),
    ("input 1 is marked single but has an empty string", {"alpha": None}),
    ("alpha is a tensor of no float type", {"alpha": np.array(1)}),
    ("bias is a tensor of no float type", {"bias": BIAS.astype(np.int64)}),
    (r"'tensor\(int8\)' of input parameter \(signs\)", {"signs": SIGNS.astype(np.int8)}),
]


@pytest.mark.parametrize(("match", "replace"), BAD_MODELS, ids=[match for match, _ in BAD_MODELS])
def test_a_bad_model_is_refused_when_the_session_is_made(
    match: str, replace: dict[str, Any]
) -> None:
    model = ort_models.head(BOOK, 3.0, BIAS, replace=replace)
    with pytest.raises(CREATION_ERRORS, match=match):
        session(model)


def test_the_number_of_features_is_checked_when_the_session_is_made() -> None:
    with pytest.raises(CREATION_ERRORS, match="x has 31 features in its last dimension"):
        session(ort_models.head(BOOK, 3.0, BIAS, x_shape=["b", 31]))


def test_the_message_names_the_operator() -> None:
    with pytest.raises(CREATION_ERRORS, match="FixedHead: bias is missing"):
        session(ort_models.head(BOOK, 3.0, BIAS, replace={"bias": None}))


def test_features_of_a_dtype_without_a_kernel() -> None:
    with pytest.raises(InvalidGraph, match=r"'tensor\(double\)' of input parameter \(x\)"):
        session(ort_models.head(BOOK, 3.0, BIAS, dtype="float64"))


BAD_FEEDS: list[tuple[str, str, dict[str, Any]]] = [
    ("x has 29 features in its last dimension", "", {"X": features(2, 29)}),
    (r"X has no dimensions, expected \[\.\.\., features\]", "", {"X": features()}),
    ("the sign masks or the base matrix were changed", "signs", {"signs": SIGNS ^ 1}),
    ("1 block.s. of order 32 have 64 distinct rows", "signs", {"signs": SIGNS[:1]}),
    ("signs has 2 rows of 3 bytes, expected 2 x 4", "signs", {"signs": SIGNS[:, :3]}),
    ("bias has 3 elements, expected one for each of 100", "bias", {"bias": BIAS[:3]}),
    ("bias has 0 elements, expected one for each of 100", "bias", {"bias": BIAS[:0]}),
    ("signs has 0 rows, expected at least 1", "signs", {"signs": SIGNS[:0]}),
    ("alpha is inf, expected a finite float32", "alpha", {"alpha": np.array(np.inf, np.float32)}),
    ("alpha has the shape .2., expected one element", "alpha", {"alpha": np.ones(2, np.float32)}),
]


@pytest.mark.parametrize(
    ("match", "run_time", "feeds"), BAD_FEEDS, ids=[match for match, *_ in BAD_FEEDS]
)
def test_a_bad_input_is_refused_when_the_session_runs(
    match: str, run_time: str, feeds: dict[str, Any]
) -> None:
    names = [run_time] if run_time else []
    proto = onnx.load_from_string(ort_models.head(BOOK, 3.0, BIAS, run_time=names))
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.ClearField("shape")
    runner = session(proto.SerializeToString())
    inputs = {"X": features(2, 30), **ort_models.head_inputs(BOOK, 3.0, BIAS)}
    good = {name: inputs[name] for name in ("X", *names)}
    with pytest.raises(InvalidArgument, match=match):
        runner.run(None, {**good, **feeds})
    check_logits(runner.run(None, good)[0], good["X"])


def test_a_transform_of_a_length_that_is_no_power_of_two() -> None:
    with pytest.raises(CREATION_ERRORS, match=r"x has 12 elements .* a power of two"):
        session(ort_models.transform(["b", 12], 1.0, "float32"))
    runner = session(ort_models.transform(["b", None], 1.0, "float32"))
    with pytest.raises(InvalidArgument, match=r"x has 12 elements .* a power of two"):
        runner.run(None, {"X": features(2, 12)})


@pytest.mark.parametrize(
    ("match", "k", "log_probabilities"),
    [("k is 0", 0, 0), ("k is 101", 101, 0), ("log_probabilities is 2", 5, 2)],
)
def test_a_bad_top_k(match: str, k: int, log_probabilities: int) -> None:
    with pytest.raises(CREATION_ERRORS, match=match):
        session(ort_models.top_k(BOOK, k, 3.0, BIAS, log_probabilities=log_probabilities))


def test_registering_the_library_twice_is_an_error_and_no_crash() -> None:
    options = ort.SessionOptions()
    for _ in range(2):
        options.register_custom_ops_library(str(LIBRARY))
    model = ort_models.head(BOOK, 3.0, BIAS)
    with pytest.raises(Fail, match="Domain already set in registry"):
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = features(2, 30)
    check_logits(evaluate(model, X=x)[0], x)


def test_the_library_needs_nothing_but_onnxruntime() -> None:
    script = f"""
import sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.register_custom_ops_library({str(LIBRARY)!r})
print([name for name in ("torch", "fixclf_infer") if name in sys.modules])
"""
    assert run(script).stdout.strip() == "[]"
