"""What each Triton kernel takes of a GPU, compiled ahead of time without one.

    python tests/triton_resources.py    writes tests/triton_resources.csv, a budget: the tests fail
                                        where a kernel takes more

A kernel is compiled as the operators launch it: each of CASES calls an operator on tensors without
data, and what it would have launched is recorded.
"""

from __future__ import annotations

import csv
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import fixclf_infer
from fixclf_infer import ops
from fixclf_infer.epilogue import Epilogue

TABLE = Path(__file__).with_suffix(".csv")
ARCHITECTURES = (80, 90, 100)
COLUMNS = ("case", "kernel", "sm", "warps", "registers", "shared_bytes", "spill_bytes")
_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.int8: "*i8",
}


def head_arguments(
    n: int, c: int, kind: str = "auto", dtype: torch.dtype = torch.float32, batch: int = 64
) -> tuple[Any, ...]:
    base, signs, geometry = ops.codebook_arguments(fixclf_infer.codebook(n, c, kind))
    bits = [None if each is None else each.to("meta") for each in (base, signs)]
    x = torch.empty(batch, n, dtype=dtype, device="meta")
    alpha, bias = torch.empty((), device="meta"), torch.empty(c, device="meta")
    return (x, alpha, bias, *bits, geometry, True)


def _transform(n: int, dtype: torch.dtype = torch.float32) -> Callable[[Any], Any]:
    return lambda op: op.hadamard_transform(torch.empty(64, n, dtype=dtype, device="meta"))


def _head(*arguments: Any, epilogue: Epilogue = Epilogue.SOFTMAX, **options: Any) -> Any:
    return lambda op: op.head(*head_arguments(*arguments, **options), int(epilogue))


def _topk(k: int, *arguments: Any) -> Callable[[Any], Any]:
    return lambda op: op.head_topk(*head_arguments(*arguments), k)


def _log_prob(*arguments: Any) -> Callable[[Any], Any]:
    ids = torch.empty(64, dtype=torch.int64, device="meta")
    return lambda op: op.head_log_prob(*head_arguments(*arguments), ids)


CASES: dict[str, Callable[[Any], Any]] = {
    "transform n512": _transform(512),
    "transform n2048 bfloat16": _transform(2048, torch.bfloat16),
    "transform n16384": _transform(16384),
    "softmax N2048 C1000": _head(2048, 1000),
    "softmax N2048 C1000 one row": _head(2048, 1000, batch=1),
    "softmax N2048 C1000 bfloat16": _head(2048, 1000, dtype=torch.bfloat16),
    "log-softmax N768 C1000 (base 12)": _head(768, 1000, epilogue=Epilogue.LOG_SOFTMAX),
    "softmax N256 C200 centred": _head(256, 200, "etf"),
    "softmax N512 C100000": _head(512, 100000),
    "top-5 N512 C100000": _topk(5, 512, 100000),
    "top-100 N2048 C1000": _topk(100, 2048, 1000),
    "log-probability N512 C100000": _log_prob(512, 100000),
}


def launches(case: str) -> list[tuple[Any, dict[str, Any]]]:
    """The kernels, and their arguments, that a case launches."""
    from fixclf_infer.triton_kernels import ops as operators

    recorded: list[tuple[Any, dict[str, Any]]] = []

    def record(kernel: Any, programs: int, **arguments: Any) -> None:
        recorded.append((kernel, arguments))

    plain = mock.Mock()
    for name in ("hadamard_transform", "head", "head_topk", "head_log_prob"):
        setattr(plain, name, getattr(operators, name))
    with mock.patch.object(operators, "launch", record):
        CASES[case](plain)
    return recorded


def compile_kernel(kernel: Any, arguments: dict[str, Any], sm: int, warps: int) -> Any:
    """The kernel for an architecture, as a launch with these arguments would compile it."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = _POINTERS[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32"
            if not parameter.do_not_specialize and value % 16 == 0:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=GPUTarget("cuda", sm, 32),
        options={"num_warps": warps, "num_stages": 1, "enable_fp_fusion": False},
    )


def resources(compiled: Any) -> dict[str, int]:
    """Registers a thread, shared memory and spills, as the cubin states them."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [tools / "cuobjdump", "-res-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        )
    usage = text.stdout + text.stderr
    number = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return {
        "registers": number["REG"],
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": number["STACK"] + number["LOCAL"],
    }


def rows(case: str, sm: int) -> Iterator[dict[str, Any]]:
    """What a case's kernels take, one row of the table each."""
    from fixclf_infer.triton_kernels.launch import warps_for

    for kernel, arguments in launches(case):
        warps = warps_for(arguments)[0]
        compiled = compile_kernel(kernel, arguments, sm, warps)
        identity = {"case": case, "kernel": kernel.__name__, "sm": sm, "warps": warps}
        yield {**identity, **resources(compiled)}


def main() -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in CASES:
            for sm in ARCHITECTURES:
                writer.writerows(rows(case, sm))


if __name__ == "__main__":
    main()
