"""Stand-ins for `cuda.core` and the driver on the host, which insist on what the real ones demand.

What is put on a stream happens when the stream is waited for, not before: a result that is read too early is seen, and
memory that is overwritten or given back while the stream may still read it. Two streams may touch the same memory only
where an event or a wait of the host orders them (vector clocks). `tests/gpu/test_doubles.py` holds every name and
argument of these and of the other doubles against the real libraries.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gpu.driver_double import Driver


class Broken(AssertionError):
    """A contract of the library was broken."""


class LibraryError(Exception):
    """What cuda.core raises is of no class that anybody else's code knows."""


@dataclass
class Operation:
    """Something on a stream: what it reads and writes, and what it does."""

    what: str
    run: Callable[[], None]
    reads: list[tuple[int, int]]  # address and bytes
    writes: list[tuple[int, int]]
    seen: list[bytes] = field(default_factory=list)  # digests of what it reads that the host may change


def content(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


@dataclass
class Access:
    """Memory that an operation reads or writes, and when: the how manieth of its stream."""

    address: int
    size: int
    writes: bool
    stream: int
    count: int
    what: str

    def meets(self, other: Access) -> bool:
        together = self.address < other.address + other.size and other.address < self.address + self.size
        return together and (self.writes or other.writes)


Clock = dict[int, int]
"""Of each stream, how many of its operations have certainly happened."""


def merged(first: Clock, second: Clock) -> Clock:
    return {stream: max(first.get(stream, 0), second.get(stream, 0)) for stream in {*first, *second}}


class Stream:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.handle = 4096 + len(gpu.streams)
        self.pending: list[Operation] = []
        self.recording: list[Operation] | None = None
        self.clock: Clock = {}
        gpu.streams[self.handle] = self

    def put(self, operation: Operation) -> None:
        self.gpu.insist_on_a_context(operation.what)
        for address, size in operation.reads + operation.writes:
            self.gpu.insist(address, size, operation.what)
        if self.recording is not None:
            self.recording.append(operation)
            self.gpu.log.append(f"record {operation.what}")
            return
        self._insist_on_order(operation)
        operation.seen = [
            hashlib.sha256(content(address, size)).digest()
            for address, size in operation.reads
            if self.gpu.is_host(address)
        ]
        self.pending.append(operation)
        self.gpu.log.append(operation.what)

    def _insist_on_order(self, operation: Operation) -> None:
        """What another stream does to the same memory must have happened before, by events or by a wait."""
        self.clock = merged(self.clock, self.gpu.known)
        self.clock[self.handle] = count = self.clock.get(self.handle, 0) + 1
        places = [(place, False) for place in operation.reads] + [(place, True) for place in operation.writes]
        accesses = [Access(*place, writes, self.handle, count, operation.what) for place, writes in places]
        for other in self.gpu.accesses:
            if self.clock.get(other.stream, 0) < other.count and any(other.meets(each) for each in accesses):
                raise Broken(f"'{operation.what}' meets '{other.what}' of another stream with nothing between them")
        self.gpu.accesses += accesses

    def wait(self, event_or_stream: Event) -> None:
        event = event_or_stream
        if self.recording is not None and event.operation not in self.recording:
            raise LibraryError("CUDA_ERROR_STREAM_CAPTURE_ISOLATION: an event from outside what is recorded")
        self.put(Operation("wait for another stream", lambda: event.stream.pass_until(event.operation), [], []))
        self.clock = merged(self.clock, event.clock)

    def record(self, event: Event | None = None, options: EventOptions | None = None) -> Event:
        made = event or Event(options or EventOptions())
        made.stream, made.operation = self, Operation("event", made.pass_by, [], [])
        self.put(made.operation)
        made.clock = dict(self.clock)
        return made

    def sync(self) -> None:
        self.gpu.insist_no_recording("a wait")
        self.gpu.log.append("sync")
        self.pass_until(None)
        self.gpu.learn(self.clock)

    def pass_until(self, last: Operation | None) -> None:
        while self.pending and (last is None or last in self.pending):
            operation = self.pending.pop(0)
            now = [
                hashlib.sha256(content(address, size)).digest()
                for address, size in operation.reads
                if self.gpu.is_host(address)
            ]
            if now != operation.seen:
                raise Broken(f"the host changed what '{operation.what}' was still to read")
            operation.run()


@dataclass
class EventOptions:
    timing_enabled: bool = False


class Event:
    """Its time is the number of events that passed before it, in milliseconds."""

    passed = 0

    def __init__(self, options: EventOptions) -> None:
        self._timed = options.timing_enabled
        self.at: int | None = None
        self.stream: Stream
        self.operation: Operation
        self.clock: Clock = {}

    def sync(self) -> None:
        self.stream.gpu.insist_no_recording("a wait for an event")
        self.stream.gpu.log.append("sync event")
        self.stream.pass_until(self.operation)
        self.stream.gpu.learn(self.clock)

    def pass_by(self) -> None:
        Event.passed += 1
        self.at = Event.passed

    def __sub__(self, other: Event) -> float:
        if not (self._timed and other._timed):
            raise Broken("events without timing are subtracted")
        if self.at is None or other.at is None:
            raise Broken("a time was read before the event has passed")
        return float(self.at - other.at)


class Buffer:
    def __init__(self, gpu: Gpu, size: int, *, host: bool) -> None:
        gpu.insist_no_recording("an allocation")
        if not host and gpu.held() + size > gpu.capacity:
            raise LibraryError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
        self._gpu, self._host = gpu, host
        # Nothing may rely on zeros.
        self._memory = np.full(size + 256, 0xA5, np.uint8)
        self.handle = self._memory.ctypes.data + -self._memory.ctypes.data % 256
        self.size = size
        gpu.buffers.append(self)
        gpu.log.append(f"allocate {'host' if host else 'device'}")

    @property
    def host(self) -> bool:
        return self._host

    @classmethod
    def from_handle(cls, ptr: int, size: int, mr: Any = None, owner: Any = None) -> Buffer:
        if owner is None:
            raise Broken("a part of a buffer that does not keep the whole alive")
        part = object.__new__(cls)
        part._gpu, part._host, part.handle, part.size = owner._gpu, owner._host, ptr, size
        return part

    def copy_to(self, dst: Buffer | None = None, *, stream: Stream, options: Any = None) -> Buffer:
        if dst is None or dst.size != self.size:
            raise Broken(f"a copy of {self.size} bytes into {None if dst is None else dst.size}")
        source, target, size = self.handle, dst.handle, self.size
        what = f"copy {'host' if self.host else 'device'} to {'host' if dst.host else 'device'}"
        stream.put(
            Operation(what, lambda: ctypes.memmove(target, source, size) and None, [(source, size)], [(target, size)])
        )
        return dst

    def close(self, stream: Stream | None = None) -> None:
        self._gpu.insist_no_recording("giving memory back")
        clock = self._gpu.known if stream is None else merged(stream.clock, self._gpu.known)
        for each in self._gpu.accesses:
            used = each.address < self.handle + self.size and self.handle < each.address + each.size
            if used and clock.get(each.stream, 0) < each.count:
                raise Broken("memory is given back while a stream may still use it")
        self._gpu.accesses = [
            each for each in self._gpu.accesses if not self.handle <= each.address < self.handle + self.size
        ]
        self._gpu.closed.append(self)
        self._gpu.buffers.remove(self)


class Gpu:
    """What the module `cuda.core` is to the code under test, and what happened."""

    def __init__(self, capability: tuple[int, int] = (8, 9), gpu_name: str = "NVIDIA GeForce RTX 4090") -> None:
        self.streams: dict[int, Stream] = {}
        self.buffers: list[Buffer] = []
        self.closed: list[Buffer] = []
        self.log: list[str] = []
        self.records_engines = True
        self.weight_bytes = 256  # of every engine
        self.weights_of: dict[str, int] = {}  # of those whose graph has this name
        self.context_bytes = 0  # that making a context needs
        self.defers = True  # whether plans can be loaded without their weights
        self.unloads = True  # whether their weights can be taken off again
        self.capacity = 1 << 40  # bytes of the device's memory
        self.accesses: list[Access] = []  # that the host has not waited for
        self.known: Clock = {}  # what the host has waited for
        self.driver: Any = Driver(self)
        self.current = threading.local()  # as contexts are
        gpu = self

        class Device:
            name = gpu_name
            compute_capability = capability
            uuid = "8dec1f8a-0000-1111-2222-333344445555"

            def __init__(self, device_id: int | None = None) -> None:
                if device_id:
                    raise LibraryError("CUDA_ERROR_INVALID_DEVICE: there is one")

            def set_current(self, ctx: Any = None) -> None:
                gpu.current.entered = True

            def create_stream(self, obj: Any = None, options: Any = None) -> Stream:
                gpu.insist_on_a_context("a stream")
                return Stream(gpu)

            def allocate(self, size: int, *, stream: Stream) -> Buffer:
                gpu.insist_on_a_context("an allocation")
                assert size > 0
                return Buffer(gpu, size, host=False)

        class LegacyPinnedMemoryResource:
            def allocate(self, size: int, *, stream: Stream | None = None) -> Buffer:
                return Buffer(gpu, size, host=True)

        self.Buffer = Buffer
        self.EventOptions = EventOptions
        self.Device = Device
        self.LegacyPinnedMemoryResource = LegacyPinnedMemoryResource

    def put(self, stream: int, what: str, run: Callable[[], None], reads: Any, writes: Any) -> None:
        """An operation on a stream, by its handle."""
        self.streams[stream].put(Operation(what, run, reads, writes))

    def insist_on_a_context(self, what: str) -> None:
        if not getattr(self.current, "entered", False):
            raise Broken(f"{what} in a thread without a context")

    def insist_no_recording(self, what: str) -> None:
        if any(stream.recording is not None for stream in self.streams.values()):
            raise Broken(f"{what} while a graph is recorded")

    def held(self) -> int:
        """Bytes of the device's memory that are taken."""
        return sum(buffer.size for buffer in self.buffers if not buffer.host)

    def learn(self, clock: Clock) -> None:
        """The host has waited; what it does next comes after all this."""
        self.known = merged(self.known, clock)
        self.accesses = [each for each in self.accesses if self.known.get(each.stream, 0) < each.count]

    def find(self, address: int) -> Buffer | None:
        return next((each for each in self.buffers if each.handle <= address < each.handle + each.size), None)

    def insist(self, address: int, size: int, what: str) -> None:
        buffer = self.find(address)
        if buffer is None or address + size > buffer.handle + buffer.size:
            raise Broken(f"'{what}' reaches memory that is not there")

    def is_host(self, address: int) -> bool:
        buffer = self.find(address)
        return buffer is not None and buffer.host
