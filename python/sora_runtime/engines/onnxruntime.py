"""The engine on ONNX Runtime: CPU, I/O bound to the caller's memory, weights memory-mapped."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from ..errors import EngineError
from . import own_kernels
from .engine import Array, TensorSpec, check_arrays

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(bool)": np.dtype(np.bool_),
}
_FATAL_ONLY = 4

VERSION: str = ort.__version__


class OnnxRuntimeEngine:
    """A graph on ONNX Runtime's CPU provider.

    Args:
        graph: an .onnx file; external data is found beside it and memory-mapped.
        num_threads: threads of one evaluation.
        stay_awake: its threads wait busily between evaluations, for graphs that take less time than waking them.
        own_operators: int8 graphs use this project's operators; unless told, where they are faster.

    Raises:
        EngineError: the graph cannot be loaded, or has a shape that is not static.
    """

    def __init__(
        self, graph: Path, *, num_threads: int, stay_awake: bool = False, own_operators: bool | None = None
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        if not stay_awake:
            # Each session has threads of its own that wait for work in a busy loop; those of the engine that ran last
            # would take the processors from the next for some 30 ms, which then takes twice as long.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = _FATAL_ONLY  # errors arrive as exceptions
        try:
            model = _model(graph, options, own_kernels.wanted() if own_operators is None else own_operators)
            self._session: Any = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library raises a dozen unrelated classes
            raise EngineError(
                f"ONNX Runtime cannot load '{graph}' ({_first_line(error)}); rebuild the bundle"
            ) from error
        self._graph = graph

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each input."""
        return self._specs(self._session.get_inputs())

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each output."""
        return self._specs(self._session.get_outputs())

    def bind(self, arrays: Mapping[str, Array]) -> "OnnxRuntimeBinding":
        """Tie every input and output to a caller-owned array; see `Engine.bind`."""
        problem = check_arrays(arrays, {**self.inputs, **self.outputs})
        if problem is not None:
            raise EngineError(f"'{self._graph.name}' cannot be bound: {problem}")
        binding = self._session.io_binding()
        for name, spec in self.inputs.items():
            pointer = arrays[name].ctypes.data
            binding.bind_input(name, "cpu", 0, spec.dtype.type, spec.shape, pointer)
        for name, spec in self.outputs.items():
            pointer = arrays[name].ctypes.data
            binding.bind_output(name, "cpu", 0, spec.dtype.type, spec.shape, pointer)
        return OnnxRuntimeBinding(self._graph.name, self._session, binding, dict(arrays))

    def close(self) -> None:
        """Drop the session; bindings that still stand keep it alive until they go."""
        self._session = None

    def _specs(self, nodes: list[Any]) -> Mapping[str, TensorSpec]:
        specs = {}
        for node in nodes:
            if node.type not in _DTYPES or any(not isinstance(size, int) for size in node.shape):
                raise EngineError(
                    f"'{node.name}' of '{self._graph.name}' is {node.type}{node.shape}; "
                    f"shapes must be static and dtypes among {', '.join(_DTYPES)}"
                )
            specs[node.name] = TensorSpec(tuple(node.shape), _DTYPES[node.type])
        return specs


class OnnxRuntimeBinding:
    """One set of buffers of an `OnnxRuntimeEngine`."""

    def __init__(self, graph: str, session: Any, binding: Any, arrays: dict[str, Array]) -> None:
        self._graph = graph
        self._session = session
        self._binding = binding
        self._arrays = arrays  # the binding holds bare pointers into these

    def run(self) -> None:
        """Evaluate once, in place, with the GIL released."""
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # see OnnxRuntimeEngine.__init__
            raise EngineError(
                f"ONNX Runtime failed at '{self._graph}' ({_first_line(error)}); use a smaller size if memory ran out"
            ) from error


def _model(graph: Path, options: Any, own_operators: bool) -> str | bytes:
    """What a session is made of: the file, or its bytes with other operators."""
    changed = own_kernels.with_own_operators(graph.read_bytes()) if own_operators else None
    if changed is None:
        return str(graph)
    options.register_custom_ops_library(str(own_kernels.LIBRARY))
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(graph.parent))
    return changed


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
