"""`torch.ops.fixclf.*`: loads the operators, gives them fake kernels and derivatives.

    hadamard_transform(x, scale)                    y = scale · H x
    head(<head>, epilogue, dtype)                   [..., C]: logits, softmax, …
    head_topk(<head>, k, log_probabilities, allowed)   values, indices, logsumexp
    head_argmax(<head>, allowed)                       indices
    head_sample(<head>, seeds, allowed)                indices drawn from the softmax
    head_log_prob(<head>, ids, allowed)                 log-probabilities, logits, logsumexp
    head_nll(<head>, target, …)                     losses, logsumexp
    head_statistics(<head>, ids, which, allowed)    logits, and sums over the other classes
    project_adjoint(g, <codebook>)                  u = Wᵀ g

<head> stands for x, α, bias, <codebook>, normalize; <codebook> for base, signs and geometry, as
`codebook_arguments` makes them. All but the first keep no [..., C] array, neither forward nor
backward. The functions of these names in this package also run under `torch.func`.
"""

from .. import backends
from ..epilogue import Epilogue

backends.load()

from ..codebooks.kernel import Geometry  # noqa: E402
from . import dense as dense  # noqa: E402
from . import derivatives  # noqa: E402
from .bits import (  # noqa: E402
    CodebookArguments,
    codebook_arguments,
    pack_allowed,
    pack_signs,
    unpack_signs,
)
from .calls import (  # noqa: E402
    hadamard_transform,
    head,
    head_argmax,
    head_log_prob,
    head_nll,
    head_sample,
    head_statistics,
    head_topk,
)
from .statistics import Statistics, Sums  # noqa: E402

derivatives.register("fixclf")

__all__ = [
    "CodebookArguments",
    "Epilogue",
    "Geometry",
    "Statistics",
    "Sums",
    "codebook_arguments",
    "hadamard_transform",
    "head",
    "head_argmax",
    "head_log_prob",
    "head_nll",
    "head_sample",
    "head_statistics",
    "head_topk",
    "pack_allowed",
    "pack_signs",
    "unpack_signs",
]
