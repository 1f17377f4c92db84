"""The engine protocol: named static tensors, bound once, run many times. No model words in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of an engine."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def empty(self) -> Array:
        """An uninitialised array that fits."""
        return np.empty(self.shape, self.dtype)

    def zeros(self) -> Array:
        """A zeroed array that fits."""
        return np.zeros(self.shape, self.dtype)


class Binding(Protocol):
    """An engine tied to buffers: `run` reads the inputs, fills the outputs and allocates nothing."""

    def run(self) -> None:
        """Evaluate once. Raises `EngineError`."""


class Engine(Protocol):
    """A network with static shapes on some device."""

    @property
    def inputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each input."""

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """Name, shape and dtype of each output."""

    def bind(self, arrays: Mapping[str, Array]) -> Binding:
        """Tie every input and output to a caller-owned C-contiguous array; several bindings may coexist.

        Raises `EngineError` when an array is missing or does not fit.
        """

    def close(self) -> None:
        """Give back what the engine holds."""


def check_arrays(arrays: Mapping[str, Array], specs: Mapping[str, TensorSpec]) -> str | None:
    """The first way in which `arrays` does not fit `specs`, or None."""
    for name, spec in specs.items():
        array = arrays.get(name)
        if array is None:
            return f"'{name}' is not bound"
        if array.shape != spec.shape or array.dtype != spec.dtype:
            return f"'{name}' is {array.dtype}{list(array.shape)}, not {spec.dtype}{list(spec.shape)}"
        if not array.flags.c_contiguous:
            return f"'{name}' is not C-contiguous"
    return None
