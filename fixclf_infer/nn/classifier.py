"""The fixed head as a module: a drop-in for the last `torch.nn.Linear` of a network."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .. import backends, ops
from ..codebooks import Codebook, codebook, from_identity
from ..epilogue import Epilogue
from ..ops import derivatives
from ..ops.shapes import accumulation
from ..ops.statistics import Statistics, Sums, of_logits
from .objectives import Objective, SoftmaxCrossEntropy, Targets

# Plain integers: an operator call converts an enumeration member in 1.7 us.
_LOGITS, _SOFTMAX, _LOG_SOFTMAX = map(
    int, (Epilogue.LOGITS, Epilogue.SOFTMAX, Epilogue.LOG_SOFTMAX)
)

# Of the codebook's identity in a state_dict: of one size for every codebook, as distributed
# checkpoints need, and of a dtype that survives casts and averages of state_dicts.
_IDENTITY_BYTES = 256


def default_alpha(num_classes: int) -> float:
    """α = log(99 (C − 1)): cosine 1 to one class and 0 to all others then has probability 0.99."""
    return math.log(99 * max(num_classes - 1, 1))


# One node of a graph that torch.fx traces, which can't follow questions about dtypes.
@torch.fx.wrap
def _map(
    x: Tensor,
    alpha: Tensor,
    bias: Tensor | None,
    base: Tensor | None,
    signs: Tensor | None,
    dense: Tensor | None,
    geometry: list[int],
    epilogue: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """The head on features x [..., N]: [..., C]."""
    if x.is_nested:
        return _map_nested(x, alpha, bias, base, signs, dense, geometry, epilogue, dtype)
    exact = accumulation(x.dtype)
    if alpha.dtype != exact:
        alpha = alpha.to(exact)
    if bias is not None and bias.dtype != exact:
        bias = bias.to(exact)
    if dense is not None:
        z = ops.dense.logits(x, alpha, bias, dense)
        if epilogue == _SOFTMAX:
            z = z.softmax(-1)
        elif epilogue == _LOG_SOFTMAX:
            z = z.log_softmax(-1)
        return z.to(dtype or (x.dtype if x.is_floating_point() else z.dtype))
    if derivatives.under_transforms():
        transformed: Tensor = derivatives.Head.apply(
            backends.operators, x, alpha, bias, base, signs, geometry, True, epilogue, dtype
        )
        return transformed
    result: Tensor = backends.operators.head.default(
        x, alpha, bias, base, signs, geometry, True, epilogue, dtype
    )
    return result


def _map_nested(x: Tensor, *others: Any) -> Tensor:
    if x.layout == torch.jagged:
        if x.dim() != 3 or x.shape[-1] != x.values().shape[-1]:
            raise ValueError(
                f"x is a jagged tensor of {x.dim()} dimensions, expected [batch, ragged, features]"
            )
        offsets: Tensor = x.offsets()  # type: ignore[attr-defined]
        return torch.nested.nested_tensor_from_jagged(_map(x.values(), *others), offsets)
    return torch.nested.as_nested_tensor([_map(each, *others) for each in x.unbind()])


class FixedClassifier(nn.Module):
    """z = α W x̂ / √N + b with a fixed codebook W, x̂ = x / max(‖x‖₂, 1e-12).

    Hoffer, Hubara and Soudry, "Fix your classifier" (ICLR 2018), §3. Only α (one number, of shape
    [1]) and b are learned; W is never stored: it is made of additions and subtractions. Results of
    a row do not depend on the rest of the batch, bit for bit, but for the kinds "orthonormal" and
    "matrix", which run as a dense product.

    Args:
        in_features: N.
        num_classes: C; out_features is another name of it.
        bias: whether b is there (it starts at 0).
        device, dtype: of α and b; float32 by default. Kernels compute in float32 (float64 for
            float64 features) whatever the dtype of the features.
        codebook: a kind for `fixclf_infer.codebook`, or a `Codebook` of this N and C.
        alpha: initial α; `default_alpha` when None.
        learn_alpha: whether α is a parameter or a buffer.

    The first five can stand where `torch.nn.Linear` has them.

    Shape: x [..., N] → logits [..., C] of the dtype of x. int8 features and packed signs (uint8
    [..., ⌈N/8⌉], `ops.pack_signs`) give float32. A nested x gives nested logits.

    The state_dict holds `alpha`, `bias` and, as numbers that are bytes of JSON, the codebook's
    identity (kind, version, sizes, seed, digest); loading rebuilds the codebook from it, and raises
    ValueError when its sizes are not this module's or its bits are not those of this version. The
    codebook's bits are no state, neither parameters nor buffers: they follow from the codebook, and
    the module on its way to another device.
    """

    bias: Tensor | None
    base: Tensor | None
    signs: Tensor | None
    dense: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int | None = None,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        codebook: str | Codebook = "auto",
        alpha: float | None = None,
        learn_alpha: bool = True,
        out_features: int | None = None,
    ) -> None:
        super().__init__()
        if (num_classes is None) == (out_features is None):
            given = "neither" if num_classes is None else "both"
            raise TypeError(f"one of num_classes and out_features must be given, got {given}")
        classes = num_classes if num_classes is not None else out_features
        assert classes is not None
        book = _resolve(codebook, in_features, classes)
        self._start = default_alpha(book.num_classes) if alpha is None else float(alpha)
        if not math.isfinite(self._start):
            raise ValueError(f"alpha must be finite, got {alpha}")
        value = torch.empty(1, device=device, dtype=dtype or torch.float32)
        if learn_alpha:
            self.alpha = nn.Parameter(value)
        else:
            self.register_buffer("alpha", value)
        b = torch.empty(book.num_classes, device=device, dtype=dtype or torch.float32)
        self.register_parameter("bias", nn.Parameter(b) if bias else None)
        # accelerate looks for what it loads among parameters and buffers, and puts it there.
        self._buffers["_extra_state"] = None
        self._set_codebook(book)
        self._unset = self.alpha.is_meta
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """α and b as the constructor sets them."""
        with torch.no_grad():
            self.alpha.fill_(self._start)
            if self.bias is not None:
                self.bias.zero_()

    def _set_codebook(self, book: Codebook) -> None:
        self.codebook = book
        self._geometry: list[int] = []
        self.base = self.signs = self.dense = None
        if book.kernel is not None:
            self.base, self.signs, self._geometry = ops.codebook_arguments(book)
        else:
            self.dense = torch.from_numpy(book.dense)
        self._bits_on = torch.device("cpu")
        self._place(self.alpha.device)

    def _place(self, device: torch.device) -> None:
        """Moves the codebook's bits. They stay where they are while the module is on meta: whoever
        puts parameters in place one by one does not know of them."""
        if device == self._bits_on or device.type == "meta":
            return
        for name in _BITS:
            bits = getattr(self, name)
            if bits is not None:
                setattr(self, name, bits.to(device))
        self._bits_on = device

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
        return _map(x, *self._operands(x), _LOGITS, None)

    def predict_proba(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Softmax probabilities [..., C], computed in float32; dtype: x's (default) or float32."""
        return _map(x, *self._operands(x), _SOFTMAX, dtype)

    def predict_log_proba(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Log-softmax [..., C], computed in float32; dtype: x's (default) or float32."""
        return _map(x, *self._operands(x), _LOG_SOFTMAX, dtype)

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
            allowed: classes that take part: bool [C] or [..., C], or `ops.pack_allowed` of it.
                Others have the logit −∞.
        """
        found: tuple[Tensor, Tensor, Tensor] = self._ops.head_topk(
            *self._inputs(x), k, log_probabilities=log_probabilities, allowed=_packed(allowed)
        )
        return found

    def argmax(self, x: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """The class of the largest logit, [...]; the lowest on ties."""
        classes: Tensor = self._ops.head_argmax(*self._inputs(x), allowed=_packed(allowed))
        return classes

    def log_prob(self, x: Tensor, ids: Tensor, *, allowed: Tensor | None = None) -> Tensor:
        """Log-probabilities at the classes ids, int64 [...] or [..., M]."""
        found: tuple[Tensor, ...] = self._ops.head_log_prob(
            *self._inputs(x), ids, allowed=_packed(allowed)
        )
        return found[0]

    def sample(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """One class [...] drawn from the softmax of each row, in one pass (Gumbel-max). The
        generator gives each row a seed; a row's sample depends on its features and seed alone."""
        # A generator, None too, and a batch of any size don't go together in torch.export.
        options: dict[str, Any] = {} if generator is None else {"generator": generator}
        seeds = torch.randint(2**63 - 1, x.shape[:-1], device=x.device, **options)
        drawn: Tensor = self._ops.head_sample(*self._inputs(x), seeds, allowed=_packed(allowed))
        return drawn

    def loss(
        self,
        x: Tensor,
        target: Tensor,
        reduction: str = "mean",
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        objective: Objective | None = None,
        weight: Tensor | None = None,
        target_weights: Tensor | None = None,
    ) -> Tensor:
        """Cross-entropy of the softmax with the classes target (int64 [...]), as
        `torch.nn.functional.cross_entropy` of the logits, or another objective, without logits:
        neither this nor the backward pass keeps an array of [..., C].

        Args:
            reduction: "mean" (over targets that are not ignored), "sum" or "none" ([...]).
            ignore_index: a target of this value has no loss.
            label_smoothing: of the cross-entropy without another argument below.
            objective: one of `fixclf_infer.nn.objectives`, which say whether they are `fused`.
            weight: [C], floating: a class's weight multiplies the losses of rows with that target;
                the mean is over their sum, as in `cross_entropy`.
            target_weights: for soft targets, such as mixup's: target is int64 [..., M], and the
                loss Σ_m target_weights[..., m] loss(target[..., m]), of M classes a row that may
                repeat; the mean is over rows.

        Raises:
            ValueError: one sentence that names the argument, what it was and what was expected.
        """
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f"reduction is {reduction!r}, expected 'mean', 'sum' or 'none'")
        if objective is not None or weight is not None or target_weights is not None:
            if label_smoothing != 0:
                raise ValueError(
                    f"label_smoothing is {label_smoothing}, expected 0 beside objective, weight or "
                    "target_weights: the objective LabelSmoothing has it"
                )
            targets = Targets(
                target, x.shape[:-1], self.num_classes, ignore_index, weight, target_weights
            )
            return self._objective_loss(x, targets, reduction, objective or SoftmaxCrossEntropy())
        losses: Tensor
        losses, _ = self._ops.head_nll(
            *self._inputs(x), target, ignore_index=ignore_index, label_smoothing=label_smoothing
        )
        if reduction == "none":
            return losses
        total = losses.sum()
        return total if reduction == "sum" else total / (target != ignore_index).sum()

    def _objective_loss(
        self, x: Tensor, targets: Targets, reduction: str, objective: Objective
    ) -> Tensor:
        x, alpha, bias, book = self._inputs(x)
        x, alpha, bias = objective.operands(x, alpha, bias, self.training)

        def statistics(ids: Tensor, which: Sums) -> Statistics:
            if objective.fused:
                found: Statistics = self._ops.head_statistics(x, alpha, bias, book, ids, which)
                return found
            if self.dense is None:
                z = ops.head(x, alpha, bias, book, dtype=alpha.dtype)
            else:
                z = ops.dense.logits(x, alpha, bias, book)
            return of_logits(objective.from_logits(z), ids, which)

        return targets.loss(objective, statistics, reduction, alpha, bias)

    def _operands(
        self, x: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, list[int]]:
        """α, the bias, the codebook's bits where x is, and its integers."""
        # nn.Module finds self.alpha and self.bias in 0.5 us each, and the kernel needs 1 us; but
        # parametrisations, pruning and replicas keep them elsewhere.
        parameters = self._parameters
        alpha: Tensor | None = parameters.get("alpha")
        if alpha is None:
            alpha = self.alpha
        bias: Tensor | None = parameters.get("bias")
        if bias is None:
            bias = self.bias
        if self._buffers["_extra_state"] is not None:
            self._adopt_identity()
        base, signs, dense = self.base, self.signs, self.dense
        # A torch.fx proxy has no device to compare.
        if isinstance(x, Tensor) and x.device != self._bits_on:
            if x.is_meta:
                base, signs, dense = (
                    None if bits is None else bits.to(x.device) for bits in (base, signs, dense)
                )
            elif alpha.device == x.device:
                self._place(x.device)
                base, signs, dense = self.base, self.signs, self.dense
        return alpha, bias, base, signs, dense, self._geometry

    @property
    def _ops(self) -> Any:
        return ops if self.dense is None else ops.dense

    def _inputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """What every reduction takes first: x, α and the bias in the accumulation dtype, and the
        codebook's arguments or its matrix."""
        alpha, bias, base, signs, dense, geometry = self._operands(x)
        exact = accumulation(x.dtype)
        book = ops.CodebookArguments(base, signs, geometry) if dense is None else dense
        return x, alpha.to(exact), None if bias is None else bias.to(exact), book

    # State.

    def get_extra_state(self) -> Tensor:
        text = json.dumps(self.codebook.identity()).ljust(_IDENTITY_BYTES)
        return torch.tensor(list(text.encode()), dtype=torch.float32)

    def set_extra_state(self, state: Tensor) -> None:
        try:
            text = bytes(round(byte) for byte in state.detach().double().tolist())
            identity = dict(json.loads(text.decode()).items())
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
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
            self._set_codebook(book)

    @property
    def _extra_state(self) -> Tensor:
        """Read by accelerate and transformers, which find nothing else of this name."""
        return self.get_extra_state()

    def _adopt_identity(self) -> None:
        """Of what accelerate has put among the buffers, or left where its hook finds it."""
        state, self._buffers["_extra_state"] = self._buffers["_extra_state"], None
        hook = self.__dict__.get("_hf_hook")
        for each in getattr(hook, "hooks", [hook]):
            offloaded = getattr(each, "weights_map", None)
            if offloaded is not None and "_extra_state" in offloaded:
                state = offloaded["_extra_state"]
        if state is not None and not state.is_meta:
            self.set_extra_state(state)

    def __setattr__(self, name: str, value: Any) -> None:
        # What a file lacks transformers sets to empty memory.
        if name != "_extra_state":
            super().__setattr__(name, value)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        alpha = state_dict.get(f"{prefix}alpha")
        if isinstance(alpha, Tensor) and alpha.dim() == 0:
            state_dict[f"{prefix}alpha"] = alpha.reshape(1)  # as older versions had it
        super()._load_from_state_dict(state_dict, prefix, *others)

    @property
    def _is_hf_initialized(self) -> bool:
        """transformers asks this before it initialises what a file lacked, and knows Linear and the
        like only: parameters that it has put in the place of meta ones get their start here."""
        if self._unset and not self.alpha.is_meta:
            self._unset = False
            with torch.no_grad():
                for parameter, start in ((self.alpha, self._start), (self.bias, 0.0)):
                    if parameter is not None and not hasattr(parameter, "_is_hf_initialized"):
                        parameter.fill_(start)
        return bool(self.__dict__.get("_hf_initialized", False))

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        self.__dict__["_hf_initialized"] = value

    @_is_hf_initialized.deleter
    def _is_hf_initialized(self) -> None:
        self.__dict__.pop("_hf_initialized", None)

    def _apply(self, fn: Any, recurse: bool = True) -> FixedClassifier:
        from_meta = self.alpha.is_meta
        super()._apply(fn, recurse)
        self._place(self.alpha.device)
        if from_meta and not self.alpha.is_meta:
            self.reset_parameters()  # to_empty() left them unset
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _BITS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._set_codebook(self.codebook)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"codebook={self.codebook.kind!r}, bias={self.bias is not None}"
        )


_BITS = ("base", "signs", "dense")


def _packed(allowed: Tensor | None) -> Tensor | None:
    return allowed if allowed is None or allowed.dtype == torch.uint8 else ops.pack_allowed(allowed)


def _resolve(kind: str | Codebook, in_features: int, num_classes: int) -> Codebook:
    if not isinstance(kind, Codebook):
        return codebook(in_features, num_classes, kind)
    if (kind.in_features, kind.num_classes) != (in_features, num_classes):
        raise ValueError(
            f"codebook is for in_features={kind.in_features}, num_classes={kind.num_classes}, "
            f"expected {in_features} and {num_classes}"
        )
    return kind
