"""Damaged files, for every reader: no crash, no hang, no memory beyond what the file can need, and
no answer that is not the file's own.

python tests/fuzz.py [mutations] [seed]    # of each target, 2500 by default; `make fuzz`

A file is of the newest format, whose checksums cover α, the bias and all that describes the head.
Each target runs in a process of its own, which a crash or a hang ends; the number of the mutation
is what to reproduce it with.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import subprocess
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from fixclf_infer import codebook
from fixclf_infer.edge import FixedHead

Answers = dict[str, np.ndarray]

BOOK = codebook(12, 20, "search")  # sign masks and a base matrix
BIAS = np.linspace(-1, 1, 20, dtype=np.float32)
X = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
SECONDS = 20  # for one file, on a machine that is busy
SPARE = 2**20  # bytes beside ten times the file: the interpreter's own


def npz() -> bytes:
    file = io.BytesIO()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "head.npz"
        FixedHead(BOOK, 9.0, BIAS).save(path)
        file.write(path.read_bytes())
    return file.getvalue()


def onnx_file(portable: bool, **options: Any) -> bytes:
    from fixclf_infer.onnx import Head, head_model

    model = head_model(Head(BOOK, True, **options), 9.0, BIAS, portable=portable)
    return bytes(model.SerializeToString())


def softmax() -> bytes:
    from fixclf_infer.epilogue import Epilogue

    return onnx_file(False, epilogue=Epilogue.SOFTMAX)


def by_edge(path: Path) -> Answers:
    head = FixedHead.load(path)
    return {"logits": head.logits(X), "argmax": head.argmax(X)}


def answers_of(runtime: Any) -> Answers:
    names = [output.name for output in runtime.get_outputs()]
    (given, *_) = runtime.get_inputs()
    return dict(zip(names, runtime.run(names, {given.name: X}), strict=True))


def by_library(path: Path) -> Answers:
    import onnxruntime

    from fixclf_infer.onnx import library_path

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library_path()))
    content = path.read_bytes()
    return answers_of(onnxruntime.InferenceSession(content, options, enable_fallback=0))


def by_session(path: Path) -> Answers:
    import onnxruntime

    from fixclf_infer.onnx import session

    onnxruntime.set_default_logger_severity(4)
    runtime = session(path)
    try:
        return answers_of(runtime)
    except Exception as error:  # the file's inputs are others now
        raise ValueError(str(error)) from error


# Name: the good file, its reader, and what the reader may raise.
TARGETS: dict[str, tuple[Callable[[], bytes], Callable[[Path], Answers], type[Exception]]] = {
    "edge-npz": (npz, by_edge, ValueError),
    "edge-onnx": (softmax, by_edge, ValueError),
    "library": (softmax, by_library, Exception),
    "session": (lambda: onnx_file(True, k=3), by_session, ValueError),
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One damage: of a bit, a byte, a few bytes, or a part that is lost, doubled or zero."""
    data, at = bytearray(content), int(rng.integers(len(content)))
    end = min(len(data), at + int(rng.integers(1, 1 + min(64, len(data)))))
    kind = rng.integers(8)
    if kind < 3:
        data[at] ^= 1 << int(rng.integers(8))
    elif kind == 3:
        data[at] = int(rng.choice([0, 0x7F, 0x80, 0xFF]))
    elif kind == 4:
        data[at:end] = rng.bytes(end - at)
    elif kind == 5:
        del data[at : end if rng.random() < 0.5 else None]
    elif kind == 6:
        data[at:at] = data[at:end]
    else:
        data[at:end] = bytes(end - at)
    return bytes(data)


def damaged(name: str, content: bytes, rng: np.random.Generator) -> bytes:
    """Half of the archives are damaged within, under a right checksum of the archive."""
    if name != "edge-npz" or rng.random() < 0.5:
        return mutated(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        entries = {entry: file.read(entry) for entry in file.namelist()}
    entry = str(rng.choice(list(entries)))
    entries[entry] = mutated(entries[entry], rng)
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as file:
        for each, data in entries.items():
            file.writestr(each, data)
    return changed.getvalue()


def same(got: Answers, want: Answers) -> bool:
    """Of the results that are still there under their names."""
    return all(
        got[name].shape == want[name].shape and np.array_equal(got[name], want[name])
        for name in got.keys() & want.keys()
    )


def worker(name: str, mutations: int, seed: int, folder: str) -> None:
    """Writes what is wrong into folder/wrong, and the number of the mutation under way."""
    make, read, allowed = TARGETS[name]
    content, path = make(), Path(folder) / "file"
    path.write_bytes(content)
    want = read(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wrong, refused = [], 0
    for number in range(mutations):
        rng = np.random.default_rng([seed, number])
        (Path(folder) / "number").write_text(str(number))
        path.write_bytes(damaged(name, content, rng))
        signal.alarm(SECONDS)
        tracemalloc.start()
        try:
            if not same(read(path), want):
                wrong.append(f"{number}: another answer")
        except allowed:
            refused += 1
        except Exception as error:
            wrong.append(f"{number}: {type(error).__name__}: {error}")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if peak > 10 * path.stat().st_size + SPARE:
            wrong.append(f"{number}: {peak} bytes for a file of {path.stat().st_size}")
    signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if grown > 200 * 1024:  # what Python does not trace; ONNX Runtime keeps some
        wrong.append(f"the process grew by {grown} KB")
    (Path(folder) / "result").write_text(json.dumps({"wrong": wrong, "refused": refused}))


def run(name: str, mutations: int, seed: int) -> tuple[list[str], int]:
    """What is wrong, and how many files were refused."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "worker", name, str(mutations), str(seed), folder]
        done = subprocess.run(command, capture_output=True, text=True)
        result = Path(folder) / "result"
        if done.returncode or not result.exists():
            number = (Path(folder) / "number").read_text()
            return [f"{number}: the process ended with {done.returncode}: {done.stderr}"], 0
        found = json.loads(result.read_text())
        return found["wrong"], found["refused"]


def main(mutations: int = 2500, seed: int = 1) -> int:
    failed = 0
    for name in TARGETS:
        wrong, refused = run(name, mutations, seed)
        print(f"{name}: {mutations} mutations, {refused} refused, {len(wrong)} wrong", flush=True)
        for line in wrong[:20]:
            print(f"  {line}")
        failed += bool(wrong)
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        sys.exit(main(*map(int, sys.argv[1:])))
