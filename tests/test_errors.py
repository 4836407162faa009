"""Bad input: one clear error that names the argument, what it was and what was expected."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from backends import TORCH_ERRORS, native_arguments, to_numpy
from cases import check_head, expand, synthetic
from script import run

from fixclf_infer import _native, hadamard_transform, ops
from fixclf_infer import codebook as make_codebook
from fixclf_infer.codebooks import from_identity
from fixclf_infer.epilogue import Epilogue
from fixclf_infer.nn import FixedClassifier

BOOK = synthetic(8, 12, log2=3, negate=True)
MASKED = synthetic(8, 8, log2=3, blocks=1)
BASED = synthetic(20, 20, log2=0, base_order=20)
HUGE = (2**31, 2**32, 2**62, 2**63 - 1)
NEGATIVE = (-1, -(2**31), -(2**63))


def uint8(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def call(**changes: Any) -> torch.Tensor:
    """torch.ops.fixclf.head on good arguments but for the changes."""
    arguments = {
        "x": torch.ones(2, 8),
        "alpha": torch.tensor(2.0),
        "bias": torch.zeros(12),
        "base": None,
        "signs": None,
        "geometry": ops.codebook_arguments(BOOK).geometry,
        "normalize": True,
        "epilogue": 0,
        "dtype": None,
    }
    geometry = {k: changes.pop(k) for k in list(changes) if k in ops.Geometry._fields}
    arguments.update(changes)
    if geometry:
        arguments["geometry"] = list(ops.Geometry(*arguments["geometry"])._replace(**geometry))
    return torch.ops.fixclf.head(*arguments.values())


def call_native(**changes: Any) -> np.ndarray:
    """The same without torch."""
    head = {"alpha": 2.0, "bias": None, **native_arguments(BOOK), "normalize": True}
    keywords = {"x": np.ones((2, 8), np.float32), "epilogue": 0, "dtype": None}
    for name, value in changes.items():
        if name in ops.Geometry._fields:
            head["geometry"] = head["geometry"]._replace(**{name: value})
        else:
            (keywords if name in keywords else head)[name] = value
    return _native.Head(**head).map(**keywords)


def one_block(num_classes: int = 8) -> dict[str, Any]:
    return {"negate": 0, "num_classes": num_classes, "class_end": num_classes, "bias": None}


def test_the_good_arguments_are_good() -> None:
    rows = np.ones((2, 8), np.float32)
    for got in (to_numpy(call()), call_native()):
        check_head(got, rows, expand(BOOK), 2.0, None, Epilogue.LOGITS)


TORCH_CASES = {
    # x
    "x of integers": ({"x": torch.ones(2, 8).long()}, "x is Long, expected Float, BFloat16, Half"),
    "x of booleans": ({"x": torch.ones(2, 8).bool()}, "x is Bool, expected Float"),
    "x complex": ({"x": torch.ones(2, 8) * 1j}, "x is ComplexFloat, expected Float"),
    "x without dimensions": ({"x": torch.tensor(1.0)}, r"x has no dimensions, expected \[\.\.\.,"),
    "N too large": ({"x": torch.ones(2, 9)}, "x has 9 features in its last dimension, but .* 8"),
    "N too small": ({"x": torch.ones(7)}, "x has 7 features in its last dimension, but .* has 8"),
    "N of nothing": ({"x": torch.ones(2, 0)}, "x has 0 features in its last dimension"),
    "N wrong in an empty batch": ({"x": torch.ones(0, 9)}, "x has 9 features in its last dim"),
    # alpha
    "two alphas": ({"alpha": torch.ones(2)}, "alpha has 2 elements, expected one"),
    "no alpha": ({"alpha": torch.ones(0)}, "alpha has 0 elements, expected one"),
    "alpha of integers": ({"alpha": torch.tensor(2)}, "alpha is Long, expected Float"),
    "alpha in double": (
        {"alpha": torch.tensor(2.0).double()},
        "alpha is float64, expected float32",
    ),
    "alpha in half": ({"alpha": torch.tensor(2.0).half()}, "alpha is float16, expected float32"),
    "alpha in float for double": (
        {"x": torch.ones(2, 8).double(), "bias": None},
        "alpha is float32, expected float64",
    ),
    "alpha NaN": ({"alpha": torch.tensor(torch.nan)}, "alpha is -?nan, expected a finite float32"),
    "alpha infinite": ({"alpha": torch.tensor(torch.inf)}, "alpha is inf, expected a finite"),
    "alpha -infinite": ({"alpha": torch.tensor(-torch.inf)}, "alpha is -inf, expected a finite"),
    # bias
    "bias too short": ({"bias": torch.ones(11)}, "bias has 11 elements, expected .* 12 classes"),
    "bias too long": ({"bias": torch.ones(13)}, "bias has 13 elements, expected .* 12 classes"),
    "bias of the whole for a shard": (
        {"class_end": 5},
        "bias has 12 elements, expected one for each of 5 classes",
    ),
    "bias of no element": ({"bias": torch.ones(0)}, "bias has 0 elements, expected .* 12 classes"),
    "bias a matrix": ({"bias": torch.ones(12, 1)}, "bias .*expected one dimension"),
    "bias a number": ({"bias": torch.tensor(1.0)}, "bias .*expected one dimension"),
    "bias in double": (
        {"bias": torch.ones(12).double()},
        "bias is float64, expected float32 for float32 features",
    ),
    "bias in bfloat16": (
        {"x": torch.ones(2, 8).bfloat16(), "bias": torch.ones(12).bfloat16()},
        "bias is bfloat16, expected float32 for bfloat16 features",
    ),
    "bias of integers": ({"bias": torch.ones(12).int()}, "bias is Int, expected Float"),
    # epilogue, dtype
    "epilogue unknown": ({"epilogue": 4}, r"epilogue is 4, expected one of 0 \(logits\), 1 \(sof"),
    "epilogue negative": ({"epilogue": -1}, "epilogue is -1, expected one of 0"),
    "epilogue beyond 32 bits": ({"epilogue": 2**32}, "epilogue is 4294967296, expected one of 0"),
    "epilogue just below": ({"epilogue": 2 - 2**32}, "epilogue is -4294967294, expected one of 0"),
    "out in double": ({"dtype": torch.float64}, "dtype is float64, expected float32"),
    "out in another half": ({"dtype": torch.float16}, "dtype is float16, expected float32"),
    "out narrower than double": (
        {
            "x": torch.ones(2, 8).double(),
            "alpha": torch.ones((), dtype=torch.float64),
            "bias": None,
            "dtype": torch.float32,
        },
        "dtype is float32, expected float64",
    ),
    "out of integers": ({"dtype": torch.int32}, "dtype is Int, expected Float or the dtype of x"),
    # geometry
    "geometry short": ({"geometry": [8] * 9}, "geometry has 9 elements, expected 10"),
    "geometry long": ({"geometry": [8] * 11}, "geometry has 11 elements, expected 10"),
    "geometry empty": ({"geometry": []}, "geometry has 0 elements, expected 10"),
    "geometry of fractions": ({"geometry": [1.5] * 10}, "'List.int.' for argument 'geometry'"),
    "geometry beyond 64 bits": ({"geometry": [2**63] * 10}, "argument 'geometry'"),
    "C = 0": ({"num_classes": 0, "class_end": 0}, "num_classes is 0, expected 1 to"),
    "C beyond the rows": ({"num_classes": 17}, "num_classes is 17 from row 0, but .* 16 distinct"),
    "C beyond the rows with an offset": (
        {"row_offset": 5},
        "num_classes is 12 from row 5, but 1 block.* of order 8 have 16 distinct rows",
    ),
    "N = 0": ({"in_features": 0}, "codebook has 0 features, expected"),
    "N beyond the order": ({"in_features": 9}, "order 8 can't hold 9 features from column 0"),
    "N beyond the order with an offset": (
        {"column_offset": 1},
        "order 8 can't hold 8 features from column 1",
    ),
    "column_offset 2": ({"column_offset": 2}, "column_offset is 2, expected 0 or 1"),
    "base_order 0": ({"base_order": 0}, "base_order is 0, expected 1 to 512"),
    "base_order 513": ({"base_order": 513}, "base_order is 513, expected 1 to 512"),
    "order over the limit": ({"log2": 23}, r"order .* = 1 \* 2\^23 is over the limit of 4194304"),
    "order over the limit with a base": (
        {"base_order": 3, "log2": 21, "base": uint8(3, 1)},
        r"order .* = 3 \* 2\^21 is over the limit of 4194304",
    ),
    "no class": ({"class_begin": 3, "class_end": 3, "bias": None}, r"class range is \[3, 3\), exp"),
    "classes backwards": ({"class_begin": 5, "class_end": 3}, r"class range is \[5, 3\), expected"),
    "classes beyond C": ({"class_end": 13}, r"class range is \[0, 13\), .* within \[0, 12\)"),
    "centre with negation": ({"center": 1}, "center needs one block without negations"),
    "centre of one class": (
        {**one_block(1), "center": 1},
        "center needs .* at least 2 classes, not 1 block.* and 1 class",
    ),
    "centre with masks": (
        {**one_block(), "signs": uint8(2, 1), "center": 1},
        "center needs one block .*, not 2 block",
    ),
    # bits
    "base where there is none": (
        {"base": uint8(1, 1)},
        "base must be given exactly when base_order is not 1; base has 1 rows",
    ),
    "base missing": (
        {"base_order": 4, "log2": 1},
        "base must be given exactly when base_order is not 1; base has 0 rows",
    ),
    "base too short": (
        {"base_order": 4, "log2": 1, "base": uint8(2, 1)},
        "base has 2 rows of 1 bytes, expected 4 x 1 for base_order 4",
    ),
    "base too long": (
        {"base_order": 4, "log2": 1, "base": uint8(4, 2)},
        "base has 4 rows of 2 bytes, expected 4 x 1 for base_order 4",
    ),
    "base a vector": (
        {"base_order": 4, "log2": 1, "base": uint8(4)},
        "base is .*expected a contiguous matrix of Byte",
    ),
    "base of booleans": (
        {"base_order": 4, "log2": 1, "base": uint8(4, 1).bool()},
        "base is .*expected a contiguous matrix of Byte",
    ),
    "base transposed": (
        {"base_order": 9, "log2": 0, "base": uint8(2, 9).t()},
        "base is .*expected a contiguous matrix of Byte",
    ),
    "base of another shape": (
        {
            "x": torch.ones(2, 20),
            "bias": None,
            "geometry": ops.codebook_arguments(BASED).geometry,
            "base": uint8(3, 20),
        },
        "base .*3 x 20.*expected 20 x 3|base has 3 rows",
    ),
    "signs too short": (
        {**one_block(), "log2": 4, "signs": uint8(1, 1)},
        "signs has 1 rows of 1 bytes, expected 1 x 2 for order 16",
    ),
    "signs too long": (
        {**one_block(), "signs": uint8(1, 2)},
        "signs has 1 rows of 2 bytes, expected 1 x 1 for order 8",
    ),
    "signs of no block": ({**one_block(), "signs": uint8(0, 1)}, "signs has 0 rows, expected"),
    "signs a vector": (
        {**one_block(), "signs": uint8(1)},
        "signs is .*expected a contiguous matrix of Byte",
    ),
    "signs of int8": (
        {**one_block(), "signs": uint8(1, 1).char()},
        "signs is .*expected a contiguous matrix of Byte",
    ),
    "signs strided": (
        {**one_block(), "signs": uint8(2, 2)[:, :1]},
        "signs is .*expected a contiguous matrix of Byte",
    ),
    "signs of too few blocks": (
        {**one_block(17), "signs": uint8(2, 1)},
        "num_classes is 17 from row 0, but 2 block.* of order 8 have 16 distinct rows",
    ),
}


@pytest.mark.parametrize(("changes", "message"), TORCH_CASES.values(), ids=TORCH_CASES)
def test_head_in_torch(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TORCH_ERRORS, match=message):
        call(**changes)


NUMBERS = ("in_features", "base_order", "log2", "row_offset", "column_offset", "num_classes")


def absurd(name: str, value: int) -> str:
    """Pattern of the message about it."""
    if name == "in_features":
        return f"codebook has {value} features, expected"
    return f"class range.*{value}" if name.startswith("class_") else f"{name}.*{value}"


@pytest.mark.parametrize("value", [*NEGATIVE, *HUGE])
@pytest.mark.parametrize("name", [*NUMBERS, "class_begin", "class_end"])
def test_absurd_integers(name: str, value: int) -> None:
    message = absurd(name, value)
    with pytest.raises(TORCH_ERRORS, match=message):
        call(**{name: value})
    with pytest.raises(ValueError, match=message):
        call_native(**{name: value})
    geometry = ops.Geometry(*ops.codebook_arguments(BOOK).geometry)._replace(**{name: value})
    with pytest.raises(TORCH_ERRORS, match=message):
        torch.ops.fixclf.project_adjoint(torch.ones(2, 12), None, None, list(geometry))


def test_absurd_integers_together() -> None:
    """No product or sum of two of them may wrap around into something valid."""
    names = [*NUMBERS, "class_begin", "class_end"]
    values = [-(2**63), -1, 2**31, 2**32 + 8, 2**62, 2**63 - 8, 2**63 - 1]
    rng = np.random.default_rng(4)
    for _ in range(2000):
        chosen = rng.choice(names, rng.integers(2, len(names) + 1), replace=False)
        with pytest.raises(TORCH_ERRORS, match=r"expected|over the limit|can't hold|distinct rows"):
            call(**{str(name): values[rng.integers(len(values))] for name in chosen})


@pytest.mark.parametrize("name", ["alpha", "bias", "signs", "base"])
def test_tensors_on_another_device(name: str) -> None:
    """The meta device is the one that every torch has. All must be where x is."""
    signs, base = torch.from_numpy(MASKED.kernel.signs), torch.from_numpy(BASED.kernel.base)
    good = {
        "alpha": {"alpha": torch.tensor(2.0)},
        "bias": {"bias": torch.zeros(12)},
        "signs": {**one_block(), "signs": signs},
        "base": {
            "x": torch.ones(2, 20),
            "bias": None,
            "geometry": ops.codebook_arguments(BASED).geometry,
            "base": base,
        },
    }[name]
    call(**good)
    with pytest.raises(TORCH_ERRORS, match=f"{name} is not on the CPU|{name}.*meta|meta.*{name}"):
        call(**{**good, name: good[name].to("meta")})


def test_adjoint_arguments_on_another_device() -> None:
    arguments = ops.codebook_arguments(MASKED)
    with pytest.raises(TORCH_ERRORS, match=r"signs is not on the CPU|signs.*meta|meta.*signs"):
        torch.ops.fixclf.project_adjoint(
            torch.ones(2, 8), None, arguments.signs.to("meta"), arguments.geometry
        )


def test_everything_on_the_meta_device_gives_a_meta_tensor() -> None:
    got = call(
        x=torch.ones(2, 8, device="meta"),
        alpha=torch.tensor(2.0, device="meta"),
        bias=torch.zeros(12, device="meta"),
    )
    assert got.device.type == "meta" and got.shape == (2, 12)


def test_adjoint() -> None:
    geometry = ops.codebook_arguments(BOOK).geometry
    for g, message in (
        (torch.ones(2, 11), "g has 11 classes in its last dimension, expected 12"),
        (torch.ones(2, 12).int(), "g is Int, expected Float"),
        (torch.tensor(1.0), "g has no dimensions"),
    ):
        with pytest.raises(TORCH_ERRORS, match=message):
            torch.ops.fixclf.project_adjoint(g, None, None, geometry)


NATIVE_CASES = {
    "x of integers": ({"x": np.ones((2, 8), int)}, TypeError, "x is int64, expected float32, bfl"),
    "x of another byte order": (
        {"x": np.ones((2, 8), ">f4" if np.little_endian else "<f4")},
        TypeError,
        "x is [<>]f4, expected float32, bfloat16, float16, float64, int8",
    ),
    "x without dimensions": ({"x": np.array(1.0)}, ValueError, "x has no dimensions, expected"),
    "x a list": ({"x": [1.0] * 8}, TypeError, r"x: numpy.ndarray"),
    "N wrong": ({"x": np.ones((2, 9), np.float32)}, ValueError, "x has 9 features in its last"),
    "alpha NaN": ({"alpha": np.nan}, ValueError, "alpha is -?nan, expected a finite float32"),
    "alpha infinite": ({"alpha": np.inf}, ValueError, "alpha is inf, expected a finite float32"),
    "alpha beyond float32": ({"alpha": 1e39}, ValueError, r"alpha is 1e\+39, expected a finite"),
    "alpha a string": ({"alpha": "2"}, TypeError, "alpha: "),
    "bias too short": (
        {"bias": np.ones(11, np.float32)},
        ValueError,
        "bias has 11 elements, expected one for each of 12 classes",
    ),
    "bias strided": (
        {"bias": np.ones(24, np.float32)[::2]},
        ValueError,
        "bias .*expected a contiguous vector",
    ),
    "bias in double": ({"bias": np.ones(12)}, ValueError, "bias is float64, expected float32 for"),
    "bias of integers": ({"bias": np.ones(12, int)}, TypeError, "bias is int64, expected float32"),
    "epilogue unknown": ({"epilogue": 9}, ValueError, r"epilogue is 9, expected one of 0 \(logits"),
    "epilogue beyond 32 bits": (
        {"epilogue": 2**32},
        ValueError,
        "epilogue is 4294967296, expected",
    ),
    "out of integers": (
        {"dtype": np.dtype(np.int32)},
        TypeError,
        "the output is int32, expected float32",
    ),
    "out in double": (
        {"dtype": np.dtype(np.float64)},
        ValueError,
        "output dtype is float64, expected float32",
    ),
    "signs a vector": (
        {"signs": np.zeros(1, np.uint8), "negate": False, "num_classes": 8, "class_end": 8},
        ValueError,
        "signs has 1 dimension.*expected a matrix of uint8",
    ),
    "signs of integers": ({"signs": np.zeros((1, 1), int)}, TypeError, "signs: "),
    "base of another shape": (
        {
            **native_arguments(BASED),
            "x": np.ones((1, 20), np.float32),
            "base": np.zeros((3, 20), np.uint8),
        },
        ValueError,
        "base .*3 x 20.*expected 20 x 3|base has 3 rows",
    ),
    "C = 0": ({"num_classes": 0, "class_end": 0}, ValueError, "num_classes is 0, expected 1 to"),
    "C beyond 64 bits": ({"num_classes": 2**70}, TypeError, "geometry: "),
}


@pytest.mark.parametrize(("changes", "error", "message"), NATIVE_CASES.values(), ids=NATIVE_CASES)
def test_head_in_numpy(changes: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call_native(**changes)


@pytest.mark.parametrize("n", [0, 3, 6, 1000, 2**22 + 1, 2**23])
def test_transform_orders(n: int) -> None:
    message = f"x has {n} elements in its last dimension, expected a power of two up to 4194304"
    with pytest.raises(ValueError, match=message):
        _native.hadamard_transform(np.ones((1, n), np.float32))
    with pytest.raises(TORCH_ERRORS, match=message):
        ops.hadamard_transform(torch.ones(1, n))


@pytest.mark.parametrize("dtype", ["int32", "int8", "bool", "complex64"])
def test_transform_dtypes(dtype: str) -> None:
    with pytest.raises(TypeError, match=f"x is {dtype}, expected float32, bfloat16, float16 or"):
        hadamard_transform(np.ones(8, dtype))
    with pytest.raises(TORCH_ERRORS, match=r"x is .*, expected Float, BFloat16, Half or Double"):
        hadamard_transform(torch.ones(8).to(getattr(torch, dtype)))


@pytest.mark.parametrize("x", [[1.0, 2.0], 3.0, None, "x", (1.0,)])
def test_transform_of_something_else(x: Any) -> None:
    kind = type(x).__name__
    with pytest.raises(TypeError, match=f"x is a {kind}, expected a torch.Tensor or a numpy.ndarr"):
        hadamard_transform(x)


def test_transform_scale() -> None:
    with pytest.raises(TypeError, match="scale: "):
        hadamard_transform(np.ones(8, np.float32), "1")
    with pytest.raises(RuntimeError, match="'float' for argument 'scale'"):
        hadamard_transform(torch.ones(8), "1")


def test_number_of_threads_beyond_an_int() -> None:
    with pytest.raises(TypeError, match="set_num_threads"):
        _native.set_num_threads(2**40)


def test_more_threads_than_the_system_gives() -> None:
    """Address space for a few dozen stacks only: fewer threads, the same result."""
    script = """
import resource
import numpy as np
from fixclf_infer import _native, hadamard_transform
x = np.arange(5000 * 16, dtype=np.float32).reshape(-1, 16).repeat(32, 0)
want = hadamard_transform(x)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)
_native.set_num_threads(256)
assert np.array_equal(hadamard_transform(x), want)
print("survived")
"""
    result = run(script, check=False, timeout=20)
    assert result.returncode == 0, f"exit status {result.returncode}: {result.stderr}"
    assert result.stdout.split()[-1] == "survived"


@pytest.mark.parametrize("threads", [-1, 257, 5000])
def test_number_of_threads(threads: int) -> None:
    message = f"threads is {threads}, expected 0 .all cores. to 256"
    with pytest.raises(ValueError, match=message):
        _native.set_num_threads(threads)


# Reductions.

NATIVE_REDUCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {"k": 3}),
    "argmax": ("argmax", {}),
    "sample": ("sample", {"seeds": np.zeros(2, np.int64)}),
    "log_prob": ("log_prob", {"ids": np.zeros(2, np.int64)}),
    "nll": ("nll", {"target": np.zeros(2, np.int64)}),
}


def reduce_native(name: str, x: Any = None, **changes: Any) -> Any:
    """A method of `_native.Head` on good arguments but for the changes."""
    method, arguments = NATIVE_REDUCTIONS[name]
    head = _native.Head(2.0, None, **native_arguments(BOOK), normalize=True)
    x = np.ones((2, 8), np.float32) if x is None else x
    return getattr(head, method)(x, **{**arguments, **changes})


def reduce_torch(name: str, x: Any = None, **changes: Any) -> Any:
    """The same through torch.ops.fixclf.*; arrays become tensors."""
    method, arguments = NATIVE_REDUCTIONS[name]
    arguments = {
        key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in {**arguments, **changes}.items()
    }
    x = torch.ones(2, 8) if x is None else torch.from_numpy(x)
    codebook = ops.codebook_arguments(BOOK)
    return getattr(ops, f"head_{method}")(x, torch.tensor(2.0), None, codebook, **arguments)


def ids(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def mask(*shape: int, value: int = 255) -> np.ndarray:
    return np.full(shape, value, np.uint8)


ids_shape = "expected that of x without its last dimension"
mask_row = "allowed allows no class in row"
REDUCTION_CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "k = 0": ("topk", {"k": 0}, "k is 0, expected 1 to 12 for 12 classes"),
    "k negative": ("topk", {"k": -1}, "k is -1, expected 1 to 12"),
    "k most negative": ("topk", {"k": -(2**63)}, "k is -9223372036854775808, expected 1 to 12"),
    "k over C": ("topk", {"k": 13}, "k is 13, expected 1 to 12 for 12 classes"),
    "k huge": ("topk", {"k": 2**62}, "k is 4611686018427387904, expected 1 to 12"),
    # ids and targets: the first that is wrong
    "an id over C": ("log_prob", {"ids": ids(3, 12)}, r"ids\[1\] is 12, expected .* \[0, 12\)"),
    "an id below 0": ("log_prob", {"ids": ids(-1, 99)}, r"ids\[0\] is -1, expected a class in"),
    "an id of many": (
        "log_prob",
        {"ids": ids([1, 2, 3], [4, 5, -100])},
        r"ids\[1, 2\] is -100, expected a class in \[0, 12\)",
    ),
    "an id beyond 32 bits": ("log_prob", {"ids": ids(0, 2**32)}, r"ids\[1\] is 4294967296, exp"),
    "an id of 64 bits": (
        "log_prob",
        {"ids": ids(-(2**63), 0)},
        r"ids\[0\] is -9223372036854775808",
    ),
    "a target over C": ("nll", {"target": ids(11, 12)}, r"target\[1\] is 12, expected a class"),
    "a target below 0": ("nll", {"target": ids(-1, -2)}, r"target\[0\] is -1, expected a class"),
    "a target of -100 that is not ignored": (
        "nll",
        {"target": ids(-100, -100), "ignore_index": 5},
        r"target\[0\] is -100, expected a class in \[0, 12\)",
    ),
    "a target beyond 32 bits": ("nll", {"target": ids(0, 2**32)}, r"target\[1\] is 4294967296"),
    # their shapes
    "too few ids": ("log_prob", {"ids": ids(1)}, rf"ids has shape .*1.*{ids_shape}, or with anoth"),
    "too many ids": ("log_prob", {"ids": ids(1, 2, 3)}, rf"ids has shape .*3.*{ids_shape}"),
    "ids transposed": ("log_prob", {"ids": np.zeros((3, 2), np.int64)}, rf"ids has .*{ids_shape}"),
    "ids of three dimensions": (
        "log_prob",
        {"ids": np.zeros((2, 1, 1), np.int64)},
        rf"ids has shape .*2, 1, 1.*{ids_shape}",
    ),
    "an id without dimensions": ("log_prob", {"ids": np.array(1)}, rf"ids has .*{ids_shape}"),
    "too few targets": ("nll", {"target": ids(1)}, rf"target has shape .*1.*{ids_shape}"),
    "targets of two dimensions": ("nll", {"target": ids([1], [2])}, rf"target has .*{ids_shape}"),
    "too few seeds": ("sample", {"seeds": ids(1)}, rf"seeds has shape .*1.*{ids_shape}"),
    "seeds of two dimensions": ("sample", {"seeds": ids([1], [2])}, rf"seeds has .*{ids_shape}"),
    # label_smoothing
    **{
        f"label smoothing {value}": (
            "nll",
            {"label_smoothing": value},
            f"label_smoothing is .*{str(abs(value))[:3]}.*, expected 0 to 1",
        )
        for value in (-0.1, 1.1, float("nan"), float("inf"))
    },
    # masks
    "a short mask": (
        "argmax",
        {"allowed": mask(1)},
        "allowed has rows of 1 bytes, expected 2 for 12 cl",
    ),
    "a long mask": (
        "argmax",
        {"allowed": mask(12)},
        "allowed has rows of 12 bytes, expected 2 for 12",
    ),
    "an empty mask": (
        "argmax",
        {"allowed": mask(0)},
        "allowed has rows of 0 bytes, expected 2 for 12",
    ),
    "a mask of other rows": ("argmax", {"allowed": mask(3, 2)}, "allowed has (3 rows|shape)"),
    "a mask of no row": ("argmax", {"allowed": mask(0, 2)}, "allowed has (0 rows|shape)"),
    "a mask of no class": (
        "argmax",
        {"allowed": mask(2, value=0)},
        f"{mask_row} 0, expected at leas",
    ),
    "a mask of no class for a row": (
        "topk",
        {"allowed": np.array([[0, 1], [0, 0]], np.uint8)},
        f"{mask_row} 1, expected at least one",
    ),
    "a mask of bits beyond C": (
        "sample",
        {"allowed": np.array([[1, 0], [0, 0xF0]], np.uint8)},
        f"{mask_row} 1, expected at least one",
    ),
    "a mask of no class for log-probabilities": (
        "log_prob",
        {"allowed": mask(2, value=0)},
        f"{mask_row} 0, expected at least one",
    ),
}


@pytest.mark.parametrize(
    ("name", "changes", "message"), REDUCTION_CASES.values(), ids=REDUCTION_CASES
)
def test_reductions(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reduce_native(name, **changes)
    with pytest.raises(TORCH_ERRORS, match=message):
        reduce_torch(name, **changes)


def test_more_than_1024_of_the_best() -> None:
    book = synthetic(64, 2000, log2=6, blocks=32)
    x, message = np.ones((1, 64), np.float32), "k is 1025, expected 1 to 1024 for 2000 classes"
    head = _native.Head(2.0, None, **native_arguments(book), normalize=True)
    assert head.topk(x, 1024)[1].shape == (1, 1024)
    with pytest.raises(ValueError, match=message):
        head.topk(x, 1025)
    for k in (1025, 2000, 2001):
        with pytest.raises(TORCH_ERRORS, match=f"k is {k}, expected 1 to 1024"):
            FixedClassifier(64, 2000, codebook=book).topk(torch.from_numpy(x), k)


@pytest.mark.parametrize("name", NATIVE_REDUCTIONS)
def test_features_of_reductions(name: str) -> None:
    """What every operator checks, each by itself."""
    for reduce in (reduce_native, reduce_torch):
        with pytest.raises(TORCH_ERRORS, match=r"x has 9 features in its last dimension, but .* 8"):
            reduce(name, np.ones((2, 9), np.float32))
        with pytest.raises((TypeError, *TORCH_ERRORS), match=r"x is (int32|Int), expected"):
            reduce(name, np.ones((2, 8), np.int32))
        with pytest.raises(TORCH_ERRORS, match="x has no dimensions"):
            reduce(name, np.array(1.0, np.float32))
    method, arguments = NATIVE_REDUCTIONS[name]
    rest = {k: torch.from_numpy(v) if k != "k" else v for k, v in arguments.items()}
    codebook, op = ops.codebook_arguments(BOOK), getattr(ops, f"head_{method}")
    x, alpha, bias = torch.ones(2, 8), torch.tensor(2.0), torch.zeros(12)
    for a, b, message in (
        (torch.tensor(torch.nan), bias, r"alpha is -?nan, expected a finite float32"),
        (alpha.double(), bias, "alpha is float64, expected float32"),
        (alpha, bias[:11], "bias has 11 elements, expected one for each of 12 classes"),
        (alpha, bias.double(), "bias is float64, expected float32"),
        (alpha, bias.to("meta"), r"bias is not on the CPU|bias.*meta|meta.*bias"),
    ):
        with pytest.raises(TORCH_ERRORS, match=message):
            op(x, a, b, codebook, **rest)
    if name != "nll":
        meta = uint8(2).to("meta")
        with pytest.raises(TORCH_ERRORS, match=r"allowed is not on the CPU|mask.*meta|meta.*mask"):
            op(x, alpha, bias, codebook, **rest, allowed=meta)


@pytest.mark.parametrize("name", ["sample", "log_prob", "nll"])
@pytest.mark.parametrize("dtype", ["int32", "float32", "float64", "bool", "uint8"])
def test_ids_in_torch(name: str, dtype: str) -> None:
    """int64 alone: nothing is rounded to a class."""
    key = next(iter(NATIVE_REDUCTIONS[name][1]))
    with pytest.raises(TORCH_ERRORS, match=f"{key} is \\w+, expected Long"):
        reduce_torch(name, **{key: np.ones(2, dtype)})


@pytest.mark.parametrize("name", ["sample", "log_prob", "nll"])
@pytest.mark.parametrize(
    "wrong", [np.array([1.5, 2.7]), np.array([np.nan, 0]), np.array(["1", "2"])], ids=str
)
def test_ids_in_numpy(name: str, wrong: np.ndarray) -> None:
    """Fractions and text are no classes: nothing is rounded."""
    key = next(iter(NATIVE_REDUCTIONS[name][1]))
    with pytest.raises(TypeError, match=f"{key}"):
        reduce_native(name, **{key: wrong})


@pytest.mark.parametrize("name", ["topk", "argmax", "sample", "log_prob"])
def test_masks_of_other_dtypes(name: str) -> None:
    for dtype in ("int8", "int64", "float32"):
        with pytest.raises(TypeError, match="allowed: "):
            reduce_native(name, allowed=np.ones(2, dtype))
        with pytest.raises(TORCH_ERRORS, match=r"allowed is a tensor of 1 dimension.* of Byte"):
            reduce_torch(name, allowed=np.ones(2, dtype))
    with pytest.raises(TORCH_ERRORS, match="expected packed bits: contiguous, of Byte"):
        reduce_torch(name, allowed=np.ones(12, bool))
    with pytest.raises((ValueError, TypeError), match="allowed"):
        reduce_native(name, allowed=np.ones(12, bool))
    with pytest.raises(TORCH_ERRORS, match="allowed is a tensor of 0 dimension"):
        reduce_torch(name, allowed=np.array(255, np.uint8))
    with pytest.raises(ValueError, match="allowed has no dimensions, expected packed bits"):
        reduce_native(name, allowed=np.array(255, np.uint8))


def test_masks_of_another_batch_shape() -> None:
    """As many rows as x in another shape is a mistake all the same."""
    x = np.ones((2, 3, 8), np.float32)
    for reduce in (reduce_native, reduce_torch):
        reduce("argmax", x, allowed=mask(2, 3, 2))
        for shape in ((3, 2, 2), (6, 2), (1, 6, 2)):
            with pytest.raises(TORCH_ERRORS, match="allowed "):
                reduce("argmax", x, allowed=mask(*shape))


def test_packing_of_masks() -> None:
    for allowed, message in (
        (torch.ones(3), r"allowed is torch.float32 of 1 dimension.*expected torch.bool"),
        (torch.ones(3).int(), r"allowed is torch.int32 of 1 dimension.*expected torch.bool"),
        (torch.tensor(True), r"allowed is torch.bool of 0 dimension.*expected torch.bool"),
    ):
        with pytest.raises(ValueError, match=message):
            ops.pack_allowed(allowed)


REDUCTION_MODULES = {
    "k = 0": (lambda head, x: head.topk(x, 0), r"k is 0, expected 1 to 4"),
    "k over C": (lambda head, x: head.topk(x, 5), r"k is 5, expected 1 to 4"),
    "an allowed of integers": (
        lambda head, x: head.argmax(x, allowed=torch.ones(4).long()),
        r"allowed is torch.int64 of 1 dimension.*, expected torch.bool",
    ),
    "an allowed too long": (
        lambda head, x: head.argmax(x, allowed=torch.ones(9, dtype=torch.bool)),
        r"mask|allowed",
    ),
    "nothing allowed": (
        lambda head, x: head.argmax(x, allowed=torch.zeros(4, dtype=torch.bool)),
        r"allowed allows no class in row 0",
    ),
    "an id over C": (
        lambda head, x: head.log_prob(x, torch.tensor([0, 4])),
        r"ids\[1\] is 4, expected a class in \[0, 4\)",
    ),
    "a target over C": (
        lambda head, x: head.loss(x, torch.tensor([0, 4])),
        r"target\[1\] is 4, expected a class in \[0, 4\)",
    ),
    "targets of another batch": (
        lambda head, x: head.loss(x, torch.tensor([0])),
        r"target has shape \[1\], expected",
    ),
    "label smoothing over 1": (
        lambda head, x: head.loss(x, torch.tensor([0, 1]), label_smoothing=1.5),
        r"label_smoothing is 1.5, expected 0 to 1",
    ),
    "reduction unknown": (
        lambda head, x: head.loss(x, torch.tensor([0, 1]), "max"),
        r"reduction is 'max', expected 'mean', 'sum' or 'none'",
    ),
}


@pytest.mark.parametrize("kind", ["hadamard", "orthonormal"])
@pytest.mark.parametrize(("method", "message"), REDUCTION_MODULES.values(), ids=REDUCTION_MODULES)
def test_reductions_of_modules(method: Any, message: str, kind: str) -> None:
    with pytest.raises(TORCH_ERRORS, match=message):
        method(FixedClassifier(8, 4, codebook=kind), torch.ones(2, 8))


def test_backward_operator() -> None:
    x, alpha, one = torch.ones(2, 8), torch.tensor(2.0), torch.ones(2)
    inputs = (x, alpha, None, *ops.codebook_arguments(BOOK), True)
    backward, ids = torch.ops.fixclf.head_reduction_backward, torch.tensor([0, 1])
    mask = ops.pack_allowed(torch.ones(12, dtype=torch.bool))
    backward(*inputs, ids, one, one, one, one)
    for a, b, c, lse, at, allowed, message in (
        (one[:1], one, one, one, ids, None, "softmax_grad has 1 elements of Float, expected 2 con"),
        (
            one.double(),
            one,
            one,
            one,
            ids,
            None,
            "softmax_grad has 2 .* Double, expected 2 .* floa",
        ),
        (one, one[:1], one, one, ids, None, "ids_grad has 1 elements of Float, expected 2 contig"),
        (one, one, one[:1], one, ids, None, "uniform_grad has 1 elements of Float, expected 2"),
        (one, one, one, one[:1], ids, None, "logsumexp has 1 elements of Float, expected 2 cont"),
        (one, one, one, one, ids[:1], None, r"ids has shape \[1\], expected"),
        (one, one, None, one, ids, mask[:1], "allowed has rows of 1 bytes, expected 2"),
    ):
        with pytest.raises(TORCH_ERRORS, match=message):
            backward(*inputs, at, lse, a, b, c, allowed)


# Python arguments.


@pytest.mark.parametrize(
    "classes", [range(0), range(3, 3), range(-1, 2), range(0, 13), range(0, 8, 2), range(5, 2)]
)
def test_shards_of_a_codebook(classes: range) -> None:
    message = re.escape(f"classes is {classes}, expected a non-empty range within [0, 12)")
    with pytest.raises(ValueError, match=message):
        ops.codebook_arguments(BOOK, classes)


def test_a_dense_codebook_has_no_kernel_arguments() -> None:
    with pytest.raises(ValueError, match=r"dense .orthonormal., expected one of a ±1 family"):
        ops.codebook_arguments(make_codebook(8, 4, "orthonormal"))


MODULE_CASES = {
    "N = 0": (lambda: FixedClassifier(0, 4), ValueError, r"in_features must lie in \[1, .* got 0"),
    "N negative": (lambda: FixedClassifier(-3, 4), ValueError, "in_features must .* got -3"),
    "N of half": (lambda: FixedClassifier(2.5, 4), TypeError, "in_features .* integer, got 2.5"),
    "C = 0": (lambda: FixedClassifier(4, 0), ValueError, r"num_classes must lie in \[1, .* got 0"),
    "C negative": (lambda: FixedClassifier(4, -1), ValueError, "num_classes must .* got -1"),
    "C huge": (lambda: FixedClassifier(4, 2**40), ValueError, "num_classes must .* 1099511627776"),
    "C beyond distinct rows": (
        lambda: FixedClassifier(3, 9),
        ValueError,
        "num_classes must be at most 2.in_features = 8 .* no more different",
    ),
    "C beyond the family": (
        lambda: FixedClassifier(8, 9, codebook="hadamard"),
        ValueError,
        "num_classes must be at most 7 for kind='hadamard' with in_features=8, .* got 9",
    ),
    "unknown codebook": (
        lambda: FixedClassifier(8, 4, codebook="fourier"),
        ValueError,
        "kind must be one of auto, hadamard, .* got 'fourier'",
    ),
    "codebook of other sizes": (
        lambda: FixedClassifier(16, 4, codebook=make_codebook(8, 4)),
        ValueError,
        "codebook is for in_features=8, num_classes=4, expected 16 and 4",
    ),
    "alpha NaN": (
        lambda: FixedClassifier(8, 4, alpha=float("nan")),
        ValueError,
        "alpha must be finite, got nan",
    ),
    "alpha infinite": (
        lambda: FixedClassifier(8, 4, alpha=float("-inf")),
        ValueError,
        "alpha must be finite, got -inf",
    ),
    "identity without a digest": (
        lambda: from_identity({"kind": "hadamard", "version": 1}),
        ValueError,
        "identity must hold kind, version, .* got none of",
    ),
    "features of integers": (
        lambda: FixedClassifier(8, 4)(torch.ones(2, 8).long()),
        TORCH_ERRORS,
        "x is Long, expected Float",
    ),
    "features of another width": (
        lambda: FixedClassifier(8, 4)(torch.ones(2, 9)),
        TORCH_ERRORS,
        "x has 9 features in its last dimension, but the codebook has 8",
    ),
}


@pytest.mark.parametrize(("make", "error", "message"), MODULE_CASES.values(), ids=MODULE_CASES)
def test_module(make: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_alpha_that_became_nan_in_training() -> None:
    head = FixedClassifier(8, 4)
    with torch.no_grad():
        head.alpha_spread.fill_(torch.nan)
    with pytest.raises(TORCH_ERRORS, match=r"alpha is -?nan, expected a finite float32"):
        head(torch.ones(2, 8))


def test_compiled_calls_fail_as_clearly() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(FixedClassifier(8, 4), backend="aot_eager", fullgraph=True)
    with pytest.raises(Exception, match=r"x has 9 features.*, but the codebook has 8"):
        compiled(torch.ones(2, 9))
