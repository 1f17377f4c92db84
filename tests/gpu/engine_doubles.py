"""Stand-ins for TensorRT and ONNX Runtime's GPU providers. A plan is the path of an ONNX graph, run on the CPU."""

from __future__ import annotations

import ctypes
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from gpu.doubles import Broken, Buffer, Gpu, LibraryError, Operation, content

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
        self._on_device: Buffer | None = None
        self._size = gpu.weights_of.get(graph.name, gpu.weight_bytes)
        self._on_device = None if deferred else Buffer(gpu, self._size, host=False)
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
            self._on_device = Buffer(self.gpu, self._size, host=False)
        except LibraryError:
            return False
        place = self._on_device.handle, self._on_device.size
        self.gpu.streams[stream].put(Operation("load weights", lambda: None, [], [place]))
        return True

    def unload_weights(self) -> bool:
        if not self._deferred or self._on_device is None or not self.gpu.unloads:
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
        return Context(self) if self.gpu.held() + self.gpu.context_bytes <= self.gpu.capacity else None

    def bytes_of(self, name: str) -> int:
        return int(np.prod(self.tensors[name].shape)) * np.dtype(_TYPES[self.tensors[name].type][1]).itemsize

    def array(self, name: str, data: bytes) -> Any:
        return np.frombuffer(data, _TYPES[self.tensors[name].type][1]).reshape(self.tensors[name].shape)


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
            if not path.is_file() or (self.defer_weights_loading and not gpu.defers):
                return None
            try:
                engine = CudaEngine(gpu, path, deferred=self.defer_weights_loading)
            except LibraryError:
                return None
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
        self.drops = ""  # a provider whose libraries are missing: the library goes on without it
        self.sessions: list[SessionDouble] = []
        self.providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_available_providers(self) -> list[str]:
        return self.providers

    def SessionOptions(self) -> Any:  # noqa: N802
        return ort.SessionOptions()

    def InferenceSession(  # noqa: N802
        self, path_or_bytes: str, sess_options: Any, providers: list[tuple[str, dict[str, str]]], **kwargs: Any
    ) -> SessionDouble:
        if kwargs.get("enable_fallback", 1) != 0:
            raise Broken("where this fails, the library retries with other providers and without their options")
        if sess_options.get_session_config_entry("session.disable_cpu_ep_fallback") != "1":
            raise Broken("operators may be left to the CPU, whose inputs are copied when they are bound")
        for name, options in providers:
            assert all(isinstance(value, str) for value in options.values())
            switches = [value for key, value in options.items() if key.startswith("trt_") and key.endswith("_enable")]
            if name.startswith("Tensorrt") and not set(switches) <= {"True", "False"}:
                raise RuntimeError("The value for the key 'trt_engine_cache_enable' should be 'True' or 'False'")
        if self.on_cpu:
            raise RuntimeError("This session contains graph nodes that are assigned to the default CPU EP")
        made = SessionDouble(self.gpu, path_or_bytes, providers, dropped=self.drops)
        self.sessions.append(made)
        return made


class SessionDouble:
    def __init__(self, gpu: Gpu, path: str, providers: list[tuple[str, dict[str, str]]], dropped: str) -> None:
        self._engine = CudaEngine(gpu, Path(path), deferred=False)
        self.providers, self._dropped = providers, dropped
        self._stream = gpu.streams[int(providers[0][1]["user_compute_stream"])]

    def get_inputs(self) -> Any:
        return self._engine.session.get_inputs()

    def get_outputs(self) -> Any:
        return self._engine.session.get_outputs()

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {name: options for name, options in self.providers if name != self._dropped}

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
