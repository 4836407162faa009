"""`pytest bench/test_head.py [--full]`: the head and its peers, one case each.

Every peer checks its result before it is timed. `bench.report` interleaves the peers; here each
case stands alone, which is handier for a few (`-k "dense and N512 and B256"`) and for comparing two
commits (`--benchmark-autosave`, `--benchmark-compare`).
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from fixclf_infer.epilogue import Epilogue

from .peers import PEERS, Case, build

# The widths of deployed classifiers: ResNet-18, ShuffleNet, ViT-B, EfficientNet-B0, ResNet-50, and
# word or product vocabularies.
QUICK = [
    Case(2048, 1000, 256),
    Case(2048, 1000, 1),
    Case(512, 500, 256),
]
QUICK_PEERS = ["fixclf", "dense", "dense int8", "copy"]
SHAPES = [
    *((512, 500), (512, 1000), (768, 1000), (960, 1000), (1280, 1000), (2048, 10), (2048, 1000)),
    *((512, 10_000), (512, 100_000), (1024, 32_000)),
]
FULL = [
    Case(n, c, batch, dtype, threads, epilogue)
    for (n, c), batch, dtype, threads, epilogue in product(
        SHAPES,
        (1, 32, 256),
        ("float32", "bfloat16"),
        (1, 2),
        (Epilogue.LOGITS, Epilogue.SOFTMAX),
    )
]


def applies(case: Case, peer: str) -> bool:
    """Leaves out what would be measured twice: peers with one dtype of their own."""
    return not (peer in ("dense int8", "dense bfloat16") and case.dtype != "float32")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    full = metafunc.config.getoption("--full")
    cases, names = (FULL, list(PEERS)) if full else (QUICK, QUICK_PEERS)
    pairs = [(case, peer) for case in cases for peer in names if applies(case, peer)]
    ids = [f"{peer} {case}" for case, peer in pairs]
    metafunc.parametrize(("case", "peer"), pairs, ids=ids)


def test_head(benchmark: Any, case: Case, peer: str) -> None:
    variant = build(case, peer)
    assert variant.prepare is not None
    variant.prepare()
    benchmark.group = str(case)
    benchmark.extra_info.update({**vars(case), "epilogue": case.epilogue.name, "peer": peer})
    with torch.inference_mode():
        benchmark(variant.call)
