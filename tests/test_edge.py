"""fixclf_infer.edge: the head on a device, its files, and every way a file can be wrong."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case, check_head, expand, scale_of
from hypothesis import given
from hypothesis import strategies as st
from reductions import check_argmax, check_log_prob, check_topk, oracle
from script import run

from fixclf_infer import codebook, reference
from fixclf_infer.codebooks import Codebook
from fixclf_infer.edge import FixedHead, num_threads, pack_signs, set_num_threads
from fixclf_infer.epilogue import Epilogue

METHODS: dict[Epilogue, Callable[..., np.ndarray]] = {
    Epilogue.LOGITS: FixedHead.logits,
    Epilogue.SOFTMAX: FixedHead.predict_proba,
    Epilogue.LOG_SOFTMAX: FixedHead.predict_log_proba,
    Epilogue.SIGMOID: FixedHead.sigmoid,
}
# With a base matrix, with sign masks, with both, with neither, centred.
BOOKS = [
    codebook(n, c, kind)
    for kind, n, c in [
        ("hadamard", 64, 50),
        ("hadamard", 12, 11),
        ("kerdock", 64, 3000),
        ("search", 12, 100),
        ("orthoplex", 100, 200),
        ("etf", 15, 16),
    ]
]


def names(book: Codebook) -> str:
    return f"{book.kind}-{book.in_features}-{book.num_classes}"


def head_of(book: Codebook, bias: bool = True) -> FixedHead:
    rng = np.random.default_rng(book.num_classes)
    values = rng.standard_normal(book.num_classes).astype(np.float32) if bias else None
    return FixedHead(book, 9.5, values)


def features(book: Codebook, batch: int = 4) -> np.ndarray:
    rng = np.random.default_rng(batch)
    return rng.standard_normal((batch, book.in_features)).astype(np.float32)


# Results.


@pytest.mark.parametrize("case", [c for c in CASES if c.dtype != "float64"], ids=str)
def test_case(case: Case) -> None:
    head = FixedHead(case.codebook, case.alpha, case.bias_values())
    case.check(METHODS[case.epilogue](head, case.features(), dtype=case.out or None))


@pytest.mark.parametrize("epilogue", METHODS)
def test_float64_features(epilogue: Epilogue) -> None:
    """Computed in float64 on an α and a bias that a file holds in float32."""
    book = BOOKS[0]
    head, x = head_of(book), features(book).astype(np.float64)
    got = METHODS[epilogue](head, x)
    assert got.dtype == np.float64 and head.bias is not None
    check_head(got, x, expand(book), 9.5, head.bias.astype(np.float64), epilogue)


@pytest.mark.parametrize("book", BOOKS, ids=names)
@pytest.mark.parametrize("kind", ["float32", "int8", "signs"])
def test_reductions(book: Codebook, kind: str) -> None:
    head, x = head_of(book), features(book)
    given_x = x
    if kind == "int8":
        given_x = x = np.clip(np.rint(x * 40), -128, 127).astype(np.int8)
    if kind == "signs":
        given_x, x = pack_signs(x), np.where(x < 0, -1.0, 1.0)
    rows = expand(book)
    allowed = np.random.default_rng(1).random((len(x), book.num_classes)) < 0.5
    allowed[:, 7] = True
    z = oracle(x, rows, 9.5, head.bias)
    scale = scale_of(rows, 9.5, head.bias)
    for mask in (None, allowed, np.packbits(allowed, axis=-1, bitorder="little")):
        masked = z if mask is None else np.where(allowed, z, -np.inf)
        for log_probabilities in (False, True):
            got = head.topk(given_x, 5, log_probabilities=log_probabilities, allowed=mask)
            check_topk(got, masked, 5, scale, "float32", log_probabilities)
        check_argmax(head.argmax(given_x, allowed=mask), masked, scale, "float32")
        ids = np.random.default_rng(2).integers(0, book.num_classes, (len(x), 3))
        got = head.log_prob(given_x, ids, allowed=mask)
        picked = np.take_along_axis(masked, ids, -1)
        logsumexp = head.topk(given_x, 1, allowed=mask)[2]
        check_log_prob((got, picked.astype(np.float32), logsumexp), masked, ids, scale, "float32")
    np.testing.assert_array_equal(
        head.log_prob(given_x, ids[:, 0]), head.log_prob(given_x, ids)[:, 0]
    )
    lists = head.log_prob(given_x, ids.tolist())
    np.testing.assert_array_equal(lists, head.log_prob(given_x, ids))


def test_bfloat16_of_ml_dtypes() -> None:
    import ml_dtypes

    book = BOOKS[0]
    head, x = head_of(book), features(book).astype(ml_dtypes.bfloat16)
    got = head.logits(x)
    assert got.dtype == ml_dtypes.bfloat16
    check_head(got, x, expand(book), 9.5, head.bias, Epilogue.LOGITS)


def test_batches_and_threads_change_no_bit() -> None:
    head, before = head_of(BOOKS[2]), num_threads()
    x = features(BOOKS[2], 67)
    whole, best = head.predict_proba(x), head.topk(x, 3)[0]
    try:
        for threads in (1, 2, 3):
            set_num_threads(threads)
            assert num_threads() == threads
            np.testing.assert_array_equal(head.predict_proba(x), whole)
            for i in (0, 41, 66):
                np.testing.assert_array_equal(head.predict_proba(x[i]), whole[i])
                np.testing.assert_array_equal(head.topk(x[i], 3)[0], best[i])
    finally:
        set_num_threads(before)


def test_calls_from_several_threads() -> None:
    head, x = head_of(BOOKS[2]), features(BOOKS[2], 40)
    want = head.topk(x, 9)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                for got, expected in zip(head.topk(x, 9), want, strict=True):
                    np.testing.assert_array_equal(got, expected)
        except AssertionError as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_pack_signs(negative: list[bool]) -> None:
    x = np.where(negative, -1.5, 0.0)
    packed = pack_signs(x)
    assert packed.dtype == np.uint8 and packed.shape == (-(-len(negative) // 8),)
    want = np.where(negative, -1, 1)
    np.testing.assert_array_equal(reference.unpack_signs(packed, len(negative)), want)


def test_from_module() -> None:
    torch = pytest.importorskip("torch")
    from fixclf_infer.nn import FixedClassifier

    for bias in (True, False):
        module = FixedClassifier(64, 100, bias=bias)
        if bias:
            torch.nn.init.normal_(module.bias)
        x = torch.randn(5, 64)
        head = FixedHead.from_module(module)
        want = module(x).detach().numpy()
        np.testing.assert_array_equal(head.logits(x.numpy()), want)
        half = FixedHead.from_module(module.half())
        slack = 2**-10 * (head.alpha + 5)  # α and b are rounded to float16
        np.testing.assert_allclose(half.logits(x.numpy()), want, atol=slack)


# Files.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("book", BOOKS, ids=names)
def test_save_and_load(book: Codebook, bias: bool, tmp_path: Path) -> None:
    head = head_of(book, bias)
    path = tmp_path / "a head"  # no suffix: none is added
    head.save(path)
    loaded = FixedHead.load(path)
    assert loaded.codebook.digest == book.digest
    assert (loaded.alpha, loaded.in_features) == (head.alpha, book.in_features)
    assert repr(loaded) == repr(head)
    np.testing.assert_array_equal(
        loaded.predict_proba(features(book)), head.predict_proba(features(book))
    )


def test_the_file_of_a_million_classes_is_small(tmp_path: Path) -> None:
    """The masks of 1024 → 1 000 000 are 62 KB; the issue asks for 200 KB beside the bias."""
    FixedHead(codebook(1024, 1_000_000), 10.0).save(tmp_path / "head.npz")
    assert (tmp_path / "head.npz").stat().st_size < 64_000


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("book", BOOKS, ids=names)
def test_load_onnx(book: Codebook, bias: bool, k: int, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from fixclf_infer.onnx import Head, head_model

    head = head_of(book, bias)
    onnx.save(head_model(Head(book, bias, k=k), 9.5, head.bias), tmp_path / "head.onnx")
    loaded = FixedHead.load(tmp_path / "head.onnx")
    np.testing.assert_array_equal(loaded.logits(features(book)), head.logits(features(book)))


def test_load_an_exported_model(tmp_path: Path) -> None:
    """Of two heads one is chosen by name; the weights of other layers are no concern."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    onnx = pytest.importorskip("onnx")
    from fixclf_infer.nn import FixedClassifier
    from fixclf_infer.onnx import export

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = torch.nn.Linear(8, 64)
            self.one, self.two = FixedClassifier(64, 50), FixedClassifier(64, 300, bias=False)

        def forward(self, x: Any) -> Any:
            h = self.body(x).relu()
            return self.one(h), self.two(h)

    model = Two()
    torch.nn.init.normal_(model.one.bias)
    path = tmp_path / "two.onnx"
    export(model, torch.randn(2, 8), path)
    heads = [n for n in onnx.load(path).graph.node if n.op_type == "FixedHead"]
    x = torch.randn(3, 64)
    for node, module in zip(heads, (model.one, model.two), strict=True):
        loaded = FixedHead.load(path, node.name)
        np.testing.assert_array_equal(loaded.logits(x.numpy()), module(x).detach().numpy())
    listed = f"{heads[0].name!r}, {heads[1].name!r}"
    with pytest.raises(ValueError, match=f"has 2 fixed heads, expected one, or a name .* {listed}"):
        FixedHead.load(path)
    with pytest.raises(ValueError, match=f"name is 'x', expected a fixed head of .*: {listed}"):
        FixedHead.load(path, "x")


def test_tensors_as_other_writers_store_them(tmp_path: Path) -> None:
    """In float_data and int32_data, in Constant nodes, with dimensions that are not packed."""
    onnx = pytest.importorskip("onnx")
    from fixclf_infer.onnx import Head, head_model

    book = BOOKS[3]
    head = head_of(book)
    model = head_model(Head(book, True), 9.5, head.bias, portable=False)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.float_data.extend(values.ravel().tolist())
        else:
            tensor.int32_data.extend(values.ravel().tolist())
    constant = onnx.helper.make_node("Constant", [], ["bias"], value=model.graph.initializer[1])
    assert model.graph.initializer[1].name == "bias"
    del model.graph.initializer[1]
    model.graph.node.insert(0, constant)
    onnx.save(model, tmp_path / "head.onnx")
    loaded = FixedHead.load(tmp_path / "head.onnx")
    np.testing.assert_array_equal(loaded.logits(features(book)), head.logits(features(book)))


def test_pickled_and_copied(tmp_path: Path) -> None:
    """As joblib and multiprocessing do it."""
    head, x = head_of(BOOKS[3]), features(BOOKS[3])
    wide = x.astype(np.float64)
    wanted = head.logits(x), head.logits(wide)
    for other in (pickle.loads(pickle.dumps(head)), copy.deepcopy(head), copy.copy(head)):
        for got, want in zip((other.logits(x), other.logits(wide)), wanted, strict=True):
            np.testing.assert_array_equal(got, want)
        assert other.codebook.digest == head.codebook.digest
    joblib = pytest.importorskip("joblib")
    joblib.dump(head, tmp_path / "head.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "head.joblib").logits(x), wanted[0])


# Wrong files.


def rewrite(path: Path, to: Path, edit: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    """A copy of an .npz file with its fields and arrays edited."""
    with np.load(path) as file:
        arrays = dict(file)
    fields = json.loads(str(arrays.pop("head")))
    edit(fields, arrays)
    with open(to, "wb") as file:
        np.savez(file, head=json.dumps(fields), **arrays)
    return to


def tampered(fields: dict[str, Any], arrays: dict[str, Any]) -> None:
    arrays["signs"][0, 0] ^= 1


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("edge") / "head.npz"
    head_of(BOOKS[3]).save(path)
    return path


WRONG: list[tuple[str, Callable[[dict[str, Any], dict[str, Any]], Any]]] = [
    (
        "format_version is 3, written by a newer fixclf_infer",
        lambda f, a: f.update(format_version=3),
    ),
    ("attribute negate is missing", lambda f, a: f.pop("negate")),
    ("attribute scale_checksum is missing", lambda f, a: f.pop("scale_checksum")),
    ("attribute epilogue is unknown", lambda f, a: f.update(epilogue=0)),
    ("log2 is '1', expected an integer", lambda f, a: f.update(log2="1")),
    ("bias is missing, but has_bias is 1", lambda f, a: a.pop("bias")),
    ("a bias is given, but has_bias is 0", lambda f, a: f.update(has_bias=0)),
    ("bias is int64 [100], expected floats [100]", lambda f, a: a.update(bias=np.arange(100))),
    (
        "bias is float32 [99], expected floats [100]",
        lambda f, a: a.update(bias=np.zeros(99, np.float32)),
    ),
    (
        "alpha is int64 [], expected one element of a float type",
        lambda f, a: a.update(alpha=np.array(3)),
    ),
    ("alpha is nan, expected a finite", lambda f, a: a.update(alpha=np.float64(np.nan))),
    ("alpha or the bias was changed", lambda f, a: a.update(alpha=np.float32(9.25))),
    ("alpha or the bias was changed", lambda f, a: a.update(bias=a["bias"] + 1)),
    ("an attribute, the sign masks or the base", lambda f, a: f.update(row_offset=2)),
    ("base must be given exactly when base_order is not 1", lambda f, a: a.pop("base")),
    ("base_order is 0, expected 1 to 512", lambda f, a: f.update(base_order=0)),
    ("12 * 2^21 is over the limit of 4194304", lambda f, a: f.update(log2=21)),
    ("signs is uint8 [10], expected", lambda f, a: a.update(signs=np.zeros(10, np.uint8))),
    ("signs is int8", lambda f, a: a.update(signs=a["signs"].view(np.int8))),
    (
        "num_classes is 1000000 from row 0, but 5 block(s)",
        lambda f, a: (f.update(num_classes=10**6), a.update(bias=np.zeros(10**6, np.float32))),
    ),
    ("row_offset is -1, expected 0 to", lambda f, a: f.update(row_offset=-1)),
    ("center needs one block without negations", lambda f, a: f.update(center=1)),
    ("the sign masks or the base matrix were changed", tampered),
]


@pytest.mark.parametrize("message, edit", WRONG, ids=str)
def test_wrong_npz(
    message: str,
    edit: Callable[[dict[str, Any], dict[str, Any]], None],
    file: Path,
    tmp_path: Path,
) -> None:
    bad = rewrite(file, tmp_path / "bad.npz", edit)
    with pytest.raises(ValueError) as caught:
        FixedHead.load(bad)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_of_ours(tmp_path: Path, file: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FixedHead.load(tmp_path / "none")
    for content in (b"", b"not a model", bytes(100), b"\xff" * 50, np.arange(99).tobytes()):
        (tmp_path / "text").write_bytes(content)
        with pytest.raises(ValueError, match=r"fixed heads, expected|neither an ONNX model"):
            FixedHead.load(tmp_path / "text")
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("head.npy", b"?")
    pickled = io.BytesIO()
    np.savez(pickled, head=np.array({}, dtype=object))
    (tmp_path / "pickled").write_bytes(pickled.getvalue())
    for name in ("zip", "pickled"):
        with pytest.raises(ValueError, match=rf"{name} is not a file that FixedHead\.save"):
            FixedHead.load(tmp_path / name)
    with pytest.raises(ValueError, match=r"name is 'x', but .* holds one head without a name"):
        FixedHead.load(file, "x")


def test_damaged_files_raise_value_errors(file: Path, tmp_path: Path) -> None:
    """Cut short anywhere, or with any byte changed: a ValueError or a head, never anything else."""
    onnx = pytest.importorskip("onnx")
    from fixclf_infer.onnx import Head, head_model

    model = head_model(Head(BOOKS[3], True), 9.5, np.zeros(100), portable=False)
    rng = np.random.default_rng(0)
    damaged = tmp_path / "damaged"
    assert onnx.checker.check_model(model) is None
    for content in (file.read_bytes(), model.SerializeToString()):
        for _ in range(400):
            changed = bytearray(content)
            if rng.random() < 0.3:
                del changed[rng.integers(len(changed)) :]
            else:
                changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
            damaged.write_bytes(changed)
            try:
                FixedHead.load(damaged)
            except ValueError as error:
                assert "\n" not in str(error)


def test_tampered_onnx(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    from fixclf_infer.onnx import Head, head_model

    def broken(edit: Callable[[Any], Any], k: int = 0) -> Path:
        model = head_model(Head(BOOKS[3], True, k=k), 9.5, np.zeros(100), portable=False)
        edit(model)
        path = tmp_path / "bad.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def signs(model: Any) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == "signs")
        tensor.raw_data = bytes(len(tensor.raw_data))

    def element(model: Any) -> None:
        next(t for t in model.graph.initializer if t.name == "bias").data_type = 9

    def external(model: Any) -> None:
        next(t for t in model.graph.initializer if t.name == "bias").data_location = 1

    def computed(model: Any) -> None:
        model.graph.node[0].input[2] = "elsewhere"

    def no_alpha(model: Any) -> None:
        model.graph.node[0].input[1] = ""

    def dims(model: Any) -> None:
        next(t for t in model.graph.initializer if t.name == "bias").dims[0] = -100

    def renamed(model: Any) -> None:
        next(a for a in model.graph.node[0].attribute if a.name == "epilogue").name = "epilogux"

    def unknown(model: Any) -> None:
        model.graph.node[0].attribute.append(onnx.helper.make_attribute("kind", 1))

    def text(model: Any) -> None:
        model.graph.node[0].attribute.append(onnx.helper.make_attribute("note", "x"))

    def prefixed(model: Any) -> None:
        model.graph.node[0].op_type = "a_FixedHead"

    for edit, message in [
        (signs, "the sign masks or the base matrix were changed"),
        (element, "bias has the element type 9, expected one of 1, 2, 10, 11, 16"),
        (external, "bias is in '', expected a file in the folder of the model"),
        (computed, "bias is computed, expected an initialiser"),
        (no_alpha, "alpha is missing"),
        (dims, "bias has the shape [-100]"),
        (renamed, "attribute epilogue is missing"),
        (unknown, "attribute kind is unknown, expected format_version, in_features"),
        (text, "attribute note is no integer"),
        (prefixed, "has a node a_FixedHead, expected one of FixedHead, FixedHeadTopK: a tool put"),
    ]:
        with pytest.raises(ValueError) as caught:
            FixedHead.load(broken(edit))
        assert message in str(caught.value)


# Wrong arguments.


def test_wrong_arguments() -> None:
    book = BOOKS[0]
    head, x = head_of(book), features(book)
    allowed = np.ones(50, bool)
    for message, error, call in [
        ("codebook is dense (orthonormal), expected one of a ±1 family", ValueError,
         lambda: FixedHead(codebook(8, 4, "orthonormal"), 1.0)),
        ("alpha is inf, expected a finite", ValueError, lambda: FixedHead(book, np.inf)),
        ("bias has shape [3], expected [50]", ValueError, lambda: FixedHead(book, 1.0, [1, 2, 3])),
        ("x is a list, expected a numpy.ndarray", TypeError, lambda: head.logits(x.tolist())),
        ("x is int64, expected float32", TypeError, lambda: head.logits(x.astype(np.int64))),
        ("x has 63 features", ValueError, lambda: head.logits(x[:, :63])),
        ("k is 51, expected 1 to 50", ValueError, lambda: head.topk(x, 51)),
        ("k is 0, expected 1 to 50", ValueError, lambda: head.topk(x, 0)),
        ("ids[1] is 50", ValueError, lambda: head.log_prob(x, [0, 50, 0, -1])),
        ("ids is float64, expected integers", TypeError, lambda: head.log_prob(x, [0.5] * 4)),
        ("allowed is float64 of 1 dimension(s)", ValueError,
         lambda: head.argmax(x, allowed=allowed.astype(float))),
        ("allowed has rows of 6 bytes", ValueError, lambda: head.argmax(x, allowed=allowed[:48])),
        ("allowed allows no class in row 0", ValueError, lambda: head.argmax(x, allowed=~allowed)),
        ("threads is -1, expected 0", ValueError, lambda: set_num_threads(-1)),
    ]:  # fmt: skip
        with pytest.raises(error) as caught:
            call()
        assert message in str(caught.value), str(caught.value)


# Without torch and onnx.


def test_imports_neither_torch_nor_onnx(file: Path) -> None:
    script = """
import sys
sys.modules.update(dict.fromkeys(["torch", "onnx", "onnxruntime", "google.protobuf"]))
import numpy as np
from fixclf_infer.edge import FixedHead
print(FixedHead.load(sys.argv[1]).argmax(np.ones((2, 12), np.float32)).shape)
"""
    assert run(script, str(file)).stdout.strip() == "(2,)"


def test_import_time() -> None:
    """Under 60 ms beyond NumPy's own; of the processor, since the machine may have other work."""
    script = """
import numpy
from time import process_time
start = process_time()
import fixclf_infer.edge
print(process_time() - start)
"""
    assert min(float(run(script).stdout) for _ in range(7)) < 0.06


# The command line.


def test_command_line(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from typer.testing import CliRunner

    from fixclf_infer.cli import app

    path = tmp_path / "head.npz"
    result = CliRunner().invoke(app, ["export", "64", "100", str(path)])
    assert result.exit_code == 0 and f"wrote {path}" in result.stdout, result.output
    assert FixedHead.load(path).codebook.digest == codebook(64, 100).digest
    result = CliRunner().invoke(app, ["export", "64", "100", str(path), "--outputs", "topk"])
    assert result.exit_code == 1 and "an .npz file holds a head with all" in result.output
    result = CliRunner().invoke(app, ["export", "edge_factories:none", str(path)])
    assert result.exit_code == 1
