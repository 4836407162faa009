"""Files as they come: sessions, `verify`, the command line, and every way a file can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_tools  # noqa: F401  # skips without onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx_tools import LIBRARY, WAYS, change, needs_library, needs_topk, operators
from script import TESTS
from script import run as run_script
from typer.testing import CliRunner

from fixclf_infer import codebook, reference
from fixclf_infer.cli import app
from fixclf_infer.edge import FixedHead
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.fileformat import FORMAT_VERSION, checksum, scale_checksum
from fixclf_infer.onnx import Head, head_model, runtime, session, verify

FILES = TESTS / "files"
BOOK = codebook(12, 100, "search")  # sign masks and a base matrix


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "head.onnx"
    bias = np.linspace(-1, 1, 100)
    onnx.save(head_model(Head(BOOK, True, Epilogue.SOFTMAX), 9.0, bias), path)
    return path


# Sessions.


@pytest.mark.parametrize("library", WAYS)
def test_session(file: Path, library: bool) -> None:
    runtime = session(file, threads=2, library=library)
    assert runtime.get_session_options().intra_op_num_threads == 2
    (y,) = runtime.run(None, {"X": np.ones((3, 12), np.float32)})
    np.testing.assert_allclose(y.sum(-1), 1, atol=1e-6)


def test_session_refuses_negative_threads(file: Path) -> None:
    with pytest.raises(ValueError, match="threads is -1, expected 0 or more"):
        session(file, threads=-1)


def test_no_library(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "onnx" / "runtime.py"))
    with pytest.raises(ImportError, match=r"built without its ONNX Runtime operators: .* not"):
        session(file)
    assert session(file, library=False).get_inputs()[0].name == "X"


@pytest.mark.parametrize("name, package", [("session", "onnx"), ("export", "onnx")])
def test_what_is_not_installed(name: str, package: str) -> None:
    script = f"""
import sys
sys.modules[{package!r}] = None
import fixclf_infer.onnx
assert fixclf_infer.onnx.library_path
fixclf_infer.onnx.{name}("x.onnx", None, None) if {name!r} == "export" else (
    fixclf_infer.onnx.session("x.onnx"))
"""
    result = run_script(script, check=False)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fixclf_infer.onnx.")
    assert f"needs {package}, which is not installed; pip install 'fixclf_infer[onnx]'" in last


def test_importing_imports_nothing_heavy() -> None:
    script = """
import sys, fixclf_infer.onnx
fixclf_infer.onnx.library_path
print([m for m in ("torch", "onnx", "onnxruntime") if m in sys.modules])
"""
    assert run_script(script).stdout.strip() == "[]"


def test_the_process_ends_with_its_own_code_under_a_daemon_thread(file: Path) -> None:
    script = """
import sys, threading, time
import numpy as np
from fixclf_infer.onnx import session
runtime = session(sys.argv[1], library=False)
x = np.ones((2000, 12), np.float32)
def work():
    while True:
        runtime.run(None, {"X": x})
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
sys.exit(7)
"""
    result = run_script(script, str(file), check=False, timeout=60)
    assert (result.returncode, result.stderr) == (7, "")


# Files that are wrong.


def node_of(model: ModelProto) -> onnx.NodeProto:
    return model.graph.node[0]


def set_attribute(name: str, value: int) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        next(a for a in node_of(model).attribute if a.name == name).i = value

    return edit


def set_initialiser(name: str, value: np.ndarray) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(value, name))

    return edit


def tamper(name: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        bits = numpy_helper.to_array(tensor).copy()
        bits[0, 0] ^= 4
        tensor.CopyFrom(numpy_helper.from_array(bits, name))

    return edit


def drop_input(index: int) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        node_of(model).input[index] = ""

    return edit


def drop_attribute(model: ModelProto) -> None:
    del node_of(model).attribute[:1]


def rename_attribute(name: str, to: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        next(a for a in node_of(model).attribute if a.name == name).name = to

    return edit


def add_attribute(name: str, value: int | str) -> Callable[[ModelProto], None]:
    return lambda model: node_of(model).attribute.append(helper.make_attribute(name, value))


def rename_operator(name: str) -> Callable[[ModelProto], None]:
    """As onnx.compose does."""

    def edit(model: ModelProto) -> None:
        node_of(model).op_type = model.functions[0].name = name

    return edit


def set_metadata(key: str, value: str) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        values = {p.key: p.value for p in model.metadata_props} | {key: value}
        helper.set_model_props(model, values)

    return edit


def record_identity(**changes: object) -> Callable[[ModelProto], None]:
    return set_metadata("ai.fixclf.codebooks", json.dumps([BOOK.identity() | changes]))


def set_input(element: int, shape: list[int | str]) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        value = helper.make_tensor_value_info("X", element, shape)
        model.graph.input[0].CopyFrom(value)

    return edit


def no_bias_attribute(model: ModelProto) -> None:
    set_attribute("has_bias", 0)(model)


BAD = [
    (set_attribute("format_version", 3), "format_version is 3, written by a newer fixclf_infer"),
    (set_metadata("ai.fixclf.format_version", "3"), "format version is 3, written by a newer"),
    (record_identity(version=99), "records version 99 of the codebook 'search', but this fixclf"),
    (record_identity(kind="golay"), "records a codebook of unknown kind 'golay'"),
    (set_metadata("ai.fixclf.codebooks", "{"), "ai.fixclf.codebooks is not JSON of a code"),
    (set_metadata("ai.fixclf.codebook.1", "1"), "ai.fixclf.codebook.1 is not JSON of a codebook"),
    (tamper("signs"), "FixedHead 'head': an attribute, the sign masks or the base matrix were ch"),
    (tamper("base"), "FixedHead 'head': an attribute, the sign masks or the base matrix were ch"),
    (set_attribute("epilogue", 0), "FixedHead 'head': an attribute, the sign masks or the base m"),
    (set_initialiser("alpha", np.float32(9.5)), "FixedHead 'head': alpha or the bias was changed"),
    (set_initialiser("bias", np.ones(100, np.float32)), "'head': alpha or the bias was changed"),
    (rename_attribute("epilogue", "epilogux"), "FixedHead 'head': attribute epilogue is missing"),
    (add_attribute("kind", 1), "FixedHead 'head': attribute kind is unknown, expected format_ver"),
    (add_attribute("note", "text"), "FixedHead 'head': attribute note is no integer"),
    (rename_operator("a_FixedHead"), "the model has a node a_FixedHead, expected one of FixedHea"),
    (drop_input(2), "FixedHead 'head': bias is missing, but has_bias is 1"),
    (no_bias_attribute, "FixedHead 'head': a bias is given, but has_bias is 0"),
    (drop_input(3), "the sign masks or the base matrix were changed|num_classes is 100 from row"),
    (drop_input(4), "FixedHead 'head': base must be given exactly when base_order is not 1"),
    (drop_attribute, "FixedHead 'head': attribute format_version is missing"),
    (
        set_attribute("epilogue", 9),
        r"FixedHead 'head': epilogue is 9, expected one of 0 \(logits\)",
    ),
    (set_attribute("num_classes", 10**6), "num_classes is 1000000 from row|bias is float32"),
    (
        set_attribute("log2", 21),
        "FixedHead 'head': the order base_order \* 2\^log2 = 12 \* 2\^21 is over the limit",
    ),
    (
        set_attribute("in_features", 13),
        "FixedHead 'head': the codebook of order 12 can't hold 13 features",
    ),
    (set_attribute("center", 1), "FixedHead 'head': center needs one block"),
    (
        set_initialiser("alpha", np.ones(2, np.float32)),
        r"FixedHead 'head': alpha is float32 \[2\], expected one element of a float type",
    ),
    (
        set_initialiser("bias", np.ones(100, np.int32)),
        r"FixedHead 'head': bias is int32 \[100\], expected floats \[100\]",
    ),
    (
        set_initialiser("bias", np.ones((1, 100), np.float32)),
        r"FixedHead 'head': bias is float32 \[1, 100\], expected floats \[100\]",
    ),
    (
        set_initialiser("signs", np.zeros(2, np.uint8)),
        r"FixedHead 'head': signs is uint8 \[2\], expected a matrix of uint8",
    ),
    (
        set_initialiser("base", np.zeros((12, 2), np.int8)),
        r"FixedHead 'head': base is int8 \[12, 2\], expected a matrix of uint8",
    ),
    (set_input(TensorProto.DOUBLE, ["b", 12]), "X is DOUBLE, expected one of FLOAT, FLOAT16, BF"),
    (set_input(TensorProto.FLOAT, ["b", 13]), r"X is \['b', 13\], expected \[..., 12\]"),
    (set_input(TensorProto.FLOAT, []), r"X is \[\], expected \[..., 12\]"),
]


@pytest.mark.parametrize("edit, message", BAD)
def test_a_wrong_file_is_refused(
    edit: Callable[[ModelProto], None], message: str, file: Path, tmp_path: Path
) -> None:
    bad = change(file, tmp_path / "bad.onnx", edit)
    for use in (lambda: session(bad, library=False), lambda: verify(bad, library=False)):
        with pytest.raises(ValueError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_every_format_version_is_read(version: int) -> None:
    """tests/files holds a file of each, written by the release that had it, and their logits."""
    with np.load(FILES / "logits.npz") as file:
        x, logits = file["x"], file["logits"]
    probabilities = reference.apply_epilogue(logits, Epilogue.SOFTMAX)
    softmax, topk = (FILES / f"format{version}{end}.onnx" for end in ("", "_topk"))
    for library in (False, True) if LIBRARY else (False,):
        (y,) = session(softmax, library=library).run(None, {"X": x})
        np.testing.assert_allclose(y, probabilities, atol=1e-6)
        values, indices, _ = session(topk, library=library).run(None, {"X": x})
        np.testing.assert_array_equal(indices, np.argsort(-logits, axis=-1)[:, :3])
        np.testing.assert_allclose(values, np.take_along_axis(logits, indices, -1), atol=1e-5)
    for path in (softmax, topk, FILES / f"format{version}.npz"):
        np.testing.assert_allclose(FixedHead.load(path).logits(x), logits, atol=1e-5)


def test_a_name_that_is_no_text(file: Path, tmp_path: Path) -> None:
    damaged = file.read_bytes().replace(b"FixedHead", b"Fix\xff\xfeHead")
    (tmp_path / "bad.onnx").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"is damaged: a name in it is not UTF-8|not an ON"):
        session(tmp_path / "bad.onnx")


def test_k_out_of_range(tmp_path: Path) -> None:
    path = tmp_path / "k.onnx"
    onnx.save(head_model(Head(BOOK, False, k=5), 9.0), path)
    bad = change(path, path, set_attribute("k", 101))
    with pytest.raises(ValueError, match="FixedHeadTopK 'head': k is 101, expected 1 to 100"):
        session(bad)


def test_other_bits_with_a_right_checksum(file: Path, tmp_path: Path) -> None:
    """Only what the metadata records shows it."""

    def edit(model: ModelProto) -> None:
        tamper("signs")(model)
        value = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        fields = {a.name: a.i for a in node_of(model).attribute}
        set_attribute("checksum", checksum(fields, value["signs"], value["base"]))(model)

    bad = change(file, tmp_path / "bad.onnx", edit)
    with pytest.raises(ValueError, match="the metadata records 'search', but no head has its bits"):
        verify(bad, library=False)


def test_a_body_that_computes_something_else(file: Path, tmp_path: Path) -> None:
    """The file's own function is what runs, so `verify` must run that one."""

    def edit(model: ModelProto) -> None:
        (body,) = model.functions
        node = next(n for n in body.node if n.op_type == "Add")
        node.op_type = "Sub"

    bad = change(file, tmp_path / "bad.onnx", edit)
    assert not verify(bad, library=False).ok


def test_no_model_and_no_head(tmp_path: Path) -> None:
    text = tmp_path / "text.onnx"
    text.write_text("not a model")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX model"):
        session(text)
    with pytest.raises(FileNotFoundError):
        session(tmp_path / "none.onnx")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )
    onnx.save(helper.make_model(graph), tmp_path / "relu.onnx")
    with pytest.raises(ValueError, match=r"relu\.onnx has no head of domain ai\.fixclf"):
        verify(tmp_path / "relu.onnx")


def test_checksums() -> None:
    """Known values: FNV-1a of the empty string and of "foobar"; CRC-32 of "123456789"."""
    old = {"format_version": 1}
    assert checksum(old, None, None) == 0xCBF29CE484222325 - 2**64
    bits = np.frombuffer(b"foobar", np.uint8)
    assert checksum(old, bits[:3], bits[3:]) == 0x85944171F73967E8 - 2**64
    new = {"format_version": int.from_bytes(b"12345678", "little"), "checksum": 5}
    assert checksum(new, np.frombuffer(b"9", np.uint8), None) == 0xCBF43926
    floats = np.frombuffer(b"12345678", np.float32)
    assert scale_checksum(floats[:1], floats[1:], True) == 0x9AE0DAAF
    assert scale_checksum(floats[:1], None, True) == 0
    assert scale_checksum(floats[:1].astype(np.float16), None, False) == 0


def test_weights_in_another_file(file: Path, tmp_path: Path) -> None:
    """As exporters write large models."""
    model = onnx.load(file)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (tmp_path / "model.data").exists()
    assert verify(path, library=False).ok


# verify.


@pytest.mark.parametrize("library", WAYS)
def test_verify(file: Path, library: bool) -> None:
    found = verify(file, library=library, calls=3)
    assert found.ok
    assert found.codebooks == {"head": f"search, version {BOOK.version}"}
    ways = ["library", "portable"] if library else ["portable"]
    assert [(r.what, r.way) for r in found.results] == [
        (what, way) for what in ("head", "model") for way in ways
    ]
    for result in found.results:
        assert result.latency > 0
    assert 0 < found.results[0].error < found.results[0].bound == 1e-6


@pytest.mark.parametrize(
    "head, dtype, bound",
    [
        (Head(BOOK, False), "float32", 4 * 2**-23 * 9),
        (Head(BOOK, False, Epilogue.LOG_SOFTMAX), "float32", 4 * 2**-23 * (18 + np.log(100))),
        (Head(BOOK, False, Epilogue.SIGMOID), "int8", 1e-6),
        (Head(BOOK, False), "float16", 9 * 2**-10),
        (Head(BOOK, False), "bfloat16", 9 * 2**-7),
        (Head(BOOK, False, k=5), "float32", 4 * 2**-23 * (18 + np.log(100))),
        (Head(BOOK, False, k=5, log_probabilities=True), "bfloat16", 2e-5),
    ],
)
def test_verify_knows_every_output(head: Head, dtype: str, bound: float, tmp_path: Path) -> None:
    path = tmp_path / "head.onnx"
    onnx.save(head_model(head, 9.0, dtype=dtype), path)
    if dtype == "bfloat16":  # ONNX Runtime's Python API can't run the whole model
        path = change(path, path, _float32_at_the_edge)
    found = verify(path, library=False, calls=1)
    assert found.ok
    assert found.results[0].error > 0
    assert found.results[0].bound <= bound


def _float32_at_the_edge(model: ModelProto) -> None:
    graph = model.graph
    for value in (graph.input[0], graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    (node,) = graph.node
    node.input[0] = "x16"
    graph.node.insert(0, helper.make_node("Cast", ["X"], ["x16"], to=TensorProto.BFLOAT16))
    graph.value_info.append(helper.make_tensor_value_info("x16", TensorProto.BFLOAT16, ["b", 12]))
    if node.op_type == "FixedHead":
        graph.node[1].output[0] = "y16"
        graph.node.append(helper.make_node("Cast", ["y16"], ["Y"], to=TensorProto.FLOAT))


# The command.


def invoke(*arguments: object) -> str:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_export_and_verify_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "head.onnx"
    assert f"wrote {path}" in invoke("export", 24, 10, path, "--outputs", "softmax")
    assert operators(path) == ["FixedHead"]
    output = invoke("verify", path, "--no-library", "--calls", 2)
    assert "node_head: codebook hadamard, version 3" in output
    row = next(line for line in output.splitlines() if "portable" in line)
    assert "ok" in row


@needs_library
@needs_topk
def test_verify_with_the_library_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "head.onnx"
    invoke("export", 24, 10, path, "--outputs", "topk", "--k", 3)
    assert operators(path) == ["FixedHeadTopK"]
    assert invoke("verify", path, "--calls", 2).count("library") == 2


def test_export_of_a_factory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text(
        "import torch\nfrom fixclf_infer.nn import FixedClassifier\n"
        "def small():\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 8), FixedClassifier(8, 5))\n"
        "    return net, torch.zeros(2, 4)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "model.onnx"
    invoke("export", "my_models:small", path)
    assert operators(path) == ["Gemm", "FixedHead"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["export", "8", "many", "x.onnx"], "error: C is 'many', expected an integer"),
        (["export", "8", "x.onnx"], "error: the source is '8', expected N C or MODULE:FACTORY"),
        (["export", "json:nothing", "x.onnx"], "error: json has no factory 'nothing'"),
        (["export", "json:JSONDecoder", "x.onnx"], "returned no pair of a model and its example"),
        (["export", "8", "4", "x.onnx", "--outputs", "top"], "error: outputs is 'top', expected"),
        (["verify", "none.onnx"], "error: "),
    ],
)
def test_errors_of_the_command_are_one_line(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert message in result.output and result.output.count("\n") == 1


def test_a_wrong_file_ends_with_status_1(file: Path, tmp_path: Path) -> None:
    bad = change(file, tmp_path / "bad.onnx", tamper("base"))
    result = CliRunner().invoke(app, ["verify", str(bad)])
    assert result.exit_code == 1
    assert "the sign masks or the base matrix were changed" in result.output
