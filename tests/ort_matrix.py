"""One binary of the operator library in every ONNX Runtime that it claims (make test-ort-matrix).

Each version is installed into a virtual environment of its own under build/, where models written
here are run and compared with the oracle. Prints a table; fails unless everything passes.

    python tests/ort_matrix.py [version ...]
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "fixclf_infer" / "libfixclf_onnxruntime.so"
MODELS = ROOT / "build" / "ort-models"
VERSIONS = ("1.17.3", "1.18.1", "1.20.1", "1.23.2", "newest")
NEEDS_NUMPY_1 = ("1.17.", "1.18.")


# In the environment of this project.


def write_models() -> None:
    """<name>.onnx with <name>.npz (X, and for each output i want<i> and bound<i>); one that is
    portable runs without the library as well. bad/<name>.onnx with <name>.txt, a part of the
    message."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import numpy as np
    import ort_models
    import tolerances
    from cases import NUMPY_DTYPES, expand, scale_of

    from fixclf_infer import codebook, reference
    from fixclf_infer.epilogue import Epilogue
    from fixclf_infer.onnx import Head, head_model

    (MODELS / "bad").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def save(name: str, model: bytes, x: Any, *outputs: tuple[Any, Any]) -> None:
        (MODELS / f"{name}.onnx").write_bytes(model)
        arrays = {"X": x.astype(np.float32)}
        for i, (want, bound) in enumerate(outputs):
            arrays |= {f"want{i}": want, f"bound{i}": bound}
        np.savez(MODELS / f"{name}.npz", **arrays)

    kerdock = codebook(16, 100, "kerdock")
    bias = np.linspace(-1, 1, 100, dtype=np.float32)
    for name, dtype, book, b in (
        ("float32", "float32", codebook(64, 100), bias),
        ("float16", "float16", codebook(64, 100), bias),
        ("bfloat16", "bfloat16", codebook(64, 100), bias),
        ("kerdock", "float32", kerdock, bias),
        ("base-without-signs", "float32", codebook(100, 99), bias),
        ("signs-without-bias", "float32", kerdock, None),
    ):
        x = rng.standard_normal((7, book.in_features)).astype(NUMPY_DTYPES[dtype])
        model = ort_models.head(book, 5.0, b, Epilogue.SOFTMAX, dtype=dtype)
        matrix = expand(book)
        want = reference.head(x.astype(np.float64), matrix, 5.0, b, Epilogue.SOFTMAX)
        scale = scale_of(matrix, 5.0, b)
        save(name, model, x, (want, tolerances.probability(want, scale, dtype, dtype)))

    matrix, scale = expand(kerdock), scale_of(expand(kerdock), 5.0, bias)
    x = rng.integers(-128, 128, (7, 16)).astype(np.int8)
    want = reference.head(x.astype(np.float64), matrix, 5.0, bias, Epilogue.SOFTMAX)
    model = ort_models.head(kerdock, 5.0, bias, Epilogue.SOFTMAX, dtype="int8")
    save("int8", model, x, (want, tolerances.probability(want, scale, "float32", "float32")))
    x = rng.standard_normal((7, 16)).astype(np.float32)
    z = reference.logits(x.astype(np.float64), matrix, 5.0, bias)
    values, indices = reference.topk(z, 5)
    logsumexp = reference.logsumexp(z)[:, 0]
    top_k = (
        (values, tolerances.logits(values, scale, "float32", "float32")),
        (indices, 0),
        (logsumexp, tolerances.logsumexp(logsumexp, scale, "float32", 100)),
    )
    model = ort_models.top_k(kerdock, 5, 5.0, bias, x_shape=["batch", 16])
    save("top-k", model, x, *top_k)
    # The portable body, in float32 as ONNX Runtime's own operators add.
    loose = [(want, np.max(bound) * 8) for want, bound in top_k]
    model = head_model(Head(kerdock, True, k=5), 5.0, bias).SerializeToString()
    save("portable-top-k", model, x, *loose)
    want = reference.head(x.astype(np.float64), matrix, 5.0, bias, Epilogue.SOFTMAX)
    model = head_model(Head(kerdock, True, Epilogue.SOFTMAX), 5.0, bias).SerializeToString()
    save("portable", model, x, (want, 1e-6))

    x = rng.standard_normal((3, 64)).astype(np.float32)
    want = reference.hadamard_transform(x)
    bound = tolerances.transform(want, 6, "float32")[:, None]
    save("transform", ort_models.transform(["b", 64], 1.0, "float32"), x, (want, bound))

    for name, replace, message in (
        ("newer-format", {"format_version": 3}, "newer fixclf_infer"),
        ("tampered", {"checksum": 1}, "were changed"),
        ("no-bias", {"bias": None}, "bias is missing"),
    ):
        model = ort_models.head(kerdock, 5.0, bias, replace=replace)
        (MODELS / "bad" / f"{name}.onnx").write_bytes(model)
        (MODELS / "bad" / f"{name}.txt").write_text(message)


def environment(version: str) -> Path:
    """The Python of the environment that has this ONNX Runtime."""
    folder = ROOT / "build" / f"ort-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = ["onnxruntime" if version == "newest" else f"onnxruntime=={version}"]
    if version.startswith(NEEDS_NUMPY_1):
        packages.append("numpy<2")
    install = [str(python), "-m", "pip", "install", "--quiet", "--upgrade", *packages]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"could not be installed: {done.stderr.strip().splitlines()[-1]}")
    return python


def run(version: str) -> dict[str, Any]:
    """What `check` found in a process of that version."""
    command = [str(environment(version)), __file__, "--check"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if child.returncode != 0:
        raise RuntimeError(f"exit status {child.returncode}: {child.stderr.strip()[-500:]}")
    report: dict[str, Any] = json.loads(child.stdout)
    return report


def main(versions: list[str]) -> int:
    write_models()
    failed = False
    print(f"{'version':8} {'ran':8} {'python':8} {'numpy':8} checks")
    for version in versions:
        try:
            report = run(version)
        except RuntimeError as error:
            failed = True
            print(f"{version:8} {error}")
            continue
        failed |= bool(report["errors"])
        print(
            f"{version:8} {report['ran']:8} {report['python']:8} {report['numpy']:8} "
            f"{report['passed']} passed, {len(report['errors'])} failed"
        )
        for name, message in report["errors"].items():
            print(f"    {name}: {message}")
    return int(failed)


# In the environment of each version: NumPy and ONNX Runtime only.


def check() -> None:
    import numpy as np
    import onnxruntime

    def session(model: Path, threads: int, library: bool = True) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        if library:
            options.register_custom_ops_library(str(LIBRARY))
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    passed, errors = 0, {}
    for path in sorted(MODELS.glob("*.onnx")):
        data = np.load(path.with_suffix(".npz"))
        try:
            sessions = [session(path, 1), session(path, 2)]
            if path.name.startswith("portable"):
                sessions.append(session(path, 1, library=False))
            for runner in sessions:
                for i, y in enumerate(runner.run(None, {"X": data["X"]})):
                    want, bound = data[f"want{i}"], data[f"bound{i}"]
                    assert y.shape == want.shape, f"output {i} has shape {y.shape}"
                    assert (np.abs(y - want) <= bound).all(), f"output {i} is outside its bound"
            passed += 1
        except Exception as error:
            errors[path.stem] = str(error).splitlines()[0]
    for path in sorted(MODELS.glob("bad/*.onnx")):
        message = "was not refused"
        try:
            session(path, 1)
        except Exception as error:
            message = str(error).splitlines()[0]
        if path.with_suffix(".txt").read_text() in message:
            passed += 1
        else:
            errors[path.stem] = message
    report = {"ran": onnxruntime.__version__, "python": sys.version.split()[0]}
    report |= {"numpy": np.__version__, "passed": passed, "errors": errors}
    print(json.dumps(report))


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        check()
    else:
        sys.exit(main(sys.argv[1:] or list(VERSIONS)))
