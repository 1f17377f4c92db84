"""Engines of TensorRT and TensorRT-RTX, which share one API, on a CUDA device.

A plan is found in the engine store by the graph it was built from; its sha256 is checked before it is deserialised.
"""

from __future__ import annotations

import importlib
import mmap
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .cuda import CudaDevice, current_device
from .device_engine import HostBinding, HostServer
from .device_weights import PlanWeights, SharedWeights, WeightPlace, Weights, shared_weights, weight_turns
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
        plan: the plan.
        name: of the graph, for messages.
        device: where it runs.
        library: the module `tensorrt` or `tensorrt_rtx`.
        weights: what the plan takes as inputs; None where they are in it.
        defer: bring the plan's weights when they are needed, where the library can.
        streams: engines of this clip that stream their weights and are not opened yet, this one included: they share
            what memory there is.

    Raises:
        EngineError: the library refuses the plan, or a tensor has a type that nothing here reads.
    """

    def __init__(
        self,
        plan: bytes | memoryview,
        name: str,
        *,
        device: CudaDevice,
        library: Any,
        weights: SharedWeights | None = None,
        defer: bool = True,
        streams: int = 1,
    ) -> None:
        self._name, self._device, self._library = name, device, library
        self._shared = weights
        self._placed: dict[int, int] = {}  # of each context, the generation of the weights it was told of
        self._runtime = library.Runtime(_logger(library))
        defer = defer and hasattr(self._runtime, "defer_weights_loading")
        with device.alone():
            # Not every kind of plan can be loaded without its weights; and what comes with them needs memory.
            self._engine: Any = self._deserialised(plan, defer=True) if defer else None
            while self._engine is None:
                defer = False
                self._engine = self._deserialised(plan, defer=False)
                if self._engine is None and not device.spare():
                    raise EngineError(
                        f"{library.__name__} {library.__version__} cannot load the engine of '{name}' on "
                        f"{device.name}; build it again for this device"
                    )
            if self._engine.streamable_weights_size > 0:
                budget = self._engine.get_weight_streaming_automatic_budget()
                self._engine.weight_streaming_budget_v2 = budget // max(streams, 1)
        self._weights: list[Weights] = [] if weights is None else [weights]
        if defer and not self._engine.weights_loaded:
            self._weights.append(PlanWeights(name, self._engine, memoryview(plan), device=device, library=library))

    def _deserialised(self, plan: bytes | memoryview, *, defer: bool) -> Any:
        if hasattr(self._runtime, "defer_weights_loading"):
            self._runtime.defer_weights_loading = defer
        return self._runtime.deserialize_cuda_engine(plan)

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
        while (context := self._engine.create_execution_context(strategy)) is None:
            if self._device.spare():
                continue
            raise EngineError(f"'{self._name}' cannot be run on {self._device.name}: its memory is used up")
        self._placed.pop(id(context), None)
        return context

    def place(self, context: Any, addresses: Mapping[str, int]) -> None:
        """See `DeviceEngine`."""
        for name, address in addresses.items():
            if not context.set_tensor_address(name, address):
                raise EngineError(f"'{name}' cannot be bound; build the engine again for this device")

    def enqueue(self, context: Any, scratch: int) -> None:
        """See `DeviceEngine`."""
        self.ready()
        if self._shared is not None and self._placed.get(id(context)) != self._shared.generation:
            self.place(context, self._shared.addresses())
            self._placed[id(context)] = self._shared.generation
        if self.scratch_bytes > 0:
            context.set_device_memory(scratch, self.scratch_bytes)
        if not context.execute_async_v3(int(self._device.stream.handle)):
            raise EngineError(f"{self._library.__name__} refused to run '{self._name}'; build it again for this device")

    @property
    def loaded(self) -> bool:
        """See `DeviceEngine`."""
        return all(weights.loaded for weights in self._weights)

    def ready(self) -> None:
        """See `DeviceEngine`."""
        for weights in self._weights:
            weight_turns(self._device).need(weights)

    def ahead(self) -> None:
        """See `DeviceEngine`."""
        for weights in self._weights:
            weight_turns(self._device).ahead(weights)

    def recordable(self, context: Any) -> bool:
        """See `DeviceEngine`; a library that cannot say is tried."""
        if not hasattr(context, "is_stream_capturable"):
            return True
        return bool(context.is_stream_capturable(int(self._device.stream.handle)))

    def refit(self, graph: Path) -> None:
        """Give a plan that was stripped of them the weights of its graph; raises `EngineError`."""
        with self._device.alone():
            refitter = self._library.Refitter(self._engine, logger := _logger(self._library))
            parser = self._library.OnnxParserRefitter(refitter, logger)
            done = parser.refit_from_file(str(graph)) and refitter.refit_cuda_engine()
        if not done:
            raise EngineError(f"the engine of '{self._name}' cannot be given the weights of its graph; build it again")

    @property
    def device(self) -> CudaDevice:
        """Where it runs."""
        return self._device

    def close(self) -> None:
        """Drop the engine once its work is done; bindings that still stand keep it alive until they go."""
        with self._device.alone():
            self._device.wait()
            if "_server" in self.__dict__:  # arrays on the host were bound
                self._server.close()
            self._weights.clear()
            self._shared = self._engine = None

    def _specs(self, mode: Any) -> Iterator[tuple[str, TensorSpec]]:
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            shared = self._shared is not None and name in self._shared.names  # of types that nothing else here reads
            if shared or self._engine.get_tensor_mode(name) != mode:
                continue
            shape = tuple(self._engine.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise EngineError(f"'{name}' of '{self._name}' has the shape {list(shape)}; shapes must be static")
            yield name, TensorSpec(shape, _dtype(self._engine.get_tensor_dtype(name).name, name))


def open_tensorrt(
    graph: Path,
    fingerprint: str,
    library: str,
    *,
    store: EngineStore | None = None,
    device: CudaDevice | None = None,
    streams: int = 1,
    later: bool = False,
) -> TensorRtEngine:
    """The engine of a graph from the store.

    Args:
        graph: the .onnx file that it was built from.
        fingerprint: `Bundle.fingerprint` of the graph.
        library: `tensorrt` or `tensorrt_rtx`.
        store: None is the user's.
        device: None is the process's device 0.
        streams: see `TensorRtEngine`.
        later: its weights are not brought yet.

    Raises:
        EngineError: no such engine was built for this device and library, the library is not installed, or there is no
            device.
    """
    module = _module(library)
    device = current_device() if device is None else device
    with _plan(graph, fingerprint, module, store or EngineStore(), device.capability) as plan:
        with plan.path.open("rb") as file:  # read again whenever its weights are brought
            mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        report = plan.manifest.report
        how = report.get("weights", "embedded")
        engine = TensorRtEngine(
            mapped,
            graph.name,
            device=device,
            library=module,
            weights=_weights_of(report, graph, device) if how == "inputs" else None,
            defer=how == "embedded",
            streams=streams,
        )
        if how == "stripped":
            engine.refit(graph)
        if not later:
            with device.alone():
                engine.ready()
        return engine


def _weights_of(report: Mapping[str, Any], graph: Path, device: CudaDevice) -> SharedWeights | None:
    """What the plan takes as inputs, as whoever built it wrote down."""
    places = [
        WeightPlace(each["name"], graph.parent / each["file"], each["offset"], each["length"])
        for each in report["shared_weights"]
    ]
    return shared_weights(graph.name, places, device) if places else None


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
