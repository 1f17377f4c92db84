"""Engines of TensorRT and TensorRT-RTX, which share one API, on a CUDA device.

A plan is found in the engine store by the graph it was built from; its sha256 is checked before it is deserialised.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .cuda import CudaDevice, current_device
from .device_engine import HostBinding, HostServer
from .engine import Array, TensorSpec
from .store import EnginePlan, EngineStore, sha256_of

LIBRARIES = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install tensorrt-rtx"}
# TensorRT's names of element types; bfloat16 is ml_dtypes'.
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip


class TensorRtEngine:
    """A plan on a device.

    Args:
        plan: the plan's bytes.
        name: of the graph, for messages.
        device: where it runs.
        library: the module `tensorrt` or `tensorrt_rtx`.

    Raises:
        EngineError: the library refuses the plan, or a tensor has a type that nothing here reads.
    """

    def __init__(self, plan: bytes, name: str, *, device: CudaDevice, library: Any) -> None:
        self._name, self._device, self._library = name, device, library
        device.enter()
        self._runtime = library.Runtime(_logger(library))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(
                f"{library.__name__} {library.__version__} cannot load the engine of '{name}' on {device.name}; "
                "build it again for this device"
            )
        if self._engine.streamable_weights_size > 0:
            self._engine.weight_streaming_budget_v2 = self._engine.get_weight_streaming_automatic_budget()

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each input."""
        return dict(self._specs(self._library.TensorIOMode.INPUT))

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each output."""
        return dict(self._specs(self._library.TensorIOMode.OUTPUT))

    def bind(self, arrays: Mapping[str, Array]) -> HostBinding:
        """Tie every input and output to a caller-owned array on the host; see `Engine.bind`."""
        return self._server.bind(arrays)

    @cached_property
    def _server(self) -> HostServer:
        return HostServer(self, self._name)

    @property
    def scratch_bytes(self) -> int:
        """See `DeviceEngine`."""
        return int(self._engine.device_memory_size_v2)

    def context(self) -> Any:
        """See `DeviceEngine`."""
        strategy = self._library.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise EngineError(f"'{self._name}' cannot be run on {self._device.name}: its memory is used up")
        return context

    def place(self, context: Any, addresses: Mapping[str, int]) -> None:
        """See `DeviceEngine`."""
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"'{name}' cannot be bound; build the engine again for this device")

    def enqueue(self, context: Any, scratch: int) -> None:
        """See `DeviceEngine`."""
        if self.scratch_bytes > 0:
            context.set_device_memory(scratch, self.scratch_bytes)
        if not context.execute_async_v3(int(self._device.stream.handle)):
            raise EngineError(f"{self._library.__name__} refused to run '{self._name}'; build it again for this device")

    def recordable(self, context: Any) -> bool:
        """See `DeviceEngine`; a library that cannot say is tried."""
        if not hasattr(context, "is_stream_capturable"):
            return True
        return bool(context.is_stream_capturable(int(self._device.stream.handle)))

    @property
    def device(self) -> CudaDevice:
        """Where it runs."""
        return self._device

    def close(self) -> None:
        """Drop the engine once its work is done; bindings that still stand keep it alive until they go."""
        self._device.enter()
        self._device.wait()
        self._server.close()
        self._engine = None

    def _specs(self, mode: Any) -> Iterator[tuple[str, TensorSpec]]:
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            if self._engine.get_tensor_mode(name) != mode:
                continue
            shape = tuple(self._engine.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise EngineError(f"'{name}' of '{self._name}' has the shape {list(shape)}; shapes must be static")
            yield name, TensorSpec(shape, _dtype(self._engine.get_tensor_dtype(name).name, name))


def open_tensorrt(
    graph: Path, fingerprint: str, library: str, *, store: EngineStore | None = None, device: CudaDevice | None = None
) -> TensorRtEngine:
    """The engine of a graph from the store.

    Args:
        graph: the .onnx file that it was built from.
        fingerprint: `Bundle.fingerprint` of the graph.
        library: `tensorrt` or `tensorrt_rtx`.
        store: None is the user's.
        device: None is the process's device 0.

    Raises:
        EngineError: no such engine was built for this device and library, the library is not installed, or there is no
            device.
    """
    module = _module(library)
    device = current_device() if device is None else device
    with _plan(graph, fingerprint, module, store or EngineStore(), device.capability) as plan:
        if plan.manifest.report.get("weights") == "inputs":
            raise EngineError(
                f"the engine of '{graph.name}' takes its weights as inputs, which are not bound here yet; "
                "build it with its weights embedded"
            )
        return TensorRtEngine(plan.path.read_bytes(), graph.name, device=device, library=module)


def _plan(graph: Path, fingerprint: str, library: Any, store: EngineStore, capability: str) -> EnginePlan:
    name, version, digest = library.__name__, str(library.__version__), sha256_of(graph)
    others = set()
    for _, manifest in store.entries():
        key = manifest.key
        if (key.graph, key.weights, key.library) != (digest, fingerprint, name):
            continue
        targets = key.compute_capabilities
        if key.version != version or (targets and capability not in targets):
            others.add(f"{key.version} for {', '.join(targets) or 'the device of its builder'}")
            continue
        plan = store.find(key)
        if plan is not None:
            return plan
    found = f"; there is one of {name} {' and of '.join(sorted(others))}" if others else ""
    raise EngineError(
        f"no engine of '{graph.name}' for {name} {version} and compute capability {capability} is in {store.root}"
        f"{found}; run `sora-bench build` with --engine {name} --compute-capability {capability}"
    )


def _module(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except (ImportError, OSError, RuntimeError) as error:  # the bindings may be there without the libraries
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(f"{library} cannot be imported ({first}); {LIBRARIES[library]}") from error


def _logger(library: Any) -> Any:
    return library.Logger(library.Logger.ERROR)


def _dtype(name: str, tensor: str) -> np.dtype[Any]:
    if name not in _DTYPES:
        raise EngineError(f"'{tensor}' is of the type {name}, which nothing here reads; export it in another precision")
    if name == "BF16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise EngineError(
                f"'{tensor}' is bfloat16 and ml_dtypes cannot be imported ({error}); pip install ml_dtypes"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(_DTYPES[name])
