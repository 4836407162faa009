"""docs/architectures.md against what `replace_head` does now."""

from __future__ import annotations

import pytest
import torch

from fixclf_infer import replace_head

pytest.importorskip("timm")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")

from tools import architectures

TABLE = architectures.read()
BY_NAME = {(a.library, a.name): a for a in architectures.ARCHITECTURES}
CHECKS = ("forward", "backward", "export", "compile", "files")
# One of each kind: linear and convolution, with and without bias, tied.
SOME = [
    ("timm", "convnext_atto"),
    ("timm", "dpn68"),
    ("timm", "shvit_s1"),
    ("torchvision", "maxvit_t"),
    ("torchvision", "fcn_resnet50"),
    ("transformers", "BertForMaskedLM"),
    ("transformers", "GPTNeoXForCausalLM (Pythia-70M)"),
    ("transformers", "SegformerForSemanticSegmentation"),
]


def test_the_table_has_every_architecture() -> None:
    assert list(TABLE) == list(BY_NAME)
    assert len(TABLE) >= 30
    assert f"to {len(TABLE)} architectures" in architectures.TABLE.read_text()
    failed = [key for key, row in TABLE.items() if any(row[check] != "yes" for check in CHECKS)]
    assert failed == []


@pytest.mark.parametrize("key", SOME, ids=[name for _, name in SOME])
def test_facts(key: tuple[str, str]) -> None:
    with torch.device("meta"):
        model = BY_NAME[key].make()
    for name, value in architectures.facts(BY_NAME[key], replace_head(model)).items():
        assert TABLE[key][name] == value


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_checks(name: str) -> None:
    key = ("torchvision", name)
    assert architectures.row(BY_NAME[key]) == TABLE[key]
