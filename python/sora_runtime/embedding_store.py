"""The embedding cache's second tier: a folder that outlives the process and may be shared by many."""

import hashlib
import math
import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_STORE_BYTES = 1 << 30
_MAGIC = b"SORAEMB1"
_HEAD_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_PARTIAL_SUFFIX = ".embed-partial"
_STALE_SECONDS = 3600.0  # no write takes that long: whoever began it was killed


class EmbeddingStore:
    """float32 arrays by content key, one file each, least recently used out first.

    A file is `SORAEMB1`, the sha256 of the rest, then rank (u32), shape (i64 each) and values (f32), all
    little-endian. It is written under a temporary name and renamed, so readers of other processes see it
    whole or not at all; one whose hash, length or shape does not match counts as absent and is replaced.
    What cannot be written is not kept: a full disk costs a clip nothing.

    Args:
        folder: made if absent.
        capacity_bytes: bound on the files' sizes, kept after each write.
    """

    def __init__(self, folder: Path, *, capacity_bytes: int = DEFAULT_STORE_BYTES) -> None:
        self._folder = folder
        self._capacity_bytes = capacity_bytes

    def read(self, key: bytes, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """The array of `key`, or None if there is none of this shape."""
        path = self._path(key)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        with suppress(OSError):  # a store that is only readable still serves
            os.utime(path)  # recency for eviction
        body, header = data[_HEAD_BYTES:], _header(shape)
        if data[:_HEAD_BYTES] != _MAGIC + hashlib.sha256(body).digest() or not body.startswith(header):
            return None
        if len(body) != len(header) + 4 * math.prod(shape):
            return None
        return np.frombuffer(body, "<f4", offset=len(header)).reshape(shape).astype(np.float32)

    def write(self, key: bytes, array: NDArray[np.float32]) -> None:
        """Keep `array` under `key`; see the class for what happens when that fails."""
        body = _header(array.shape) + array.astype("<f4").tobytes()
        partial = self._folder / f"{key.hex()}.{os.getpid()}-{secrets.token_hex(3)}{_PARTIAL_SUFFIX}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
            partial.replace(self._path(key))
            self._evict()
        except OSError:
            pass
        finally:  # KeyboardInterrupt too
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.embed"

    def _evict(self) -> None:
        stale = time.time() - _STALE_SECONDS
        for path in self._folder.glob(f"*{_PARTIAL_SUFFIX}"):
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
            path.unlink(missing_ok=True)
            total -= stat.st_size


def _header(shape: tuple[int, ...]) -> bytes:
    return len(shape).to_bytes(4, "little") + np.asarray(shape, "<i8").tobytes()
