"""The fixed head as a module: a drop-in for the last `torch.nn.Linear` of a network."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from .. import backends, ops
from ..codebooks import Codebook, codebook
from ..epilogue import Epilogue
from ..ops import derivatives
from ..ops.shapes import accumulation
from ..ops.statistics import Statistics, Sums, of_logits
from . import identity
from .objectives import Objective, SoftmaxCrossEntropy, Targets

# Plain integers: an operator call converts an enumeration member in 1.7 us.
_LOGITS, _SOFTMAX, _LOG_SOFTMAX = map(
    int, (Epilogue.LOGITS, Epilogue.SOFTMAX, Epilogue.LOG_SOFTMAX)
)

# Over how many numbers α is spread, and their root.
_SPREAD, _PACE = 64, 8

_grad_enabled, _compiled = torch.is_grad_enabled, torch.compiler.is_dynamo_compiling


def default_alpha(num_classes: int) -> float:
    """α = log(99 (C − 1)): cosine 1 to one class and 0 to all others then has probability 0.99."""
    return math.log(99 * max(num_classes - 1, 1))


def _spread(alpha: Tensor) -> Tensor:
    """[1, 64] of the α [1] or []."""
    column = (alpha.reshape(1) if alpha.dim() == 0 else alpha).unsqueeze(-1)
    return column.repeat(1, _SPREAD) / _PACE


def _gathered(spread: Tensor) -> Tensor:
    """α [1] of numbers [1, 64]: their sum / 8; with all of them equal, exactly 8 times the first.
    That is what the detour is for: the first cancels, and so needs no derivative here."""
    first = spread.detach().narrow(1, 0, 1)
    return torch.add(first.select(1, 0) * _PACE, (spread - first).sum(-1), alpha=1 / _PACE)


# α without gradients, which costs as much as a small head, is kept with the numbers that it was
# computed from, the address of their memory, that memory, and its bytes then: a write to `.data`,
# or by another process, changes no version of a tensor, but these bytes.
_Known = tuple[Tensor | None, int, Any, bytes, Tensor | None]
_NOTHING_KNOWN: _Known = (None, 0, None, b"", None)


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
    """The head on features x [..., N]: [..., C]. alpha: α, or in a graph that torch.fx traces the
    numbers that it is spread over."""
    if alpha.dim() == 2:
        alpha = _gathered(alpha)
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

    The parameter behind α is `alpha_spread`, 64 numbers s [1, 64] that are all α / 8: α = Σ s / 8.
    A step along the gradient, decay, and the gradient's norm are what they would be for α itself;
    but Adam and its like, which move each number by about the rate, move α 8 times as far: it is
    some tens where weights are some hundredths (docs/alpha.md). Read α from `head.alpha`, set it by
    `head.alpha = value`; the gradient is that of `alpha_spread`.

    Args:
        in_features: N.
        num_classes: C; out_features is another name of it.
        bias: whether b is there.
        device, dtype: of α and b; float32 by default. Kernels compute in float32 (float64 for
            float64 features) whatever the dtype of the features.
        codebook: a kind for `fixclf_infer.codebook`, or a `Codebook` of this N and C.
        alpha: initial α; `default_alpha` when None.
        learn_alpha: whether α is learned, or a buffer.
        bias_init: b at the start. "zeros"; "uniform": −log C, a uniform prior for a sigmoid of
            each class, whose probabilities start at about 1/C (Kornblith et al. 2021; a softmax
            does not see it); or the classes' counts [C], as `set_prior` takes them.

    The first five can stand where `torch.nn.Linear` has them.

    Shape: x [..., N] → logits [..., C] of the dtype of x. int8 features and packed signs (uint8
    [..., ⌈N/8⌉], `ops.pack_signs`) give float32. A nested x gives nested logits.

    The state_dict holds `alpha`, which is α, `bias`, and, as numbers that are bytes of JSON, the
    codebook's identity (kind, version, sizes, seed, digest). It also has `alpha_spread`, for
    what loads parameters by their names; where both are there `alpha` counts, and either is enough.
    Loading rebuilds the codebook from the identity, and raises
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
        bias_init: str | Tensor | Sequence[float] = "zeros",
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
        self._start_of_bias = _bias_start(bias_init, book.num_classes)
        if not bias and not (isinstance(bias_init, str) and bias_init == "zeros"):
            raise ValueError("bias_init says how a bias starts, but bias is False")
        self._learns_alpha = learn_alpha
        self._known: _Known = _NOTHING_KNOWN
        if learn_alpha:
            s = torch.empty(1, _SPREAD, device=device, dtype=dtype or torch.float32)
            self.alpha_spread = nn.Parameter(s)
        fixed = torch.empty(1, device=device, dtype=dtype or torch.float32)
        # A learned α that is loaded by its name passes through here: see `_adopt_alpha`.
        self._buffers["alpha"] = None if learn_alpha else fixed
        b = torch.empty(book.num_classes, device=device, dtype=dtype or torch.float32)
        self.register_parameter("bias", nn.Parameter(b) if bias else None)
        # accelerate looks for what it loads among parameters and buffers, and puts it there.
        self._buffers["_extra_state"] = None
        self._set_codebook(book)
        self._unset = False
        self.reset_parameters()
        self._unset = self._device.type == "meta"

    def reset_parameters(self) -> None:
        """α and b as the constructor sets them."""
        self.alpha = self._start
        if self.bias is not None:
            self._fill_bias(self.bias)

    def _fill_bias(self, bias: Tensor) -> None:
        with torch.no_grad():
            if isinstance(self._start_of_bias, Tensor):
                bias.copy_(self._start_of_bias)
            else:
                bias.fill_(self._start_of_bias)

    def set_prior(self, counts: Tensor | Sequence[float]) -> None:
        """b_i = log(n_i / Σ n), the logarithm of the classes' frequencies: with features that say
        nothing yet, the softmax is right from the start (docs/alpha.md has what that saves).

        Args:
            counts: n [C], finite and at least 0; frequencies will do. A class that never occurs
                counts as half of the one that occurs least often, since log 0 is not finite.

        Raises:
            ValueError: the head has no bias; counts are no numbers, of another shape, negative, not
                finite or all 0. The head is then as it was.
        """
        if self.bias is None:
            raise ValueError("set_prior sets the bias, but this head was made with bias=False")
        prior = _log_frequencies("counts", counts, self.num_classes)
        with torch.no_grad():
            self.bias.copy_(prior)

    def parameter_groups(self, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """What the head learns, as groups for `torch.optim`: α and b at the rate lr; α decays, as
        in the paper, b does not, for it may hold a prior (docs/alpha.md)."""
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
        return [
            {"params": [p], "lr": lr, "weight_decay": 0.0 if "bias" in name else weight_decay}
            for name, p in self.named_parameters()
        ]

    @property
    def alpha(self) -> Tensor:
        """α [1], differentiable with respect to `alpha_spread`. Set it by `head.alpha = value`, a
        number or a tensor of one element: a write into what this gives would be lost, and is an
        error where gradients are off."""
        if not self._learns_alpha:
            fixed = self._buffers["alpha"]
            assert fixed is not None
            return fixed
        if self._buffers["alpha"] is not None:
            self._adopt_alpha()
        spread = self.alpha_spread
        if _compiled() or _grad_enabled() or type(spread) is not nn.Parameter:
            return _gathered(spread)
        with torch.inference_mode():  # its tensors refuse a write
            return _gathered(spread)

    @alpha.setter
    def alpha(self, value: float | Tensor) -> None:
        given = value
        if not isinstance(given, Tensor):
            try:
                number = float(given)
            except (TypeError, ValueError) as error:
                raise TypeError(
                    f"alpha is {value!r}, expected a number or a tensor of one element"
                ) from error
            if not math.isfinite(number):
                raise ValueError(f"alpha is {number}, expected a finite number")
            given = torch.tensor([number], dtype=torch.float64, device="cpu")
        if given.numel() != 1:
            raise ValueError(f"alpha has shape {list(given.shape)}, expected one element")
        if isinstance(value, Tensor) and (self._unset or not self._learns_alpha):
            # As it came: transformers marks what it has loaded, and not what it has only made.
            plain = given.dim() == 1 and not given.requires_grad
            self._buffers["alpha"] = given if plain else given.detach().reshape(1)
            return
        with torch.no_grad():
            if self._learns_alpha:
                self.alpha_spread.copy_(self._laid_out(given))
            else:
                self.alpha.copy_(given)

    def _adopt_alpha(self) -> None:
        """Of what was put among the buffers by its name."""
        given, self._buffers["alpha"] = self._buffers["alpha"], None
        if given is None or given.is_meta:
            return
        with torch.no_grad():
            if self.alpha_spread.is_meta:
                learned = self.alpha_spread.requires_grad
                self.alpha_spread = nn.Parameter(self._laid_out(given), requires_grad=learned)
            else:
                self.alpha_spread.copy_(self._laid_out(given))

    def _laid_out(self, alpha: Tensor) -> Tensor:
        """The numbers for this α, sharded where those of the module are."""
        numbers = _spread(alpha.detach())
        mesh = getattr(self.alpha_spread, "device_mesh", None)
        if mesh is None or hasattr(alpha, "device_mesh"):
            return numbers
        from torch.distributed.tensor import distribute_tensor

        placements = self.alpha_spread.placements  # type: ignore[attr-defined]
        return distribute_tensor(numbers, mesh, placements, src_data_rank=None)

    def _alpha_without_gradient(self, spread: Tensor) -> Tensor:
        """Computed, and remembered if it lies where `_operands` can compare it."""
        plain = type(spread) is nn.Parameter and spread.device.type == "cpu"
        if not (plain and spread.is_contiguous()):
            return _gathered(spread)
        memory = (ctypes.c_char * (spread.numel() * spread.element_size())).from_address(
            spread.data_ptr()
        )
        content = memory.raw
        with torch.inference_mode():
            alpha = _gathered(spread)
        if type(alpha) is Tensor:
            self._known = (spread, spread.data_ptr(), memory, content, alpha)
        return alpha

    @property
    def _device(self) -> torch.device:
        """Where the parameters are."""
        held = self.alpha_spread if self._learns_alpha else self.alpha
        return held.device

    def _set_codebook(self, book: Codebook) -> None:
        self.codebook = book
        self._geometry: list[int] = []
        self.base = self.signs = self.dense = None
        if book.kernel is not None:
            self.base, self.signs, self._geometry = ops.codebook_arguments(book)
        else:
            self.dense = torch.from_numpy(book.dense)
        self._bits_on = torch.device("cpu")
        self._place(self._device)

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
        parameters, buffers = self._parameters, self._buffers
        bias: Tensor | None = parameters.get("bias")
        if bias is None:
            bias = self.bias
        if buffers["_extra_state"] is not None:
            self._adopt_identity()
        alpha: Tensor | None = buffers["alpha"]
        if self._learns_alpha:
            if alpha is not None:
                self._adopt_alpha()
            spread: Tensor | None = parameters.get("alpha_spread")
            if spread is None:
                spread = self.alpha_spread
            if not isinstance(x, Tensor):
                alpha = spread  # torch.fx finds it among the parameters
            elif _compiled() or _grad_enabled():
                alpha = _gathered(spread)
            else:
                of, address, memory, content, alpha = self._known
                if of is not spread or spread.data_ptr() != address or memory.raw != content:
                    alpha = self._alpha_without_gradient(spread)
        assert alpha is not None
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
        return identity.written(self.codebook)

    def set_extra_state(self, state: Tensor) -> None:
        book = identity.read(state, self.codebook, "FixedClassifier")
        if book is not self.codebook:
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
        if name == "alpha":
            object.__setattr__(self, name, value)  # nn.Module would look for a parameter first
        elif name != "_extra_state":  # what a file lacks transformers sets to empty memory
            super().__setattr__(name, value)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if self._learns_alpha:
            alpha = self.alpha
            destination[f"{prefix}alpha"] = alpha if keep_vars else alpha.detach().clone()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        name, spread = f"{prefix}alpha", f"{prefix}alpha_spread"
        missing, errors = others[2], others[4]
        alpha = state_dict.get(name)
        if not self._learns_alpha:
            numbers = state_dict.pop(spread, None)
            if alpha is None and numbers is not None:
                state_dict[name] = _gathered(numbers)
            elif isinstance(alpha, Tensor) and alpha.dim() == 0:
                state_dict[name] = alpha.reshape(1)  # as older versions had it
        elif isinstance(alpha, Tensor):
            del state_dict[name]
            if alpha.numel() != 1:
                errors.append(f"{name} has shape {list(alpha.shape)}, expected one element")
            elif "alpha_spread" in self._parameters:  # not pruned, not parametrised
                self._buffers["alpha"] = None
                state_dict[spread] = self._laid_out(alpha)
        super()._load_from_state_dict(state_dict, prefix, *others)
        if spread in missing:
            missing[missing.index(spread)] = name

    @property
    def _is_hf_initialized(self) -> bool:
        """transformers asks this before it initialises what a file lacked, and knows Linear and the
        like only: parameters that it has put in the place of meta ones get their start here."""
        if self._unset and self._device.type != "meta":
            self._unset = False
            given = self._buffers["alpha"]
            if given is not None and hasattr(given, "_is_hf_initialized"):
                self.alpha = given
            elif not (self._learns_alpha and hasattr(self.alpha_spread, "_is_hf_initialized")):
                self.alpha = self._start
            if self._learns_alpha:
                self._buffers["alpha"] = None
            if self.bias is not None and not hasattr(self.bias, "_is_hf_initialized"):
                self._fill_bias(self.bias)
        return bool(self.__dict__.get("_hf_initialized", False))

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, value: bool) -> None:
        self.__dict__["_hf_initialized"] = value

    @_is_hf_initialized.deleter
    def _is_hf_initialized(self) -> None:
        self.__dict__.pop("_hf_initialized", None)

    def _apply(self, fn: Any, recurse: bool = True) -> FixedClassifier:
        from_meta = self._device.type == "meta"
        super()._apply(fn, recurse)
        self._place(self._device)
        if from_meta and self._device.type != "meta":
            self._unset = False
            self.reset_parameters()  # to_empty() left them unset
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._known = _NOTHING_KNOWN
        self._set_codebook(self.codebook)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"codebook={self.codebook.kind!r}, bias={self.bias is not None}"
        )


_BITS = ("base", "signs", "dense")
_DERIVED = (*_BITS, "_known")


def _bias_start(start: str | Tensor | Sequence[float], num_classes: int) -> float | Tensor:
    """b, or the one number that all of b is."""
    if not isinstance(start, str):
        return _log_frequencies("bias_init", start, num_classes)
    if start not in ("zeros", "uniform"):
        raise ValueError(
            f"bias_init is {start!r}, expected 'zeros', 'uniform' or {num_classes} counts"
        )
    return 0.0 if start == "zeros" else -math.log(num_classes)


def _log_frequencies(name: str, counts: Tensor | Sequence[float], num_classes: int) -> Tensor:
    try:
        n = torch.as_tensor(counts, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{name} is a {type(counts).__name__} without numbers, expected {num_classes} counts"
        ) from error
    if n.shape != (num_classes,):
        raise ValueError(f"{name} has shape {list(n.shape)}, expected [{num_classes}]")
    wrong = ~((n >= 0) & (n < math.inf))
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise ValueError(f"{name}[{i}] is {n[i]:g}, expected a finite number of at least 0")
    if not n.any():
        raise ValueError(f"{name} is all 0, expected a class that occurs")
    n = torch.where(n > 0, n, n[n > 0].min() / 2)
    return (n.log() - n.sum().log()).float()


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
