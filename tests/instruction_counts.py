"""How many instructions a row takes in the hot kernels, on AVX2: what callgrind counts, which
repeats exactly for one compiler and one C library. Run as a program it rewrites the rows of this
machine's compiler in the table (after a look at what has changed)."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = Path(__file__).with_suffix(".csv")
BUILD = ROOT / "build" / "cmake"
ISA = "v3"  # valgrind knows no AVX-512
ROWS = 4  # csrc/tests/counted.cc
# What the table's functions are called in libfixclf_kernels.a, and nothing around them.
_COUNTED = ("*head_rows*", "*transform_problem*", "*reduction_backward_part*")


def compiler() -> str:
    """The compiler of the kernels with its first two numbers, 'GNU 12.2'."""
    (file,) = BUILD.glob("CMakeFiles/*/CMakeCXXCompiler.cmake")
    fields = dict(re.findall(r'set\((CMAKE_CXX_COMPILER\w*) "([^"]*)"\)', file.read_text()))
    version = ".".join(fields["CMAKE_CXX_COMPILER_VERSION"].split(".")[:2])
    return f"{fields['CMAKE_CXX_COMPILER_ID']} {version}"


def missing() -> str | None:
    """Why nothing can be counted here."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        return "there is no C++ compiler"
    if not (BUILD / "libfixclf_kernels.a").is_file():
        return f"{BUILD} holds no kernels, which `make install` builds"
    return None


def count() -> dict[str, int]:
    """Instructions a row, by case."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "counted"
        cxx = os.environ.get("CXX", "c++")
        flags = ["-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", "-pthread"]
        sources = [ROOT / "csrc/tests/counted.cc", BUILD / "libfixclf_kernels.a"]
        subprocess.run([cxx, *flags, "-o", program, *sources], check=True)
        listed = subprocess.run([program], capture_output=True, text=True, check=True)
        return {name: _collected(program, name) // ROWS for name in listed.stdout.splitlines()}


def _collected(program: Path, name: str) -> int:
    toggles = [f"--toggle-collect={function}" for function in _COUNTED]
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *toggles]
    run = subprocess.run([*command, program, ISA, name], capture_output=True, text=True, check=True)
    match = re.search(r"Collected : (\d+)", run.stderr)
    assert match and int(match[1]) > 0, run.stderr
    return int(match[1])


def table() -> dict[tuple[str, str], int]:
    """(compiler, case) to the instructions recorded."""
    with TABLE.open(newline="") as file:
        return {(row["compiler"], row["case"]): int(row["a row"]) for row in csv.DictReader(file)}


def main() -> None:
    if reason := missing():
        sys.exit(f"nothing can be counted: {reason}")
    rows = {key: n for key, n in (table() if TABLE.exists() else {}).items()}
    rows = {key: n for key, n in rows.items() if key[0] != compiler()}
    rows |= {(compiler(), name): n for name, n in count().items()}
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["compiler", "case", "a row"])
        writer.writerows([*key, n] for key, n in sorted(rows.items()))


if __name__ == "__main__":
    main()
