"""What encoders give, computed once: kept in memory, then in a folder, then computed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .embedding_store import EmbeddingStore

Floats = NDArray[np.float32]

_HELD: ContextVar[dict[bytes, Floats] | None] = ContextVar("sora_embeddings_held", default=None)


@contextmanager
def holding(held: dict[bytes, Floats]) -> Iterator[None]:
    """Keep what this thread gets within the block in `held` too, and find it there: no cache is too small for that."""
    token = _HELD.set(held)
    try:
        yield
    finally:
        _HELD.reset(token)


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
        array = self._at_hand(key, resident)
        if array is not None:
            self._note_use(key, array, needed=resident is not None)
            return array, True
        computed: list[bool] = []  # whether `compute` ran; empty where memory, or another thread, had the array

        def find_or_compute() -> Floats:
            stored = self._stored(key, shape)
            computed.append(stored is None)
            return self._compute(key, shape, compute, computed) if stored is None else stored

        array = self._memory.get_or_compute(key, find_or_compute)
        if not computed:
            self._note_use(key, array, needed=resident is not None)
        self._hold(key, array, resident)
        return array, not any(computed)

    def _at_hand(self, key: bytes, resident: str | None) -> Floats | None:
        """What need not be looked up in a cache that may have dropped it."""
        held = _HELD.get()
        if held is not None and key in held:
            return held[key]
        with self._lock:
            last = None if resident is None else self._residents.get(resident)
        return last[1] if last is not None and last[0] == key else None

    def _hold(self, key: bytes, array: Floats, resident: str | None) -> None:
        held = _HELD.get()
        if held is not None:
            held[key] = array
        if resident is not None:
            with self._lock:
                self._residents[resident] = (key, array)

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
