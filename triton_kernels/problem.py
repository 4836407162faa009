"""From an operator's arguments to what kernels take: checks, and the split of the work.

Everything here depends on the codebook, k and the sizes of x alone; of the batch, only how many
rows a program takes. No value on the device is looked at, so nothing waits for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from fixclf_infer.ops import Geometry, shapes

MAX_ORDER = 1 << 14

FLOATING = (torch.float32, torch.bfloat16, torch.float16)

# Elements of the tile that a program holds in registers: 8 a thread on 8 warps, where there is
# enough to fill it; a slot is one butterfly, and its rows are consecutive.
TILE = 2048
MAX_WIDTH = 4096
# Rows a slot at least, if the order has as many: a narrower one would read x in short pieces.
MIN_WIDTH = 128
# All classes up to here are one tile: a softmax is then one launch.
RESIDENT = 4096
# Chunks of the classes: about two programs for each multiprocessor of a large GPU from one row.
MAX_CHUNKS = 256
# Keys of all chunks of one row.
MAX_KEYS = 8192


def power_of_two(n: int) -> int:
    """The smallest one from n on."""
    return 1 << max(n - 1, 0).bit_length()


def log2(power: int) -> int:
    return power.bit_length() - 1


def fail(message: str) -> None:
    raise ValueError(message)


def check_order(order: int, what: str) -> None:
    if order > MAX_ORDER:
        fail(f"{what} is {order}, more than the {MAX_ORDER} that the Triton kernels take")


def check_x(name: str, x: Tensor) -> None:
    """What the Triton kernels ask of it beyond the operator's own checks."""
    if x.device.type == "cpu" and not triton.knobs.runtime.interpret:
        fail(f"{name} is on the CPU, where Triton kernels only run under TRITON_INTERPRET=1")
    if x.dtype == torch.float64:
        fail(f"{name} is float64, which the Triton kernels don't take")


def rows_of(x: Tensor) -> Tensor:
    """[..., columns] as [rows, columns] with contiguous rows of any stride; a copy if need be."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    return x.reshape(-1, x.shape[-1]).contiguous()


@dataclass(frozen=True)
class Split:
    """How the classes of a codebook are divided among programs."""

    width: int  # rows of a slot
    slots: int  # slots of a tile
    first_slot: int
    tiles: int
    tile: int  # logits of a tile: slots · width, twice as many with negations


def split(book: Geometry, at_least: int = 1) -> Split:
    """Tiles of at least `at_least` logits; one tile for all where they fit, or where a centre needs
    every class."""
    size, order = 1 << book.log2, book.order
    halves = 2 if book.negate else 1
    first, last = book.class_begin, book.class_end - 1
    if book.center:
        first, last = 0, book.num_classes - 1
    first, last = first + book.row_offset, last + book.row_offset
    first_block, low = divmod(first, order * halves)
    last_block, high = divmod(last, order * halves)
    if first_block != last_block or (low < order <= high):
        low, high = 0, order - 1
    low, high = low % order, high % order
    width = min(size, MAX_WIDTH, max(MIN_WIDTH, power_of_two(high - low + 1)))
    left = order // width
    first_slot = first_block * left
    last_slot = (last_block + 1) * left - 1
    if first_block == last_block:
        first_slot, last_slot = first_slot + low // width, first_slot + high // width
    count = last_slot - first_slot + 1
    slots = power_of_two(count)
    if not book.center and slots * width * halves > RESIDENT:
        slots = max(1, TILE // (width * halves))
    slots = max(slots, power_of_two(-(-at_least // (width * halves))))
    return Split(width, slots, first_slot, -(-count // slots), slots * width * halves)


def rows_per_program(tile: int, batch: int) -> int:
    """1, or as many as fill a program, unless the batch would leave nearly all of it empty. Two
    numbers, because a kernel is compiled for each; a row's result is the same."""
    most = max(1, TILE // tile)
    return most if batch > 1 and 32 * batch > most else 1


@dataclass(frozen=True)
class Head:
    """A head's arguments and its split."""

    x: Tensor  # [rows, columns]
    leading: tuple[int, ...]
    alpha: Tensor
    bias: Tensor | None
    base: Tensor | None
    signs: Tensor | None
    book: Geometry
    blocks: int
    normalize: bool
    split: Split

    @classmethod
    def of(cls, checked: shapes.Head, at_least: int = 1) -> Head:
        """Tiles of at least `at_least` logits."""
        x, alpha, bias, base, signs, _, normalize = checked.arguments
        check_x("x", x)
        check_order(checked.book.order, "the order base_order · 2^log2")
        return cls(
            rows_of(x),
            tuple(x.shape[:-1]),
            alpha.contiguous(),
            None if bias is None else bias.contiguous(),
            None if base is None else base.contiguous(),
            None if signs is None else signs.contiguous(),
            checked.book,
            1 if signs is None else signs.shape[0],
            normalize,
            split(checked.book, at_least),
        )

    @property
    def batch(self) -> int:
        return self.x.shape[0]

    @property
    def classes(self) -> int:
        return self.book.computed

    @property
    def rows(self) -> int:
        return rows_per_program(self.split.tile, self.batch)

    def chunks(self, places: int) -> tuple[int, int]:
        """How many chunks the tiles form, for lists of `places` keys, and the tiles of each."""
        most = min(MAX_CHUNKS, max(1, MAX_KEYS // places))
        each = -(-self.split.tiles // min(self.split.tiles, most))
        return -(-self.split.tiles // each), each

    def empty(self, *columns: int, dtype: torch.dtype) -> Tensor:
        return torch.empty((self.batch, *columns), dtype=dtype, device=self.x.device)

    def data(self) -> dict[str, Any]:
        """Kernel arguments that are known when the kernel is launched."""
        # A pointer that is not read still has to be one.
        return {
            "x_ptr": self.x,
            "alpha_ptr": self.alpha,
            "bias_ptr": self.alpha if self.bias is None else self.bias,
            "base_ptr": self.alpha if self.base is None else self.base,
            "signs_ptr": self.alpha if self.signs is None else self.signs,
            "batch": self.batch,
            "x_stride": self.x.stride(0),
            "block_count": self.blocks,
            "first_row": self.book.class_begin + self.book.row_offset,
            "class_count": self.classes,
            "first_slot": self.split.first_slot,
        }

    def constants(self) -> dict[str, Any]:
        """Kernel arguments that are compiled in."""
        width, order = self.split.width, self.book.order
        center = self.book.center != 0
        # One block where x needs no mixing, so that it is read once for the norm and the sums.
        block = width if order == width else min(power_of_two(order), 1024)
        return {
            "IN_FEATURES": self.book.in_features,
            "COLUMN_OFFSET": self.book.column_offset,
            "PACKED": self.x.dtype == torch.uint8,
            "NORMALIZE": self.normalize,
            "BASE_ORDER": self.book.base_order,
            "SPLIT": (1 << self.book.log2) // width,
            "HAS_SIGNS": self.signs is not None,
            "NEGATE": self.book.negate,
            "CENTER_FROM": self.book.row_offset if center else 0,
            "CENTER_OVER": self.book.num_classes if center else 0,
            "HAS_BIAS": self.bias is not None,
            "ROWS": self.rows,
            "SLOTS": self.split.slots,
            "LOG2_WIDTH": log2(width),
            "LOG2_TILE": log2(self.split.tile),
            "LOG2_BLOCK": log2(block),
        }


def allowed_of(head: Head, allowed: Tensor | None) -> dict[str, Any]:
    """Kernel arguments of a class mask."""
    if allowed is None:
        return {"allowed_ptr": head.alpha, "allowed_stride": 0, "HAS_ALLOWED": False}
    stride = 0 if allowed.dim() == 1 else allowed.shape[-1]
    return {
        "allowed_ptr": allowed.contiguous(),
        "allowed_stride": stride,
        "HAS_ALLOWED": True,
    }


def ids_of(head: Head, ids: Tensor) -> Tensor:
    """[rows, ids of each]."""
    each = ids.shape[-1] if ids.dim() > len(head.leading) else 1
    return ids.reshape(math.prod(head.leading), each).contiguous()
