"""Importing the package: without torch, quickly, and with clear errors."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from script import run

import fixclf_infer

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


def test_importing_imports_no_torch() -> None:
    script = "import sys, fixclf_infer; print([m for m in sys.modules if m.startswith('torch')])"
    assert run(script).stdout.strip() == "[]"


def test_what_needs_no_torch_works_without_it() -> None:
    script = """
import numpy as np
import fixclf_infer
from fixclf_infer import _native, reference
from fixclf_infer.epilogue import Epilogue
book = fixclf_infer.codebook(12, 24)
assert book.matrix().shape == (24, 12) and set(np.unique(book.rows([0, 5]))) == {-1, 1}
x = np.arange(16, dtype=np.float32).reshape(2, 8)
assert np.array_equal(fixclf_infer.hadamard_transform(x), reference.hadamard_transform(x))
z = reference.head(np.ones((1, 12)), book.matrix(), 2.0, None, Epilogue.LOGITS)
assert np.allclose(z[0], 2 * book.matrix().sum(1) / 12) and abs(z).max() > 0
assert fixclf_infer.Codebook is type(book)
print("ok")
"""
    assert run(WITHOUT_TORCH + script).stdout.strip() == "ok"


def test_the_numpy_path_and_the_command_leave_torch_alone() -> None:
    script = """
import sys
import numpy as np
import fixclf_infer, fixclf_infer.backends, fixclf_infer.cli
fixclf_infer.hadamard_transform(np.ones(8, np.float32))
fixclf_infer.codebook(16, 100).matrix()
fixclf_infer.backends.describe()
print("torch" in sys.modules)
"""
    assert run(script).stdout.strip() == "False"


@pytest.mark.parametrize(
    "use", ["fixclf_infer.nn", "fixclf_infer.nn.FixedClassifier(8, 4)", "fixclf_infer.ops"]
)
def test_what_needs_torch_says_so(use: str) -> None:
    result = run(WITHOUT_TORCH + f"import fixclf_infer\n{use}", check=False)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(("ImportError", "ModuleNotFoundError"))
    assert "fixclf_infer" in last and "needs torch, which is not installed" in last
    assert "pip install 'fixclf_infer[torch]'" in last


def test_a_tensor_like_object_without_torch_is_refused() -> None:
    script = """
import fixclf_infer
try:
    fixclf_infer.hadamard_transform([1.0, 2.0])
except TypeError as error:
    print(error)
"""
    message = "x is a list, expected a torch.Tensor or a numpy.ndarray"
    assert run(WITHOUT_TORCH + script).stdout.strip() == message


def test_import_time() -> None:
    """Under 0.15 s beyond the interpreter's own start, NumPy included where it is needed."""
    script = """
from time import process_time
start = process_time()
import fixclf_infer
print(process_time() - start)
"""
    assert min(float(run(script).stdout) for _ in range(5)) < 0.15


def test_names() -> None:
    assert set(fixclf_infer.__all__) <= set(dir(fixclf_infer))
    for name in fixclf_infer.__all__:
        assert getattr(fixclf_infer, name) is not None
    assert re.fullmatch(r"\d+\.\d+\.\d+", fixclf_infer.__version__)
    with pytest.raises(AttributeError, match="'fixclf_infer' has no attribute 'hadamard'"):
        _ = fixclf_infer.hadamard


def imports(path: Path, package: Path) -> set[Path]:
    """The package's own files that a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        folder = path.parents[node.level - 1]
        base = folder.joinpath(*(node.module or "").split(".")) if node.module else folder
        for alias in node.names:
            places = (base / alias.name, base)  # a module of that name, or a name in the module
            files = [f for p in places for f in (p.with_suffix(".py"), p / "__init__.py")]
            first = next((file for file in files if file.is_file()), path)
            found.add(first)
    return found - {path, package / "__init__.py"}


def test_no_import_circles() -> None:
    """Files form levels: one imports only those below it. Imports within functions do not count."""
    package = Path(fixclf_infer.__file__).parent
    above = {path: imports(path, package) for path in package.rglob("*.py")}
    assert len(above) > 60
    while above:
        ground = [path for path, needs in above.items() if not needs & above.keys()]
        assert ground, f"these import each other: {sorted(str(p) for p in above)}"
        for path in ground:
            del above[path]
