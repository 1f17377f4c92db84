"""The transformers of a bundle behind the callable that the sampler calls."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from numpy.typing import NDArray

from . import _core
from .engines.engine import Array, Binding, Engine, TensorSpec
from .errors import EngineError
from .sampling.program import SamplerProgram

Conditions = Mapping[str, NDArray[np.float32]]
"""The transformer's inputs beside latents and timestep, by name."""

# Inputs that differ at every evaluation of a clip.
VARYING = ("hidden_states", "timestep")
# Inputs that are the same for both branches of guidance: kept once, a picture's may be large.
SHARED_CONDITIONS = ("condition", "image_embeds", "guidance")


@dataclass(frozen=True)
class Embeddings:
    """What conditions the transformer: the texts' inputs for both branches of guidance, and what they share.

    `unconditional` is None without a second branch.
    """

    conditional: Conditions
    unconditional: Conditions | None = None
    shared: Conditions = field(default_factory=dict)


@dataclass(frozen=True)
class DenoiseResult:
    """Clip latents and what they took."""

    latents: NDArray[np.float32]
    statistics: _core.RunStatistics
    engine_seconds: float
    timed_by_row: bool = True  # whether the statistics' seconds of rows are what the rows took


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
        self._input, self._output = inputs["hidden_states"], outputs["model_output"]
        self._latents = _aligned(TensorSpec(self._input.shape, np.dtype(np.float32)))
        # float32 engines read the latents where the sampler writes them: no copy.
        shared = self._input.dtype == np.float32
        self._model_input = None if shared else _aligned(self._input)
        self._timestep = inputs["timestep"].zeros()
        conditions = {name: spec for name, spec in inputs.items() if name not in VARYING}
        self._shared = {name: spec.zeros() for name, spec in conditions.items() if name in SHARED_CONDITIONS}
        self._texts = [
            {name: spec.zeros() for name, spec in conditions.items() if name not in SHARED_CONDITIONS} for _ in range(2)
        ]
        self._outputs = [_aligned(self._output) for _ in range(2)]
        self._bindings = self._bind(self._latents if self._model_input is None else self._model_input)
        self._engine_seconds, self._evaluations = 0.0, 0
        self.observe: Callable[[int, Mapping[str, Array]], None] | None = None
        """Called before each evaluation with the engine's index and its inputs, which it must not keep or change."""

    def _bind(self, hidden_states: Array) -> list[list[Binding]]:
        """Every engine tied to the buffers of both branches: [engine][unconditional]."""
        common = {"hidden_states": hidden_states, "timestep": self._timestep, **self._shared}
        return [
            [
                engine.bind({**common, **texts, "model_output": output})
                for texts, output in zip(self._texts, self._outputs, strict=True)
            ]
            for engine in self._engines
        ]

    def _inputs(self, unconditional: bool) -> dict[str, Array]:
        latents = self._latents if self._model_input is None else self._model_input
        return {
            "hidden_states": latents, "timestep": self._timestep, **self._shared, **self._texts[unconditional]
        }  # fmt: skip

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[1, channels, frames, height, width]."""
        return self._latents.shape

    def spent(self) -> tuple[int, float]:
        """Network calls, and the seconds inside them, of the run under way or else of the last one."""
        return self._evaluations, self._engine_seconds

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
        """Run a program from unit noise `start` (float32, `latent_shape`) to clip latents (a new array).

        Raises:
            EngineError: an engine failed, or the latents diverged.
            CancelledError: stopped through `cancel`.
        """
        if self._model_input is None and np.any(program.rows["input_scale"] != 1.0):
            # From now on the engines read a scaled copy.
            self._model_input = _aligned(self._input)
            self._bindings = self._bind(self._model_input)
        np.multiply(start, np.float32(program.initial_scale), out=self._latents)
        fill(self._shared, embeddings.shared)
        fill(self._texts[0], embeddings.conditional)
        if embeddings.unconditional is not None:
            fill(self._texts[1], embeddings.unconditional)
        self._engine_seconds, self._evaluations = 0.0, 0

        def evaluate(_row: int, engine: int, timestep: float, unconditional: bool) -> None:
            self._timestep[:] = timestep
            if self.observe is not None:
                self.observe(engine, self._inputs(unconditional))
            started = time.perf_counter()
            self._bindings[engine][unconditional].run()
            self._engine_seconds += time.perf_counter() - started
            self._evaluations += 1

        sampler = _core.Sampler(
            program.rows,
            self._latents,
            model_input=self._model_input,
            conditional=self._outputs[0],
            unconditional=self._outputs[1],
            input_dtype=self._input.dtype.name,
            output_dtype=self._output.dtype.name,
            num_threads=self._num_threads,
            reuse=_core.StepReuse(**asdict(program.reuse)),
            guidance=_core.GuidanceRule(**asdict(program.guidance)),
        )
        statistics = sampler.run(evaluate, noise=noise, on_step=on_step, cancel=cancel)
        check_finite(self._latents)
        return DenoiseResult(self._latents.copy(), statistics, self._engine_seconds)

    def close(self) -> None:
        """Give back the engines."""
        for engine in self._engines:
            engine.close()


def check_finite(latents: NDArray[np.float32]) -> None:
    """Raises `EngineError` where latents have diverged."""
    if not np.isfinite(latents).all():
        raise EngineError(
            "the denoised latents hold NaN or infinity; lower guidance_scale, use more steps or another solver"
        )


def fill(arrays: Mapping[str, Array], values: Conditions) -> None:
    """Copy what conditions a transformer into its inputs; raises `EngineError` where one is missing or does not fit."""
    for name, array in arrays.items():
        if name not in values:
            raise EngineError(f"the transformer's graph takes '{name}', which nothing gives; rebuild the bundle")
        if values[name].shape != array.shape:
            raise EngineError(
                f"the transformer's graph takes '{name}' of {list(array.shape)} and gets {list(values[name].shape)}; "
                "rebuild the bundle"
            )
        np.copyto(array, values[name])


def _aligned(spec: TensorSpec) -> Array:
    """An uninitialised array on a 64-byte boundary, as the sampler's vector stores like it."""
    size = int(np.prod(spec.shape)) * spec.dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + size].view(spec.dtype).reshape(spec.shape)
