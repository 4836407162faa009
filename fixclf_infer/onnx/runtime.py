"""The library of operators, and sessions of ONNX Runtime with it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def library_path() -> Path:
    """Path of the library that defines ai.fixclf, for `SessionOptions.register_custom_ops_library`
    and its counterparts in C, C++ and NVIDIA Triton server.

    Raises ImportError when this installation was built without it.
    """
    path = Path(__file__).parents[1] / "libfixclf_onnxruntime.so"
    if not path.exists():
        raise ImportError(
            f"fixclf_infer was built without its ONNX Runtime operators: {path} does not exist"
        )
    return path


def _is_ort(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8)[4:] == b"ORTM"


class _Calls:
    """Counts the calls that are in ONNX Runtime, so that none is there when the interpreter ends.

    CPython before 3.14 unwinds the stack of a daemon thread that wants the GIL back by then, and
    ONNX Runtime's bindings abort the process at that.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._ended = False
        atexit.register(self._end)

    def __enter__(self) -> None:
        with self._changed:
            while self._ended:  # for ever: the thread ends with the process
                self._changed.wait()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.wait_for(lambda: self._running == 0)


@cache
def _session_type() -> type[InferenceSession]:
    from onnxruntime import InferenceSession

    calls = _Calls()

    def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def guarded_call(*args: Any, **kwargs: Any) -> Any:
            if not threading.current_thread().daemon:  # the end waits for it anyway
                return call(*args, **kwargs)
            with calls:
                return call(*args, **kwargs)

        return guarded_call

    class Session(InferenceSession):  # type: ignore[misc]  # onnxruntime has no types
        """An InferenceSession that a daemon thread may run while the process ends."""

        run = guarded(InferenceSession.run)
        run_with_ort_values = guarded(InferenceSession.run_with_ort_values)
        run_with_iobinding = guarded(InferenceSession.run_with_iobinding)

    return Session


def session(path: str | Path, *, threads: int = 0, library: bool = True) -> InferenceSession:
    """A session on the CPU for a model with fixed heads, checked before it is loaded.

    Args:
        path: of the ONNX file; or of one in ONNX Runtime's own format (.ort), whose heads the
            library checks.
        threads: of ONNX Runtime's intra-op pool; 0: as many as it likes.
        library: run the heads by `library_path()`; False: by the functions in the file.

    Raises:
        ValueError: what is wrong with the file's heads or with an argument, in one sentence.
        ImportError: onnxruntime or the library is missing.
    """
    try:
        import onnxruntime

        from .model import check, load, without_function
    except ModuleNotFoundError as error:
        raise ImportError(
            f"fixclf_infer.onnx.session needs {error.name}, which is not installed; "
            "pip install 'fixclf_infer[onnx]'"
        ) from None

    if threads < 0:
        raise ValueError(f"threads is {threads}, expected 0 or more")
    path = Path(path)
    model = None if _is_ort(path) else load(path)
    if model is not None:
        check(model, path.parent)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if library:
        options.register_custom_ops_library(str(library_path()))
    elif model is not None and (missing := without_function(model)):
        raise ValueError(
            f"{path} has no portable body for {', '.join(missing)}; export it with portable=True "
            "or run it with library=True"
        )
    try:
        return _session_type()(
            str(path),
            options,
            providers=["CPUExecutionProvider"],
            enable_fallback=0,  # it prints, and tries the same again
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common class
        raise ValueError(f"ONNX Runtime refuses {path}: {str(error).splitlines()[0]}") from error
