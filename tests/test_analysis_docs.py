"""The Python blocks of docs/analysis.md and docs/interop.md run, and print what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.filterwarnings("ignore:kind=.*identical classes")
@pytest.mark.parametrize("name", ["analysis.md", "interop.md"])
def test_the_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In one namespace, in order. What follows `# ` after a print is what it prints; "It prints:
    `…`" after a block is as well."""
    text = (DOCS / name).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    namespace: dict[str, object] = {}
    torch.manual_seed(0)
    printed, said = [], []
    for block in blocks:
        exec(compile(block, name, "exec"), namespace)
        printed += capsys.readouterr().out.splitlines()
        said += [
            comment[1] if (comment := re.search(r"\)  # (.*)$", line)) else None
            for line in block.splitlines()
            if line.startswith("print(")
        ]
    assert len(printed) == len(said) > 0
    for got, want in zip(printed, said, strict=True):
        assert want in (got, None)
    for quoted in re.findall(r"It prints: `(.*?)`", text, re.DOTALL):
        assert " ".join(quoted.split()) in printed
