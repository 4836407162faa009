"""The Triton kernels compiled for sm_80, 90 and 100 without a GPU: no spills, and no more registers
and shared memory than triton_resources.csv allows; shapes of what the operators return, traced."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fixclf_infer import backends

if not backends.has_triton():

    def test_compile(note: Callable[[str], None]) -> None:
        note("Triton kernels, compiled ahead of time: SKIPPED, triton is not installed")
        pytest.skip("triton is not installed")

else:
    import triton
    import triton_resources as table

    def version() -> tuple[int, ...]:
        return tuple(map(int, triton.__version__.split(".")[:2]))

    @pytest.fixture(autouse=True, scope="module")
    def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
        """So that everything is compiled, and now."""
        patch = pytest.MonkeyPatch()
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield
        patch.undo()

    @pytest.fixture(scope="module")
    def budget() -> dict[tuple[str, str, int], dict[str, str]]:
        with table.TABLE.open(newline="") as file:
            return {
                (row["case"], row["kernel"], int(row["sm"])): row for row in csv.DictReader(file)
            }

    @pytest.mark.parametrize("sm", table.ARCHITECTURES)
    @pytest.mark.parametrize("case", table.CASES)
    def test_resources(case: str, sm: int, budget: Any, note: Callable[[str], None]) -> None:
        if (case, sm) == (next(iter(table.CASES)), table.ARCHITECTURES[0]):
            sms = ", ".join(f"sm_{each}" for each in table.ARCHITECTURES)
            note(f"Triton {triton.__version__}: kernels compiled ahead of time for {sms}")
        # The table is of Triton 3.9. Another version allocates registers differently: 3.6 puts up
        # to 16 bytes of the top-k kernels for sm_100 on the stack.
        same = version() == (3, 9)
        slack, spills = (1.0, 0) if same else (1.6, 16)
        for row in table.rows(case, sm):
            allowed = budget[case, row["kernel"], sm]
            assert row["spill_bytes"] <= spills, row
            assert row["warps"] == int(allowed["warps"])
            assert row["registers"] <= slack * int(allowed["registers"]), (row, allowed)
            if same:
                assert row["shared_bytes"] <= int(allowed["shared_bytes"]), (row, allowed)
            assert row["shared_bytes"] <= 99 * 1024, row

    def test_every_kernel_is_in_the_table(budget: Any) -> None:
        kernels = {kernel for _, kernel, _ in budget}
        assert kernels == {
            "transform_kernel",
            "map_kernel",
            "statistics_kernel",
            "log_prob_kernel",
            "topk_kernel",
            "topk_merge_kernel",
        }

    @pytest.mark.parametrize("batch", [1, 7, 130])
    def test_shapes_of_traced_operators(batch: int) -> None:
        """As `torch.compile` sees them, for CUDA tensors."""
        operators = torch.ops.fixclf_triton
        backends.load_triton()
        x, alpha, bias, base, signs, geometry, normalize = table.head_arguments(
            512, 3000, batch=batch, dtype=torch.bfloat16
        )
        with FakeTensorMode():
            # A codebook's bits are made on the CPU; their shapes are what matters here.
            moved = [
                None if t is None else torch.empty(t.shape, dtype=t.dtype, device="cuda")
                for t in (x, alpha, bias, base, signs)
            ]
            head = (*moved, geometry, normalize)
            ids = torch.empty(batch, 4, dtype=torch.int64, device="cuda")
            out = operators.head(*head, 1)
            assert (out.shape, out.dtype) == ((batch, 3000), torch.bfloat16)
            assert operators.head(*head, 1, torch.float32).dtype == torch.float32
            values, indices, logsumexp = operators.head_topk(*head, 5)
            assert values.shape == indices.shape == (batch, 5)
            assert indices.dtype == torch.int64 and logsumexp.shape == (batch,)
            assert operators.head_argmax(*head).shape == (batch,)
            assert operators.head_log_prob(*head, ids)[0].shape == (batch, 4)
            assert operators.hadamard_transform(moved[0]).shape == (batch, 512)

    def test_the_split_does_not_know_the_batch() -> None:
        """How classes are divided decides the order of sums: the codebook's matter alone."""
        for case in ("softmax N512 C100000", "top-5 N512 C100000"):
            launched = table.launches(case)
            constants = [
                {name: value for name, value in arguments.items() if name in WORK}
                for _, arguments in launched
            ]
            with_one = {
                "softmax N512 C100000": table._head(512, 100000, batch=1),
                "top-5 N512 C100000": lambda op: op.head_topk(
                    *table.head_arguments(512, 100000, batch=1), 5
                ),
            }[case]
            table.CASES["one row"] = with_one
            try:
                alone = table.launches("one row")
            finally:
                del table.CASES["one row"]
            assert constants == [
                {name: value for name, value in arguments.items() if name in WORK}
                for _, arguments in alone
            ]
            chunks = max(arguments.get("CHUNKS", 0) for _, arguments in alone)
            # One row is spread over many programs.
            assert chunks >= 40

    WORK = ("CHUNKS", "TILES_PER_CHUNK", "SLOTS", "LOG2_WIDTH", "LOG2_TILE", "tiles", "first_slot")

    def test_cpu_tensors_are_refused() -> None:
        operators = backends.load_triton()
        with pytest.raises(ValueError, match="x is on the CPU, where Triton kernels only run"):
            operators.hadamard_transform(torch.zeros(2, 8))

    def test_widths_are_powers_of_two() -> None:
        from fixclf_infer.triton_kernels import problem

        for n, c, kind in ((2048, 1000, "auto"), (768, 1000, "auto"), (64, 10, "etf")):
            geometry = table.head_arguments(n, c, kind)[5]
            split = problem.split(problem.Geometry(*geometry))
            assert math.log2(split.width) % 1 == math.log2(split.slots) % 1 == 0
