"""The compiled sampler against the float64 meaning of its table, and against closed forms."""

from collections.abc import Callable

import numpy as np
import pytest

from sora_runtime import _core
from sora_runtime.engines.analytic import GaussianDenoiser
from sora_runtime.sampling import (
    ROW_DTYPE,
    Guidance,
    SamplerProgram,
    compile_program,
    read_scheduler_config,
    run_reference,
    with_solver,
)

WAN = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "flow_shift": 3.0,
    "solver_order": 2,
}
SD = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
SHAPE = (1, 4, 3, 10, 12)
Model = Callable[[np.ndarray, float], np.ndarray]


def nonlinear(x: np.ndarray, timestep: float) -> np.ndarray:
    return np.tanh(0.7 * x + 0.3) * (0.5 + timestep / 1500)


def other(x: np.ndarray, timestep: float) -> np.ndarray:
    return np.sin(x) * (0.4 + timestep / 2000)


def program_of(config: dict[str, object], solver: str, steps: int, guidance: Guidance) -> SamplerProgram:
    specification = read_scheduler_config(with_solver(config, solver))
    return compile_program(specification.solver, specification.schedule, steps, guidance)


def run_compiled(
    program: SamplerProgram, noise: np.ndarray, models: tuple[Model, Model], num_threads: int = 2
) -> np.ndarray:
    """The program through the compiled loop, float32, with a denoiser in numpy."""
    latents = (noise * program.initial_scale).astype(np.float32)
    scaled = bool(np.any(program.rows["input_scale"] != 1.0))
    model_input = np.empty_like(latents) if scaled else None
    source = latents if model_input is None else model_input
    outputs = [np.full_like(latents, np.nan) for _ in range(2)]

    def denoiser(_row: int, _engine: int, timestep: float, unconditional: bool) -> None:
        outputs[unconditional][...] = models[unconditional](source.astype(np.float64), timestep)

    sampler = _core.Sampler(
        program.rows,
        latents,
        model_input=model_input,
        conditional=outputs[0],
        unconditional=outputs[1],
        num_threads=num_threads,
    )
    generator = _core.NoiseGenerator(5)
    statistics = sampler.run(denoiser, noise=generator)
    assert statistics.evaluations == program.evaluations
    return latents


def draws(program: SamplerProgram) -> list[np.ndarray]:
    generator = _core.NoiseGenerator(5)
    return [generator.normal(SHAPE) for row in program.rows if row["noise"] != 0.0]


def test_the_row_is_the_same_record_on_both_sides() -> None:
    assert _core.ROW_DTYPE == ROW_DTYPE


@pytest.mark.parametrize("guidance", [Guidance(1.0), Guidance(5.0), Guidance(6.0, rescale=0.7)])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize(
    ("config", "solver"),
    [(WAN, name) for name in ("euler", "unipc", "dpm++2m", "heun", "lcm")]
    + [(SD, name) for name in ("euler", "unipc", "dpm++2m", "heun", "ddim", "lcm")],
    ids=lambda value: value if isinstance(value, str) else str(value["prediction_type"]),
)
def test_compiled_equals_reference(config: dict[str, object], solver: str, steps: int, guidance: Guidance) -> None:
    """float32 keeps 6e-8 a rounding; the programs amplify it by their coefficients, at most a few hundred."""
    program = program_of(config, solver, steps, guidance)
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    compiled = run_compiled(program, noise, (nonlinear, other))
    reference = run_reference(
        program, nonlinear, noise * program.initial_scale, noise=draws(program), unconditional=other
    )
    assert np.linalg.norm(compiled - reference) / np.linalg.norm(reference) <= 2e-5


def test_a_whole_clip_with_no_weights_has_its_closed_form() -> None:
    """The analytic engine's data is a picture: 60 steps of Heun must bring noise to it, and rgb8 show it.

    Heun, because its timesteps are not rounded to whole numbers as those of UniPC are in diffusers.
    """
    rows, columns = np.meshgrid(np.linspace(-1, 1, 24), np.linspace(-1, 1, 32), indexing="ij")
    picture = np.broadcast_to(np.stack([rows, columns, rows * columns])[None, :, None], (1, 3, 5, 24, 32))
    exact = GaussianDenoiser(mean=0.5 * picture, std=0.3)
    program = program_of(WAN, "heun", 60, Guidance(1.0))
    noise = _core.NoiseGenerator(3).normal(picture.shape)
    latents = run_compiled(program, noise, (exact, exact))
    closed_form = exact.solve(noise, (0.0, 1.0))
    assert np.abs(latents - closed_form).max() <= 2e-3
    frames = _core.frames_to_rgb8(latents[0].astype(np.float32))
    expected = np.clip(np.rint((closed_form[0] * 0.5 + 0.5) * 255), 0, 255).transpose(1, 2, 3, 0)
    assert np.abs(frames.astype(int) - expected).max() <= 1


def test_threads_change_no_bit() -> None:
    program = program_of(WAN, "unipc", 8, Guidance(4.0, rescale=0.5))
    noise = np.random.default_rng(1).standard_normal((1, 16, 5, 60, 90))
    one = run_compiled(program, noise, (nonlinear, other), num_threads=1)
    many = run_compiled(program, noise, (nonlinear, other), num_threads=7)
    assert np.array_equal(one, many)


@pytest.mark.parametrize(("dtype", "stored"), [("float16", np.float16), ("bfloat16", np.uint16)])
def test_half_precision_engines_read_and_write_their_own_dtype(dtype: str, stored: type) -> None:
    """The engine negates its input exactly, so one row shows the cast in and out."""
    rows = np.zeros(1, ROW_DTYPE)
    rows["evaluate"] = rows["input_scale"] = rows["guidance_scale"] = 1
    rows["output"] = 1.0
    latents = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    start = latents.copy()
    model_input, output = np.zeros(1000, stored), np.zeros(1000, stored)
    sampler = _core.Sampler(
        rows, latents, model_input=model_input, conditional=output, input_dtype=dtype, output_dtype=dtype
    )
    sampler.run(lambda *_: np.copyto(output, model_input))
    epsilon = 2.0**-11 if dtype == "float16" else 2.0**-8
    assert np.abs(latents - start).max() <= epsilon * np.abs(start).max()
    assert not np.array_equal(latents, start)


def test_the_sampler_refuses_what_does_not_fit() -> None:
    program = program_of(WAN, "euler", 2, Guidance(5.0))
    latents, output = np.zeros(8, np.float32), np.zeros(8, np.float32)
    with pytest.raises(ValueError, match="unconditional output buffer is missing"):
        _core.Sampler(program.rows, latents, conditional=output)
    with pytest.raises(ValueError, match="as many elements as the latents"):
        _core.Sampler(program.rows, latents, conditional=output[:4], unconditional=output)
    with pytest.raises(ValueError, match="float32, float16 or bfloat16"):
        _core.Sampler(
            program.rows,
            latents,
            conditional=output,
            unconditional=output,
            output_dtype="int8",
        )
    lcm = program_of(WAN, "lcm", 2, Guidance(1.0))
    with pytest.raises(ValueError, match="no generator was given"):
        _core.Sampler(lcm.rows, latents, conditional=output).run(lambda *_: None)
