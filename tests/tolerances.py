"""How far a result may lie from the float64 oracle: one family for each kind of result.

A family is a function that returns the largest error allowed, element by element. Integers, indices
and codebooks have no family: they are exact. Every check that passes records the worst error as a
fraction of its bound; the run prints them (see conftest.py), so that slack bounds can be seen.

Notation: eps = 2^-23 for float32, the spacing of floats at 1; u = eps / 2, the error of one
rounding. `scale` is what one logit is made of: |α| max_i ‖w_i‖/√N + max|b|, which is |α| + max|b|
for ±1 codebooks.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from fixclf_infer.epilogue import Epilogue

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
# Spacing of the subnormal numbers, below which a relative error means nothing.
TINY = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
LARGEST = {"float64": 1.79e308, "float32": 3.4e38, "float16": 65504.0, "bfloat16": 3.38e38}


def accumulation(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"


def rounding(want: np.ndarray, dtype: str) -> np.ndarray:
    """One rounding of `want` to nearest in `dtype`: u |want|, or half the subnormals' spacing."""
    return np.abs(want) * EPS[dtype] / 2 + TINY[dtype] / 2


def stored(want: np.ndarray, bound: Any, dtype: str) -> np.ndarray:
    """`bound` on a result in its accumulation dtype, as stored in `dtype`."""
    if dtype in ("float32", "float64"):
        return bound + TINY[dtype] / 2
    return bound + rounding(np.abs(want) + bound, dtype)


def logits(want: np.ndarray, scale: float, dtype: str, out: str) -> np.ndarray:
    """4 units in the last place of α: the package's numerical contract.

    float32: 4 eps scale, for any order and any number of features, folded or not. 16-bit output:
    one rounding more. float64: 16 eps scale, because the oracle's own dot products round as well.
    """
    units = 16 if dtype == "float64" else 4
    return stored(want, units * EPS[accumulation(dtype)] * scale, out)


def probability(want: np.ndarray, scale: float, dtype: str, out: str) -> np.ndarray:
    """1e-6 absolute (the contract) for scale ≤ 16, where trained heads lie; proportional beyond.

    A logit's error δ moves a probability by at most δ/2 (p(1 − p) ≤ 1/4, twice), so no fixed number
    can hold for every α. float64: 64 eps instead of 1e-6.
    """
    unit = 64 * EPS["float64"] if dtype == "float64" else 1e-6
    return stored(want, unit * max(1.0, scale / 16), out)


def log_probability(
    want: np.ndarray, scale: float, dtype: str, out: str, classes: int
) -> np.ndarray:
    """z − logsumexp(z): the logits' bound, with the log of the number of classes in the scale."""
    return logits(want, 2 * scale + np.log(classes), dtype, out)


def head(
    epilogue: Epilogue, want: np.ndarray, scale: float, dtype: str, out: str
) -> tuple[str, np.ndarray]:
    """Name and bounds of an epilogue's family."""
    if epilogue is Epilogue.LOGITS:
        return f"logits {dtype}→{out}", logits(want, scale, dtype, out)
    if epilogue is Epilogue.LOG_SOFTMAX:
        bound = log_probability(want, scale, dtype, out, want.shape[-1])
        return f"log-probabilities {dtype}→{out}", bound
    return f"probabilities {dtype}→{out}", probability(want, scale, dtype, out)


def logsumexp(want: np.ndarray, scale: float, dtype: str, classes: int) -> np.ndarray:
    """The logits' bound on scale + log C + 2.5.

    Errors of the logits move it by no more than the largest of them, as its derivatives are the
    probabilities; its own size, and so its rounding, is at most scale + log C. The sum of
    exponentials is of 16 at a time in float32, 7.5 eps, each with 2.5 eps of its own; the logarithm
    makes these 10 eps absolute.
    """
    exact = accumulation(dtype)
    return logits(want, scale + np.log(classes) + 2.5, dtype, exact)


def loss(want: np.ndarray, scale: float, dtype: str, classes: int) -> np.ndarray:
    """The bound of logsumexp(z) and that of one logit, for (1 - ε) z_target + ε mean(z) is a mean
    of logits: the logits' bound on 2 scale + log C + 2.5."""
    exact = accumulation(dtype)
    return logits(want, 2 * scale + np.log(classes) + 2.5, dtype, exact)


def transform(want: np.ndarray, log2: int, dtype: str) -> np.ndarray:
    """Of the row's error in the 2-norm, relative to the result's norm: (k + 1) u.

    Each of the k stages is √2 times an orthogonal map and rounds every element once, so the error's
    norm grows by u times the row's norm a stage; the last unit is the factor `scale`. 16-bit
    output: one rounding more. float64: twice that, because the oracle rounds as well.
    """
    exact = accumulation(dtype)
    stages = 2 * (log2 + 1) if dtype == "float64" else log2 + 1
    relative = stages * EPS[exact] / 2 + (0 if dtype == exact else EPS[dtype] / 2)
    return relative * np.linalg.norm(want, axis=-1) + TINY[dtype] * np.sqrt(want.shape[-1])


def gradient(want: np.ndarray, dtype: str) -> np.ndarray:
    """Of a whole gradient in the 2-norm, relative to its norm.

    float32: 32 eps; two transforms, a norm and two sums of products. bfloat16 and float16: 2 eps,
    as the loss's weights, the saved output of the epilogue and the result are each rounded once.
    float64: 1e-12.
    """
    relative = {
        "float64": 1e-12,
        "float32": 32 * EPS["float32"],
        "bfloat16": 2 * EPS["bfloat16"],
        "float16": 2 * EPS["float16"],
    }[dtype]
    return relative * np.linalg.norm(want)


worst: dict[str, float] = defaultdict(
    float
)  # family → largest error / bound, of checks that passed


def _record(family: str, error: np.ndarray, bound: np.ndarray) -> None:
    if error.size:
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(error == 0, 0.0, error / bound)
        worst[family] = max(worst[family], float(ratio.max()))


def assert_within(family: str, got: Any, want: Any, bound: Any, context: str = "") -> None:
    """Element by element; NaN and infinities must agree exactly."""
    got, want = np.asarray(got).astype(np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{context}: shape {got.shape}, expected {want.shape}"
    with np.errstate(invalid="ignore"):
        error = np.abs(got - want)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    error = np.where(same, 0.0, np.where(np.isfinite(error), error, np.inf))
    bound = np.broadcast_to(bound, want.shape)
    wrong = np.argwhere(error > bound)
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise AssertionError(
            f"{context} {family}: {len(wrong)} of {want.size} elements are outside their bound; "
            f"at {at} got {got[at]!r}, expected {want[at]!r} ± {bound[at]:.3g}"
        )
    _record(family, error, bound)


def assert_norm_within(family: str, got: Any, want: Any, bound: Any, context: str = "") -> None:
    """Row by row (the last dimension, or all of it for a scalar bound), in the 2-norm."""
    got, want = np.asarray(got).astype(np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{context}: shape {got.shape}, expected {want.shape}"
    axis = None if np.ndim(bound) == 0 else -1
    difference = got - want if axis is not None else (got - want).ravel()
    error = np.linalg.norm(difference, axis=-1)
    error = np.where(np.isfinite(error), error, np.inf)
    assert np.all(error <= bound), (
        f"{context} {family}: error {np.max(error):.3g} in the 2-norm, "
        f"expected at most {np.max(bound):.3g}"
    )
    _record(family, np.asarray(error), np.asarray(bound))
