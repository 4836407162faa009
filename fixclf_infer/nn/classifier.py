"""The fixed head as a module: a drop-in for the last `torch.nn.Linear` of a network."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import backends, ops
from ..codebooks import Codebook, codebook, from_identity
from ..epilogue import Epilogue

# Plain integers: an operator call converts an enumeration member in 1.7 us.
_LOGITS, _SOFTMAX, _LOG_SOFTMAX = map(
    int, (Epilogue.LOGITS, Epilogue.SOFTMAX, Epilogue.LOG_SOFTMAX)
)


def default_alpha(num_classes: int) -> float:
    """α = log(99 (C − 1)): cosine 1 to one class and 0 to all others then has probability 0.99."""
    return math.log(99 * max(num_classes - 1, 1))


class FixedClassifier(nn.Module):
    """z = α W x̂ / √N + b with a fixed codebook W, x̂ = x / max(‖x‖₂, 1e-12).

    Hoffer, Hubara and Soudry, "Fix your classifier" (ICLR 2018), §3. Only α (one number) and b are
    learned; W is never stored: it is made of additions and subtractions. Results of a row do not
    depend on the rest of the batch, bit for bit.

    Args:
        in_features: N.
        num_classes: C.
        codebook: a kind for `fixclf_infer.codebook`, or a `Codebook` of this N and C.
        bias: whether b is there (it starts at 0).
        alpha: initial α; `default_alpha` when None.
        learn_alpha: whether α is a parameter or a buffer.
        device, dtype: of α and b; float32 by default. Kernels compute in float32 (float64 for
            float64 features) whatever the dtype of the features.

    Shape: x [..., N] → logits [..., C] of the dtype of x. int8 features and packed signs (uint8
    [..., ⌈N/8⌉], `ops.pack_signs`) give float32.

    The state_dict holds `alpha`, `bias` and, as bytes of JSON, the codebook's identity (kind,
    version, sizes, seed, digest); loading rebuilds the codebook from it, and raises ValueError when
    its sizes are not this module's or its bits are not those of this version.
    """

    bias: Tensor | None
    base: Tensor | None
    signs: Tensor | None
    dense_bits: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        codebook: str | Codebook = "auto",
        bias: bool = True,
        alpha: float | None = None,
        learn_alpha: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        book = _resolve(codebook, in_features, num_classes)
        start = default_alpha(num_classes) if alpha is None else float(alpha)
        if not math.isfinite(start):
            raise ValueError(f"alpha must be finite, got {alpha}")
        value = torch.tensor(start, device=device, dtype=dtype or torch.float32)
        if learn_alpha:
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value)
        zeros = torch.zeros(num_classes, device=device, dtype=dtype or torch.float32)
        self.register_parameter("bias", nn.Parameter(zeros) if bias else None)
        self._set_codebook(book, device)

    def _set_codebook(self, book: Codebook, device: torch.device | str | None) -> None:
        self.codebook = book
        self._geometry: list[int] = []
        base = signs = dense_bits = None
        if book.kernel is not None:
            base, signs, self._geometry = ops.codebook_arguments(book)
        else:
            # As integers, which half() and bfloat16() leave alone.
            dense_bits = torch.from_numpy(book.dense).view(torch.int32)
        for name, bits in (("base", base), ("signs", signs), ("dense_bits", dense_bits)):
            placed = None if bits is None else bits.to(device or "cpu")
            self.register_buffer(name, placed, persistent=False)

    @property
    def in_features(self) -> int:
        """N, as in `torch.nn.Linear`."""
        return self.codebook.in_features

    @property
    def out_features(self) -> int:
        """C, as in `torch.nn.Linear`."""
        return self.codebook.num_classes

    @property
    def num_classes(self) -> int:
        """C."""
        return self.codebook.num_classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., C] for features x [..., N]."""
        return self._head(x, _LOGITS, None)

    def predict_proba(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Softmax probabilities [..., C], computed in float32; dtype: x's (default) or float32."""
        return self._head(x, _SOFTMAX, dtype)

    def predict_log_proba(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Log-softmax [..., C], computed in float32; dtype: x's (default) or float32."""
        return self._head(x, _LOG_SOFTMAX, dtype)

    def topk(
        self,
        x: Tensor,
        k: int,
        *,
        log_probabilities: bool = False,
        allowed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The k best classes: values [..., k], classes [..., k], logsumexp [...], without an array
        of logits. Sorted, the lowest class first on ties.

        Args:
            k: 1 to min(C, 1024).
            log_probabilities: values are log-probabilities, not logits.
            allowed: classes that take part: bool [C] or [..., C], or `ops.pack_mask` of it. Others
                have the logit −∞.
        """
        inputs, mask = self._inputs(x), _packed(allowed)
        if self.dense_bits is None:
            return ops.head_topk(*inputs, k, log_probabilities=log_probabilities, mask=mask)
        z = self._dense_logits(x, mask)
        if not 1 <= k <= min(self.num_classes, 1024):
            raise ValueError(f"k is {k}, expected 1 to {min(self.num_classes, 1024)}")
        logsumexp = z.logsumexp(-1)
        values, indices = z.sort(dim=-1, descending=True, stable=True)
        values = values[..., :k] - (logsumexp.unsqueeze(-1) if log_probabilities else 0)
        return values, indices[..., :k], logsumexp

    def argmax(self, x: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """The class of the largest logit, [...]; the lowest on ties."""
        inputs, mask = self._inputs(x), _packed(allowed)
        if self.dense_bits is None:
            return ops.head_argmax(*inputs, mask=mask)
        return self._dense_logits(x, mask).sort(dim=-1, descending=True, stable=True)[1][..., 0]

    def log_prob(self, x: Tensor, ids: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """Log-probabilities at the classes ids, int64 [...] or [..., M]."""
        inputs, mask = self._inputs(x), _packed(allowed)
        if self.dense_bits is None:
            return ops.head_logprob(*inputs, ids, mask=mask)[0]
        self._check_classes("ids", ids, x)
        wide = ids if ids.dim() == x.dim() else ids.unsqueeze(-1)
        return self._dense_logits(x, mask).log_softmax(-1).gather(-1, wide).reshape(ids.shape)

    def sample(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """One class [...] drawn from the softmax of each row, in one pass (Gumbel-max). The
        generator gives each row a seed; a row's sample depends on its features and seed alone."""
        inputs, mask = self._inputs(x), _packed(allowed)
        if self.dense_bits is None:
            seeds = torch.randint(2**63 - 1, x.shape[:-1], generator=generator, device=x.device)
            return ops.head_sample(*inputs, seeds, mask=mask)
        p = self._dense_logits(x, mask).softmax(-1)
        drawn = torch.multinomial(p.reshape(-1, self.num_classes), 1, generator=generator)
        return drawn.reshape(x.shape[:-1])

    def loss(
        self,
        x: Tensor,
        target: Tensor,
        reduction: str = "mean",
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Cross-entropy of the softmax with the classes target (int64 [...]), as
        `torch.nn.functional.cross_entropy` of the logits, without them: neither this nor the
        backward pass keeps an array of [..., C]. reduction: "mean" (over targets that are not
        ignored), "sum" or "none" ([...])."""
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
        if self.dense_bits is not None:
            if not 0 <= label_smoothing <= 1:
                raise ValueError(f"label_smoothing is {label_smoothing}, expected 0 to 1")
            self._check_classes("target", target, x, ignore_index)
            return nn.functional.cross_entropy(
                self._dense_logits(x, None).reshape(-1, self.num_classes),
                target.flatten(),
                ignore_index=ignore_index,
                label_smoothing=label_smoothing,
                reduction=reduction,
            ).reshape(target.shape if reduction == "none" else ())
        losses, _ = ops.head_nll(
            *self._inputs(x), target, ignore_index=ignore_index, label_smoothing=label_smoothing
        )
        if reduction == "none":
            return losses
        total = losses.sum()
        return total if reduction == "sum" else total / (target != ignore_index).sum()

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, ops.CodebookArguments]:
        """What every operator takes first, in the accumulation dtype."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        bias = None if self.bias is None else self.bias.to(exact)
        codebook = ops.CodebookArguments(self.base, self.signs, self._geometry)
        return x, self.alpha.to(exact), bias, codebook

    def _head(self, x: Tensor, epilogue: int, dtype: torch.dtype | None) -> Tensor:
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        # Not self.alpha and so on: nn.Module finds each of them in 0.5 us, the kernel needs 1 us.
        parameters, buffers = self._parameters, self._buffers
        alpha = parameters["alpha"] if "alpha" in parameters else buffers["alpha"]
        assert alpha is not None
        if alpha.dtype != exact:
            alpha = alpha.to(exact)
        bias: Tensor | None = parameters["bias"]
        if bias is not None and bias.dtype != exact:
            bias = bias.to(exact)
        if buffers["dense_bits"] is not None:
            return self._dense_head(x, epilogue, dtype)
        result: Tensor = backends.operators.head.default(
            x, alpha, bias, buffers["base"], buffers["signs"], self._geometry, True, epilogue, dtype
        )
        return result

    def _dense_logits(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Codebooks that are no Hadamard matrix run as a dense product."""
        assert self.dense_bits is not None
        _, alpha, bias, _ = self._inputs(x)
        if x.dtype == torch.uint8:
            x = ops.unpack_signs(x, self.in_features)
        unit = nn.functional.normalize(x.to(alpha.dtype), dim=-1)
        w = self.dense_bits.view(torch.float32).to(alpha.dtype)
        z = alpha / math.sqrt(self.in_features) * nn.functional.linear(unit, w)
        z = z if bias is None else z + bias
        if mask is not None:
            self._check_mask(mask, x)
            z = z.masked_fill(ops.unpack_signs(mask, self.num_classes) > 0, -math.inf)
        return z

    def _check_classes(
        self, name: str, ids: Tensor, x: Tensor, ignore_index: int | None = None
    ) -> None:
        leading = x.shape[:-1]
        if ids.shape != leading and (ignore_index is not None or ids.shape[:-1] != leading):
            raise ValueError(
                f"{name} has shape {list(ids.shape)}, expected that of x without its last dimension"
            )
        outside = (ids < 0) | (ids >= self.num_classes)
        if ignore_index is not None:
            outside &= ids != ignore_index
        if not torch.compiler.is_compiling() and outside.any():
            at = outside.nonzero()[0].tolist()
            raise ValueError(
                f"{name}{at} is {int(ids[tuple(at)])}, expected a class in [0, {self.num_classes})"
            )

    def _check_mask(self, mask: Tensor, x: Tensor) -> None:
        if mask.shape[-1] != (self.num_classes + 7) // 8:
            raise ValueError(
                f"mask has rows of {mask.shape[-1]} bytes, expected {(self.num_classes + 7) // 8} "
                f"for {self.num_classes} classes"
            )
        if mask.dim() > 1 and mask.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"mask has shape {list(mask.shape)}, expected one row, or the leading dimensions "
                f"of x, {list(x.shape)}"
            )
        if torch.compiler.is_compiling():
            return  # what follows depends on values
        any_allowed = (ops.unpack_signs(mask, self.num_classes) < 0).any(-1).flatten()
        if not any_allowed.all():
            row = int((~any_allowed).nonzero()[0])
            raise ValueError(f"mask allows no class in row {row}, expected at least one")

    def _dense_head(self, x: Tensor, epilogue: int, dtype: torch.dtype | None) -> Tensor:
        z = self._dense_logits(x, None)
        if epilogue == _SOFTMAX:
            z = z.softmax(-1)
        elif epilogue == _LOG_SOFTMAX:
            z = z.log_softmax(-1)
        return z.to(dtype or (x.dtype if x.is_floating_point() else z.dtype))

    def get_extra_state(self) -> Tensor:
        text = json.dumps(self.codebook.identity())
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        try:
            identity = dict(json.loads(bytes(state.tolist()).decode()).items())
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                "the state_dict's codebook identity is not the JSON that FixedClassifier writes"
            ) from error
        for name in ("in_features", "num_classes"):
            if identity.get(name) != getattr(self.codebook, name):
                raise ValueError(
                    f"the state_dict's codebook has {name}={identity.get(name)}, but this "
                    f"FixedClassifier has {getattr(self.codebook, name)}"
                )
        book = self.codebook
        if identity != book.identity():
            book = from_identity(identity, book.dense if identity.get("kind") == "matrix" else None)
        self._set_codebook(book, self.alpha.device)

    def _apply(self, fn: Any, recurse: bool = True) -> FixedClassifier:
        from_meta = self.alpha.is_meta
        super()._apply(fn, recurse)
        if from_meta and not self.alpha.is_meta:
            self._set_codebook(self.codebook, self.alpha.device)  # to_empty() left its bits unset
        return self

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"codebook={self.codebook.kind!r}, bias={self.bias is not None}"
        )


def _packed(allowed: Tensor | None) -> Tensor | None:
    return allowed if allowed is None or allowed.dtype == torch.uint8 else ops.pack_mask(allowed)


def _resolve(kind: str | Codebook, in_features: int, num_classes: int) -> Codebook:
    if not isinstance(kind, Codebook):
        return codebook(in_features, num_classes, kind)
    if (kind.in_features, kind.num_classes) != (in_features, num_classes):
        raise ValueError(
            f"codebook is for in_features={kind.in_features}, num_classes={kind.num_classes}, "
            f"expected {in_features} and {num_classes}"
        )
    return kind
