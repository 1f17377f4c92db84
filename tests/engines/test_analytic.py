"""The Gaussian denoiser: its formulas, its ODE, and whole clips with a known answer."""

from typing import Any

import numpy as np
import pytest

from sora_runtime.engines.analytic import GaussianDenoiser, variance_preserving_alpha_sigma
from sora_runtime.sampling import (
    DDIM,
    LCM,
    Betas,
    DiffusionSchedule,
    DPMSolverPP,
    Euler,
    FlowSchedule,
    Heun,
    UniPC,
    compile_program,
    run_reference,
)

LATENTS = np.random.default_rng(5).standard_normal((4, 3, 6, 8))
IMAGE = np.hypot(*np.meshgrid(np.linspace(-1, 1, 8), np.linspace(-1, 1, 6)))
PRODUCT = Betas().alphas_cumprod()


def test_flow_velocity_is_the_published_formula() -> None:
    sigma, std = 0.7, 0.4
    alpha = 1 - sigma
    expected = LATENTS * (sigma - alpha * std**2) / (alpha**2 * std**2 + sigma**2)
    np.testing.assert_allclose(GaussianDenoiser(0.0, std)(LATENTS, 700.0), expected, rtol=1e-13)


def test_epsilon_is_the_conditional_mean_of_the_noise() -> None:
    """Least squares over samples: epsilon regressed on x has the denoiser's slope and offset."""
    rng = np.random.default_rng(6)
    alpha, sigma, mean, std = 0.8, 0.6, 0.3, 0.5
    noise = rng.standard_normal(400_000)
    x = alpha * (mean + std * rng.standard_normal(noise.size)) + sigma * noise
    slope, offset = np.polyfit(x, noise, 1)
    model = GaussianDenoiser(mean, std, "epsilon", lambda t: (alpha, sigma))
    at = np.array([0.0, 1.0])
    # 5 standard errors of a mean over 400 000 samples.
    np.testing.assert_allclose(model(at, 0.0), offset + slope * at, atol=5 / 400_000**0.5)


@pytest.mark.parametrize("timestep", [100.0, 900.0])
def test_prediction_types_agree_on_the_data(timestep: float) -> None:
    level = variance_preserving_alpha_sigma(PRODUCT)
    alpha, sigma = level(timestep)
    of = {p: GaussianDenoiser(IMAGE, 0.3, p, level)(LATENTS, timestep)  # type: ignore[arg-type]
          for p in ("sample", "epsilon", "v_prediction")}  # fmt: skip
    np.testing.assert_allclose(alpha * of["sample"] + sigma * of["epsilon"], LATENTS, atol=1e-12)
    velocity = alpha * of["epsilon"] - sigma * of["sample"]
    np.testing.assert_allclose(of["v_prediction"], velocity, atol=1e-12)


def test_closed_form_solves_the_ode() -> None:
    """dx/dsigma of the closed form is the velocity, by central differences (error ~ h^2)."""
    model = GaussianDenoiser(IMAGE, 0.3)
    sigma, h = 0.6, 1e-4
    ahead, behind = (model.solve(LATENTS, (0.4, 0.6), (1 - s, s)) for s in (sigma + h, sigma - h))
    np.testing.assert_allclose((ahead - behind) / (2 * h), model(LATENTS, 600.0), atol=1e-6)


def test_level_table_is_interpolated_in_sigma() -> None:
    level = variance_preserving_alpha_sigma(PRODUCT)
    alpha, sigma = level(500.0)
    np.testing.assert_allclose([alpha**2, sigma**2], [PRODUCT[500], 1 - PRODUCT[500]], rtol=1e-12)
    ratios = [level(t)[1] / level(t)[0] for t in (500.0, 500.5, 501.0)]
    assert ratios[1] == pytest.approx((ratios[0] + ratios[2]) / 2)


FLOW = FlowSchedule(shift=3.0)
VP = DiffusionSchedule(timestep_spacing="trailing")


@pytest.mark.parametrize(
    ("solver", "schedule"),
    [
        (Euler(), FLOW),
        (Heun(), FLOW),
        (DPMSolverPP(), FLOW),
        (UniPC(), FlowSchedule(shift=3.0, max_sigma=1 - 1e-6)),
        (LCM("flow_prediction", timestep_scaling=None), FLOW),
        (Euler("epsilon"), DiffusionSchedule(grid="k_diffusion")),
        (Heun("epsilon"), DiffusionSchedule(grid="k_diffusion")),
        (DDIM(), DiffusionSchedule(grid="ddim", timestep_spacing="trailing")),
        (DPMSolverPP("epsilon"), VP),
        (UniPC("epsilon", order=3), VP),
    ],
)
def test_clip_of_one_known_image_is_that_image(solver: Any, schedule: Any) -> None:
    """With std = 0 the data are one point, which every solver must reach exactly."""
    model = GaussianDenoiser(IMAGE, 0.0)
    if isinstance(schedule, DiffusionSchedule):
        level = variance_preserving_alpha_sigma(PRODUCT)
        model = GaussianDenoiser(IMAGE, 0.0, "epsilon", level)
    program = compile_program(solver, schedule, 10)
    noise = np.random.default_rng(7).standard_normal((10, *LATENTS.shape))
    result = run_reference(program, model, program.initial_scale * LATENTS, list(noise))
    # Timesteps and sigmas are float32 values, so the model's level is theirs to one part in 1e7;
    # an epsilon model divides that by alpha, down to 1/157.
    np.testing.assert_allclose(result, np.broadcast_to(IMAGE, result.shape), atol=2e-5)


def test_clip_of_a_distribution_has_a_closed_form() -> None:
    """Wan's solver and grid with 50 steps against the exact end of the trajectory."""
    std = 0.5
    model = GaussianDenoiser(IMAGE, std)
    exact = model.solve(LATENTS, (0.0, 1.0))
    schedule = FlowSchedule(shift=3.0, grid="unipc", max_sigma=1 - 1e-6)

    def error(solver: Any) -> float:
        result = run_reference(compile_program(solver, schedule, 50), model, LATENTS)
        return float(np.abs(result - exact).max())

    # What is left is the last step: E[x0 | x] at its sigma differs from the end of the trajectory
    # by |noise| sigma^2 / (2 std) to leading order.
    last = schedule.build(50).sigmas[-2]
    assert error(UniPC()) <= np.abs(LATENTS).max() * last**2 / (2 * std)
    assert error(Euler()) > 5 * error(UniPC())
