"""Causal networks that go through a clip chunk by chunk on a CUDA device: what they pass on never leaves it.

The caches of a VAE at 720p are gigabytes, so they lie in the device's room and swap roles there. The frames of a chunk
become bytes on the device and leave on a stream of their own while the next chunk is decoded, and whoever takes them
works meanwhile.
"""

import itertools
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decode import CACHE_IN, CACHE_OUT, chunks_of
from .engines.cuda import PinnedArray
from .engines.device_engine import DeviceEngine, DeviceMemory, make_room
from .engines.engine import Array, TensorSpec
from .errors import BundleError
from .frames_cuda import FramesOut, Leaving


class _Chunks:
    """Two engines, their input and output and two sets of caches, in the device's room.

    Args:
        first: engine of the first chunk: `given` -> `made`, cache_out.*
        following: engine of every later chunk: `given`, cache_in.* -> `made`, cache_out.*; None where the first is all.
        given: name of the input.
        made: name of the output.
        more: what else needs a place in the room.
    """

    def __init__(
        self,
        first: DeviceEngine,
        following: DeviceEngine | None,
        given: str,
        made: str,
        more: Mapping[str, TensorSpec] | None = None,
    ) -> None:
        self.engines = [first] if following is None else [first, following]
        self.device, self._given, self._made = first.device, given, made
        self.memory = DeviceMemory()
        for name, specs in ((given, [e.inputs[given] for e in self.engines]), (made, self.made)):
            self.memory.place(name, max(specs, key=lambda spec: int(np.prod(spec.shape))))
        caches = {name: spec for name, spec in first.outputs.items() if name.startswith(CACHE_OUT)}
        for bank, (name, spec) in itertools.product(range(2), caches.items()):
            self.memory.place(f"{name.removeprefix(CACHE_OUT)} {bank}", spec)
        for name, spec in (more or {}).items():
            self.memory.place(name, spec)
        # Of the first chunk, and of later ones from either bank into the other.
        turns = [(first, 0), *(() if following is None else ((following, 1), (following, 0)))]
        with self.device.alone():
            self._contexts = [(engine, engine.context(), bank) for engine, bank in turns]
        self._moves = -1
        self.start = 0
        self.room: Any = None

    @property
    def made(self) -> list[TensorSpec]:
        """The output of the first chunk and, if there are more, of a later one."""
        return [engine.outputs[self._made] for engine in self.engines]

    @contextmanager
    def clip(self) -> Iterator[None]:
        """The device and its room, for one clip; when this ends both streams are idle."""
        device = self.device
        with device.turn():
            self.room = make_room(device, self.memory.end, *self.engines)
            if self._moves != device.moves:
                self.start, self._moves = int(self.room.handle), device.moves
                for engine, context, bank in self._contexts:
                    engine.place(context, self._addresses(engine, bank))
            try:
                yield
            finally:
                self.room = None
                device.wait()

    def _addresses(self, engine: DeviceEngine, bank: int) -> dict[str, int]:
        at = self.memory.addresses(self.start)
        found = {self._given: at[self._given], self._made: at[self._made]}
        for name in engine.outputs:
            if name.startswith(CACHE_OUT):
                found[name] = at[f"{name.removeprefix(CACHE_OUT)} {bank}"]
        for name in engine.inputs:
            if name.startswith(CACHE_IN):
                found[name] = at[f"{name.removeprefix(CACHE_IN)} {1 - bank}"]
        return found

    def bring(self, staged: PinnedArray, at: int, size: int) -> None:
        """Put the copy of a chunk's input on the stream."""
        self.device.copy(staged.buffer, at, self.room, self.memory.pieces[self._given].offset, size)

    def run(self, index: int) -> tuple[Any, Any]:
        """Put the network's evaluation of a chunk on the stream; when it begins and ends."""
        engine, context, _ = self._contexts[0 if index == 0 else 1 + (index - 1) % 2]
        engine.ready()  # whose time is not the network's
        begun = self.device.mark()
        engine.enqueue(context, self.start + self.memory.end)
        return begun, self.device.mark()

    def close(self) -> None:
        """Give back the engines, and the room."""
        with self.device.alone():
            self.device.wait()
            self.device.leave()
            self._contexts.clear()
            for engine in self.engines:
                engine.close()


class CudaChunkDecoder:
    """`decode.ChunkDecoder` on a CUDA device: a chunk is decoded while the frames of the one before leave.

    Args:
        first: engine of the first chunk: latents -> frames, cache_out.*
        following: engine of every later chunk: latents, cache_in.* -> frames, cache_out.*; None where the
            first chunk is the whole clip.
    """

    def __init__(self, first: DeviceEngine, following: DeviceEngine | None) -> None:
        shapes = [engine.outputs["frames"].shape for engine in (first, following) if engine is not None]
        self._shapes = [(n, height, width) for _, _, n, height, width in shapes]
        self._out = FramesOut(first.device, max(self._shapes))
        self._chunks = _Chunks(first, following, "latents", "frames", self._out.pieces)
        self._staged: PinnedArray | None = None
        self.seconds = 0.0  # inside the engines, over all clips

    def rgb8_chunks(
        self, latents: NDArray[np.float32], *, num_threads: int = 1
    ) -> Generator[NDArray[np.uint8], None, None]:
        """As `ChunkDecoder.rgb8_chunks`; the calling thread holds the device until the last chunk or `close`."""
        parts = chunks_of(latents, [engine.inputs["latents"].shape for engine in self._chunks.engines])
        with self._chunks.clip():
            offsets = self._stage(parts)
            for frames, seconds in self._out.overlapped(self._put(index, offsets) for index in range(len(parts))):
                self.seconds += seconds
                yield frames

    def _stage(self, parts: list[NDArray[np.float32]]) -> list[int]:
        """Write all chunks, each whole, into the host's memory that is copied; where each of them begins."""
        dtype = self._chunks.engines[0].inputs["latents"].dtype
        sizes = [part.size * dtype.itemsize for part in parts]
        offsets = [0, *itertools.accumulate(sizes)]
        if self._staged is None or self._staged.array.size < offsets[-1]:
            self._staged = self._chunks.device.pinned(TensorSpec((offsets[-1],), np.dtype(np.uint8)))
        for part, at, size in zip(parts, offsets, sizes, strict=False):
            twin: Array = self._staged.array[at : at + size].view(dtype).reshape(part.shape)
            np.copyto(twin, part)
        return offsets

    def _put(self, index: int, offsets: list[int]) -> Leaving:
        """A chunk on the streams."""
        chunks, shape = self._chunks, self._shapes[min(index, len(self._shapes) - 1)]
        assert self._staged is not None
        chunks.bring(self._staged, offsets[index], offsets[index + 1] - offsets[index])
        begun, ended = chunks.run(index)
        frames = chunks.memory.pieces["frames"]
        leaving = self._out.put(chunks.room, chunks.memory, frames.offset, shape, frames.spec.dtype)
        return replace(leaving, spans=((begun, ended),))

    def close(self) -> None:
        """Give back the engines."""
        self._chunks.close()


class CudaChunkEncoder:
    """`condition.ChunkEncoder` on a CUDA device."""

    def __init__(self, first: DeviceEngine, following: DeviceEngine | None) -> None:
        self._chunks = _Chunks(first, following, "frames", "latents")
        device = first.device
        with device.alone():
            self._pictures = [device.pinned(engine.inputs["frames"]) for engine in self._chunks.engines]
            self._latents = [device.pinned(spec) for spec in self._chunks.made]
        self.seconds = 0.0  # inside the engines, over all clips

    def encode(self, picture: NDArray[np.float32], zero_frames: int) -> NDArray[np.float32]:
        """As `ChunkEncoder.encode`."""
        chunks, device = self._chunks, self._chunks.device
        if zero_frames and len(chunks.engines) == 1:
            raise BundleError("the bundle's VAE encoder takes one frame and the model wants a clip; rebuild the bundle")
        later = chunks.engines[-1].inputs["frames"].shape[2]
        parts = []
        with chunks.clip():
            for index in range(1 + -(-zero_frames // later)):
                which = min(index, 1)
                given, made = self._pictures[which], self._latents[which]
                if index < 2:  # later chunks find the zeros of the second one in their place
                    np.copyto(given.array, picture if index == 0 else 0)
                    chunks.bring(given, 0, given.array.nbytes)
                begun, ended = chunks.run(index)
                offset = chunks.memory.pieces["latents"].offset
                device.copy(chunks.room, offset, made.buffer, 0, made.array.nbytes)
                device.wait()
                self.seconds += device.seconds(begun, ended)
                parts.append(made.array.copy())
        return np.concatenate(parts, axis=2)

    def close(self) -> None:
        """Give back the engines."""
        self._chunks.close()
