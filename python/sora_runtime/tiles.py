"""From latents to frames in overlapping tiles that are blended: for VAE decoders that pass nothing on."""

import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .engines.engine import Engine
from .errors import BundleError, EngineError
from .manifest import TiledBucket

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Axis:
    """Where the tiles of an axis begin, in latents, and what each shares with the one before, in frames or pixels."""

    origins: list[int]
    overlaps: list[int]  # 0 for the first
    size: int  # latents of a tile
    length: int  # latents of the clip

    @classmethod
    def of(cls, length: int, size: int, stride: int, *, scale: int, dropped: int) -> "Axis":
        """Lay as few tiles of `size` on `length` as `stride` allows, evenly; the last ends where the clip ends.

        Args:
            length: latents of the clip.
            size: latents of a tile.
            stride: the most that two origins may be apart.
            scale: frames or pixels of a latent.
            dropped: latents at the head of a later tile that count for nothing.
        """
        if size > length or (size < length and stride > size - dropped):
            raise BundleError(
                f"bundle.json cuts {length} latents into tiles of {size} with a stride of {stride}, which leaves gaps "
                "or passes the end; rebuild the bundle"
            )
        count = 1 if size == length else -(-(length - size) // stride) + 1
        origins = [index * (length - size) // max(count - 1, 1) for index in range(count)]
        shared = [before + size - after - dropped for before, after in zip(origins, origins[1:], strict=False)]
        return cls(origins, [0, *(latents * scale for latents in shared)], size, length)

    def following(self, index: int) -> int:
        """What the tile after that of `index` shares with it."""
        return self.overlaps[index + 1] if index + 1 < len(self.origins) else 0


def axes_of(engine: Engine, bucket: TiledBucket) -> list[Axis]:
    """How a clip is cut in frames, rows and columns; see `TiledDecoder`.

    Raises:
        BundleError: engine and entry do not fit each other, or the tiles leave gaps.
    """
    t, h, w = engine.inputs["latents"].shape[2:]
    shape = engine.outputs["frames"].shape
    frames, height, width = shape[2:]
    scales = ((frames - 1) // max(t - 1, 1), height // h, width // w)
    made = (scales[0] * (t - 1) + 1, scales[1] * h, scales[2] * w)
    if bucket.tile.latent != (t, h, w) or (frames, height, width) != made:
        raise BundleError(
            f"'{bucket.graph}' makes {list(shape)} of {list(engine.inputs['latents'].shape)} and bundle.json "
            f"cuts latents into {list(bucket.tile.latent)}; rebuild the bundle"
        )
    clip = ((bucket.num_frames - 1) // max(scales[0], 1) + 1, bucket.height // scales[1], bucket.width // scales[2])
    return [
        Axis.of(length, size, stride, scale=scale, dropped=dropped)
        for length, size, stride, scale, dropped in zip(
            clip, (t, h, w), bucket.tile.stride, scales, (1, 0, 0), strict=True
        )
    ]


def check_latents(latents: Float, channels: int, axes: Sequence[Axis]) -> None:
    """Raises `EngineError` where latents are not those of the clip that `axes` cut."""
    expected = (1, channels, *(axis.length for axis in axes))
    if latents.shape != expected:
        raise EngineError(f"latents are {list(latents.shape)} and the decoder takes {list(expected)}")


class TiledDecoder:
    """A VAE decoder as one engine for all tiles of a clip: `ChunkDecoder`'s interface, blended seams.

    Frames are given out as soon as no later tile changes them, so memory does not grow with the length of a
    clip. An entry of "buckets" in bundle.json states how a clip is cut:

        {"height": 512, "width": 704, "num_frames": 161, "graph": "vae_decoder.512x384x65.onnx",
         "tile": {"latent": [9, 16, 12], "stride": [7, 16, 10]}}

    `latent` is the shape of a tile, [frames, rows, columns] of what the graph takes, on no axis more than the
    clip has. `stride` is the most that the origins of two neighbouring tiles may be apart, in latents; it has
    no effect on an axis with one tile. As few tiles as that allows are laid evenly, the first at the first
    latent, the last up to the last, so that all have the shape of the graph. Two neighbours are blended over all
    that they share: the later one's weight rises from 0 by equal steps, as in `blend_t`, `blend_v` and `blend_h`
    of diffusers' AutoencoderKLHunyuanVideo and AutoencoderKLLTXVideo, in that order: rows, columns, time.

    Of t latents a decoder with a temporal stride of s makes s(t-1)+1 frames, one of the first latent and s of
    each other. So the first frame of a tile that does not begin the clip is dropped, tiles that share n latents
    blend s(n-1) frames, and `stride[0]` is less than `latent[0]`. (diffusers' LTX decoder drops the *last* frame
    instead, which shows every later tile one frame late; its HunyuanVideo decoder drops the first.)

    Args:
        engine: latents [1, C, t, h, w] -> frames [1, 3, s(t-1)+1, H, W].
        bucket: the entry of bundle.json.

    Raises:
        BundleError: engine and entry do not fit each other, or the tiles leave gaps.
    """

    def __init__(self, engine: Engine, bucket: TiledBucket) -> None:
        self._engine = engine
        self._axes = axes_of(engine, bucket)
        self._latents = engine.inputs["latents"].empty()
        self._frames = engine.outputs["frames"].empty()
        self._binding = engine.bind({"latents": self._latents, "frames": self._frames})
        self._picture = (3, self._frames.shape[2], bucket.height, bucket.width)
        self.seconds = 0.0  # inside the engine, over all clips

    def chunks(self, latents: Float) -> Iterator[Float]:
        """Decode tile by tile.

        Args:
            latents: float32 [1, channels, frames, height, width] of the bucket's clip.

        Yields:
            frames float32 [3, n, height, width], about -1 to 1; overwritten by the next chunk.
        """
        check_latents(latents, self._latents.shape[1], self._axes)
        axis = self._axes[0]
        tail: Float | None = None
        for index, origin in enumerate(axis.origins):
            frames = self._all_tiles_at(latents[:, :, origin : origin + axis.size])
            if tail is not None:
                frames = frames[:, 1:]
                _blend(tail, frames, 1)
            ready = frames.shape[1] - axis.following(index)
            tail = frames[:, ready:].copy()
            yield frames[:, :ready]

    def rgb8_chunks(self, latents: Float, *, num_threads: int) -> Generator[NDArray[np.uint8], None, None]:
        """As `chunks`, but uint8 [n, height, width, 3], a new array each time."""
        for frames in self.chunks(latents):
            yield _core.frames_to_rgb8(np.ascontiguousarray(frames), num_threads=num_threads)

    def close(self) -> None:
        """Give back the engine."""
        self._engine.close()

    def _all_tiles_at(self, latents: Float) -> Float:
        """Frames [3, n, height, width] of the tiles of some latent frames, side by side."""
        _, rows, columns = self._axes
        if len(rows.origins) == len(columns.origins) == 1:
            return self._decode(latents)
        picture: Float = np.empty(self._picture, np.float32)
        edges: list[Float] = []  # the lower one of each tile of the row above
        for row, top in enumerate(rows.origins):
            above, edges = edges, []
            left: Float | None = None
            for column, start in enumerate(columns.origins):
                tile = self._decode(latents[..., top : top + rows.size, start : start + columns.size])
                if above:
                    _blend(above[column], tile, 2)
                if left is not None:
                    _blend(left, tile, 3)
                height, width = tile.shape[2:]
                edges.append(tile[:, :, height - rows.following(row) :].copy())
                left = tile[..., width - columns.following(column) :].copy()
                y, x = top * (height // rows.size), start * (width // columns.size)
                picture[..., y : y + height, x : x + width] = tile
        return picture

    def _decode(self, latents: Float) -> Float:
        """One tile; the frames are overwritten by the next."""
        np.copyto(self._latents, latents)
        start = time.perf_counter()
        self._binding.run()
        self.seconds += time.perf_counter() - start
        frames: Float = self._frames[0].astype(np.float32, copy=False)
        return frames


def _blend(before: Float, after: Float, axis: int) -> None:
    """Fades the head of `after` in over `before`, which is as long as what the two share."""
    shared = before.shape[axis]
    shape = [1] * after.ndim
    shape[axis] = shared
    weight = (np.arange(shared, dtype=np.float32) / max(shared, 1)).reshape(shape)
    head = after[tuple(slice(shared) if other == axis else slice(None) for other in range(after.ndim))]
    head *= weight
    head += before * (1 - weight)
