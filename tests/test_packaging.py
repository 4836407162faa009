"""Building and installing: what a fresh machine may lack, and what a distribution must hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from script import TESTS

ROOT = TESTS.parent


def tool(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to("/bin/true")
    return folder


@pytest.mark.parametrize(
    "there, message",
    [
        ((), "CMake is missing (looked for cmake); pip install cmake"),
        (("cmake",), "a build tool, ninja or make, is missing (looked for ninja, make); pip ins"),
        (("cmake", "make"), "a C++ compiler is missing (looked for c++, g++, clang++); apt inst"),
    ],
)
def test_a_missing_tool_is_named_in_one_sentence(
    there: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path / "lib")]
    path = {"PATH": str(tool(tmp_path / "bin", *there))}
    done = subprocess.run(command, cwd=ROOT, env=path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if "Warning" not in line]
    assert lines[-1].startswith(f"fixclf_infer can't be built: {message}")
    assert "Traceback" not in done.stderr


def test_the_source_distribution_holds_what_a_build_needs(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True, timeout=120)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files", "csrc", "cmake", "fixclf_infer", "triton_kernels", "CMakeLists.txt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("no git checkout")
    assert set(tracked.stdout.split()) <= names
    assert not any(name.endswith(".so") for name in names)


def test_no_library_names_the_building_machine() -> None:
    libraries = list((ROOT / "fixclf_infer").glob("*.so"))
    assert libraries
    for library in libraries:
        content = library.read_bytes()
        for path in (ROOT, Path(sys.prefix) / "lib", Path(sys.base_prefix) / "include"):
            assert str(path).encode() not in content, f"{library.name} holds {path}"
