"""What the CUDA library's kernels use, from the machine code: registers and spills within the
budgets of cuda_resources.csv. No device takes part; run as a program it prints the table."""

from __future__ import annotations

import csv
import ctypes
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from fixclf_infer import loader

BUDGETS = Path(__file__).parent / "cuda_resources.csv"
FIELDS = ("kernel", "arch", "registers", "stack", "shared")
ARCHITECTURES = {"sm_80", "sm_90", "sm_100"}


def _cuobjdump() -> str | None:
    """The toolkit's, or the one inside the triton package."""
    if found := shutil.which("cuobjdump", path="/usr/local/cuda/bin") or shutil.which("cuobjdump"):
        return found
    triton = find_spec("triton")
    if triton is None or not triton.submodule_search_locations:
        return None
    inside = Path(triton.submodule_search_locations[0]) / "backends/nvidia/bin/cuobjdump"
    return str(inside) if inside.exists() else None


def _name(mangled: str) -> str:
    """kernel<Real, Epilogue or Gradient>, from the mangled name, whose parts it gives with their
    lengths."""
    parts, at = [], 0
    while match := re.compile(r"(?<!\d)(\d+)").search(mangled, at):
        length = int(match[1])
        parts.append(mangled[match.end() : match.end() + length])
        at = match.end() + length
        if parts[-1].endswith("_kernel"):
            kernel, real = parts[-1], {"f": "float", "d": "double"}[mangled[at + 1]]
        if parts[-1].endswith(("Epilogue", "Gradient")):
            return f"{kernel}<{real}, {parts[-1]}>"
        if parts[-1].endswith("Arguments"):
            return f"{kernel}<{real}>"
    raise ValueError(f"not a kernel's name: {mangled}")


def resources(library: Path, tool: str) -> list[dict[str, str]]:
    text = subprocess.run(
        [tool, "--dump-resource-usage", str(library)], capture_output=True, text=True, check=True
    ).stdout
    rows, arch = [], ""
    function = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")
    for line in re.sub(r":\s*\n\s*REG", ": REG", text).splitlines():
        if match := re.search(r"arch = (sm_\d+)", line):
            arch = match[1]
        if match := function.search(line):
            values = (_name(match[1]), arch, *match.groups()[1:])
            rows.append(dict(zip(FIELDS, values, strict=True)))
    return sorted(rows, key=lambda row: (row["arch"], row["kernel"]))


@pytest.fixture(scope="module")
def library() -> Path:
    path = loader.torch_cuda_library()
    if path is None:
        pytest.skip("the CUDA library is not built: no nvcc was found, or FIXCLF_CUDA is OFF")
    return path


def test_resources_are_within_their_budgets(library: Path) -> None:
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump: neither the CUDA toolkit nor the triton package has one here")
    with BUDGETS.open() as file:
        budgets = {(row["kernel"], row["arch"]): row for row in csv.DictReader(file)}
    got = resources(library, tool)
    assert {row["arch"] for row in got} == ARCHITECTURES
    assert {(row["kernel"], row["arch"]) for row in got} == set(budgets)
    for row in got:
        budget = budgets[row["kernel"], row["arch"]]
        for field in FIELDS[2:]:
            assert int(row[field]) <= int(budget[field]), (
                f"{row['kernel']} on {row['arch']} uses {row[field]} of {field}, "
                f"its budget is {budget[field]}"
            )
        # float64, which is for gradient checks, may: 32 doubles are 64 registers.
        if "<float" in row["kernel"]:
            assert row["stack"] == "0", f"{row['kernel']} on {row['arch']} spills"


def test_loads_against_nothing(library: Path) -> None:
    """All that it needs of others is torch's: on a CPU build of torch, which has no CUDA streams,
    exactly one symbol is missing."""
    import torch

    loader.load_torch_library()
    if torch.version.cuda is not None:
        ctypes.CDLL(str(library))
        return
    with pytest.raises(OSError, match="aoti_torch_get_current_cuda_stream"):
        ctypes.CDLL(str(library))
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout
    assert "cuda" not in undefined.replace("aoti_torch_get_current_cuda_stream", "").replace(
        "aoti_torch_device_type_cuda", ""
    ), "the CUDA runtime is not linked statically"


if __name__ == "__main__":
    import sys

    built, program = loader.torch_cuda_library(), _cuobjdump()
    assert built is not None and program is not None, "needs the CUDA library and cuobjdump"
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(resources(built, program))
