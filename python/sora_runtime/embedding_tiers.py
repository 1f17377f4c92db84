"""What encoders give, computed once: kept in memory, then in a folder, then computed."""

import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from . import _core
from .embedding_store import EmbeddingStore

Vector = NDArray[np.float32]


class EmbeddingTiers:
    """float32 vectors by content key, from the fastest tier that has them; for several threads.

    Args:
        memory: the first tier; may be shared between runtimes.
        store: the second, if any; may be shared between processes.
    """

    def __init__(self, memory: _core.EmbeddingCache, store: EmbeddingStore | None) -> None:
        self._memory = memory
        self._store = store
        self._residents: dict[str, tuple[bytes, Vector]] = {}
        self._lock = threading.Lock()

    def get(
        self, key: bytes, size: int, compute: Callable[[], Vector], *, resident: str | None = None
    ) -> tuple[Vector, bool]:
        """The vector of `key`, read-only, and whether it was found.

        Args:
            key: names by content all that the vector depends on.
            size: how many elements it has.
            compute: makes it; called at most once however many threads, and at a time processes, ask.
            resident: of vectors got under this name, the last stays in both tiers however full they are.
        """
        with self._lock:
            held = None if resident is None else self._residents.get(resident)
        if held is not None and held[0] == key:
            self._note_use(key, held[1], needed=True)
            return held[1], True
        computed: list[bool] = []  # whether `compute` ran; empty where memory, or another thread, had the vector

        def find_or_compute() -> Vector:
            vector = self._stored(key, size)
            computed.append(vector is None)
            return self._compute(key, size, compute, computed) if vector is None else vector

        vector = self._memory.get_or_compute(key, find_or_compute)
        if not computed:
            self._note_use(key, vector, needed=resident is not None)
        if resident is not None:
            with self._lock:
                self._residents[resident] = (key, vector)
        return vector, not any(computed)

    def _compute(self, key: bytes, size: int, compute: Callable[[], Vector], computed: list[bool]) -> Vector:
        if self._store is None:
            return compute()
        with self._store.alone_with(key):
            vector = self._stored(key, size)  # another process may have been at it
            if vector is None:
                vector = compute()
                self._store.write(key, vector)
            else:
                computed[:] = [False]
        return vector

    def _stored(self, key: bytes, size: int) -> Vector | None:
        return None if self._store is None else self._store.read(key, (size,))

    def _note_use(self, key: bytes, vector: Vector, *, needed: bool) -> None:
        """What is used from memory is in use on disk too, or other processes' prompts would push it out there."""
        if self._store is not None and not self._store.touch(key) and needed:
            self._store.write(key, vector)
