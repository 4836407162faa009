"""What a long-lived process needs: flat memory, threads, forks, interruptions."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from backends import native_head
from cases import EPILOGUES, synthetic
from script import run

from fixclf_infer import _native, hadamard_transform, ops
from fixclf_infer.nn import FixedClassifier

BOOK = synthetic(30, 100, log2=5, blocks=2, negate=True)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def leaks() -> dict[str, Callable[[], object]]:
    x = np.ones((2, 30), np.float32)
    tensor, alpha, bias = torch.ones(2, 30), torch.tensor(2.0), torch.zeros(100)
    arguments = ops.codebook_arguments(BOOK)
    module = FixedClassifier(30, 20)
    square = np.ones((2, 32), np.float32)

    def backward() -> None:
        module(tensor).sum().backward()

    def refused() -> None:
        try:
            ops.head(tensor, alpha, alpha, arguments)
        except (ValueError, RuntimeError):
            return
        raise AssertionError("a bias of no dimension was accepted")

    return {
        "head in NumPy": lambda: native_head(x, 2.0, None, BOOK),
        "head in torch": lambda: ops.head(tensor, alpha, bias, arguments),
        "module": lambda: module.predict_proba(tensor),
        "transform in NumPy": lambda: hadamard_transform(square),
        "transform in torch": lambda: hadamard_transform(torch.from_numpy(square)),
        "adjoint": lambda: torch.ops.fixclf.project_adjoint(torch.ones(100), *arguments),
        "backward": backward,
        "errors": refused,
        "isa": _native.isa,
    }


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("name", leaks())
def test_memory_is_flat(name: str) -> None:
    """A leak of 48 bytes in each of 20 000 calls would be 960 kB, each time; what other tests have
    left to be collected moves the memory once."""
    call = leaks()[name]
    calls = 8_000 if name == "backward" else 20_000
    for _ in range(2_000):
        call()
    growth = []
    while not growth or (len(growth) < 3 and growth[-1] >= 24 * calls):
        gc.collect()
        before = resident_bytes()
        for _ in range(calls):
            call()
        gc.collect()
        growth.append(resident_bytes() - before)
    assert growth[-1] < 24 * calls, growth


def test_scratch_is_two_rows_a_thread() -> None:
    """A call allocates its output, and at first 2 · order · 4 bytes for each thread."""
    script = """
import resource
import numpy as np
from fixclf_infer import _native, hadamard_transform
_native.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
order = 2**20
x = np.ones((4, order), np.float16)
y = np.ones_like(x)
del y
before = peak()
hadamard_transform(x)
print((peak() - before) / (order * 4))
"""
    # Of the output, 2 · 4 · order bytes lie where y was or are new.
    assert float(run(script).stdout) < 2 + 2 + 0.5


def test_numpy_heads_in_many_threads(native_threads: None) -> None:
    _native.set_num_threads(2)
    rng = np.random.default_rng(6)
    work = [
        (rng.standard_normal((batch, 30)).astype(dtype), epilogue)
        for batch in (1, 5, 300)
        for dtype in (np.float32, np.float16)
        for epilogue in EPILOGUES
    ]

    def call(item: tuple) -> np.ndarray:
        return native_head(item[0], 5.0, None, BOOK, item[1])

    want = [call(item) for item in work]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            for got, expected in zip(pool.map(call, work), want, strict=True):
                np.testing.assert_array_equal(got, expected)


def test_the_number_of_threads_may_change_while_others_call(native_threads: None) -> None:
    x = np.random.default_rng(7).standard_normal((500, 64)).astype(np.float32)
    want = hadamard_transform(x)

    def call(i: int) -> bool:
        if i % 5 == 0:
            _native.set_num_threads(1 + i % 4)
        return np.array_equal(hadamard_transform(x), want)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(call, range(400)))


def _in_child(x: np.ndarray, queue) -> None:
    queue.put(hadamard_transform(x))


def test_a_forked_child_has_its_own_pool() -> None:
    script = """
import os
import numpy as np
from fixclf_infer import _native, hadamard_transform
_native.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((3000, 64)).astype(np.float32)
want = hadamard_transform(x)
child = os.fork()
if child == 0:
    os._exit(0 if all(np.array_equal(hadamard_transform(x), want) for _ in range(20)) else 3)
_, status = os.waitpid(child, 0)
assert np.array_equal(hadamard_transform(x), want)
print(os.waitstatus_to_exitcode(status))
"""
    assert run(script, timeout=60).stdout.strip() == "0"


def test_a_child_forked_while_the_pool_works_may_set_its_threads() -> None:
    script = """
import os, signal, threading
import numpy as np
from fixclf_infer import _native, hadamard_transform
_native.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((100000, 64)).astype(np.float32)
want = hadamard_transform(x)
def work():
    while True:
        hadamard_transform(x)
threading.Thread(target=work, daemon=True).start()
for i in range(20):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs is killed
        _native.set_num_threads(2)
        same = np.array_equal(hadamard_transform(x), want)
        os._exit(0 if same and _native.num_threads() == 2 else 3)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
print("done")
os._exit(0)
"""
    assert run(script, timeout=60).stdout.strip() == "done"


@pytest.mark.parametrize("threads", [1, 3])
def test_the_process_ends_with_its_own_code_under_a_daemon_thread(threads: int) -> None:
    """It is inside of a call, or wants the GIL back, while the interpreter ends."""
    script = f"""
import sys, threading, time
import numpy as np
from fixclf_infer import codebook, edge, hadamard_transform
edge.set_num_threads({threads})
head = edge.FixedHead(codebook(64, 3000), 9.0)
x = np.ones((2000, 64), np.float32)
def work(call):
    while True:
        call(x)
for call in (head.logits, head.argmax, hadamard_transform):
    threading.Thread(target=work, args=(call,), daemon=True).start()
time.sleep(0.2)
sys.exit(7)
"""
    for _ in range(3):
        result = run(script, check=False, timeout=60)
        assert (result.returncode, result.stderr) == (7, "")


def test_a_spawned_child_gives_the_same_bits() -> None:
    x = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float32)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(x, queue))
    child.start()
    np.testing.assert_array_equal(queue.get(timeout=60), hadamard_transform(x))
    child.join(timeout=60)
    assert child.exitcode == 0


def test_the_process_ends_cleanly_with_threads_waiting() -> None:
    script = """
import numpy as np
from fixclf_infer import _native, hadamard_transform
_native.set_num_threads(4)
hadamard_transform(np.ones((4000, 64), np.float32))
print("done")
"""
    result = run(script, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("done", "")


def test_number_of_threads_is_kept_and_zero_means_all(native_threads: None) -> None:
    for threads in (1, 2, 7):
        _native.set_num_threads(threads)
        assert _native.num_threads() == threads
    _native.set_num_threads(0)
    assert 1 <= _native.num_threads() <= (os.cpu_count() or 1)
