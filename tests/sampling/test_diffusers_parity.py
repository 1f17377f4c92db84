"""Programs against diffusers' own schedulers, stepped in float64 on a nonlinear model."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
from diffusers_runs import (
    IMAGE_SEQ_LEN,
    TOLERANCE,
    given_noise,
    initial_noise,
    model,
    relative,
    run_diffusers,
    scheduler_of,
    step_noise,
)
from scheduler_configs import (
    DDIM,
    DETERMINISTIC,
    DPM_FLOW,
    EULER,
    HEUN,
    HUNYUAN_VIDEO,
    LTX,
    SCALED,
    STOCHASTIC,
    UNIPC,
    WAN_21,
    ZERO_SNR,
    Config,
)

from sora_runtime.sampling import (
    FlowSchedule,
    compile_program,
    read_scheduler_config,
    run_reference,
    solvers,
    with_solver,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

STEPS = (5, 20, 50)


def run_ours(config: Config, steps: int, noise: Sequence[np.ndarray] = ()) -> np.ndarray:
    specification = read_scheduler_config(config)
    program = compile_program(specification.solver, specification.schedule, steps, image_seq_len=IMAGE_SEQ_LEN)
    return run_reference(program, model, program.initial_scale * initial_noise(), noise)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_solver_matches_diffusers(name: str, steps: int) -> None:
    config = DETERMINISTIC[name]
    theirs = run_diffusers(scheduler_of(config, steps))
    assert relative(run_ours(config, steps), theirs) <= TOLERANCE


@pytest.mark.parametrize("steps", [14, 15])
def test_last_step_changes_its_order_at_15_steps(steps: int) -> None:
    config = DETERMINISTIC["dpm-lower-order-final"]
    theirs = run_diffusers(scheduler_of(config, steps))
    assert relative(run_ours(config, steps), theirs) <= TOLERANCE


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solver_matches_diffusers(name: str, steps: int) -> None:
    config = STOCHASTIC[name]
    scheduler = scheduler_of(config, steps)
    noise = step_noise(steps)
    with given_noise(scheduler, noise):
        theirs = run_diffusers(scheduler)
    assert relative(run_ours(config, steps, noise), theirs) <= TOLERANCE


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_matches_diffusers(eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DDIM | SCALED
    steps = 20
    noise = step_noise(steps)
    draws = iter(noise)
    module = import_module("diffusers.schedulers.scheduling_ddim")
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(next(draws)))
    theirs = run_diffusers(scheduler_of(config, steps), eta=eta)
    program = compile_program(solvers.DDIM(eta=eta), read_scheduler_config(config).schedule, steps)
    assert relative(run_reference(program, model, initial_noise(), noise), theirs) <= TOLERANCE


@pytest.mark.parametrize("steps", [*STEPS, 7, 30])
@pytest.mark.parametrize("name", DETERMINISTIC | STOCHASTIC)
def test_step_table_matches_diffusers(name: str, steps: int) -> None:
    config = (DETERMINISTIC | STOCHASTIC)[name]
    scheduler = scheduler_of(config, steps)
    schedule = read_scheduler_config(config).schedule.build(steps, IMAGE_SEQ_LEN)
    per_row = 2 if "Heun" in config["_class_name"] else 1
    timesteps = scheduler.timesteps.double().numpy()[::-1][::per_row][::-1]
    np.testing.assert_allclose(schedule.timesteps, timesteps, rtol=1e-5, atol=1e-5)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double().numpy()
        sigmas = np.append(sigmas[0:-1:per_row], sigmas[-1])
    else:
        levels = np.append(scheduler.alphas_cumprod.double().numpy()[timesteps.astype(int)], 1.0)
        with np.errstate(divide="ignore"):
            sigmas = np.sqrt((1 - levels) / levels)
        sigmas[-1] = schedule.sigmas[-1]
    # atol: sqrt(1 - alphas_cumprod) loses half of float32's digits near the data.
    np.testing.assert_allclose(schedule.sigmas, sigmas, rtol=1e-5, atol=1e-5)
    scale = float(getattr(scheduler, "init_noise_sigma", 1.0))
    np.testing.assert_allclose(schedule.initial_scale, scale, rtol=1e-5)


SWAPS = [
    ("wan2.1", "euler", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}),
    ("wan2.2-5b", "heun", {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 5.0}),
    ("hunyuan-video", "dpm++2m", DPM_FLOW | {"flow_shift": 7.0}),
    ("hunyuan-video", "unipc", WAN_21 | {"flow_shift": 7.0}),
    ("ltx", "unipc", WAN_21 | {key: LTX[key] for key in LTX if key != "_class_name"}),
    ("ddim-v-zero-snr", "unipc", UNIPC | ZERO_SNR),
    ("ddim-v-zero-snr", "euler", EULER | ZERO_SNR),
    ("unipc-v-zero-snr", "ddim", DDIM | ZERO_SNR),
    ("dpm-karras", "heun", HEUN | SCALED | {"use_karras_sigmas": True}),
]


@pytest.mark.parametrize(("name", "solver", "expected"), SWAPS)
def test_swapped_solver_matches_diffusers(name: str, solver: str, expected: Config) -> None:
    ours = run_ours(with_solver(DETERMINISTIC[name], solver), 20)
    assert relative(ours, run_diffusers(scheduler_of(expected, 20))) <= TOLERANCE


def test_uniform_grid_is_what_ltx_and_hunyuan_pipelines_pass() -> None:
    steps = 12
    schedule = read_scheduler_config(HUNYUAN_VIDEO).schedule
    assert isinstance(schedule, FlowSchedule)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(HUNYUAN_VIDEO)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, steps + 1)[:-1])
    ours = replace(schedule, grid="uniform").build(steps)
    np.testing.assert_allclose(ours.sigmas, scheduler.sigmas.numpy(), atol=1e-6)


def test_custom_sigmas_match_diffusers() -> None:
    sigmas = (1.0, 0.9933, 0.9094, 0.725, 0.4219)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(HUNYUAN_VIDEO)
    scheduler.set_timesteps(sigmas=list(sigmas))
    ours = FlowSchedule(shift=7.0, custom_sigmas=sigmas).build(5)
    np.testing.assert_allclose(ours.sigmas, scheduler.sigmas.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours.timesteps, scheduler.timesteps.numpy(), rtol=1e-6)
