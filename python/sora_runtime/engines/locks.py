"""A lock that processes and threads of one machine share: `flock` on a file of its own."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path
from types import TracebackType
from typing import Self


class FileLock:
    """A held lock. The kernel lets go of it when the process ends, however it ends.

    Shared holders exclude an exclusive one. Two `FileLock` of one process exclude each other like those of two.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._close = weakref.finalize(self, os.close, descriptor)

    @classmethod
    def acquire(cls, path: Path, *, shared: bool) -> Self:
        """Wait for the lock; makes the file if need be.

        Raises:
            OSError: The file cannot be made, or its file system has no locks.
        """
        while True:
            lock = cls._attempt(path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            if lock is not None:
                return lock

    @classmethod
    def try_acquire(cls, path: Path) -> Self | None:
        """The exclusive lock, or None if anyone holds it."""
        try:
            return cls._attempt(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None

    @classmethod
    def _attempt(cls, path: Path, operation: int) -> Self | None:
        """None if the file was removed while this waited for it: what was locked is no longer the lock."""
        # Read-only is enough for flock, and lets a cache be shared by those who may not write to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, operation)
            held = os.fstat(descriptor)
            try:
                now = path.stat()
            except FileNotFoundError:
                now = None
            same = now is not None and (now.st_dev, now.st_ino) == (held.st_dev, held.st_ino)
        except BaseException:
            os.close(descriptor)
            raise
        if not same:
            os.close(descriptor)
            return None
        return cls(path, descriptor)

    def remove(self) -> None:
        """Remove the file; for the holder of the exclusive lock only. Waiters make a new one."""
        self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let go; again is harmless."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
