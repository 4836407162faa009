"""Top-k, argmax, log-probabilities, losses and samples as each binding takes them, on NumPy arrays,
and their checks against the oracle."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import tolerances
from backends import codebook_on, devices, native, to_numpy, to_torch
from cases import scale_of

from fixclf_infer import _native, reference
from fixclf_infer.codebooks import Codebook


def pack(allowed: np.ndarray) -> np.ndarray:
    """A bool allowed as bits."""
    return np.packbits(allowed, axis=-1, bitorder="little")


class TorchHead:
    """`_native.Head` through torch.ops.fixclf.*."""

    def __init__(
        self,
        book: Codebook,
        alpha: float,
        bias: np.ndarray | None,
        *,
        classes: range | None = None,
        normalize: bool = True,
        device: str = "cpu",
    ) -> None:
        self.alpha, self.bias, self.normalize, self.device = alpha, bias, normalize, device
        self.codebook = codebook_on(device, book, classes)

    def _run(self, name: str, x: np.ndarray, **keywords: Any) -> Any:
        import torch

        from fixclf_infer import ops

        for key, value in keywords.items():
            if isinstance(value, np.ndarray | np.integer):
                keywords[key] = torch.from_numpy(np.asarray(value, order="C")).to(self.device)
        exact = getattr(torch, tolerances.accumulation(str(x.dtype)))
        result = getattr(ops, name)(
            to_torch(x).to(self.device),
            torch.tensor(self.alpha, dtype=exact, device=self.device),
            None if self.bias is None else torch.from_numpy(self.bias).to(self.device),
            self.codebook,
            normalize=self.normalize,
            **keywords,
        )
        return tuple(map(to_numpy, result)) if isinstance(result, tuple) else to_numpy(result)

    def map(self, x: np.ndarray, epilogue: int) -> np.ndarray:
        return self._run("head", x, epilogue=epilogue)

    def topk(
        self, x: np.ndarray, k: int, log_probabilities: bool = False, allowed: Any = None
    ) -> Any:
        return self._run("head_topk", x, k=k, log_probabilities=log_probabilities, allowed=allowed)

    def argmax(self, x: np.ndarray, allowed: Any = None) -> np.ndarray:
        return self._run("head_argmax", x, allowed=allowed)

    def sample(self, x: np.ndarray, seeds: np.ndarray, allowed: Any = None) -> np.ndarray:
        return self._run("head_sample", x, seeds=seeds, allowed=allowed)

    def log_prob(self, x: np.ndarray, ids: np.ndarray, allowed: Any = None) -> Any:
        return self._run("head_log_prob", x, ids=ids, allowed=allowed)

    def nll(
        self,
        x: np.ndarray,
        target: np.ndarray,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Any:
        options = {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
        return self._run("head_nll", x, target=target, **options)


def makers(isa: str) -> list[Any]:
    """The bindings to test with an instruction set: torch chooses its own, so only once, on every
    device of the machine."""
    if isa != _native.supported_isas()[-1]:
        return [native]
    return [native, *(partial(TorchHead, device=device) for device in devices())]


# Checks. z: the oracle's logits, -inf where forbidden; scale: see tolerances.py.


def scale_for(
    x: np.ndarray, rows: np.ndarray, alpha: float, bias: np.ndarray | None, normalize: bool = True
) -> float:
    """`scale_of`; without normalisation alpha ‖w‖ ‖x‖ takes the place of alpha ‖w‖ / √N."""
    if not normalize:
        norms = np.linalg.norm(x, axis=-1) * np.sqrt(x.shape[-1])
        alpha = alpha * float(norms.max(initial=0))
    return scale_of(rows, alpha, bias)


def oracle(
    x: np.ndarray, rows: np.ndarray, alpha: float, bias: np.ndarray | None, normalize: bool = True
) -> np.ndarray:
    x = x.astype(np.float64)
    if normalize:
        return reference.logits(x, rows, alpha, bias)
    return alpha * (x @ rows.T) + (0 if bias is None else bias.astype(np.float64))


def check_logsumexp(got: np.ndarray, z: np.ndarray, scale: float, dtype: str) -> np.ndarray:
    want = reference.logsumexp(z)[..., 0]
    assert str(got.dtype) == tolerances.accumulation(dtype)
    bound = tolerances.logsumexp(want, scale, dtype, z.shape[-1])
    tolerances.assert_within(f"logsumexp {dtype}", got, want, bound)
    return want


def check_topk(
    got: Any, z: np.ndarray, k: int, scale: float, dtype: str, log_probabilities: bool = False
) -> None:
    """Indices are exact wherever the oracle's neighbours lie further apart than two bounds."""
    values, indices, logsumexp = got
    exact, classes = tolerances.accumulation(dtype), z.shape[-1]
    assert indices.dtype == np.int64 and str(values.dtype) == exact
    assert indices.shape == values.shape == (*z.shape[:-1], k)
    assert ((indices >= 0) & (indices < classes)).all()
    order = np.sort(indices, axis=-1)
    assert (order[..., 1:] > order[..., :-1]).all(), "a class appears twice"

    want_lse = check_logsumexp(logsumexp, z, scale, dtype)
    picked = np.take_along_axis(z, indices, -1)
    if log_probabilities:
        picked_logs = picked - want_lse[..., None]
        bound = tolerances.log_probability(picked_logs, scale, dtype, exact, classes)
        family = f"log-probabilities {dtype}, top-k"
        tolerances.assert_within(family, values, picked_logs, bound)
    else:
        bound = tolerances.logits(picked, scale, dtype, exact)
        tolerances.assert_within(f"logits {dtype}, top-k", values, picked, bound)
        tied = values[..., 1:] == values[..., :-1]
        assert (indices[..., 1:] > indices[..., :-1])[tied].all(), "ties are not in order"
    assert (values[..., 1:] <= values[..., :-1]).all(), "not sorted"

    slack = 2 * float(np.max(tolerances.logits(np.zeros(()), scale, dtype, exact)))
    want, want_ids = reference.topk(z, min(k + 1, classes))
    with np.errstate(invalid="ignore"):
        apart = want[..., :-1] - want[..., 1:] > slack
        near = np.abs(picked - want[..., :k]) <= slack
    ends = np.ones((*z.shape[:-1], 1), bool)
    clear = np.concatenate([ends, apart], -1)[..., :k] & np.concatenate([apart, ends], -1)[..., :k]
    clear |= np.isneginf(want[..., :k])
    np.testing.assert_array_equal(indices[clear], want_ids[..., :k][clear])
    assert (near | clear).all(), "a class is missing"


def check_argmax(got: np.ndarray, z: np.ndarray, scale: float, dtype: str) -> None:
    assert got.dtype == np.int64 and got.shape == z.shape[:-1]
    slack = 2 * float(
        np.max(tolerances.logits(np.zeros(()), scale, dtype, tolerances.accumulation(dtype)))
    )
    picked = np.take_along_axis(z, got[..., None], -1)[..., 0]
    assert (picked >= z.max(axis=-1) - slack).all()


def check_log_prob(got: Any, z: np.ndarray, ids: np.ndarray, scale: float, dtype: str) -> None:
    log_probs, logits, logsumexp = got
    exact, classes = tolerances.accumulation(dtype), z.shape[-1]
    want_lse = check_logsumexp(logsumexp, z, scale, dtype)
    wide = ids if ids.ndim == z.ndim else ids[..., None]
    picked = np.take_along_axis(z, wide, -1)
    want = (picked - want_lse[..., None]).reshape(ids.shape)
    picked = picked.reshape(ids.shape)
    assert str(log_probs.dtype) == str(logits.dtype) == exact
    bound = tolerances.logits(picked, scale, dtype, exact)
    tolerances.assert_within(f"logits {dtype}, at ids", logits, picked, bound)
    bound = tolerances.log_probability(want, scale, dtype, exact, classes)
    tolerances.assert_within(f"log-probabilities {dtype}, at ids", log_probs, want, bound)


def check_nll(
    got: Any,
    z: np.ndarray,
    target: np.ndarray,
    scale: float,
    dtype: str,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> None:
    losses, logsumexp = got
    assert str(losses.dtype) == str(logsumexp.dtype) == tolerances.accumulation(dtype)
    want = reference.nll(z, target, ignore_index, label_smoothing)
    bound = tolerances.loss(want, scale, dtype, z.shape[-1])
    tolerances.assert_within(f"loss {dtype}", losses, want, bound)
    ignored = target == ignore_index
    np.testing.assert_array_equal(logsumexp[ignored], 0)
    np.testing.assert_array_equal(losses[ignored], 0)
    if (~ignored).any():
        check_logsumexp(logsumexp[~ignored], z[~ignored], scale, dtype)


def check_sample(
    got: np.ndarray, z: np.ndarray, seeds: np.ndarray, scale: float, dtype: str
) -> Any:
    """Equal to the oracle but for near ties: the noise has an error of a few units, more where -log
    E comes from a U near 1, which seldom wins. Returns where the oracle is clear."""
    assert got.dtype == np.int64 and got.shape == z.shape[:-1]
    noisy = z + reference.gumbel(seeds, z.shape[-1])
    slack = 1e-4 + 2 * float(np.max(tolerances.logits(np.zeros(()), scale, dtype, "float64")))
    best = noisy.max(axis=-1)
    picked = np.take_along_axis(noisy, got[..., None], -1)[..., 0]
    assert (picked >= best - slack).all()
    second = np.sort(noisy, axis=-1)[..., -2] if z.shape[-1] > 1 else np.full(best.shape, -np.inf)
    clear = best - second > slack
    np.testing.assert_array_equal(got[clear], reference.sample(z, seeds)[clear])
    return clear


def check_everything(
    head: Any,
    x: np.ndarray,
    z: np.ndarray,
    scale: float,
    rng: np.random.Generator,
    allowed: np.ndarray | None = None,
) -> None:
    """Every reduction of rows x [B, ...], whose logits (masked already) are z [B, C]."""
    dtype = "float32" if x.dtype.kind in "iu" else str(x.dtype)
    batch, classes = z.shape
    for k in sorted({1, min(classes, 7), min(classes, 1024)}):
        for log_probabilities in (False, True):
            got = head.topk(x, k, log_probabilities, allowed)
            check_topk(got, z, k, scale, dtype, log_probabilities)
    best = head.argmax(x, allowed)
    check_argmax(best, z, scale, dtype)
    np.testing.assert_array_equal(best, head.topk(x, 1, allowed=allowed)[1][..., 0])
    for shape in ((batch,), (batch, 1), (batch, 5)):
        ids = rng.integers(0, classes, shape)
        check_log_prob(head.log_prob(x, ids, allowed), z, ids, scale, dtype)
    seeds = rng.integers(-(2**63), 2**63 - 1, batch)
    check_sample(head.sample(x, seeds, allowed), z, seeds, scale, dtype)
    if allowed is not None:
        return
    target = rng.integers(0, classes, batch)
    for smoothing in (0.0, 0.1, 1.0):
        got = head.nll(x, target, label_smoothing=smoothing)
        check_nll(got, z, target, scale, dtype, label_smoothing=smoothing)
    if batch:
        inside = int(target[0])
        got = head.nll(x, target, ignore_index=inside)
        check_nll(got, z, target, scale, dtype, ignore_index=inside)
        target[-1] = -100
        check_nll(head.nll(x, target), z, target, scale, dtype)
