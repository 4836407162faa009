"""Memory that a call takes besides its output (Linux with glibc)."""

from __future__ import annotations

import ctypes
import re
import threading
from pathlib import Path

from . import peers, timing


def peak_temporary(call: timing.Call, output_bytes: int) -> int:
    """Growth of the resident set during one call, at its peak and without the output.

    The kernel's high-water mark (VmHWM in /proc/self/status) is reset to the current size through
    /proc/self/clear_refs before the call, and malloc gives back what earlier calls freed. Exact to
    a few hundred KB: for outputs of tens of MB.
    """
    call()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    result = call()
    peak = _resident("VmHWM")
    del result
    return peak - before - output_bytes


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return 1024 * int(found[1])


class _MallocInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def _in_use() -> int:
    """Bytes that malloc has given out and not got back, in all arenas."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallocInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def scratch(in_features: int, num_classes: int) -> int:
    """Bytes that the head's first call leaves allocated in a new thread, its output freed: the
    scratch that every thread keeps. glibc's mallinfo2 before and after."""
    small = peers.fixclf(peers.Case(1, 1, 1))
    large = peers.fixclf(peers.Case(in_features, num_classes, 1))
    found = 0

    def run() -> None:
        nonlocal found
        small()  # what torch and malloc keep for a thread
        _in_use()
        before = _in_use()
        large()
        found = _in_use() - before

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found
