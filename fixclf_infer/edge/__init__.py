"""A fixed head on a device: NumPy and the compiled kernels, no torch and no onnx.

head = FixedHead.load("head.npz")  # or an ONNX file
values, classes, logsumexp = head.topk(features, 5)
"""

from __future__ import annotations

from .._native import num_threads, set_num_threads
from .head import FixedHead, pack_signs

__all__ = ["FixedHead", "num_threads", "pack_signs", "set_num_threads"]
