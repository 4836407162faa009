"""The head and what it is compared with, as callables on the same features, checked first."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fixclf_infer import Codebook, _native, codebook, reference
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

from . import timing

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Case:
    """One problem: `batch` rows of N features to C classes."""

    in_features: int
    num_classes: int
    batch: int
    dtype: str = "float32"
    threads: int = 1
    epilogue: Epilogue = Epilogue.SOFTMAX

    def __str__(self) -> str:
        return (
            f"N{self.in_features} C{self.num_classes} B{self.batch} {self.dtype} "
            f"threads{self.threads} {self.epilogue.name.lower()}"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the input and the output."""
        itemsize: int = DTYPES[self.dtype].itemsize
        return self.batch * (self.in_features + self.num_classes) * itemsize

    def features(self) -> Tensor:
        """[batch, N], the same for every peer."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(self.batch, self.in_features, generator=generator)
        return x.to(DTYPES[self.dtype])


@lru_cache(8)
def _codebook(in_features: int, num_classes: int, kind: str) -> Codebook:
    return codebook(in_features, num_classes, kind)


def fixed_head(case: Case, kind: str = "auto") -> FixedClassifier:
    """A head with a bias that is not zero."""
    book = _codebook(case.in_features, case.num_classes, kind)
    head = FixedClassifier(case.in_features, case.num_classes, codebook=book)
    assert head.bias is not None
    nn.init.normal_(head.bias, generator=torch.Generator().manual_seed(1))
    return head.requires_grad_(False)


def dense_head(case: Case) -> nn.Linear:
    """torch's head of the same shape, initialised as torch does, in the case's dtype."""
    torch.manual_seed(1)
    return nn.Linear(case.in_features, case.num_classes).requires_grad_(False)


def apply(z: Tensor, epilogue: Epilogue) -> Tensor:
    """What torch offers for an epilogue."""
    if epilogue is Epilogue.SOFTMAX:
        return z.softmax(-1)
    if epilogue is Epilogue.LOG_SOFTMAX:
        return z.log_softmax(-1)
    return z.sigmoid() if epilogue is Epilogue.SIGMOID else z


def check_head(case: Case, head: FixedClassifier, out: Tensor, x: Tensor) -> None:
    """Compare the first and last two rows with the float64 oracle; AssertionError on a mismatch.

    A row's result does not depend on the batch (a contract with its own tests), so four rows tell.
    Bounds: probabilities 1e-6 absolute for float32 (DESIGN §3), and otherwise 4 units in the last
    place of the result's dtype at the scale of α.
    """
    rows = np.unique(np.clip([0, 1, case.batch - 2, case.batch - 1], 0, case.batch - 1))
    alpha = float(head.alpha)
    bias = None if head.bias is None else head.bias.double().numpy()
    z = reference.codebook_logits(x[rows].double().numpy(), head.codebook, alpha, bias)
    expected = reference.apply_epilogue(z, case.epilogue)
    unit = torch.finfo(DTYPES[case.dtype]).eps
    bounded = case.epilogue in (Epilogue.SOFTMAX, Epilogue.SIGMOID)
    scale = 1.0 if bounded else max(alpha, float(np.abs(expected).max()))
    tolerance = 1e-6 if bounded and case.dtype == "float32" else 4 * unit * scale
    error = float(np.abs(out[rows].double().numpy() - expected).max())
    if not error <= tolerance:
        raise AssertionError(f"{case}: error {error:.3g} against float64, allowed {tolerance:.3g}")


def check_dense(case: Case, layer: nn.Linear, out: Tensor, x: Tensor, bound: float) -> None:
    """Compare a dense peer's first row with float64."""
    z = layer.weight.double() @ x[0].double() + layer.bias.double()
    expected = apply(z, case.epilogue)
    error = float((out[0].double() - expected).abs().max())
    limit = bound * max(1.0, float(expected.abs().max()))
    if not error <= limit:
        raise AssertionError(f"{case}: dense peer is off by {error:.3g}, allowed {limit:.3g}")


# Peers. Each checks its result, then returns the call to time.


def fixclf(case: Case) -> timing.Call:
    """The fused head through torch.ops, as a server that holds its arguments would call it."""
    head, x = fixed_head(case), case.features()
    arguments = (
        *(x, head.alpha, head.bias),
        *(head.base, head.signs, head._geometry, True, int(case.epilogue)),
    )
    op: Callable[..., Tensor] = torch.ops.fixclf.head.default
    check_head(case, head, op(*arguments), x)
    return lambda: op(*arguments)


def fixclf_module(case: Case) -> timing.Call:
    """`FixedClassifier.predict_proba`, or `forward` for logits."""
    head, x = fixed_head(case), case.features()
    calls: dict[Epilogue, Callable[[Tensor], Tensor]] = {
        Epilogue.SOFTMAX: head.predict_proba,
        Epilogue.LOG_SOFTMAX: head.predict_log_proba,
        Epilogue.LOGITS: head,
    }
    call = calls[case.epilogue]
    check_head(case, head, call(x), x)
    return lambda: call(x)


def dense(case: Case) -> timing.Call:
    """`nn.Linear` and the epilogue, eager, in the case's dtype."""
    reference_layer, x = dense_head(case), case.features()
    layer = dense_head(case).to(x.dtype)
    bound = 1e-5 if case.dtype == "float32" else 0.03
    check_dense(case, reference_layer, apply(layer(x), case.epilogue), x, bound)
    return lambda: apply(layer(x), case.epilogue)


def dense_bfloat16(case: Case) -> timing.Call:
    """The dense head in bfloat16 throughout, whatever the case's dtype."""
    return dense(Case(**{**vars(case), "dtype": "bfloat16"}))


def dense_int8(case: Case) -> timing.Call:
    """`nn.Linear` with dynamic int8 quantization: int8 weights, activations quantized per call."""
    original, x = dense_head(case), case.features().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in favour of torchao, still what torch ships
        quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
        model = quantize(nn.Sequential(original), {nn.Linear}, dtype=torch.qint8)
    check_dense(case, original, apply(model(x), case.epilogue), x, 0.1)
    return lambda: apply(model(x), case.epilogue)


def dense_compiled(case: Case) -> timing.Call:
    """The dense head under torch.compile(fullgraph=True)."""
    original, x = dense_head(case), case.features()
    layer = dense_head(case).to(x.dtype)
    compiled = torch.compile(lambda x: apply(layer(x), case.epilogue), fullgraph=True)
    check_dense(case, original, compiled(x), x, 1e-5 if case.dtype == "float32" else 0.03)
    return lambda: compiled(x)


def copy(case: Case) -> timing.Call:
    """The floor: see `timing.copy_floor`."""
    return timing.copy_floor(case.nbytes)


def write(case: Case) -> timing.Call:
    """The floor of an output much larger than the input: see `timing.write_floor`."""
    return timing.write_floor(case.batch * case.num_classes * DTYPES[case.dtype].itemsize)


PEERS: dict[str, Callable[[Case], timing.Call]] = {
    "fixclf": fixclf,
    "fixclf module": fixclf_module,
    "dense": dense,
    "dense bfloat16": dense_bfloat16,
    "dense int8": dense_int8,
    "dense compiled": dense_compiled,
    "copy": copy,
    "write": write,
}


def build(case: Case, peer: str) -> timing.Variant:
    """The variant to time, checked; it sets the case's threads itself."""
    torch.set_num_threads(case.threads)
    with torch.inference_mode():
        call = PEERS[peer](case)
    return timing.Variant(call, prepare=lambda: torch.set_num_threads(case.threads))


def compare(case: Case, peers: Sequence[str], seconds: float = 1.0) -> dict[str, timing.Timing]:
    """Time peers of one case, interleaved, in inference mode."""
    variants = {peer: build(case, peer) for peer in peers}
    with torch.inference_mode():
        return timing.measure(variants, seconds=seconds)


def forced(case: Case, isa: str) -> timing.Variant:
    """Our head on NumPy arrays, on a forced ISA and one thread."""
    head, x = fixed_head(case), case.features()
    assert head.bias is not None and head.codebook.kernel is not None
    assert case.dtype == "float32" and case.threads == 1
    data = head.codebook.kernel
    native = _native.Head(
        float(head.alpha), head.bias.numpy(), data.base, data.signs, head.codebook.geometry()
    )
    features = x.numpy()

    def prepare() -> None:
        _native.set_isa(isa)
        _native.set_num_threads(1)

    def call() -> NDArray[np.float32]:
        return native.map(features, int(case.epilogue))

    prepare()
    check_head(case, head, torch.from_numpy(call()), x)
    return timing.Variant(call, prepare)


def weight_bytes(module: nn.Module) -> int:
    """Bytes that a module reads besides its input: parameters and buffers."""
    tensors = {id(t): t for t in [*module.parameters(), *module.buffers()]}
    return sum(t.numel() * t.element_size() for t in tensors.values())
