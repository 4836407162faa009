"""Modules with a fixed classifier head."""

from ..loader import load_torch_library

load_torch_library()  # says what is missing, before torch's own error would

from .classifier import FixedClassifier  # noqa: E402
from .conv import FixedClassifier2d  # noqa: E402

__all__ = ["FixedClassifier", "FixedClassifier2d"]
