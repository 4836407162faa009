"""Triton kernels of the fixed head: `torch.ops.fixclf_triton.*`.

Read in this order: device.py (each step of the algorithm), transform.py, head.py, log_prob.py,
topk.py (the kernels), problem.py (checks, and how classes are divided among programs), ops.py (the
operators). docs/triton.md explains the whole. Importing this imports triton and torch.
"""

from __future__ import annotations

from . import ops

__all__ = ["ops"]
