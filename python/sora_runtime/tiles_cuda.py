"""`tiles.TiledDecoder` on a CUDA device: tiles are blended there, and what leaves are the bytes of finished frames."""

import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .clip_memory import FLOAT
from .engines.cuda import PinnedArray
from .engines.device_engine import DeviceEngine, DeviceMemory, make_room
from .engines.engine import TensorSpec
from .errors import EngineError
from .frames_cuda import FramesOut, Leaving
from .manifest import TiledBucket
from .tiles import axes_of, check_latents


class CudaTiledDecoder:
    """As `TiledDecoder`.

    Args:
        engine: latents [1, C, t, h, w] -> frames float32 [1, 3, s(t-1)+1, H, W].
        bucket: the entry of bundle.json.

    Raises:
        BundleError: engine and entry do not fit each other, or the tiles leave gaps.
        EngineError: its frames are not float32, or the device's memory is used up.
    """

    def __init__(self, engine: DeviceEngine, bucket: TiledBucket) -> None:
        self._engine, self._device = engine, engine.device
        self._axes = axes_of(engine, bucket)
        self._given, made = engine.inputs["latents"], engine.outputs["frames"]
        if made.dtype != FLOAT:
            raise EngineError(f"the decoder makes frames in {made.dtype} and float32 is what is blended; rebuild it")
        _, _, frames, height, width = made.shape
        _, rows, columns = self._axes
        self._tile = (3, frames, height, width)
        self._picture = (3, frames, bucket.height, bucket.width)
        self._one = len(rows.origins) == len(columns.origins) == 1
        self._out = FramesOut(self._device, self._picture[1:])
        self.memory = DeviceMemory()
        self.memory.place("latents", self._given)
        self.memory.place("tile", made)
        if not self._one:
            self._place("picture", self._picture)
            self._place("left", (3, frames, height, max(columns.overlaps)))
            for column in range(len(columns.origins)):
                for turn in range(2):  # of the row above, and of this one
                    self._place(f"above {column} {turn}", (3, frames, max(rows.overlaps), width))
        self._place("tail", (3, max(self._axes[0].overlaps), bucket.height, bucket.width))
        for name, spec in self._out.pieces.items():
            self.memory.place(name, spec)
        with self._device.alone():
            self._context = engine.context()
        self._moves = -1
        self._room: Any = None
        self._staged: PinnedArray | None = None
        self.seconds = 0.0  # inside the engine, over all clips

    def _place(self, name: str, shape: tuple[int, ...]) -> None:
        self.memory.place(name, TensorSpec(shape, FLOAT))

    def rgb8_chunks(
        self, latents: NDArray[np.float32], *, num_threads: int = 1
    ) -> Generator[NDArray[np.uint8], None, None]:
        """As `TiledDecoder.rgb8_chunks`; the calling thread holds the device until the last chunk or `close`."""
        check_latents(latents, self._given.shape[1], self._axes)
        device = self._device
        with device.turn():
            self._room = make_room(device, self.memory.end, self._engine)
            if self._moves != device.moves:
                at = self.memory.addresses(int(self._room.handle))
                self._engine.place(self._context, {"latents": at["latents"], "frames": at["tile"]})
                self._moves = device.moves
            try:
                self._stage(latents)
                for frames, seconds in self._out.overlapped(self._chunks()):
                    self.seconds += seconds
                    yield frames
            finally:
                self._room = None
                device.wait()

    def _stage(self, latents: NDArray[np.float32]) -> None:
        """Write all tiles, each whole, into the host's memory that is copied."""
        t, h, w = self._given.shape[2:]
        tiles = list(itertools.product(*(axis.origins for axis in self._axes)))
        spec = TensorSpec((len(tiles), *self._given.shape), self._given.dtype)
        if self._staged is None:
            self._staged = self._device.pinned(spec)
        for slot, (frame, top, start) in zip(self._staged.array, tiles, strict=True):
            np.copyto(slot, latents[:, :, frame : frame + t, top : top + h, start : start + w])

    def _chunks(self) -> Iterator[Leaving]:
        """Every row of tiles in time, on the streams: blended with the one before, its finished frames leaving."""
        axis = self._axes[0]
        _, frames, height, width = self._picture
        plane, tail = height * width, self.memory.pieces["tail"].offset
        for index in range(len(axis.origins)):
            at, spans = self._all_tiles_at(index)
            first, shared = (1 if index else 0), axis.overlaps[index]
            if shared:  # the first frame of a later tile counts for nothing; see `TiledDecoder`
                self._blend(tail, at + first * plane * 4, (3, shared, plane), (shared * plane, frames * plane))
            following = axis.following(index)
            ready = frames - following
            leaving = self._out.put(self._room, self.memory, at, self._picture[1:], FLOAT, slice(first, ready))
            if following:
                self._copy(at + ready * plane * 4, (frames, plane), tail, (following, plane), (3, following, plane))
            yield Leaving(leaving.slot, leaving.frames, leaving.gone, tuple(spans))

    def _all_tiles_at(self, index: int) -> tuple[int, list[tuple[Any, Any]]]:
        """Where the frames [3, n, height, width] of the tiles of some latent frames lie; when the network ran."""
        _, rows, columns = self._axes
        count = len(rows.origins) * len(columns.origins)
        spans = []
        pieces, (_, frames, height, width) = self.memory.pieces, self._tile
        tile = pieces["tile"].offset
        if self._one:
            return tile, [self._decode(index)]
        picture, left = pieces["picture"].offset, pieces["left"].offset
        for row, top in enumerate(rows.origins):
            for column, start in enumerate(columns.origins):
                spans.append(self._decode(index * count + row * len(columns.origins) + column))
                shared = rows.overlaps[row]
                if shared:
                    above = pieces[f"above {column} {(row + 1) % 2}"].offset
                    self._blend(above, tile, (3 * frames, shared, width), (shared * width, height * width))
                shared = columns.overlaps[column]
                if shared:
                    self._blend(left, tile, (3 * frames * height, shared, 1), (shared, width))
                lower, right = rows.following(row), columns.following(column)
                if lower:
                    edge = tile + (height - lower) * width * 4
                    below = pieces[f"above {column} {row % 2}"].offset
                    self._copy(edge, (height, width), below, (lower, width), (3 * frames, lower, width))
                if right:
                    edge = tile + (width - right) * 4
                    self._copy(edge, (height, width), left, (height, right), (3 * frames, height, right))
                y, x = top * (height // rows.size), start * (width // columns.size)
                whole = self._picture[2:]
                to = picture + (y * whole[1] + x) * 4
                self._copy(tile, (height, width), to, whole, (3 * frames, height, width))
        return picture, spans

    def _decode(self, number: int) -> tuple[Any, Any]:
        """Put a tile's evaluation on the stream; when it begins and ends."""
        device, piece = self._device, self.memory.pieces["latents"]
        assert self._staged is not None
        device.copy(self._staged.buffer, number * piece.size, self._room, piece.offset, piece.size)
        self._engine.ready()  # whose time is not the network's
        begun = device.mark()
        self._engine.enqueue(self._context, int(self._room.handle) + self.memory.end)
        return begun, device.mark()

    def _blend(self, before: int, after: int, shape: tuple[int, int, int], strides: tuple[int, int]) -> None:
        """Fade the head of what lies at `after` in over what lies at `before`."""
        start = int(self._room.handle)
        _core.cuda.blend(
            start + before,
            start + after,
            shape=shape,
            before_stride=strides[0],
            after_stride=strides[1],
            stream=int(self._device.stream.handle),
        )

    def _copy(
        self, source: int, of: tuple[int, int], target: int, to: tuple[int, int], box: tuple[int, int, int]
    ) -> None:
        """Copy a box of float32 [slices, rows, columns] between arrays; `of` and `to` are rows and columns of these."""
        start, (slices, rows, columns) = int(self._room.handle), box
        self._device.copy_box(
            start + source, (of[0], of[1] * 4), start + target, (to[0], to[1] * 4), (slices, rows, columns * 4)
        )

    def close(self) -> None:
        """Give back the engine, and the room."""
        device = self._device
        with device.alone():
            device.wait()
            device.leave()
            self._context = None
            self._engine.close()
