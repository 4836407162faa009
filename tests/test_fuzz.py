"""A few of the mutations of `make fuzz`, and proof that it finds what it looks for."""

from __future__ import annotations

import fuzz
import numpy as np
import pytest
from onnx_tools import LIBRARY  # skips without onnx

TARGETS = [name for name in fuzz.TARGETS if LIBRARY or "edge" in name]


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files(name: str) -> None:
    wrong, refused = fuzz.run(name, 125, seed=2)
    assert wrong == []
    assert refused > 60


def test_other_answers_are_told_apart() -> None:
    good = {"a": np.ones(2), "b": np.zeros(2)}
    assert fuzz.same({"a": np.ones(2), "c": np.zeros(3)}, good)
    assert not fuzz.same({"a": np.ones(3)}, good)
    assert not fuzz.same({"a": np.ones(2), "b": np.array([0, 1e-9])}, good)
