"""Decoded frames leave a CUDA device as bytes, on a stream of their own, while the next ones are decoded."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _core
from .engines.cuda import CudaDevice
from .engines.device_engine import DeviceMemory
from .engines.engine import TensorSpec

_BYTE = np.dtype(np.uint8)
_IN_FLIGHT = 2  # chunks whose frames have not been taken: one is decoded while the other one leaves


@dataclass(frozen=True)
class Leaving:
    """Frames on their way.

    Attributes:
        slot: where they arrive.
        frames: how many.
        gone: when they have.
        spans: when the network began and ended, each time that it ran for them.
    """

    slot: int
    frames: int
    gone: Any
    spans: tuple[tuple[Any, Any], ...] = ()


class FramesOut:
    """Where the bytes of two chunks lie, on the device and on the host; not for several threads at once.

    Args:
        device: where frames are.
        widest: frames, rows and columns of the largest chunk.
    """

    def __init__(self, device: CudaDevice, widest: tuple[int, int, int]) -> None:
        self._device = device
        spec = TensorSpec((*widest, 3), _BYTE)
        self.pieces = {f"rgb8 {slot}": spec for slot in range(_IN_FLIGHT)}
        """What needs a place in the room."""
        with device.alone():
            self._arrived = [device.pinned(spec) for _ in range(_IN_FLIGHT)]
        self._next = 0

    def put(
        self,
        room: Any,
        memory: DeviceMemory,
        frames: int,
        shape: tuple[int, int, int],
        dtype: np.dtype[Any],
        wanted: slice = slice(None),
    ) -> Leaving:
        """Put the way of decoded frames [3, *shape] on the streams.

        At most two may be on their way: the host takes the first before it puts the third.

        Args:
            room: of the device.
            memory: its layout, with `pieces`.
            frames: where they lie in it, in bytes.
            shape: frames, rows and columns.
            dtype: of the values.
            wanted: which of the frames leave.
        """
        device, slot = self._device, self._next
        self._next = (slot + 1) % _IN_FLIGHT
        rgb8 = memory.pieces[f"rgb8 {slot}"].offset
        plane = shape[1] * shape[2]
        start = int(room.handle)
        _core.cuda.frames_to_rgb8(
            start + frames,
            start + rgb8,
            num_frames=shape[0],
            plane=plane,
            dtype=dtype.name,
            stream=int(device.stream.handle),
        )
        device.copies_after(device.mark())
        first, last, _ = wanted.indices(shape[0])
        size = (last - first) * plane * 3
        if size > 0:
            at = rgb8 + first * plane * 3
            device.copy(room, at, self._arrived[slot].buffer, 0, size, stream=device.copies)
        return Leaving(slot, last - first, device.copied())

    def overlapped(self, chunks: Iterator[Leaving]) -> Iterator[tuple[NDArray[np.uint8], float]]:
        """Frames uint8 [n, height, width, 3] of each chunk, and the device's seconds in the network.

        A chunk is given out when the next one has been put on the streams.
        """
        flying: list[Leaving] = []
        for leaving in chunks:
            flying.append(leaving)
            if len(flying) == _IN_FLIGHT:
                yield self._take(flying.pop(0))
        for leaving in flying:
            yield self._take(leaving)

    def _take(self, leaving: Leaving) -> tuple[NDArray[np.uint8], float]:
        self._device.wait_for(leaving.gone)
        seconds = sum(self._device.seconds(begun, ended) for begun, ended in leaving.spans)
        return self._arrived[leaving.slot].array[: leaving.frames].copy(), seconds
