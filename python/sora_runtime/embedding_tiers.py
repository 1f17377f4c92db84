"""What encoders give, computed once: kept in memory, then in a folder, then computed."""

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .embedding_store import EmbeddingStore

Floats = NDArray[np.float32]


@dataclass
class EncoderUse:
    """What encoding took for one clip; seconds of wall time."""

    hits: int = 0
    misses: int = 0  # each ran an encoder
    ran: tuple[str, ...] = ()  # graphs of the encoders that ran
    encode_seconds: float = 0.0  # waiting for another thread that computes the same included
    engine_seconds: float = 0.0  # of encode_seconds, inside the network
    load_seconds: float = 0.0  # making the engine, not in encode_seconds

    def note(self, found: bool, graphs: tuple[str, ...]) -> None:
        """Count one answer of `EmbeddingTiers.get`; `graphs` ran if it was not found."""
        self.hits, self.misses = self.hits + found, self.misses + (not found)
        if not found:
            self.ran += graphs


class EmbeddingTiers:
    """float32 arrays by content key, from the fastest tier that has them; for several threads.

    Args:
        memory: the first tier; may be shared between runtimes.
        store: the second, if any; may be shared between processes.
    """

    def __init__(self, memory: _core.EmbeddingCache, store: EmbeddingStore | None) -> None:
        self._memory = memory
        self._store = store
        self._residents: dict[str, tuple[bytes, Floats]] = {}
        self._lock = threading.Lock()

    def get(
        self, key: bytes, shape: tuple[int, ...] | None, compute: Callable[[], Floats], *, resident: str | None = None
    ) -> tuple[Floats, bool]:
        """The array of `key`, read-only, and whether it was found.

        Args:
            key: names by content all that the array depends on.
            shape: its shape where it is known; an array of another shape on disk counts as absent.
            compute: makes it; called at most once however many threads, and at a time processes, ask.
            resident: of arrays got under this name, the last stays in both tiers however full they are.
        """
        with self._lock:
            held = None if resident is None else self._residents.get(resident)
        if held is not None and held[0] == key:
            self._note_use(key, held[1], needed=True)
            return held[1], True
        computed: list[bool] = []  # whether `compute` ran; empty where memory, or another thread, had the array

        def find_or_compute() -> Floats:
            array = self._stored(key, shape)
            computed.append(array is None)
            return self._compute(key, shape, compute, computed) if array is None else array

        array = self._memory.get_or_compute(key, find_or_compute)
        if not computed:
            self._note_use(key, array, needed=resident is not None)
        if resident is not None:
            with self._lock:
                self._residents[resident] = (key, array)
        return array, not any(computed)

    def _compute(
        self, key: bytes, shape: tuple[int, ...] | None, compute: Callable[[], Floats], computed: list[bool]
    ) -> Floats:
        if self._store is None:
            return compute()
        with self._store.alone_with(key):
            array = self._stored(key, shape)  # another process may have been at it
            if array is None:
                array = compute()
                self._store.write(key, array)
            else:
                computed[:] = [False]
        return array

    def _stored(self, key: bytes, shape: tuple[int, ...] | None) -> Floats | None:
        return None if self._store is None else self._store.read(key, shape)

    def _note_use(self, key: bytes, array: Floats, *, needed: bool) -> None:
        """What is used from memory is in use on disk too, or other processes' prompts would push it out there."""
        if self._store is not None and not self._store.touch(key) and needed:
            self._store.write(key, array)
