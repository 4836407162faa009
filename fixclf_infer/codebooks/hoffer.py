"""The published code, bit for bit, to load existing checkpoints.

Construction. `hoffer` (github.com/eladhoffer/fix_your_classifier) and `brevitas`
(brevitas.nn.HadamardClassifier) both take `scipy.linalg.hadamard(n)[:C, :N]`, Sylvester's matrix
with n = 2^⌈log2 max(C, N)⌉. That is all that belongs to the codebook. The rest is the head's:
* hoffer: out = −scale · (x / (‖x‖ + 1e-8)) Wᵀ + bias. The sign is minus, eps is *added* to the
  norm, W has entries ±1 (no 1/√N); scale is one number, 1/√C at first, bias is uniform in
  ±1/√C at first.
* brevitas: the same with ‖x‖ the norm of the *whole batch* (`x.norm(p="fro")`) and no bias; its
  checkpoints hold `scale` only.
So a checkpoint's scale s is α = −s √N here.

Guarantee. None. With p = ⌈log2 N⌉, rows i and i' are identical exactly if i ≡ i' (mod 2^p), since
the first N columns show just the lowest p bits of i: classes that no input can tell apart, counted
in a warning and in the report. If N is no power of two, rows are not orthogonal either.

Limits. Those of all codebooks. For new models take any other kind.

E. Hoffer, I. Hubara, D. Soudry, "Fix your classifier: the marginal value of training the last
weight layer", ICLR 2018.
"""

from __future__ import annotations

import warnings

from .base import Codebook, Cosines
from .kernel import KernelData

VERSION = 1


def hoffer(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    return _truncated_sylvester("hoffer", in_features, num_classes, seed)


def brevitas(in_features: int, num_classes: int, seed: int, max_base: int | None) -> Codebook:
    return _truncated_sylvester("brevitas", in_features, num_classes, seed)


def _truncated_sylvester(kind: str, in_features: int, num_classes: int, seed: int) -> Codebook:
    log2 = (max(in_features, num_classes) - 1).bit_length()
    distinct = 1 << (in_features - 1).bit_length()
    times, more = divmod(num_classes, distinct)
    pairs = distinct * times * (times - 1) // 2 + more * times
    cosines = None
    if pairs:
        cosines = Cosines(1.0, 1.0, pairs)
        warnings.warn(
            f"kind={kind!r} with in_features={in_features}, num_classes={num_classes} has {pairs} "
            f"pairs of identical classes, which no input can tell apart; kind='auto' has none",
            stacklevel=4,
        )
    return Codebook(
        kind=kind,
        version=VERSION,
        in_features=in_features,
        num_classes=num_classes,
        seed=seed,
        kernel=KernelData(1, log2, None, None, False, False, 0, 0),
        reason=f"Legacy rows for existing checkpoints; {pairs} pairs of classes are identical.",
        cosines=cosines,
    )
