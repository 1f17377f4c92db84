"""From latents to frames, chunk by chunk: memory does not grow with the length of a clip."""

import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from . import _core
from .engines.engine import Array, Binding, Engine
from .errors import EngineError

_CACHE_IN, _CACHE_OUT = "cache_in.", "cache_out."


class ChunkDecoder:
    """A causal VAE decoder as two engines: one latent frame in, its video frames and feature caches out.

    The first latent frame gives one video frame, each later one `temporal_stride` of them. The caches
    pass from chunk to chunk in two sets of buffers that swap roles, so nothing is copied or allocated
    while a clip is decoded.

    Args:
        first: engine of the first chunk: latents -> frames, cache_out.*
        following: engine of every later chunk: latents, cache_in.* -> frames, cache_out.*
    """

    def __init__(self, first: Engine, following: Engine) -> None:
        self._engines = (first, following)
        caches = {
            name.removeprefix(_CACHE_IN): spec for name, spec in following.inputs.items() if name.startswith(_CACHE_IN)
        }
        banks = [{name: spec.empty() for name, spec in caches.items()} for _ in range(2)]
        self._latents = first.inputs["latents"].empty()
        self._first_frames = first.outputs["frames"].empty()
        self._frames = following.outputs["frames"].empty()
        common = {"latents": self._latents}
        self._first: Binding = first.bind({**common, "frames": self._first_frames, **_prefixed(_CACHE_OUT, banks[0])})
        self._next: list[Binding] = [
            following.bind(
                {
                    **common,
                    "frames": self._frames,
                    **_prefixed(_CACHE_IN, banks[turn]),
                    **_prefixed(_CACHE_OUT, banks[1 - turn]),
                }
            )
            for turn in range(2)
        ]
        self.seconds = 0.0  # inside the engines, over all clips

    def chunks(self, latents: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Decode one latent frame at a time.

        Args:
            latents: float32 [1, channels, frames, height, width].

        Yields:
            frames float32 [3, n, height, width], about -1 to 1; overwritten by the next chunk.
        """
        expected = self._latents.shape[:2] + self._latents.shape[3:]
        if latents.ndim != 5 or latents.shape[:2] + latents.shape[3:] != expected:
            raise EngineError(
                f"latents are {list(latents.shape)} and the decoder takes "
                f"{list(self._latents.shape)} with any number of frames"
            )
        for index in range(latents.shape[2]):
            np.copyto(self._latents, latents[:, :, index : index + 1])
            start = time.perf_counter()
            (self._first if index == 0 else self._next[(index - 1) % 2]).run()
            self.seconds += time.perf_counter() - start
            yield (self._first_frames if index == 0 else self._frames)[0]

    def rgb8_chunks(self, latents: NDArray[np.float32], *, num_threads: int) -> Iterator[NDArray[np.uint8]]:
        """As `chunks`, but uint8 [n, height, width, 3], a new array each time."""
        for frames in self.chunks(latents):
            yield _core.frames_to_rgb8(frames, num_threads=num_threads)

    def close(self) -> None:
        """Give back both engines."""
        for engine in self._engines:
            engine.close()


def _prefixed(prefix: str, arrays: dict[str, Array]) -> dict[str, Array]:
    return {prefix + name: array for name, array in arrays.items()}
