"""TensorRT and TensorRT-RTX through one door: import, compute capabilities, log and progress."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, get_args

from sora_runtime.errors import EngineError, InvalidRequest

Library = Literal["tensorrt", "tensorrt_rtx"]
Progress = Callable[[str, int, int], None]
"""Called with a phase of the build, the steps done, and the steps there are."""

_PIP = {"tensorrt": "pip install tensorrt (from NVIDIA's index)", "tensorrt_rtx": "pip install tensorrt-rtx"}
_ONE_BUILD = threading.RLock()


def import_library(library: str) -> Any:
    """The module `tensorrt` or `tensorrt_rtx`: both have one API.

    Raises:
        InvalidRequest: There is no such library.
        EngineError: It is not installed, or not wholly.
    """
    if library not in get_args(Library):
        raise InvalidRequest(f"there is no engine library '{library}'; use {' or '.join(get_args(Library))}")
    try:
        return importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:  # the bindings may be there without the libraries
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(f"{library} cannot be imported ({first}); {_PIP[library]}") from error


def compute_capabilities_of(trt: Any) -> list[str]:
    """The targets the library can build for without such a GPU at hand: ``8.9``, ...; empty if it needs the GPU."""
    members = getattr(getattr(trt, "ComputeCapability", None), "__members__", {})
    digits = [name.removeprefix("SM") for name in members if name.startswith("SM")]
    return [f"{value[:-1]}.{value[-1]}" for value in digits]


def check_capabilities(trt: Any, wanted: Sequence[str]) -> list[Any]:
    """The library's names of the targets.

    Raises:
        InvalidRequest: One is unknown to the library; the message names those it has.
    """
    known = compute_capabilities_of(trt)
    if wanted and not known:
        raise InvalidRequest(
            f"{trt.__name__} builds only for the GPU it runs on, not for compute capability {', '.join(wanted)}; "
            "leave the capabilities out, or use tensorrt_rtx"
        )
    for value in wanted:
        if value not in known:
            raise InvalidRequest(
                f"{trt.__name__} {trt.__version__} cannot build for compute capability {value}; "
                f"it builds for {', '.join(known)}"
            )
    if known and not wanted:
        raise InvalidRequest(f"no compute capability is given; {trt.__name__} builds for {', '.join(known)}")
    return [getattr(trt.ComputeCapability, "SM" + value.replace(".", "")) for value in dict.fromkeys(wanted)]


class BuildLog:
    """What the library said during one build, in order."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def add(self, severity: str, message: str) -> None:
        """Note one message; `severity` is the library's name for it."""
        self.lines.append((severity, message))

    def first_error(self) -> str | None:
        """The first message that reports an error."""
        return next((text for severity, text in self.lines if severity in {"ERROR", "INTERNAL_ERROR"}), None)

    def last(self, prefix: str) -> str | None:
        """The last message that begins with `prefix`."""
        return next((text for _, text in reversed(self.lines) if text.startswith(prefix)), None)

    def text(self) -> str:
        """All of it, one message a line."""
        return "".join(f"[{severity}] {message}\n" for severity, message in self.lines)


@contextmanager
def logged(trt: Any) -> Iterator[tuple[Any, BuildLog]]:
    """The library's logger, and the log it writes to within the block; other threads wait for their turn.

    A process has one logger for each library: the library keeps the first it was given and ignores others.
    """
    with _ONE_BUILD:
        logger = _logger(trt.__name__)
        logger.sink = BuildLog()
        try:
            yield logger, logger.sink
        finally:
            logger.sink = None


@cache
def _logger(library: str) -> Any:
    trt: Any = importlib.import_module(library)

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 asks for the call by name
            self.sink: BuildLog | None = None

        def log(self, severity: Any, message: str) -> None:
            if self.sink is not None:
                self.sink.add(severity.name, message)

    return Logger()


class BuildProgress:
    """Hands the library's phases on to a `Progress`; what that raises stops the build and is raised after it."""

    def __init__(self, trt: Any, progress: Progress) -> None:
        self.error: BaseException | None = None
        self._progress = progress
        self._phases: dict[str, tuple[int, int]] = {}
        self.monitor = _monitor(trt, self)

    def report(self, phase: str, done: int, total: int | None = None) -> bool:
        """Note how far a phase is; False asks the library to stop."""
        known = self._phases.get(phase, (0, 0))[1]
        self._phases[phase] = (done, known if total is None else total)
        if self.error is None:
            try:
                self._progress(phase, *self._phases[phase])
            except BaseException as error:  # KeyboardInterrupt too: it must not unwind through C++
                self.error = error
        return self.error is None

    def finish(self, phase: str) -> None:
        """Note that a phase is over."""
        total = self._phases.get(phase, (0, 0))[1]
        self.report(phase, total)


def _monitor(trt: Any, sink: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, _parent: str, steps: int) -> None:
            sink.report(phase, 0, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            return sink.report(phase, step + 1)

        def phase_finish(self, phase: str) -> None:
            sink.finish(phase)

    return Monitor()
