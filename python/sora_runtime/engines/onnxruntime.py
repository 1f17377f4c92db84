"""The engine on ONNX Runtime: CPU, I/O bound to the caller's memory, weights memory-mapped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from ..errors import EngineError
from . import own_kernels
from .engine import Array, TensorSpec, check_arrays
from .steady_part import split

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
        varying: inputs that differ at every evaluation. What follows from the others alone, such as keys and values of
            a prompt, is computed when they change and kept by each binding. Unless told, all inputs do.
        stay_awake: its threads wait busily between evaluations, for graphs that take less time than waking them.
        own_operators: int8 graphs use this project's operators; unless told, where they are faster.

    Raises:
        EngineError: the graph cannot be loaded, or has a shape that is not static.
    """

    def __init__(
        self,
        graph: Path,
        *,
        num_threads: int,
        varying: Collection[str] = (),
        stay_awake: bool = False,
        own_operators: bool | None = None,
    ) -> None:
        self._graph, self._num_threads, self._stay_awake = graph, num_threads, stay_awake
        own = own_kernels.wanted() if own_operators is None else own_operators
        model: str | bytes = str(graph)
        try:
            file = graph.read_bytes() if own or varying else b""
            changed = own_kernels.with_own_operators(file) if own else None
            parts = split(changed or file, varying) if varying else None
            if parts is not None or changed is not None:
                model = parts.rest if parts is not None else changed or file
            self._own = changed is not None
            self._session: Any = self._load(model)
            self._steady: Any = None if parts is None else self._load(parts.steady)
        except Exception as error:  # the library raises a dozen unrelated classes
            raise EngineError(
                f"ONNX Runtime cannot load '{graph}' ({_first_line(error)}); rebuild the bundle"
            ) from error

    def _load(self, model: str | bytes) -> Any:
        """A session of the file, or of its bytes as they were changed."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._num_threads
        options.inter_op_num_threads = 1
        if not self._stay_awake:
            # Each session has threads of its own that wait for work in a busy loop; those of the engine that ran last
            # would take the processors from the next for some 30 ms, which then takes twice as long.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = _FATAL_ONLY  # errors arrive as exceptions
        if self._own:
            options.register_custom_ops_library(str(own_kernels.LIBRARY))
        if isinstance(model, bytes):
            folder = str(self._graph.parent)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @cached_property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each input."""
        nodes = {} if self._steady is None else {node.name: node for node in self._steady.get_inputs()}
        between = set() if self._steady is None else {node.name for node in self._steady.get_outputs()}
        nodes.update((node.name, node) for node in self._session.get_inputs() if node.name not in between)
        return self._specs(list(nodes.values()))

    @cached_property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each output."""
        return self._specs(self._session.get_outputs())

    def bind(self, arrays: Mapping[str, Array]) -> OnnxRuntimeBinding:
        """Tie every input and output to a caller-owned array; see `Engine.bind`."""
        problem = check_arrays(arrays, {**self.inputs, **self.outputs})
        if problem is not None:
            raise EngineError(f"'{self._graph.name}' cannot be bound: {problem}")
        if self._steady is None:
            return OnnxRuntimeBinding(self._graph.name, self._bound(self._session, arrays), arrays)
        between = {name: spec.empty() for name, spec in self._specs(self._steady.get_outputs()).items()}
        seldom = {node.name: arrays[node.name] for node in self._steady.get_inputs()}
        first = OnnxRuntimeBinding(self._graph.name, self._bound(self._steady, {**seldom, **between}), seldom)
        rest = self._bound(self._session, {**arrays, **between})
        return OnnxRuntimeBinding(self._graph.name, rest, {**arrays, **between}, first)

    def _bound(self, session: Any, arrays: Mapping[str, Array]) -> tuple[Any, Any]:
        """A session and its inputs and outputs tied to arrays."""
        binding = session.io_binding()
        for name, spec in self._specs(session.get_inputs()).items():
            binding.bind_input(name, "cpu", 0, spec.dtype.type, spec.shape, arrays[name].ctypes.data)
        for name, spec in self._specs(session.get_outputs()).items():
            binding.bind_output(name, "cpu", 0, spec.dtype.type, spec.shape, arrays[name].ctypes.data)
        return session, binding

    def close(self) -> None:
        """Drop the session; bindings that still stand keep it alive until they go."""
        self._session = self._steady = None

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
    """One set of buffers of an `OnnxRuntimeEngine`.

    Args:
        graph: name of the file.
        bound: a session and its binding.
        arrays: what the binding holds bare pointers into.
        before: of the part that follows from inputs that seldom change; it runs when they have.
    """

    def __init__(
        self,
        graph: str,
        bound: tuple[Any, Any],
        arrays: Mapping[str, Array],
        before: OnnxRuntimeBinding | None = None,
    ) -> None:
        self._graph = graph
        self._session, self._binding = bound
        self._arrays = dict(arrays)
        self._before = before
        self._seen: dict[str, Array] = {}

    def run(self) -> None:
        """Evaluate once, in place, with the GIL released."""
        if self._before is not None and self._before.changed():
            self._before.run()
            self._before.note()
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # see OnnxRuntimeEngine.__init__
            raise EngineError(
                f"ONNX Runtime failed at '{self._graph}' ({_first_line(error)}); use a smaller size if memory ran out"
            ) from error

    def changed(self) -> bool:
        """Whether an array holds other bytes than at the last `note`."""
        return not self._seen or any(
            not np.array_equal(_bits(array), _bits(self._seen[name])) for name, array in self._arrays.items()
        )

    def note(self) -> None:
        """Remember what the arrays hold."""
        self._seen = {name: array.copy() for name, array in self._arrays.items()}


def _bits(array: Array) -> NDArray[np.uint8]:
    """NaN differs from itself, and a negative zero from none, only as a number."""
    return array.reshape(-1).view(np.uint8)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
