"""The embedding cache's second tier: a folder that outlives the process and may be shared by many."""

import hashlib
import math
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .engines.locks import FileLock
from .errors import InvalidRequest

DEFAULT_STORE_BYTES = 1 << 30
_MAGIC = b"SORAEMB2"
_HEAD_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_PARTIAL_SUFFIX = ".embed-partial"
_LOCK_SUFFIX = ".embed-lock"
_STALE_SECONDS = 3600.0  # no write takes that long: whoever began it was killed
_POLL_SECONDS = 0.01
DEFAULT_PATIENCE_SECONDS = 300.0  # a text encoder of eleven billion bytes, loaded from a slow disk


class EmbeddingStore:
    """float32 arrays by content key, one file each, least recently used out first.

    A file is `SORAEMB2`, the sha256 of its key and the rest, then rank (u32), shape (i64 each) and values (f32),
    all little-endian. It is written under a temporary name and renamed, so readers of other processes see it whole
    or not at all, and one evicted while it is read stays whole for its reader. A file that is damaged, cut, of
    another shape or of another key counts as absent and is replaced. What cannot be written is not kept: a full
    disk or a folder that is only readable costs a clip nothing.

    Args:
        folder: made if absent.
        capacity_bytes: bound on the files' sizes, kept after each write; what is larger alone is not written.
        patience_seconds: how long `alone_with` waits for another process.

    Raises:
        InvalidRequest: `folder` is a file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        capacity_bytes: int = DEFAULT_STORE_BYTES,
        patience_seconds: float = DEFAULT_PATIENCE_SECONDS,
    ) -> None:
        if folder.exists() and not folder.is_dir():
            raise InvalidRequest(f"the embedding cache '{folder}' is a file; give a folder")
        self._folder = folder
        self._capacity_bytes = capacity_bytes
        self._patience_seconds = patience_seconds

    def read(self, key: bytes, shape: tuple[int, ...] | None = None) -> NDArray[np.float32] | None:
        """The array of `key`, or None if there is none, or none of this shape where one is given."""
        try:
            with self._path(key).open("rb") as file:
                if os.fstat(file.fileno()).st_size > self._capacity_bytes:
                    return None  # not read: whatever it is, it may be of any size
                data = memoryview(file.read())
        except OSError:
            return None
        self.touch(key)
        body = data[_HEAD_BYTES:]
        if data[:_HEAD_BYTES] != _MAGIC + _digest(key, body):
            return None
        found = _shape_of(body)
        if found is None or shape not in (None, found):
            return None
        return np.frombuffer(body, "<f4", offset=len(_header(found))).reshape(found).astype(np.float32)

    def touch(self, key: bytes) -> bool:
        """Make `key` the most recently used; False where that cannot be noted, as for one that is not there."""
        try:
            now = time.time_ns()  # the file system's own clock ticks in milliseconds, too coarse to order by
            os.utime(self._path(key), ns=(now, now))
        except OSError:
            return False
        return True

    def write(self, key: bytes, array: NDArray[np.float32]) -> None:
        """Keep `array` under `key`; see the class for what happens when that fails."""
        body = _header(array.shape) + array.astype("<f4").tobytes()
        data = _MAGIC + _digest(key, body) + body
        if len(data) > self._capacity_bytes:
            return  # it would only push out all others
        partial = self._folder / f"{key.hex()}.{os.getpid()}-{secrets.token_hex(3)}{_PARTIAL_SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(self._path(key))
            self.touch(key)
            self._evict()
        except OSError:
            pass
        finally:  # KeyboardInterrupt too
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    @contextmanager
    def alone_with(self, key: bytes) -> Iterator[None]:
        """Hold off other processes that want to compute `key`, so that it is computed once.

        Waits for the one that does so already: it may be in the store afterwards. Where there can be no lock (a
        folder that is only readable, a file system without locks) or the other takes too long, both compute.
        """
        lock = self._lock(key)
        try:
            yield
        finally:
            if lock is not None:
                with suppress(OSError):
                    lock.remove()
                lock.release()

    def _lock(self, key: bytes) -> FileLock | None:
        end = time.monotonic() + self._patience_seconds
        path = self._path(key).with_suffix(_LOCK_SUFFIX)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while (lock := FileLock.try_acquire(path)) is None and time.monotonic() < end:
                time.sleep(_POLL_SECONDS)
        except OSError:
            return None
        return lock

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.embed"

    def _evict(self) -> None:
        stale = time.time() - _STALE_SECONDS
        for suffix in (_PARTIAL_SUFFIX, _LOCK_SUFFIX):
            for path in self._folder.glob(f"*{suffix}"):
                with suppress(OSError):  # another process may be faster
                    if path.stat().st_mtime < stale:
                        path.unlink()
        files = []
        for path in self._folder.glob("*.embed"):
            with suppress(OSError):
                files.append((path.stat(), path))
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= self._capacity_bytes:
                return
            with suppress(PermissionError):  # another user's, in a folder that lets nobody else remove it
                path.unlink(missing_ok=True)
                total -= stat.st_size


def _header(shape: tuple[int, ...]) -> bytes:
    return len(shape).to_bytes(4, "little") + np.asarray(shape, "<i8").tobytes()


def _shape_of(body: memoryview) -> tuple[int, ...] | None:
    """What the header says, or None if what follows is no array of this shape."""
    rank = int.from_bytes(body[:4], "little")
    if len(body) < 4 + 8 * rank:
        return None
    shape = tuple(int(size) for size in np.frombuffer(body, "<i8", rank, 4))
    whole = min(shape, default=0) >= 0 and len(body) == 4 + 8 * rank + 4 * math.prod(shape)
    return shape if whole else None


def _digest(key: bytes, body: bytes | memoryview) -> bytes:
    content = hashlib.sha256(len(key).to_bytes(4, "little") + key)
    content.update(body)
    return content.digest()
