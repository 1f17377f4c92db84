"""Turns at a runtime's engines: one thread at a time, and nobody waits for themselves."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import _core
from .engines.registry import GPU_ENGINES
from .errors import Cancelled, InvalidRequest


def stop_if_cancelled(cancel: _core.CancelToken | None, when: str) -> None:
    """Raise `Cancelled` if `cancel` was asked to stop; `when` completes the sentence."""
    if cancel is not None and cancel.cancelled:
        raise Cancelled(f"cancelled {when}")


class Turns:
    """A lock that a cancelled request stops waiting for, and that refuses its own holder."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def refuse_reentry(self) -> None:
        """Raise `InvalidRequest` on the thread whose turn it is: it would wait for itself for ever."""
        if self._holder == threading.get_ident():
            raise InvalidRequest("a runtime was called from a callback of a clip; call it after generate returns")

    @contextmanager
    def turn(
        self, cancel: _core.CancelToken | None = None, while_waiting: Callable[[], None] | None = None
    ) -> Iterator[None]:
        """Wait for the engines and hold them.

        Args:
            cancel: raises `Cancelled` once it is set while waiting.
            while_waiting: called now and then; what it raises ends the wait.
        """
        self.refuse_reentry()
        while not self._lock.acquire(timeout=-1 if cancel is None and while_waiting is None else 0.05):
            stop_if_cancelled(cancel, "while waiting for another clip")
            if while_waiting is not None:
                while_waiting()
        self._holder = threading.get_ident()
        try:
            yield
        finally:
            self._holder = None
            self._lock.release()


_ON_THE_GPU = Turns()


def turns_of(engine: str) -> Turns:
    """A runtime's turns: its own on the CPU; on the GPU, which has room for one stage, those of all."""
    return _ON_THE_GPU if engine in GPU_ENGINES else Turns()
