"""The operators as standard ONNX functions, in ONNX Runtime and onnx.reference, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_tools  # skips without onnx
import pytest
import tolerances
from cases import CASES, EPILOGUES, NUMPY_DTYPES, Case, any_codebook, check_head, expand, synthetic
from hypothesis import given
from hypothesis import strategies as st
from onnx import checker, helper
from onnx_tools import WAYS, run_ort, run_reference, set_rank

from fixclf_infer import codebook, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.onnx import Head, head_model
from fixclf_infer.onnx.body import append_bodies
from fixclf_infer.onnx.schema import DOMAIN

EVALUATORS = [pytest.param(run_ort, id="onnxruntime"), pytest.param(run_reference, id="reference")]
# ONNX Runtime's own MatMul refuses an empty batch.
HEADS = [c for c in CASES if c.dtype != "float64" and not c.out and c.batch]


@pytest.mark.parametrize("evaluate", EVALUATORS)
@pytest.mark.parametrize("case", HEADS, ids=str)
def test_head(case: Case, evaluate) -> None:
    head = Head(case.codebook, case.bias, case.epilogue)
    model = head_model(head, case.alpha, case.bias_values(), dtype=case.dtype)
    checker.check_model(model, full_check=True)
    (y,) = evaluate(model, case.features())
    case.check(y)


def test_an_empty_batch_in_the_reference_evaluator() -> None:
    book = codebook(100, 37)
    model = head_model(Head(book, False), 1.0)
    (y,) = run_reference(model, np.zeros((0, 100), np.float32))
    assert y.shape == (0, 37)


@given(st.data())
def test_any_codebook_and_rank(data: st.DataObject) -> None:
    book, _ = data.draw(any_codebook())
    epilogue = data.draw(st.sampled_from(EPILOGUES))
    lead = data.draw(st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 2)]))
    rng = np.random.default_rng(book.seed)
    x = rng.standard_normal((*lead, book.in_features)).astype(np.float32)
    values = rng.standard_normal(book.num_classes).astype(np.float32)
    bias = data.draw(st.sampled_from([values, None]))
    model = head_model(Head(book, bias is not None, epilogue), 7.25, bias, portable=False)
    set_rank(model, [f"d{i}" for i in range(len(lead))])
    append_bodies(model)
    checker.check_model(model, full_check=True)
    for evaluate in (run_ort, run_reference):
        (y,) = evaluate(model, x)
        check_head(y, x, expand(book), 7.25, bias, epilogue)


@pytest.mark.parametrize("evaluate", EVALUATORS)
@pytest.mark.parametrize(
    "book", [codebook(100, 37), codebook(16, 100), codebook(64, 20)], ids=lambda b: b.kind
)
def test_extreme_rows(book: Codebook, evaluate) -> None:
    """Norms neither over- nor underflow; NaN and infinities stay in their row."""
    row = np.random.default_rng(0).standard_normal(book.in_features).astype(np.float32)
    x = np.stack([row, row * 1e30, row * 1e-30, row * 0, row * 1e37, row * 1e-12, row, row, row])
    x[6, 0], x[7, 1], x[8, 2] = np.nan, np.inf, -np.inf
    bias = np.linspace(-1, 1, book.num_classes, dtype=np.float32)
    (y,) = evaluate(head_model(Head(book, True), 9.0, bias), x)
    check_head(y[:6], x[:6], expand(book), 9.0, bias, Epilogue.LOGITS)
    assert np.isnan(y[6:]).all()
    assert np.array_equal(y[3], bias)


@pytest.mark.parametrize("evaluate", EVALUATORS)
def test_int8_gives_float32(evaluate) -> None:
    book = codebook(48, 60)
    x = np.random.default_rng(0).integers(-128, 128, (5, 48)).astype(np.int8)
    model = head_model(Head(book, False, Epilogue.SOFTMAX), 9.0, dtype="int8")
    (y,) = evaluate(model, x)
    check_head(y, x.astype(np.float32), expand(book), 9.0, None, Epilogue.SOFTMAX)
    assert y.dtype == np.float32


@pytest.mark.parametrize("evaluate", EVALUATORS)
@pytest.mark.parametrize("log_probabilities", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_top_k(dtype: str, log_probabilities: bool, evaluate) -> None:
    book = codebook(24, 333)
    bias = np.linspace(-1, 1, 333, dtype=np.float32)
    head = replace(Head(book, True), k=7, log_probabilities=log_probabilities)
    x = np.random.default_rng(0).standard_normal((4, 24)).astype(NUMPY_DTYPES[dtype])
    model = head_model(head, 8.0, bias, dtype=dtype)
    checker.check_model(model, full_check=True)
    values, indices, logsumexp = evaluate(model, x)
    z = reference.logits(x, expand(book), 8.0, bias)
    bound = tolerances.log_probability(z, 9.0, "float32", "float32", 333)
    total = reference.logsumexp(z)
    assert np.array_equal(indices, np.argsort(-z, axis=-1, kind="stable")[:, :7])
    assert (values.dtype, logsumexp.dtype) == (np.float32, np.float32)
    top = np.take_along_axis(z - total if log_probabilities else z, indices, -1)
    tolerances.assert_within("top-k", values, top, bound)
    tolerances.assert_within("logsumexp", logsumexp, total[:, 0], bound)


def test_top_k_takes_the_lowest_class_of_a_tie() -> None:
    book = synthetic(8, 8, log2=3)
    head = replace(Head(book, False), k=8)
    for evaluate in (run_ort, run_reference):
        _, indices, _ = evaluate(head_model(head, 1.0), np.zeros((2, 8), np.float32))
        assert np.array_equal(indices, [range(8)] * 2)


@pytest.mark.parametrize("evaluate", EVALUATORS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("log2", [0, 1, 5, 6, 7, 11, 13])
def test_hadamard_transform(log2: int, dtype: str, evaluate) -> None:
    n, element = 1 << log2, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("HadamardTransform", ["X"], ["Y"], domain=DOMAIN, scale=0.25)],
        "transform",
        [helper.make_tensor_value_info("X", element, ["b", "c", n])],
        [helper.make_tensor_value_info("Y", element, ["b", "c", n])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    append_bodies(model)
    checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((2, 3, n)).astype(dtype)
    (y,) = evaluate(model, x)
    want = reference.hadamard_transform(x, 0.25)
    bound = tolerances.transform(want, log2, dtype)
    tolerances.assert_norm_within(f"transform {dtype}", y, want, bound)


@pytest.mark.parametrize("evaluate", EVALUATORS)
@pytest.mark.parametrize("opset", range(18, 24))
def test_opsets(opset: int, evaluate) -> None:
    book = codebook(40, 100)
    model = head_model(Head(book, False, Epilogue.LOG_SOFTMAX), 9.0, opset=opset)
    checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    check_head(evaluate(model, x)[0], x, expand(book), 9.0, None, Epilogue.LOG_SOFTMAX)


def test_no_dense_matrix() -> None:
    """Bits and factors only: the file does not grow with C · N."""
    book = codebook(2048, 1000)
    model = head_model(Head(book, True), 9.0, np.zeros(1000))
    assert model.ByteSize() < 4000 + 8000  # the bias, and the rest
    assert model.ir_version == 8


def _side_by_side(books: list[Codebook]) -> onnx_tools.ModelProto:
    """One model with a head for each codebook, on the leading features of X."""
    nodes, initialisers, outputs = [], [], []
    for i, book in enumerate(books):
        alone = head_model(
            Head(book, i % 2 == 0),
            5.0,
            [0.5] * book.num_classes if i % 2 == 0 else None,
            portable=False,
        )
        alone.graph.node[0].name = f"head_{i}"
        for t in alone.graph.initializer:
            t.name += str(i)
        node = alone.graph.node[0]
        node.input[:] = [f"{name}{i}" if name else "" for name in node.input]
        node.output[0] = f"Y{i}"
        nodes.append(helper.make_node("Identity", ["X"], [f"X{i}"]))
        nodes.append(node)
        initialisers += alone.graph.initializer
        outputs.append(helper.make_tensor_value_info(f"Y{i}", 1, ["batch", book.num_classes]))
    n = books[0].in_features
    x = helper.make_tensor_value_info("X", 1, ["batch", n])
    graph = helper.make_graph(nodes, "heads", [x], outputs, initialisers)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("library", WAYS)
def test_heads_of_different_shapes_in_one_model(library: bool) -> None:
    """Sizes, masks, base matrices and biases that others do not have; two of one shape."""
    sizes = [(64, 10, "hadamard"), (64, 1000, "kerdock"), (64, 100, "orthoplex"), (64, 10, "etf")]
    books = [codebook(*s) for s in sizes]
    books += [codebook(64, 10, "hadamard")]
    model = _side_by_side(books)
    append_bodies(model)
    checker.check_model(model, full_check=True)
    assert len(model.functions) == 4
    assert model.ir_version == 8
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    evaluations = [run_ort(model, x, library)] + ([] if library else [run_reference(model, x)])
    for outputs in evaluations:
        for i, (book, y) in enumerate(zip(books, outputs, strict=True)):
            bias = np.full(book.num_classes, 0.5, np.float32) if i % 2 == 0 else None
            check_head(y, x, expand(book), 5.0, bias, Epilogue.LOGITS)


def test_more_shapes_than_domains_are_refused() -> None:
    model = _side_by_side([codebook(64, c) for c in range(10, 19)])
    with pytest.raises(ValueError, match="more than 8 different shapes"):
        append_bodies(model)


def test_an_unknown_rank_is_refused() -> None:
    model = head_model(Head(codebook(8, 4), False), 1.0, portable=False)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ValueError, match="FixedHead 'head': the type or the rank of X is unknown"):
        append_bodies(model)
