"""The engine on OpenVINO: CPU, tied to the caller's memory; the optional library is imported when one is made."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EngineError
from .engine import Array, TensorSpec, check_arrays
from .libraries import INSTALL_OPENVINO

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "f64": np.dtype(np.float64),
    "i64": np.dtype(np.int64),
    "i32": np.dtype(np.int32),
    "boolean": np.dtype(np.bool_),
}


class OpenVinoEngine:
    """A graph on OpenVINO's CPU plugin, in the graph's own precision.

    Args:
        graph: an .onnx file; external data is found beside it and memory-mapped.
        num_threads: threads of one evaluation.

    Raises:
        EngineError: openvino is not installed, or the graph cannot be loaded or has a shape that is not static.
    """

    def __init__(self, graph: Path, *, num_threads: int) -> None:
        try:
            import openvino
        except ImportError as error:
            raise EngineError(f"the engine openvino cannot be imported ({error}); {INSTALL_OPENVINO}") from error
        self._library: Any = openvino
        self._graph = graph
        settings = {
            "INFERENCE_NUM_THREADS": num_threads,
            "INFERENCE_PRECISION_HINT": "f32",  # its default is bfloat16 where the CPU has it
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._model: Any = openvino.Core().compile_model(str(graph), "CPU", settings)
        except Exception as error:  # the library raises RuntimeError for everything, a missing operator included
            raise EngineError(
                f"OpenVINO cannot load '{graph}' ({_reason(error)}); use the engine onnxruntime"
            ) from error

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each input."""
        return self._specs(self._model.inputs)

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each output."""
        return self._specs(self._model.outputs)

    def bind(self, arrays: Mapping[str, Array]) -> "OpenVinoBinding":
        """Tie every input and output to a caller-owned array; see `Engine.bind`."""
        problem = check_arrays(arrays, {**self.inputs, **self.outputs})
        if problem is not None:
            raise EngineError(f"'{self._graph.name}' cannot be bound: {problem}")
        request = self._model.create_infer_request()
        tensors = {name: self._library.Tensor(array, shared_memory=True) for name, array in arrays.items()}
        for name in self.inputs:
            request.set_tensor(name, tensors[name])
        for name in self.outputs:
            request.set_tensor(name, tensors[name])
        return OpenVinoBinding(self._graph.name, request, dict(arrays))

    def close(self) -> None:
        """Drop the compiled model; bindings that still stand keep it alive until they go."""
        self._model = None

    def _specs(self, ports: list[Any]) -> Mapping[str, TensorSpec]:
        specs = {}
        for port in ports:
            name, kind = port.get_any_name(), port.get_element_type().get_type_name()
            if kind not in _DTYPES or port.get_partial_shape().is_dynamic:
                raise EngineError(
                    f"'{name}' of '{self._graph.name}' is {kind}{port.get_partial_shape()}; "
                    f"shapes must be static and dtypes among {', '.join(_DTYPES)}"
                )
            specs[name] = TensorSpec(tuple(port.get_shape()), _DTYPES[kind])
        return specs


class OpenVinoBinding:
    """One set of buffers of an `OpenVinoEngine`."""

    def __init__(self, graph: str, request: Any, arrays: dict[str, Array]) -> None:
        self._graph = graph
        self._request = request
        self._arrays = arrays  # the request holds bare pointers into these

    def run(self) -> None:
        """Evaluate once, in place, with the GIL released."""
        try:
            # Not infer(): it would copy every output into a dictionary that nobody reads.
            self._request.start_async()
            self._request.wait()
        except Exception as error:  # see OpenVinoEngine.__init__
            raise EngineError(
                f"OpenVINO failed at '{self._graph}' ({_reason(error)}); use a smaller size if memory ran out"
            ) from error


def _reason(error: Exception) -> str:
    """The last line that says something: the first ones name source files of the library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].removeprefix("-- ") if lines else type(error).__name__
