"""Stand-ins for `cuda.core` and TensorRT on the host, which insist on what the real ones demand.

What is put on a stream happens when the stream is waited for, not before: a result that is read too early is seen, and
memory that is overwritten or given back while the stream may still read it. Two streams may touch the same memory only
where an event or a wait of the host orders them (vector clocks). A plan is the path of an ONNX graph, which ONNX
Runtime evaluates. `tests/gpu/test_doubles.py` holds every name and argument here against the real libraries.
"""

from __future__ import annotations

import ctypes
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from sora_runtime import _core


class Broken(AssertionError):
    """A contract of the library was broken."""


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


class Driver:
    """What `cuda.bindings.driver` is to the code under test; every call gives an error code first."""

    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_RELAXED=2)

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu
        self._graphs: list[list[Operation]] = []
        self.destroyed = 0

    def cuStreamBeginCapture(self, hStream: int, mode: int) -> tuple[int]:  # noqa: N802, N803
        self._gpu.insist_no_recording("a second recording")
        self._gpu.streams[hStream].recording = []
        return (0,)

    def cuStreamEndCapture(self, hStream: int) -> tuple[int, Any]:  # noqa: N802, N803
        stream = self._gpu.streams[hStream]
        if stream.recording is None:
            raise Broken("a recording that never began was ended")
        graph, stream.recording = stream.recording, None
        return (0, graph)

    def cuGraphInstantiate(self, hGraph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802, N803
        self._graphs.append(hGraph)
        return (0, len(self._graphs) - 1)

    def cuGraphDestroy(self, hGraph: Any) -> tuple[int]:  # noqa: N802, N803
        return (0,)

    def cuGraphExecDestroy(self, hGraphExec: int) -> tuple[int]:  # noqa: N802, N803
        self.destroyed += 1
        return (0,)

    def cuGraphLaunch(self, hGraphExec: int, hStream: int) -> tuple[int]:  # noqa: N802, N803
        stream = self._gpu.streams[hStream]
        self._gpu.log.append("launch graph")
        for each in self._graphs[hGraphExec]:
            # Memory that was given back since is seen here, as `put` looks for it.
            stream.put(Operation(f"replay {each.what}", each.run, each.reads, each.writes))
        return (0,)


class Buffer:
    def __init__(self, gpu: Gpu, size: int, *, host: bool) -> None:
        gpu.insist_no_recording("an allocation")
        if not host and gpu.held() + size > gpu.capacity:
            raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")
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
        self.capacity = 1 << 40  # bytes of the device's memory
        self.accesses: list[Access] = []  # that the host has not waited for
        self.known: Clock = {}  # what the host has waited for
        self.driver = Driver(self)
        self.current = threading.local()  # as contexts are
        gpu = self

        class Device:
            name = gpu_name
            compute_capability = capability
            uuid = "8dec1f8a-0000-1111-2222-333344445555"

            def __init__(self, device_id: int | None = None) -> None:
                if device_id:
                    raise RuntimeError("CUDA_ERROR_INVALID_DEVICE: there is one")

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


SCRATCH = 4096
STRIPPED = "stripped "  # how the plan of an engine without weights begins


class SeekPosition(Enum):
    SET = 0
    CUR = 1
    END = 2


_TYPES = {"tensor(float)": ("FLOAT", np.float32), "tensor(int64)": ("INT64", np.int64)}


class Context:
    def __init__(self, engine: CudaEngine) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine.tensors

    def set_device_memory(self, memory: int, size: int) -> None:
        if memory % 256:
            raise Broken("scratch memory is not aligned to 256 bytes")
        self._scratch = (memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.gpu.records_engines

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, gpu = self._engine, self._engine.gpu
        missing = set(engine.tensors) - set(self._addresses)
        if missing:
            raise Broken(f"no address was set for {sorted(missing)}")
        if self._scratch is None or self._scratch[1] < engine.device_memory_size_v2:
            raise Broken("an engine without its scratch memory was run")
        if stream_handle not in gpu.streams:
            raise Broken("an engine was run on no stream")
        if any(address % 256 for address in self._addresses.values()):
            raise Broken("a tensor is not aligned to 256 bytes")
        if engine.weights is None:
            raise Broken("an engine was run whose weights are not on the device")
        at = {name: (self._addresses[name], engine.bytes_of(name)) for name in engine.tensors}
        inputs = {name: at[name] for name in engine.inputs}
        outputs = {name: at[name] for name in engine.outputs}
        scratch = self._scratch

        def run() -> None:
            ctypes.memset(scratch[0], 0x5A, scratch[1])  # whoever else keeps something there loses it
            feeds = {name: engine.array(name, content(*place)) for name, place in inputs.items()}
            for (_, (address, size)), value in zip(
                outputs.items(), engine.session.run(list(outputs), feeds), strict=True
            ):
                ctypes.memmove(address, np.ascontiguousarray(value).ctypes.data, size)

        gpu.streams[stream_handle].put(
            Operation("execute", run, [*inputs.values(), engine.weights], [*outputs.values(), self._scratch])
        )
        return True


class CudaEngine:
    def __init__(self, gpu: Gpu, graph: Path, *, deferred: bool) -> None:
        self.gpu, self._plan, self._deferred = gpu, str(graph).encode(), deferred
        self._on_device = None if deferred else Buffer(gpu, gpu.weight_bytes, host=False)
        self.stripped = False
        options = ort.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: each for each in self.session.get_inputs()}
        self.outputs = {each.name: each for each in self.session.get_outputs()}
        self.tensors = self.inputs | self.outputs
        self.device_memory_size_v2 = SCRATCH
        self.streamable_weights_size = 0
        self.num_io_tensors = len(self.tensors)

    def __del__(self) -> None:
        if self._on_device is not None:  # as its memory is freed, the library waits for the device
            self.gpu.buffers.remove(self._on_device)

    @property
    def weights(self) -> tuple[int, int] | None:
        if self.stripped or self._on_device is None:
            return None
        return self._on_device.handle, self._on_device.size

    @property
    def weights_loaded(self) -> bool:
        return self._on_device is not None

    def load_weights_async(self, stream_reader: Any, stream: int) -> bool:
        self.gpu.insist_no_recording("bringing weights")
        if not self._deferred or self._on_device is not None:
            return False
        parts: list[bytes] = []
        assert stream_reader.seek(0, SeekPosition.END) and stream_reader.seek(0, SeekPosition.SET)
        while part := stream_reader.read(7, stream):
            parts.append(part)
        if b"".join(parts) != self._plan:
            raise Broken("weights are read from another plan")
        try:
            self._on_device = Buffer(self.gpu, self.gpu.weight_bytes, host=False)
        except RuntimeError:
            return False
        place = self._on_device.handle, self._on_device.size
        self.gpu.streams[stream].put(Operation("load weights", lambda: None, [], [place]))
        return True

    def unload_weights(self) -> bool:
        if not self._deferred or self._on_device is None:
            return False
        self._on_device.close()  # which sees work that still reads them
        self._on_device = None
        self.gpu.log.append("unload weights")
        return True

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_TYPES[self.tensors[name].type][0])

    def create_execution_context(self, strategy: str) -> Context:
        if strategy != "USER_MANAGED":
            raise Broken("a context took scratch memory of its own")
        return Context(self)

    def bytes_of(self, name: str) -> int:
        return int(np.prod(self.tensors[name].shape)) * np.dtype(_TYPES[self.tensors[name].type][1]).itemsize

    def array(self, name: str, data: bytes) -> Any:
        return np.frombuffer(data, _TYPES[self.tensors[name].type][1]).reshape(self.tensors[name].shape)


class CoreDouble:
    """What `_core.cuda` is to the code under test: the sampler's step in numpy, in the kernels' order of operations."""

    def __init__(self, gpu: Gpu) -> None:
        self.Buffers = SimpleNamespace
        self.gpu = gpu

    def frames_to_rgb8(
        self, frames: int, rgb8: int, *, num_frames: int, plane: int, dtype: str = "float32", stream: int
    ) -> None:
        assert dtype == "float32", "the doubles' engines write float32 frames"
        size = 3 * num_frames * plane

        def run() -> None:
            values = np.frombuffer(content(frames, 4 * size), np.float32).reshape(3, num_frames, plane, 1)
            pixels = _core.frames_to_rgb8(values)
            ctypes.memmove(rgb8, pixels.ctypes.data, size)

        self.gpu.streams[stream].put(Operation("rgb8", run, [(frames, 4 * size)], [(rgb8, size)]))

    def workspace_bytes(self, rows: Any, *, n: int, reuse: Any, guidance: Any) -> int:
        return (
            -(-rows.nbytes // 256) * 256
            + 256 * 4
            + (int(np.max(np.count_nonzero(rows["history"], axis=1))) + 2) * (-(-4 * n // 256) * 256)
        )

    def Sampler(  # noqa: N802
        self, rows: Any, buffers: Any, *, workspace: int, workspace_bytes: int, stream: int, reuse: Any, guidance: Any
    ) -> SamplerDouble:
        assert workspace_bytes >= self.workspace_bytes(rows, n=buffers.n, reuse=reuse, guidance=guidance)
        made = DecidingSamplerDouble if measures(rows, reuse) else SamplerDouble
        return made(self.gpu.streams[stream], rows, buffers, workspace, {"reuse": reuse, "guidance": guidance})


def measures(rows: Any, reuse: Any) -> bool:
    """Whether step reuse looks at what each row measured: tried on the CPU, with a network that gives zeros."""
    if np.any(rows["noise"]):
        return False
    zeros = [np.zeros(16, np.float32) for _ in range(3)]
    probe = _core.Sampler(
        rows, zeros[0], model_input=None, conditional=zeros[1], unconditional=zeros[2], reuse=reuse,
        guidance=_core.GuidanceRule()
    )  # fmt: skip
    return len(probe.run(lambda *_: None).norms) > 0


class SamplerDouble:
    """Rows without guidance by sums and without step reuse."""

    def __init__(self, stream: Stream, rows: Any, buffers: Any, workspace: int, rules: dict[str, Any]) -> None:
        self._stream, self._rows, self._buffers, self._workspace = stream, rows, buffers, workspace
        self._rules = rules
        self.tables = rows.tobytes().ljust(-(-rows.nbytes // 256) * 256, b"\0")

    def run(self, denoiser: Any, *, noise: Any = None, on_step: Any = None, cancel: Any = None) -> Any:
        b, size = self._buffers, 4 * self._buffers.n
        if b.model_input:
            raise NotImplementedError("the doubles' engines read float32 latents")
        start = self._workspace + len(self.tables)
        noise_at = start
        depth = int(np.max(np.count_nonzero(self._rows["history"], axis=1))) + 1
        ring = [start + -(-size // 256) * 256 * (1 + i) for i in range(depth)]
        kept, made = 0, 0
        for index, row in enumerate(self._rows):
            guided = row["guidance_scale"] != 1.0
            for unconditional in (False, True)[: 1 + guided]:
                denoiser(index, int(row["engine"]), float(row["timestep"]), unconditional)
                made += 1
            if row["noise"] != 0.0:
                noise(noise_at, b.n)
            entries = [ring[(kept - 1 - j) % depth] for j in range(np.count_nonzero(row["history"]))]
            store = ring[kept % depth] if row["store_latents"] != 0.0 or row["store_output"] != 0.0 else None
            kept += store is not None
            self._step(index, guided, entries, store, noise_at)
            if on_step is not None:
                on_step(index + 1)
        return SimpleNamespace(evaluations=made, skipped=0, done=[1] * len(self._rows), norms=[], row_seconds=[])

    def _floats(self, address: int) -> Any:
        return np.frombuffer(content(address, 4 * self._buffers.n), np.float32)

    def _row(self, index: int) -> Any:
        """As it lies on the device when the step runs."""
        rows = np.frombuffer(content(self._workspace, self._rows.nbytes), self._rows.dtype)
        return rows[index]

    def _step(self, index: int, guided: bool, entries: list[int], store: int | None, noise: int) -> None:
        b, size = self._buffers, 4 * self._buffers.n
        places = [b.latents, b.conditional, *([b.unconditional] if guided else []), *entries]

        def run() -> None:
            row = self._row(index)
            x, g = self._floats(b.latents), self._floats(b.conditional)
            if guided:
                u = self._floats(b.unconditional)
                g = u + np.float32(row["guidance_scale"]) * (g - u)
            following = np.float32(row["latents"]) * x + np.float32(row["output"]) * g
            kept = np.float32(row["store_latents"]) * x + np.float32(row["store_output"]) * g
            for factor, entry in zip(row["history"], entries, strict=False):
                following = following + np.float32(factor) * self._floats(entry)
            if row["noise"] != 0.0:
                following = following + np.float32(row["noise"]) * self._floats(noise)
            if store is not None:
                ctypes.memmove(store, kept.ctypes.data, size)
            ctypes.memmove(b.latents, following.ctypes.data, size)

        writes = [(b.latents, size), *([(store, size)] if store is not None else [])]
        self._stream.put(Operation("step", run, [(place, size) for place in places], writes))


class DecidingSamplerDouble(SamplerDouble):
    """Rows of which step reuse decides: the CPU's sampler, which waits for each evaluation before it looks."""

    def run(self, denoiser: Any, *, noise: Any = None, on_step: Any = None, cancel: Any = None) -> Any:
        self._stream.gpu.insist_no_recording("a decision")
        b = self._buffers

        def view(address: int) -> Any:
            return np.frombuffer((ctypes.c_uint8 * (4 * b.n)).from_address(address), np.float32)

        def evaluate(row: int, engine: int, timestep: float, unconditional: bool) -> None:
            denoiser(row, engine, timestep, unconditional)
            self._stream.sync()

        self._stream.sync()
        outputs = {"conditional": view(b.conditional), "unconditional": view(b.unconditional)}
        sampler = _core.Sampler(self._rows, view(b.latents), model_input=None, **outputs, **self._rules)
        return sampler.run(evaluate, on_step=on_step, cancel=cancel)


def tensorrt_double(gpu: Gpu) -> Any:
    """What the module `tensorrt_rtx` is to the code under test."""

    class Logger:
        ERROR = 1

        def __init__(self, min_severity: int) -> None:
            self.min_severity = min_severity

    class Runtime:
        defer_weights_loading = False

        def __init__(self, logger: Logger) -> None:
            assert isinstance(logger, Logger)

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> CudaEngine | None:
            path = Path(bytes(serialized_engine).decode().removeprefix(STRIPPED))
            if not path.is_file():
                return None
            engine = CudaEngine(gpu, path, deferred=self.defer_weights_loading)
            engine.stripped = bytes(serialized_engine).startswith(STRIPPED.encode())
            return engine

    class IStreamReaderV2:
        pass

    class Refitter:
        def __init__(self, engine: CudaEngine, logger: Logger) -> None:
            self.engine = engine

        def refit_cuda_engine(self) -> bool:
            return not self.engine.stripped

    class OnnxParserRefitter:
        def __init__(self, refitter: Refitter, logger: Logger) -> None:
            self._refitter = refitter

        def refit_from_file(self, model: str) -> bool:
            self._refitter.engine.stripped = False
            return Path(model).is_file()

    return SimpleNamespace(
        __name__="tensorrt_rtx",
        __version__="1.7.1",
        Logger=Logger,
        Runtime=Runtime,
        IStreamReaderV2=IStreamReaderV2,
        SeekPosition=SeekPosition,
        Refitter=Refitter,
        OnnxParserRefitter=OnnxParserRefitter,
        TensorIOMode=SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="USER_MANAGED"),
    )


class OnnxRuntimeDouble:
    """What the module `onnxruntime` of onnxruntime-gpu is to the code under test."""

    RunOptions = ort.RunOptions
    __version__ = ort.__version__

    def __init__(self, gpu: Gpu, *, on_cpu: bool = False) -> None:
        self.gpu, self.on_cpu = gpu, on_cpu
        self.sessions: list[SessionDouble] = []
        self.providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_available_providers(self) -> list[str]:
        return self.providers

    def SessionOptions(self) -> Any:  # noqa: N802
        return ort.SessionOptions()

    def InferenceSession(  # noqa: N802
        self, path_or_bytes: str, sess_options: Any, providers: list[tuple[str, dict[str, str]]]
    ) -> SessionDouble:
        for _, options in providers:
            assert all(isinstance(value, str) for value in options.values())
        alone = "session.disable_cpu_ep_fallback"
        try:
            alone_wanted = sess_options.get_session_config_entry(alone) == "1"
        except RuntimeError:
            alone_wanted = False
        if self.on_cpu and alone_wanted:
            raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")
        made = SessionDouble(self.gpu, path_or_bytes, providers)
        self.sessions.append(made)
        return made


class SessionDouble:
    def __init__(self, gpu: Gpu, path: str, providers: list[tuple[str, dict[str, str]]]) -> None:
        self._engine = CudaEngine(gpu, Path(path), deferred=False)
        self.providers = providers
        self._stream = gpu.streams[int(providers[0][1]["user_compute_stream"])]

    def get_inputs(self) -> Any:
        return self._engine.session.get_inputs()

    def get_outputs(self) -> Any:
        return self._engine.session.get_outputs()

    def io_binding(self) -> BindingDouble:
        return BindingDouble(self._engine)

    def run_with_iobinding(self, iobinding: BindingDouble, run_options: Any) -> None:
        if run_options.get_run_config_entry("disable_synchronize_execution_providers") != "1":
            raise Broken("a run that waits for the device")
        gpu = self._engine.gpu
        gpu.insist_no_recording("a run of ONNX Runtime, which takes memory")
        scratch = Buffer(gpu, SCRATCH, host=False)
        iobinding.context.set_device_memory(scratch.handle, SCRATCH)
        iobinding.context.execute_async_v3(self._stream.handle)
        scratch.close(self._stream)


class BindingDouble:
    def __init__(self, engine: CudaEngine) -> None:
        self._engine, self.context = engine, Context(engine)

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: int, shape: Any, buffer_ptr: int
    ) -> None:
        self._bind(name, device_type, element_type, shape, buffer_ptr)

    def bind_output(
        self, name: str, device_type: str, device_id: int, element_type: int, shape: Any, buffer_ptr: int
    ) -> None:
        self._bind(name, device_type, element_type, shape, buffer_ptr)

    def _bind(self, name: str, device_type: str, element_type: int, shape: Any, buffer_ptr: int) -> None:
        number = {"FLOAT": 1, "INT64": 7}[self._engine.get_tensor_dtype(name).name]
        if device_type != "cuda" or element_type != number or tuple(shape) != self._engine.get_tensor_shape(name):
            raise Broken(f"'{name}' is bound as something else")
        self.context.set_tensor_address(name, buffer_ptr)
