"""A CUDA device as engines use it: one stream, memory on both sides and copies between them, through cuda.core."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from ..errors import EngineError
from .engine import Array, TensorSpec

NEEDS_GPU = "install an NVIDIA driver on a machine with a GPU, or use a bundle for onnxruntime"
INSTALL_CUDA = "pip install cuda-core cuda-bindings"


class CudaDevice:
    """A GPU, with one stream on which everything happens in order.

    Args:
        index: of the device.
        core: the module `cuda.core`, if not the installed one.

    Raises:
        EngineError: cuda.core is not installed, or there is no driver or no such device.
    """

    def __init__(self, index: int = 0, *, core: Any = None) -> None:
        self._core: Any = _import_core() if core is None else core
        try:
            self._device = self._core.Device(index)
            self._device.set_current()
            self.stream: Any = self._device.create_stream()
            self._host: Any = self._core.LegacyPinnedMemoryResource()
            major, minor = self._device.compute_capability
        except Exception as error:  # the library raises classes of its own, RuntimeError and more
            raise EngineError(f"CUDA device {index} cannot be used ({_first_line(error)}); {NEEDS_GPU}") from error
        self.capability = f"{major}.{minor}"
        self.name = str(self._device.name)
        self._scratch: Any = None
        self.moves = 0
        """How often the scratch memory has moved: what was recorded before points to memory that is gone."""

    def enter(self) -> None:
        """Make this the device of the calling thread, as whoever uses it from another one must."""
        self._device.set_current()

    def allocate(self, size: int) -> Any:
        """A Buffer of so many bytes on the device; it is there for whatever follows on the stream."""
        return self._device.allocate(max(size, 1), stream=self.stream)

    def pinned(self, spec: TensorSpec) -> PinnedArray:
        """An array on the host that copies to and from the device need not wait for."""
        size = max(int(np.prod(spec.shape)) * spec.dtype.itemsize, 1)
        return PinnedArray(self._host.allocate(size, stream=self.stream), spec)

    def scratch(self, size: int) -> Any:
        """A Buffer of at least so many bytes that whatever runs on the stream may use while it runs.

        Networks of a clip never run together, so it is one for all.
        """
        if self._scratch is None or self._scratch.size < size:
            grown = self.allocate(size)
            if self._scratch is not None:
                self._scratch.close(self.stream)  # after what is under way has used it
            self._scratch = grown
            self.moves += 1
        return self._scratch

    def copy(self, source: Any, at: int, target: Any, to: int, size: int) -> None:
        """Put a copy between parts of two Buffers on the stream."""
        self._part(source, at, size).copy_to(self._part(target, to, size), stream=self.stream)

    def _part(self, buffer: Any, offset: int, size: int) -> Any:
        return self._core.Buffer.from_handle(int(buffer.handle) + offset, size, owner=buffer)

    def mark(self) -> Any:
        """A moment on the stream; `seconds` is between two that have passed."""
        return self.stream.record(options=self._core.EventOptions(timing_enabled=True))

    @staticmethod
    def seconds(first: Any, last: Any) -> float:
        """What the device took from one moment to another, by its own clock."""
        return float(last - first) / 1e3

    def record(self, put: Callable[[], object]) -> Any:
        """A CUDA graph of everything that `put` puts on the stream, none of which happens now.

        Raises:
            EngineError: something of it cannot be recorded.
        """
        try:
            builder = self.stream.create_graph_builder()
            builder.begin_building()
            try:
                put()
            finally:
                builder.end_building()
            return builder.complete()
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(f"{self.name} cannot record a clip as a graph ({_first_line(error)})") from error

    def wait(self) -> None:
        """Until all that was asked of the device is done.

        Raises:
            EngineError: some of it failed.
        """
        try:
            self.stream.sync()
        except Exception as error:
            raise EngineError(
                f"{self.name} failed at what it was given ({_first_line(error)}); run it again, and if it fails again "
                "use a smaller size"
            ) from error


class PinnedArray:
    """Memory of the host that the device may read and write by itself, as an array."""

    def __init__(self, buffer: Any, spec: TensorSpec) -> None:
        self.buffer = buffer
        kind = ctypes.c_uint8 * buffer.size
        bytes_ = np.frombuffer(kind.from_address(int(buffer.handle)), np.uint8)
        count = int(np.prod(spec.shape)) * spec.dtype.itemsize
        self.array: Array = bytes_[:count].view(spec.dtype).reshape(spec.shape)


@cache
def current_device() -> CudaDevice:
    """The process's device 0, opened by whoever asks first."""
    return CudaDevice()


def _import_core() -> Any:
    try:
        import cuda.core
    except ImportError as error:
        raise EngineError(f"cuda.core cannot be imported ({error}); {INSTALL_CUDA}") from error
    return cuda.core


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
