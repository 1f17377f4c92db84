"""The transformers of a bundle behind the callable that the sampler calls."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import _core
from .engines.engine import Array, Binding, Engine
from .sampling.program import SamplerProgram


@dataclass(frozen=True)
class Embeddings:
    """`prompt_embeds` of both branches of guidance, float32 [1, length, text_dim]; None: no guidance."""

    conditional: NDArray[np.float32]
    unconditional: NDArray[np.float32] | None


@dataclass(frozen=True)
class DenoiseResult:
    """Clip latents and what they took."""

    latents: NDArray[np.float32]
    statistics: _core.RunStatistics
    engine_seconds: float


class Denoiser:
    """One set of buffers, every engine bound to it for both branches; not for several threads at once.

    Args:
        engines: by the sampler program's engine index; all of one shape bucket.
        num_threads: of the sampler's own kernels.
    """

    def __init__(self, engines: Sequence[Engine], *, num_threads: int) -> None:
        self._engines = engines
        self._num_threads = num_threads
        inputs, outputs = engines[0].inputs, engines[0].outputs
        # The engines read the latents where the sampler writes them: float32 needs no copy.
        self._latents = _aligned(inputs["hidden_states"].shape)
        self._timestep = inputs["timestep"].zeros()
        self._embeds = [inputs["encoder_hidden_states"].zeros() for _ in range(2)]
        self._outputs = [_aligned(outputs["model_output"].shape) for _ in range(2)]
        self._bindings: list[tuple[Binding, Binding]] = [
            (self._bind(engine, self._latents, 0), self._bind(engine, self._latents, 1)) for engine in engines
        ]
        self._engine_seconds = 0.0

    def _bind(self, engine: Engine, hidden_states: Array, branch: int) -> Binding:
        return engine.bind(
            {
                "hidden_states": hidden_states,
                "timestep": self._timestep,
                "encoder_hidden_states": self._embeds[branch],
                "model_output": self._outputs[branch],
            }
        )

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[1, channels, frames, height, width]."""
        return self._latents.shape

    def run(
        self,
        program: SamplerProgram,
        embeddings: Embeddings,
        start: NDArray[np.float32],
        *,
        noise: _core.NoiseGenerator | None,
        on_step: Callable[[int], None] | None,
        cancel: _core.CancelToken | None,
    ) -> DenoiseResult:
        """Run a program from unit noise `start` (float32, `latent_shape`) to clip latents (a new array)."""
        bindings = self._bindings
        model_input = None
        if np.any(program.rows["input_scale"] != 1.0):
            model_input = _aligned(self._latents.shape)
            bindings = [
                (self._bind(engine, model_input, 0), self._bind(engine, model_input, 1)) for engine in self._engines
            ]
        np.multiply(start, np.float32(program.initial_scale), out=self._latents)
        np.copyto(self._embeds[0], embeddings.conditional)
        if embeddings.unconditional is not None:
            np.copyto(self._embeds[1], embeddings.unconditional)
        self._engine_seconds = 0.0

        def evaluate(_row: int, engine: int, timestep: float, unconditional: bool) -> None:
            self._timestep[:] = timestep
            started = time.perf_counter()
            bindings[engine][unconditional].run()
            self._engine_seconds += time.perf_counter() - started

        sampler = _core.Sampler(
            program.rows,
            self._latents,
            model_input=model_input,
            conditional=self._outputs[0],
            unconditional=self._outputs[1],
            num_threads=self._num_threads,
        )
        statistics = sampler.run(evaluate, noise=noise, on_step=on_step, cancel=cancel)
        return DenoiseResult(self._latents.copy(), statistics, self._engine_seconds)

    def close(self) -> None:
        """Give back the engines."""
        for engine in self._engines:
            engine.close()


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A float32 array on a 64-byte boundary, as the sampler's vector stores like it."""
    size = int(np.prod(shape)) * 4
    raw = np.empty(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(np.float32).reshape(shape)
