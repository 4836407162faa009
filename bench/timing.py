"""Interleaved timing of several variants in one process, and the machine it was taken on."""

from __future__ import annotations

import datetime
import gc
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import fixclf_infer
from fixclf_infer import _native

Call = Callable[[], object]


@dataclass(frozen=True)
class Variant:
    """One thing to time. `prepare` runs untimed before every sample (threads, ISA, …); a call that
    does its work several times over says so in `items`."""

    call: Call
    prepare: Call | None = None
    items: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds an item: median, 20th and 80th percentile over the samples."""

    median: float
    low: float
    high: float
    samples: int

    def __str__(self) -> str:
        return f"{duration(self.median)} [{duration(self.low)}, {duration(self.high)}]"


def duration(seconds: float) -> str:
    """Three significant digits with a unit."""
    for factor, unit in ((1e9, "ns"), (1e6, "µs"), (1e3, "ms")):
        if seconds * factor < 999.5:
            value = seconds * factor
            return f"{value:.{max(0, 2 - int(np.floor(np.log10(max(value, 1e-3)))))}f} {unit}"
    return f"{seconds:.2f} s"


def measure(
    variants: Mapping[str, Variant | Call],
    *,
    seconds: float = 1.0,
    min_sample: float = 500e-6,
    min_samples: int = 11,
    max_samples: int = 400,
) -> dict[str, Timing]:
    """Time every variant, one sample of each in turn, so that slow drift of the machine (clock,
    neighbours) meets all of them alike. An untimed call comes before each sample: no variant pays
    for the caches that its neighbour emptied.

    Args:
        seconds: about how long to measure all variants together.
        min_sample: a sample repeats its call until it takes at least about this long, far above
            what the clock resolves (0.1 µs).
        min_samples, max_samples: of each variant.

    Returns:
        Seconds an item for each name of `variants`.
    """
    cases = {k: v if isinstance(v, Variant) else Variant(v) for k, v in variants.items()}
    repeats = {name: _calibrate(case, min_sample) for name, case in cases.items()}
    one_round = sum(_sample(case, repeats[name]) * repeats[name] for name, case in cases.items())
    rounds = int(min(max(seconds / one_round, min_samples), max_samples))
    times: dict[str, list[float]] = {name: [] for name in cases}
    enabled = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, case in cases.items():
                times[name].append(_sample(case, repeats[name]))
    finally:
        if enabled:
            gc.enable()
    return {name: _summary(values, cases[name].items) for name, values in times.items()}


def _summary(values: list[float], items: int) -> Timing:
    low, median, high = np.percentile(values, [20, 50, 80]) / items
    return Timing(float(median), float(low), float(high), len(values))


def _sample(case: Variant, repeat: int) -> float:
    """Seconds a call, of `repeat` calls in a row after one that is not timed."""
    call = case.call
    if case.prepare is not None:
        case.prepare()
    call()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    return (time.perf_counter() - start) / repeat


def _calibrate(case: Variant, min_sample: float) -> int:
    """Calls that take min_sample together; also warms caches, allocators and thread pools."""
    repeat = 1
    _sample(case, repeat)
    while (taken := min(_sample(case, repeat), _sample(case, repeat)) * repeat) < min_sample:
        repeat = max(2 * repeat, int(1.2 * repeat * min_sample / max(taken, 1e-9)))
    return repeat


def copy_floor(nbytes: int) -> Call:
    """The memory floor of an operation that reads and writes `nbytes` bytes in all.

    The call copies `nbytes` bytes from one buffer to another with the C library's memmove (what
    NumPy uses), allocating nothing: every byte is read once and written once. For a head,
    `nbytes = B · (N + C) · itemsize`: its input and its output.
    """
    # Through torch, which aligns to 64 bytes: memmove is several times slower at odd offsets.
    source = torch.ones(nbytes, dtype=torch.uint8).numpy()
    target = torch.empty(nbytes, dtype=torch.uint8).numpy()
    return lambda: np.copyto(target, source)


def write_floor(nbytes: int) -> Call:
    """Writing `nbytes` bytes of float32 to an existing buffer (NumPy's fill), reading nothing."""
    target = torch.empty(nbytes // 4).numpy()
    return lambda: target.fill(1.0)


def machine() -> dict[str, str]:
    """What a result depends on besides the code."""
    return {
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "isa": _native.isa(),
        "supported isas": " ".join(_native.supported_isas()),
        "torch threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "torch cpu capability": str(torch.backends.cpu.get_cpu_capability()),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "fixclf_infer": fixclf_infer.__version__,
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "revision": git_revision(),
    }


def cpu_name() -> str:
    """The model name, with family and model numbers, because virtual machines shorten the name."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([^\t\n:]+)\t*: (.+)$", text, re.MULTILINE))
    name: str = fields.get("model name", platform.machine())
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def git_revision() -> str:
    """The commit, with '+' where files differ from it; 'none' outside of a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", *arguments], cwd=here, capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain")
        return commit + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "none"
