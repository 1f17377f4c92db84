"""ONNX Runtime on a CUDA device: the second way to run there, for graphs as they are, without an engine to build.

Its CUDA provider, or TensorRT's with CUDA's behind it, gets the device's stream; tensors are bound where they lie in
the device's room, and a run returns when it was put on the stream. Memory beside its tensors is ONNX Runtime's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..errors import EngineError
from .cuda import CudaDevice, current_device
from .device_engine import HostBinding, HostServer
from .engine import Array, TensorSpec
from .store import EngineStore

PROVIDERS = {"onnxruntime_cuda": "CUDAExecutionProvider", "onnxruntime_tensorrt": "TensorrtExecutionProvider"}
INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu: they share one module"
# ONNX Runtime's names of element types; numpy's, and ONNX's number, which a binding takes where numpy has none.
_DTYPES = {
    "tensor(float)": ("float32", 1), "tensor(float16)": ("float16", 10), "tensor(bfloat16)": ("bfloat16", 16),
    "tensor(int64)": ("int64", 7), "tensor(int32)": ("int32", 6), "tensor(bool)": ("bool", 9),
}  # fmt: skip
_ERRORS = 3  # and worse: why a provider is not used is only in the log


class OnnxRuntimeCudaEngine:
    """A graph on a GPU provider of ONNX Runtime.

    Args:
        graph: an .onnx file; external data is found beside it.
        name: of the engine, a key of `PROVIDERS`.
        device: where it runs.
        plans: folder in which TensorRT's provider keeps the engines that it builds.
        library: the module `onnxruntime`, if not the installed one.

    Raises:
        EngineError: this onnxruntime has no such provider, or the graph cannot be loaded.
    """

    def __init__(
        self, graph: Path, name: str, *, device: CudaDevice, plans: Path | None = None, library: Any = ort
    ) -> None:
        self._graph, self._device, self._library = graph, device, library
        if PROVIDERS[name] not in library.get_available_providers():
            raise EngineError(f"this onnxruntime {library.__version__} has no {PROVIDERS[name]}; {INSTALL}")
        stream = str(int(device.stream.handle))
        with device.alone():
            try:
                self._session: Any = self._load(list(_providers(name, stream, plans)))
            except Exception as error:  # the library raises a dozen unrelated classes
                raise EngineError(
                    f"ONNX Runtime cannot load '{graph}' for {name} ({_first_line(error)}); use the engine "
                    "onnxruntime, or build the bundle for tensorrt_rtx"
                ) from error
        found = self._session.get_provider_options().get(PROVIDERS[name], {})
        if found.get("user_compute_stream") != stream:
            raise EngineError(
                f"ONNX Runtime loaded '{graph.name}' without {PROVIDERS[name]}; see what it lacks in its log"
            )
        self._options = library.RunOptions()
        # It would wait for the stream at the end of each run.
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _load(self, providers: list[tuple[str, dict[str, str]]]) -> Any:
        """A session of these providers alone.

        An operator that they leave to the CPU would read inputs that it copied when they were bound, so none is left;
        and the library would retry with other providers by itself, without their options.
        """
        options = self._library.SessionOptions()
        options.log_severity_level = _ERRORS
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        return self._library.InferenceSession(str(self._graph), options, providers=providers, enable_fallback=0)

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each input."""
        return {node.name: self._spec(node) for node in self._session.get_inputs()}

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each output."""
        return {node.name: self._spec(node) for node in self._session.get_outputs()}

    def bind(self, arrays: Mapping[str, Array]) -> HostBinding:
        """Tie every input and output to a caller-owned array on the host; see `Engine.bind`."""
        return self._server.bind(arrays)

    @cached_property
    def _server(self) -> HostServer:
        return HostServer(self, self._graph.name)

    @property
    def device(self) -> CudaDevice:
        """Where it runs."""
        return self._device

    @property
    def scratch_bytes(self) -> int:
        """None that is the caller's."""
        return 0

    @property
    def loaded(self) -> bool:
        """Its weights stay on the device."""
        return True

    def ready(self) -> None:
        """Nothing to bring."""

    def ahead(self) -> None:
        """Nothing to bring."""

    def context(self) -> Any:
        """See `DeviceEngine`."""
        return self._session.io_binding()

    def place(self, context: Any, addresses: Mapping[str, int]) -> None:
        """See `DeviceEngine`."""
        for name, address in addresses.items():
            spec = self.inputs.get(name) or self.outputs[name]
            bind = context.bind_input if name in self.inputs else context.bind_output
            try:
                bind(name, "cuda", 0, _NUMBERS[spec.dtype.name], spec.shape, address)
            except Exception as error:
                raise EngineError(f"'{name}' of '{self._graph.name}' cannot be bound ({_first_line(error)})") from error

    def enqueue(self, context: Any, scratch: int) -> None:
        """See `DeviceEngine`."""
        try:
            self._session.run_with_iobinding(context, self._options)
        except Exception as error:  # see __init__
            raise EngineError(
                f"ONNX Runtime failed at '{self._graph.name}' ({_first_line(error)}); use a smaller size if memory "
                "ran out"
            ) from error

    def recordable(self, context: Any) -> bool:
        """It takes memory while it runs."""
        return False

    def close(self) -> None:
        """Drop the session once its work is done."""
        with self._device.alone():
            self._device.wait()
            if "_server" in self.__dict__:
                self._server.close()
            self._session = None

    def _spec(self, node: Any) -> TensorSpec:
        if node.type not in _DTYPES or any(not isinstance(size, int) for size in node.shape):
            raise EngineError(
                f"'{node.name}' of '{self._graph.name}' is {node.type}{node.shape}; "
                f"shapes must be static and dtypes among {', '.join(_DTYPES)}"
            )
        name = _DTYPES[node.type][0]
        if name == "bfloat16":
            import ml_dtypes

            return TensorSpec(tuple(node.shape), np.dtype(ml_dtypes.bfloat16))
        return TensorSpec(tuple(node.shape), np.dtype(name))


_NUMBERS = dict(_DTYPES.values())


def _providers(name: str, stream: str, plans: Path | None) -> list[tuple[str, dict[str, str]]]:
    """With their options, the one that is asked first for each operator first."""
    common = {"device_id": "0", "user_compute_stream": stream}
    # Products of float32 are of float32: whoever wants less has a bundle in less. TensorRT's provider has no such
    # option and may take TF32.
    cuda = ("CUDAExecutionProvider", common | {"use_tf32": "0", "arena_extend_strategy": "kSameAsRequested"})
    if name == "onnxruntime_cuda":
        return [cuda]
    kept = {} if plans is None else {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(plans)}
    return [("TensorrtExecutionProvider", common | kept), cuda]


def open_onnxruntime_cuda(name: str, graph: Path, fingerprint: str) -> OnnxRuntimeCudaEngine:
    """An engine on the process's device 0; see `OnnxRuntimeCudaEngine`.

    Args:
        name: of the engine, a key of `PROVIDERS`.
        graph: an .onnx file.
        fingerprint: `Bundle.fingerprint` of the graph; TensorRT's provider keeps its engines under it.
    """
    plans = None
    if name == "onnxruntime_tensorrt":
        plans = EngineStore().root.with_name(name) / hashlib.sha256(fingerprint.encode()).hexdigest()[:32]
        plans.mkdir(parents=True, exist_ok=True)
    return OnnxRuntimeCudaEngine(graph, name, device=current_device(), plans=plans)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
