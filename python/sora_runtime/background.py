"""Runs the consumer of a stream in a thread of its own: the next item is made while the last is consumed."""

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

DEFAULT_DEPTH = 2
_POLL_SECONDS = 0.05

Item = TypeVar("Item")


class Background(Generic[Item]):
    """Hands items, in order, to `consume` in another thread; a context manager.

    When the block ends, all items are consumed. When it is left by an exception, what still waits is dropped; either
    way `consume` is not running any more once the block is over, so that what it writes to can be closed.

    Args:
        consume: takes an item; what it raises is raised by the next `put`, or at the end of the block.
        depth: how many items may wait; `put` holds the producer up beyond that, so memory stays bounded.
    """

    def __init__(self, consume: Callable[[Item], object], *, depth: int = DEFAULT_DEPTH) -> None:
        self._consume = consume
        self._waiting: queue.Queue[Item | None] = queue.Queue(depth)  # None: the end
        self._failure: BaseException | None = None
        self._dropped = False
        # Not the thread's own `join`, which an interrupt ends early and for good (CPython issue 90882).
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sora-background", daemon=True)

    def put(self, item: Item) -> None:
        """Hand over an item, which nobody may change from now on; raises what `consume` raised before."""
        self._offer(item)
        self._raise_failure()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dropped = kind is not None
        interrupted: BaseException | None = None
        ended = False
        while not ended:
            try:
                self._offer(None)
                self._ended.wait()
                ended = True
            except KeyboardInterrupt as again:  # what is written to must not be closed under the consumer's hands
                self._dropped, interrupted = True, again
        if interrupted is not None:
            raise interrupted
        if kind is None:
            self._raise_failure()

    def _offer(self, item: Item | None) -> None:
        while not self._ended.is_set():
            try:
                self._waiting.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                if not self._dropped:
                    self._consume(item)
        except BaseException as failure:  # handed to the thread that waits for it
            self._failure = failure
        finally:
            self._ended.set()
