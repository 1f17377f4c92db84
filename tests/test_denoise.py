"""The denoiser between sampler and engine, on engines made of numpy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from sora_runtime.denoise import Denoiser, Embeddings
from sora_runtime.engines.engine import Array, TensorSpec
from sora_runtime.errors import EngineError
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


def text(value: float) -> dict[str, np.ndarray]:
    return {"encoder_hidden_states": np.full(TEXT, value, np.float32), "of no use to this engine": np.zeros(1)}


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
    embeddings = Embeddings(text(0.25), text(-0.5))
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
    embeddings = Embeddings(text(0.0))
    denoiser.run(program, embeddings, start, noise=None, on_step=None, cancel=None)
    assert ran == [0 if row["timestep"] >= 875 else 1 for row in program.rows]
    assert set(ran) == {0, 1}


def test_what_both_branches_share_is_bound_once_and_checked() -> None:
    class Shown(NumpyEngine):
        def __init__(self) -> None:
            super().__init__(np.float32)
            self.inputs = {**self.inputs, "condition": TensorSpec((1, 2, 1, 4, 5), np.dtype(np.float32))}
            self.bound: list[Mapping[str, Array]] = []

        def bind(self, arrays: Mapping[str, Array]) -> NumpyEngine.Bound:
            self.bound.append(arrays)
            return super().bind(arrays)

    engine, condition = Shown(), np.random.default_rng(1).standard_normal((1, 2, 1, 4, 5)).astype(np.float32)
    denoiser = Denoiser([engine], num_threads=1)
    program = compile_program(EULER.solver, EULER.schedule, 2, Guidance(3.0))
    start = np.zeros(SHAPE, np.float32)

    def run(shared: dict[str, np.ndarray]) -> None:
        embeddings = Embeddings(text(0.25), text(-0.5), shared)
        denoiser.run(program, embeddings, start, noise=None, on_step=None, cancel=None)

    run({"condition": condition})
    first, second = (arrays["condition"] for arrays in engine.bound)
    assert first is second and np.array_equal(first, condition)
    with pytest.raises(EngineError, match="'condition', which nothing gives"):
        run({})
    with pytest.raises(EngineError, match=r"'condition' of \[1, 2, 1, 4, 5\] and gets \[1, 2, 4, 5\]"):
        run({"condition": condition[:, :, 0]})
