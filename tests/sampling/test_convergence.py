"""Every solver has its order on the exact Gaussian model, whose ODE has a closed form."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sora_runtime.engines.analytic import GaussianDenoiser
from sora_runtime.sampling import (
    DDIM,
    DPMSolverPP,
    Euler,
    Heun,
    Schedule,
    Solver,
    UniPC,
    compile_program,
    run_reference,
)

MEAN = np.linspace(-1.0, 1.0, 12).reshape(3, 4)
STEPS = (32, 64, 128)


def schedule(kind: str, sigmas: np.ndarray) -> Schedule:
    """A schedule between two finite noise levels, where a solver shows its order undisturbed."""
    timesteps = sigmas[:-1] * 1000
    return Schedule(kind, sigmas, timesteps, sigmas[1:], 1.0, 1000, "test")  # type: ignore[arg-type]


def vp_level(timestep: float) -> tuple[float, float]:
    sigma = timestep / 1000
    return 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma)


def error(solver: Solver, kind: str, steps: int) -> float:
    if kind == "flow":
        built = schedule(kind, np.linspace(0.95, 0.05, steps + 1))
        model = GaussianDenoiser(MEAN, 0.6)
        start, end = ((1 - s, s) for s in built.sigmas[[0, -1]])
    else:
        built = schedule(kind, np.geomspace(10.0, 0.1, steps + 1))
        model = GaussianDenoiser(MEAN, 0.6, "epsilon", vp_level)
        start, end = ((1.0, s) if kind == "ve" else vp_level(1000 * s) for s in built.sigmas[[0, -1]])
    latents = np.random.default_rng(1).standard_normal(MEAN.shape) * start[1]
    program = compile_program(solver, built, steps)
    return float(np.abs(run_reference(program, model, latents) - model.solve(latents, start, end)).max())


NEVER = tuple(range(max(STEPS)))
EARLY = tuple(range(3, max(STEPS)))  # correct the start only, where the order is still low


def unipc(order: int, **options: Any) -> Callable[[Any], Solver]:
    return lambda p: UniPC(p, order=order, lower_order_final=False, **options)


# name -> solver for a prediction type, kinds of schedule, order. UniPC-p with its corrector has
# order p + 1, UniP-p alone p (arXiv:2302.04867 section 3.2).
CASES: dict[str, tuple[Callable[[Any], Solver], tuple[str, ...], float]] = {
    "euler": (Euler, ("flow", "ve"), 1),
    "heun": (Heun, ("flow", "ve"), 2),
    "ddim": (DDIM, ("vp",), 1),
    "dpm++1": (lambda p: DPMSolverPP(p, order=1), ("flow", "vp"), 1),
    "dpm++2m": (DPMSolverPP, ("flow", "vp"), 2),
    "dpm++2m-heun": (lambda p: DPMSolverPP(p, solver_type="heun"), ("flow", "vp"), 2),
    "unipc-1": (unipc(1), ("flow", "vp"), 2),
    "unipc-2": (unipc(2), ("flow", "vp"), 3),
    "unipc-2-bh1": (unipc(2, solver_type="bh1"), ("flow", "vp"), 3),
    "unipc-3": (unipc(3), ("flow", "vp"), 4),
    "unip-2": (unipc(2, disable_corrector=NEVER), ("flow", "vp"), 2),
    "unip-3": (unipc(3, disable_corrector=EARLY), ("flow", "vp"), 3),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, case in CASES.items() for kind in case[1]])
def test_order_of_convergence(name: str, kind: str) -> None:
    make, _, order = CASES[name]
    solver = make("flow_prediction" if kind == "flow" else "epsilon")
    errors = [error(solver, kind, steps) for steps in STEPS]
    orders = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    # From 64 to 128 steps the next term of the error still shows.
    assert abs(orders[-1] - order) <= max(0.1, 0.08 * order), (orders, errors)
