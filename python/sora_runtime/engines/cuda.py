"""A CUDA device as engines use it: a stream, another for copies, and memory on both sides, through cuda.core."""

from __future__ import annotations

import ctypes
import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import EngineError
from .cuda_graph import CudaGraph, result_of
from .engine import Array, TensorSpec

NEEDS_GPU = "install an NVIDIA driver on a machine with a GPU, or use a bundle for onnxruntime and that engine"
INSTALL_CUDA = "pip install cuda-core cuda-bindings"


class CudaDevice:
    """A GPU, with one stream on which everything happens in order, and one on which results leave beside it.

    Args:
        index: of the device.
        core: the module `cuda.core`, if not the installed one.
        driver: the module `cuda.bindings.driver`, likewise.

    Raises:
        EngineError: cuda.core is not installed, or there is no driver or no such device.
    """

    def __init__(self, index: int = 0, *, core: Any = None, driver: Any = None) -> None:
        self._index = index
        self._core: Any = _import("cuda.core") if core is None else core
        self._driver: Any = _import("cuda.bindings.driver") if driver is None else driver
        self.lock = threading.RLock()
        """Held by whoever puts work on the stream, until it is done: a recording takes in whatever comes meanwhile."""
        try:
            self._device = self._core.Device(index)
            self._device.set_current()
            self.stream: Any = self._device.create_stream()
            self.copies: Any = self._device.create_stream()
            self._host: Any = self._core.LegacyPinnedMemoryResource()
            major, minor = self._device.compute_capability
        except Exception as error:  # the library raises classes of its own, RuntimeError and more
            raise EngineError(f"CUDA device {index} cannot be used ({_first_line(error)}); {NEEDS_GPU}") from error
        self.capability = f"{major}.{minor}"
        self.name = str(self._device.name)
        self.uuid = str(self._device.uuid)
        self._room: Any = None
        self._taken = False
        self.recording = False
        """Whether a graph is being recorded: nothing may be allocated, brought or waited for then."""
        self.moves = 0
        """How often the room has moved: addresses in it that were taken before point to memory that is gone."""
        self.unloads = 0
        """How often weights were taken off: what was recorded before may read memory that is gone."""
        self.givers: list[Callable[[], bool]] = []
        """Asked in turn where memory is short; each gives some that it can do without and says so, or has none."""

    def enter(self) -> None:
        """Make this the device of the calling thread, as whoever uses it from another one must."""
        self._device.set_current()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The device for this thread, which makes it its own; waits for the stages of other threads.

        Raises:
            EngineError: a stage of this thread is under way: this was called from one of its callbacks.
        """
        with self.lock:
            if self._taken:
                raise EngineError(f"{self.name} was used from a callback of a clip on it; call after generate returns")
            self.enter()
            yield

    @contextmanager
    def turn(self) -> Iterator[None]:
        """The device and its room for one stage; raises as `alone` does."""
        with self.alone():
            self._taken = True
            try:
                yield
            finally:
                self._taken = False

    def allocate(self, size: int) -> Any:
        """A Buffer of so many bytes on the device; it is there for whatever follows on the stream."""
        with self._explained(f"has no {size:,} bytes of memory"):
            while True:
                try:
                    return self._device.allocate(max(size, 1), stream=self.stream)
                except Exception:
                    if not self.spare():
                        raise

    def spare(self) -> bool:
        """Ask whoever can do without some memory for it; False if nobody can."""
        return not self.recording and any(give() for give in self.givers)

    def trim(self) -> None:
        """Return what was given back to the device itself, where libraries allocate; nothing is under way."""
        driver = self._driver
        with self._explained("cannot give back memory"):
            pool = result_of(driver.cuDeviceGetMemPool(result_of(driver.cuDeviceGet(self._index))))
            result_of(driver.cuMemPoolTrimTo(pool, 0))

    def lend(self, size: int) -> Any:
        """A Buffer for the stream of copies, or None where the memory is short; nobody is asked to give any."""
        try:
            return self._device.allocate(max(size, 1), stream=self.copies)
        except Exception:  # of a class of the library's own
            return None

    def pinned(self, spec: TensorSpec) -> PinnedArray:
        """An array on the host that copies to and from the device need not wait for."""
        size = max(int(np.prod(spec.shape)) * spec.dtype.itemsize, 1)
        with self._explained(f"could not get {size:,} bytes of the host's memory"):
            return PinnedArray(self._host.allocate(size, stream=self.stream), spec)

    def room(self, size: int) -> Any:
        """The Buffer of at least so many bytes in which a stage lies while it runs.

        Its tensors lie at the head, its engines' scratch memory behind them. The stages of a clip never run together,
        so it is one for all, as large as the largest; what a stage leaves there is gone when the next one begins.
        """
        if self._room is None or self._room.size < size:
            self.leave()
            self._room = self.allocate(size)
        return self._room

    def leave(self) -> None:
        """Give the room back once what is under way has used it; whoever needs one gets another."""
        if self._room is not None:
            self._room.close(self.stream)
            self._room = None
            self.moves += 1

    def copy(self, source: Any, at: int, target: Any, to: int, size: int, *, stream: Any = None) -> None:
        """Put a copy between parts of two Buffers on a stream; None is the one on which everything happens."""
        with self._explained("refused a copy"):
            self._part(source, at, size).copy_to(self._part(target, to, size), stream=stream or self.stream)

    def copy_box(
        self, source: int, of: tuple[int, int], target: int, to: tuple[int, int], box: tuple[int, int, int]
    ) -> None:
        """Put a copy of a box on the stream, between arrays of the device.

        Args:
            source: address of the box's first byte.
            of: rows of a slice of the source, and bytes of a row.
            target: address of the first byte's place.
            to: rows of a slice of the target, and bytes of a row.
            box: slices, rows and bytes of a row that are copied.
        """
        driver, how = self._driver, self._driver.CUDA_MEMCPY3D()
        how.srcMemoryType = how.dstMemoryType = driver.CUmemorytype.CU_MEMORYTYPE_DEVICE
        how.srcDevice, how.srcHeight, how.srcPitch = source, *of
        how.dstDevice, how.dstHeight, how.dstPitch = target, *to
        how.Depth, how.Height, how.WidthInBytes = box
        with self._explained("refused a copy"):
            result_of(driver.cuMemcpy3DAsync(how, self.stream.handle))

    def _part(self, buffer: Any, offset: int, size: int) -> Any:
        return self._core.Buffer.from_handle(int(buffer.handle) + offset, size, owner=buffer)

    def mark(self) -> Any:
        """A moment on the stream; `seconds` is between two that have passed."""
        with self._explained("failed at what it was given"):
            return self.stream.record(options=self._core.EventOptions(timing_enabled=True))

    def copied(self) -> Any:
        """A moment on the stream of copies, for `wait_for`."""
        with self._explained("failed at what it was given"):
            return self.copies.record()

    def after(self, moment: Any) -> None:
        """Let the stream wait for a moment on that of copies."""
        with self._explained("failed at what it was given"):
            self.stream.wait(moment)

    def copies_after(self, moment: Any) -> None:
        """Let the stream of copies wait for a moment on the other one."""
        with self._explained("failed at what it was given"):
            self.copies.wait(moment)

    @staticmethod
    def seconds(first: Any, last: Any) -> float:
        """What the device took from one moment to another, by its own clock."""
        return float(last - first) / 1e3

    def record(self, put: Callable[[], object]) -> CudaGraph:
        """A CUDA graph of everything that `put` puts on the stream, none of which happens now.

        Raises:
            EngineError: something of it cannot be recorded.
            Exception: whatever `put` raises; the stream records no more then.
        """
        driver, stream = self._driver, self.stream.handle
        with self._explained("cannot record a clip as a graph"):
            result_of(driver.cuStreamBeginCapture(stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED))
        self.recording = True
        try:
            put()
        except BaseException:
            code, graph = driver.cuStreamEndCapture(stream)  # whatever it says, the stream is free again
            if int(code) == 0:
                driver.cuGraphDestroy(graph)
            raise
        finally:
            self.recording = False
        with self._explained("cannot record a clip as a graph"):
            graph = result_of(driver.cuStreamEndCapture(stream))
            try:
                executable = result_of(driver.cuGraphInstantiate(graph, 0))
            finally:
                driver.cuGraphDestroy(graph)
        return CudaGraph(driver, executable, stream)

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """The libraries' exceptions, whose classes have nothing in common, as an EngineError."""
        try:
            yield
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.name} {what} ({_first_line(error)}); use a smaller size, or close what else uses the device"
            ) from error

    def wait(self) -> None:
        """Until all that was asked of the device is done.

        Raises:
            EngineError: some of it failed.
        """
        with self._explained("failed at what it was given"):
            self.stream.sync()
            self.copies.sync()

    def wait_for(self, moment: Any) -> None:
        """Until a moment on a stream has passed; raises as `wait` does."""
        with self._explained("failed at what it was given"):
            moment.sync()


class PinnedArray:
    """Memory of the host that the device may read and write by itself, as an array."""

    def __init__(self, buffer: Any, spec: TensorSpec) -> None:
        self.buffer = buffer
        kind = ctypes.c_uint8 * buffer.size
        bytes_ = np.frombuffer(kind.from_address(int(buffer.handle)), np.uint8)
        count = int(np.prod(spec.shape)) * spec.dtype.itemsize
        self.array: Array = bytes_[:count].view(spec.dtype).reshape(spec.shape)

    def close(self) -> None:
        """Give the memory back; nothing on a stream may use it any more, nor may `array` be used."""
        self.array = np.empty(0, self.array.dtype)
        self.buffer.close()


_OPENING = threading.Lock()
_opened: list[CudaDevice] = []


def current_device() -> CudaDevice:
    """The process's device 0, opened by whoever asks first."""
    with _OPENING:
        if not _opened:
            _opened.append(CudaDevice())
        return _opened[0]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise EngineError(f"{name} cannot be imported ({error}); {INSTALL_CUDA}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
