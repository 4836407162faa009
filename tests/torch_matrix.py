"""The torch bindings with every torch that they claim (make test-torch-matrix).

For each version: its wheel is unpacked under build/, both bindings are compiled with its headers
and linked with its libraries, and where it can be imported (a CUDA build of torch can't without
CUDA's libraries), the operators run in it: those compiled with it, and those of this installation,
which were compiled with another. Prints a table; fails unless all that can run passes.

    python tests/torch_matrix.py [version ...]
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
VERSIONS = ("2.10.0", "2.11.0", "2.13.0", "newest")
KERNELS = BUILD / "cmake" / "libfixclf_kernels.a"
SHIPPED = ROOT / "fixclf_infer" / "libfixclf_torch.so"
CUDA = Path("/usr/local/cuda/include")
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"

# Runs in the torch under test: the operators' results are those of a dense product.
CHECK = """
import sys, torch
torch.ops.load_library(sys.argv[1])
x = torch.randn(5, 64)
h = torch.ones(1, 1)
while len(h) < 64:
    h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
assert torch.allclose(torch.ops.fixclf.hadamard_transform(x, 0.5), 0.5 * x @ h, atol=1e-4)
z = 7 * torch.nn.functional.normalize(x) @ h / 8
head = (x, torch.tensor(7.0), None, None, None, [64, 1, 6, 0, 0, 0, 0, 64, 0, 64], True)
assert torch.allclose(torch.ops.fixclf.head(*head, 1), z.softmax(-1), atol=1e-6)
assert torch.equal(torch.ops.fixclf.head_topk(*head, 3)[1], z.topk(3)[1])
try:
    torch.ops.fixclf.hadamard_transform(torch.ones(3, 12))
    raise SystemExit("no error")
except (ValueError, RuntimeError) as error:
    assert "expected a power of two" in str(error), error
print(torch.__version__)
"""


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    if done.returncode != 0:
        text = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in text if "rror" in line]
        raise RuntimeError((errors or text or ["failed"])[-1])
    return done.stdout.strip()


def unpack(version: str) -> Path:
    """A folder that holds the package torch of this version."""
    folder = BUILD / f"torch-{version}"
    if not (folder / "torch").exists():
        requirement = "torch" if version == "newest" else f"torch=={version}"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        run(*pip, "--dest", folder, requirement)
        for wheel in folder.glob("*.whl"):
            zipfile.ZipFile(wheel).extractall(folder)
            wheel.unlink()
    return folder


def build(folder: Path) -> Path:
    """Compiles both bindings with this torch and links that for the CPU, every symbol defined."""
    torch = folder / "torch"
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-isystem",
        torch / "include",
        TARGET,
        "-I",
        ROOT / "csrc",
    ]
    source = ROOT / "csrc" / "bindings" / "torch"
    run("g++", *flags, "-c", source / "ops.cc", "-o", folder / "ops.o")
    if CUDA.exists():
        run("g++", *flags, f"-I{CUDA}", "-c", source / "ops_cuda.cc", "-o", folder / "ops_cuda.o")
    library = folder / "libfixclf_torch.so"
    libraries = [KERNELS, torch / "lib" / "libtorch_cpu.so", "-Wl,-z,defs", "-lpthread"]
    link = ["g++", "-shared", "-o", library, folder / "ops.o", *libraries]
    run(*link, "-Wl,--allow-shlib-undefined", f"-Wl,-rpath-link,{torch / 'lib'}")
    return library


def check(version: str) -> str:
    folder = unpack(version)
    library = build(folder)
    cuda = "with CUDA's binding" if CUDA.exists() else "without CUDA's binding (no toolkit)"
    built = f"compiled and linked, {cuda}"
    python = (sys.executable, "-W", "ignore", "-c")
    try:
        run(*python, "import torch", PYTHONPATH=str(folder))
    except RuntimeError as error:
        return f"{built}; can't be imported here: {error}"
    for each in (library, SHIPPED):
        name = run(*python, CHECK, each, PYTHONPATH=str(folder))
    return f"{built}; {name}: its own build and this installation's run"


def main(versions: list[str]) -> int:
    failed = False
    for version in versions:
        try:
            print(f"torch {version}: {check(version)}", flush=True)
        except RuntimeError as error:
            print(f"torch {version}: FAILED, {error}", flush=True)
            failed = True
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(VERSIONS)))
