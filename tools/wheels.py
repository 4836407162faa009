"""Wheels and the source distribution in dist/, and tests of them in fresh environments.

python tools/wheels.py build python3.10 python3.12 …
python tools/wheels.py test python3.10 python3.12 … -- torch==2.10.0 torch==2.13.0

A wheel is for one version of Python: the NumPy module is made with pybind11, which has no stable
ABI (abi3). The kernels and the other libraries do not depend on it and are compiled once for all:
an interpreter needs pybind11 only, and torch's headers come from the environment of this script.
auditwheel names the oldest glibc that a wheel runs on: that of the building machine, about. Linking
libstdc++ statically raised it there (Debian 12: from 2.35 to 2.36, which its random_device wants).
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
# torch is loaded before our library, in whatever version there is.
EXCLUDED = ("libtorch_cpu.so", "libtorch.so", "libc10.so")
BUILD = ("setuptools>=77", "wheel", "pybind11>=3.0")

SMOKE = """
import subprocess, sys, tempfile
import numpy as np
from fixclf_infer import codebook, reference
from fixclf_infer.edge import FixedHead
book = codebook(60, 200)
x = np.random.default_rng(0).standard_normal((5, 60)).astype(np.float32)
want = reference.logits(x, book.matrix(), 9.0, None)
with tempfile.TemporaryDirectory() as folder:
    FixedHead(book, 9.0).save(folder + "/head.npz")
    head = FixedHead.load(folder + "/head.npz")
np.testing.assert_allclose(head.logits(x), want, atol=1e-5)
assert "torch" not in sys.modules
daemon = '''
import sys, threading, time
import numpy as np
from fixclf_infer import codebook, edge
head, x = edge.FixedHead(codebook(64, 3000), 9.0), np.ones((2000, 64), np.float32)
def work():
    while True:
        head.logits(x)
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
sys.exit(7)
'''
assert subprocess.run([sys.executable, "-c", daemon]).returncode == 7
if sys.argv[1:]:
    import torch
    from fixclf_infer.nn import FixedClassifier
    module = FixedClassifier(60, 200, codebook=book, alpha=9.0)
    z = module(torch.from_numpy(x).requires_grad_())
    z.sum().backward()
    np.testing.assert_allclose(z.detach().numpy(), want, atol=1e-5)
print("ok:", sys.version.split()[0], "numpy", np.__version__, *sys.argv[1:])
"""


def run(*command: object, **options: object) -> str:
    """Its output; all of it is shown when the command fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def environment(python: str, folder: str, *packages: object) -> Path:
    """A fresh virtual environment's interpreter."""
    run(python, "-m", "venv", folder)
    fresh = Path(folder) / "bin" / "python"
    run(fresh, "-m", "pip", "install", "-qq", *packages)
    return fresh


def build(pythons: list[str]) -> None:
    DIST.mkdir(exist_ok=True)
    torch = Path(next(iter(importlib.util.find_spec("torch").submodule_search_locations)))  # type: ignore[union-attr, arg-type]
    options = f"-DFIXCLF_CUDA=OFF -DFIXCLF_TORCH_DIR={torch}"
    variables = {**os.environ, "FIXCLF_CMAKE_ARGS": options}
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "-o", DIST, ROOT)
    for python in pythons:
        for old in (ROOT / "build").glob("lib*"):  # setuptools packs whatever is there
            shutil.rmtree(old)
        with TemporaryDirectory() as folder, TemporaryDirectory() as wheels:
            fresh = environment(python, folder, *BUILD)
            command = (fresh, "-m", "pip", "wheel", "-qq", "--no-build-isolation", "--no-deps")
            run(*command, "-w", wheels, ROOT, env=variables)
            (wheel,) = Path(wheels).iterdir()
            excluded = [option for name in EXCLUDED for option in ("--exclude", name)]
            repair = (sys.executable, "-m", "auditwheel", "repair", "--strip", *excluded)
            run(*repair, "-w", DIST, wheel)
    for wheel in sorted(DIST.glob("*.whl")):
        check_contents(wheel)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB")


def check_contents(wheel: Path) -> None:
    """It has the three libraries and no path of this machine."""
    paths = [str(p).encode() for p in (ROOT, Path(sys.prefix), Path(sys.base_prefix), Path.home())]
    with zipfile.ZipFile(wheel) as archive:
        libraries = sorted(name for name in archive.namelist() if name.endswith(".so"))
        expected = ["_native.", "libfixclf_onnxruntime.so", "libfixclf_torch.so"]
        for library, name in itertools.zip_longest(libraries, expected, fillvalue="nothing"):
            if not library.startswith(f"fixclf_infer/{name}"):
                raise SystemExit(f"{wheel.name}: holds {library}, expected {name}")
        for name in archive.namelist():
            content = archive.read(name)
            for path in paths:
                if path in content:
                    raise SystemExit(f"{wheel.name}: {name} holds {path.decode()}")


def test(pythons: list[str], torches: list[str]) -> None:
    for python in pythons:
        version = run(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
        wheels = sorted(DIST.glob(f"*-{version}-{version}-*.whl"))
        if not wheels:
            raise SystemExit(f"dist/ has no wheel for {version}: make wheel PYTHONS={python}")
        with TemporaryDirectory() as folder:
            fresh = environment(python, folder, wheels[-1])
            print(run(fresh, "-c", SMOKE, cwd=folder), end="", flush=True)
            for torch in torches:
                run(fresh, "-m", "pip", "install", "-qq", torch)
                print(run(fresh, "-c", SMOKE, torch, cwd=folder), end="", flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:]
    at = rest.index("--") if "--" in rest else len(rest)
    if what == "build":
        build(rest[:at])
    else:
        test(rest[:at], rest[at + 1 :])
