"""The embedding cache's second tier: a folder that outlives the process and may be shared by many."""

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DEFAULT_STORE_BYTES = 1 << 30
_MAGIC = b"SORAEMB1"


class EmbeddingStore:
    """float32 arrays by content key, one file each, least recently used out first.

    A file is `SORAEMB1`, the sha256 of the rest, then rank (u32), shape (i64 each) and values (f32), all
    little-endian. It is written under a temporary name
    and renamed, so readers of other processes see it whole or not at all; one whose hash does not match
    counts as absent and is replaced. What cannot be written is not kept: a full disk costs a clip nothing.

    Args:
        folder: made if absent.
        capacity_bytes: bound on the files' sizes, kept after each write.
    """

    def __init__(self, folder: Path, *, capacity_bytes: int = DEFAULT_STORE_BYTES) -> None:
        self._folder = folder
        self._capacity_bytes = capacity_bytes

    def read(self, key: bytes) -> NDArray[np.float32] | None:
        """The array of `key`, or None."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)  # recency for eviction
        except OSError:
            return None
        head = len(_MAGIC) + 32
        body = data[head:]
        if data[: len(_MAGIC)] != _MAGIC or hashlib.sha256(body).digest() != data[len(_MAGIC) : head]:
            return None
        shape_size = int.from_bytes(body[:4], "little")
        shape = np.frombuffer(body, "<i8", shape_size, 4)
        values = np.frombuffer(body, "<f4", offset=4 + 8 * shape_size)
        return values.reshape(tuple(int(size) for size in shape)).astype(np.float32)

    def write(self, key: bytes, array: NDArray[np.float32]) -> None:
        """Keep `array` under `key`; see the class for what happens when that fails."""
        shape = np.asarray(array.shape, "<i8").tobytes()
        body = array.ndim.to_bytes(4, "little") + shape + array.astype("<f4").tobytes()
        temporary = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, delete=False) as file:
                temporary = Path(file.name)
                file.write(_MAGIC + hashlib.sha256(body).digest() + body)
            temporary.replace(self._path(key))
            self._evict()
        except OSError:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}.embed"

    def _evict(self) -> None:
        files = [(path.stat(), path) for path in self._folder.glob("*.embed")]
        total = sum(stat.st_size for stat, _ in files)
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime_ns):
            if total <= self._capacity_bytes:
                return
            path.unlink(missing_ok=True)
            total -= stat.st_size
