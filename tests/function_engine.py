"""An engine for tests: one input, one output, a function between them."""

from collections.abc import Callable, Mapping

import numpy as np

from sora_runtime.engines.engine import Array, TensorSpec


class FunctionEngine:
    """latents -> frames; counts its runs."""

    def __init__(
        self,
        function: Callable[[Array], Array],
        latents: tuple[int, ...],
        frames: tuple[int, ...],
        *,
        dtype: str = "float32",
    ) -> None:
        self.inputs: Mapping[str, TensorSpec] = {"latents": TensorSpec(latents, np.dtype(dtype))}
        self.outputs: Mapping[str, TensorSpec] = {"frames": TensorSpec(frames, np.dtype(dtype))}
        self.function = function
        self.runs = 0
        self.closed = False

    def bind(self, arrays: Mapping[str, Array]) -> "FunctionEngine.Bound":
        return self.Bound(self, arrays)

    def close(self) -> None:
        self.closed = True

    class Bound:
        def __init__(self, engine: "FunctionEngine", arrays: Mapping[str, Array]) -> None:
            self.engine, self.arrays = engine, arrays

        def run(self) -> None:
            self.engine.runs += 1
            self.arrays["frames"][...] = self.engine.function(self.arrays["latents"])
