"""The denoiser between sampler and engine, on engines made of numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sora_runtime.denoise import Denoiser, Embeddings
from sora_runtime.engines.engine import Array, TensorSpec
from sora_runtime.sampling import Guidance, compile_program, read_scheduler_config

SHAPE, TEXT = (1, 2, 3, 4, 5), (1, 6, 7)
EULER = read_scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
KARRAS = read_scheduler_config(
    {
        "_class_name": "EulerDiscreteScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "use_karras_sigmas": True,
    }
)


class NumpyEngine:
    """model_output = 0.5 * hidden_states + mean of the embeddings + timestep / 1e4, in its own dtype."""

    def __init__(self, dtype: Any) -> None:
        self.inputs: Mapping[str, TensorSpec] = {
            "hidden_states": TensorSpec(SHAPE, np.dtype(dtype)),
            "timestep": TensorSpec((1,), np.dtype(np.float32)),
            "encoder_hidden_states": TensorSpec(TEXT, np.dtype(dtype)),
        }
        self.outputs: Mapping[str, TensorSpec] = {"model_output": TensorSpec(SHAPE, np.dtype(dtype))}

    def bind(self, arrays: Mapping[str, Array]) -> "NumpyEngine.Bound":
        return self.Bound(arrays)

    def close(self) -> None:
        pass

    class Bound:
        def __init__(self, arrays: Mapping[str, Array]) -> None:
            self.arrays = arrays

        def run(self) -> None:
            a = self.arrays
            text = a["encoder_hidden_states"].astype(np.float64).mean()
            a["model_output"][...] = 0.5 * a["hidden_states"].astype(np.float64) + text + a["timestep"][0] / 1e4


def expected(program: Any, start: np.ndarray, texts: tuple[float, float]) -> np.ndarray:
    x = start.astype(np.float64) * program.initial_scale
    for row in program.rows:
        c, u = (0.5 * row["input_scale"] * x + text + row["timestep"] / 1e4 for text in texts)
        g = u + row["guidance_scale"] * (c - u)
        x = row["latents"] * x + row["output"] * g
    return x


@pytest.mark.parametrize("specification", [EULER, KARRAS], ids=["flow", "scaled input"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 5e-3)])
def test_engines_of_either_dtype_follow_the_program(specification: Any, dtype: Any, tolerance: float) -> None:
    """float16 rounds inputs and outputs to 11 bits at each of 6 steps."""
    program = compile_program(specification.solver, specification.schedule, 6, Guidance(3.0))
    start = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    embeddings = Embeddings(np.full(TEXT, 0.25, np.float32), np.full(TEXT, -0.5, np.float32))
    denoiser = Denoiser([NumpyEngine(dtype)], num_threads=1)
    for _ in range(2):  # a second run starts afresh
        result = denoiser.run(program, embeddings, start, noise=None, on_step=None, cancel=None)
        reference = expected(program, start, (0.25, -0.5))
        assert np.linalg.norm(result.latents - reference) / np.linalg.norm(reference) <= tolerance
    assert result.statistics.evaluations == 12
    assert result.engine_seconds > 0


def test_two_experts_take_turns_at_the_boundary() -> None:
    program = compile_program(EULER.solver, EULER.schedule, 8, Guidance(1.0, boundary_ratio=0.875))
    ran: list[int] = []

    class Counting(NumpyEngine):
        def __init__(self, number: int) -> None:
            super().__init__(np.float32)
            self.number = number

        def bind(self, arrays: Mapping[str, Array]) -> Any:
            bound, number = super().bind(arrays), self.number

            class Recording:
                def run(self) -> None:
                    ran.append(number)
                    bound.run()

            return Recording()

    denoiser = Denoiser([Counting(0), Counting(1)], num_threads=1)
    start = np.zeros(SHAPE, np.float32)
    embeddings = Embeddings(np.zeros(TEXT, np.float32), None)
    denoiser.run(program, embeddings, start, noise=None, on_step=None, cancel=None)
    assert ran == [0 if row["timestep"] >= 875 else 1 for row in program.rows]
    assert set(ran) == {0, 1}
