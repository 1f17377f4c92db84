"""From latents to frames, chunk by chunk: memory does not grow with the length of a clip."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core
from .engines.engine import Array, Binding, Engine
from .errors import EngineError
from .geometry import Geometry
from .turns import stop_if_cancelled

CACHE_IN, CACHE_OUT = "cache_in.", "cache_out."


class Decoder(Protocol):
    """Latents in, frames out in order, a few at a time."""

    seconds: float
    """Inside the engines, over all clips."""

    def rgb8_chunks(
        self, latents: NDArray[np.float32], *, num_threads: int
    ) -> Generator[NDArray[np.uint8], None, None]:
        """Decode float32 [1, channels, frames, height, width] to uint8 [n, height, width, 3], chunk by chunk."""

    def close(self) -> None:
        """Give back the engines."""


class ChunkDecoder:
    """A causal VAE decoder as two engines: latent frames in, their video frames and feature caches out.

    How many latent frames a chunk has is what the engine takes. The caches pass from chunk to chunk in two
    sets of buffers that swap roles, so nothing is copied or allocated while a clip is decoded.

    Args:
        first: engine of the first chunk: latents -> frames, cache_out.*
        following: engine of every later chunk: latents, cache_in.* -> frames, cache_out.*; None where the
            first chunk is the whole clip.
    """

    def __init__(self, first: Engine, following: Engine | None) -> None:
        self._engines = [first] if following is None else [first, following]
        specs = first.outputs if following is None else following.inputs
        prefix = CACHE_OUT if following is None else CACHE_IN
        caches = {name.removeprefix(prefix): spec for name, spec in specs.items() if name.startswith(prefix)}
        banks = [{name: spec.empty() for name, spec in caches.items()} for _ in range(2)]
        self._latents = [engine.inputs["latents"].empty() for engine in self._engines]
        self._frames = [engine.outputs["frames"].empty() for engine in self._engines]
        first_arrays = {"latents": self._latents[0], "frames": self._frames[0], **_prefixed(CACHE_OUT, banks[0])}
        self._first: Binding = first.bind(first_arrays)
        self._next: list[Binding] = []
        if following is not None:
            common = {"latents": self._latents[1], "frames": self._frames[1]}
            self._next = [
                following.bind({**common, **_prefixed(CACHE_IN, banks[turn]), **_prefixed(CACHE_OUT, banks[1 - turn])})
                for turn in range(2)
            ]
        self.seconds = 0.0  # inside the engines, over all clips

    def chunks(self, latents: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Decode chunk by chunk.

        Args:
            latents: float32 [1, channels, frames, height, width].

        Yields:
            frames float32 [3, n, height, width], about -1 to 1; overwritten by the next chunk.
        """
        parts = chunks_of(latents, [array.shape for array in self._latents])
        for index, part in enumerate(parts):
            which = min(index, len(self._engines) - 1)
            np.copyto(self._latents[which], part)
            begun = time.perf_counter()
            (self._first if index == 0 else self._next[(index - 1) % 2]).run()
            self.seconds += time.perf_counter() - begun
            yield self._frames[which][0].astype(np.float32, copy=False)

    def rgb8_chunks(
        self, latents: NDArray[np.float32], *, num_threads: int
    ) -> Generator[NDArray[np.uint8], None, None]:
        """As `chunks`, but uint8 [n, height, width, 3], a new array each time."""
        for frames in self.chunks(latents):
            yield _core.frames_to_rgb8(frames, num_threads=num_threads)

    def close(self) -> None:
        """Give back the engines."""
        for engine in self._engines:
            engine.close()


def chunks_of(latents: NDArray[np.float32], takes: Sequence[tuple[int, ...]]) -> list[NDArray[np.float32]]:
    """A clip's latents cut as the engines of a chunked decoder take them.

    Args:
        latents: float32 [1, channels, frames, height, width].
        takes: shapes of the first chunk and, if there are more, of every later one.

    Raises:
        EngineError: they are not the first chunk and a whole number of later ones.
    """
    first, later = takes[0], takes[1][2] if len(takes) > 1 else 0
    rest = latents.shape[2] - first[2] if latents.ndim == 5 else -1
    whole = rest == 0 or (later > 0 and rest > 0 and rest % later == 0)
    if not whole or latents.shape[:2] + latents.shape[3:] != first[:2] + first[3:]:
        more = f" and {later} more any number of times" if later else ""
        raise EngineError(f"latents are {list(latents.shape)} and the decoder takes {list(first)}{more}")
    starts = [0, *range(first[2], latents.shape[2], max(later, 1))]
    return [latents[:, :, start:end] for start, end in zip(starts, [*starts[1:], latents.shape[2]], strict=True)]


def collect_frames(
    chunks: Generator[NDArray[np.uint8], None, None],
    geometry: Geometry,
    report: Callable[[str, int, int], None],
    on_frames: Callable[[NDArray[np.uint8]], None] | None,
    cancel: _core.CancelToken | None,
    *,
    keep: bool = True,
) -> tuple[NDArray[np.uint8], float]:
    """A clip's frames, uint8 [num_frames, height, width, 3], and the seconds they took without those in `on_frames`.

    With `keep` off, they only pass through `on_frames` and none are returned: [0, height, width, 3].

    Raises:
        Cancelled: stopped through `cancel`.
        EngineError: an engine failed.
    """
    frames = np.empty((geometry.shown_frames if keep else 0, geometry.height, geometry.width, 3), np.uint8)
    done, total, elsewhere, skip = 0, geometry.shown_frames, 0.0, geometry.dropped_frames
    start = time.perf_counter()
    report("vae_decode", 0, total)
    with closing(chunks):  # an engine's device is held until then
        for decoded in chunks:
            stop_if_cancelled(cancel, f"after {done} of {total} decoded frames")
            chunk, skip = decoded[skip:], max(skip - len(decoded), 0)
            if not len(chunk):
                continue
            if keep:
                frames[done : done + len(chunk)] = chunk
            done += len(chunk)
            if on_frames is not None:
                handed = time.perf_counter()
                on_frames(chunk)
                elsewhere += time.perf_counter() - handed
            report("vae_decode", done, total)
    return frames, time.perf_counter() - start - elsewhere


def _prefixed(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {prefix + name: array for name, array in arrays.items()}
