"""Given levels, as distilled models have them, against diffusers' schedulers with the same."""

from typing import Any

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
    COGVIDEOX_2B,
    DPM,
    EULER,
    FLOW_EULER,
    FLOW_HEUN,
    FLOW_LCM,
    HUNYUAN_VIDEO,
    LCM,
    LTX,
    SCALED,
    WAN_21,
    WAN_22_5B,
    Config,
)

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling import Guidance, Levels, compile_program, read_scheduler_config, run_reference

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

FOUR = [1.0, 0.75, 0.5, 0.25]
LTX_DISTILLED = [1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219]
PLAIN_LTX = LTX | {"use_dynamic_shifting": False, "shift_terminal": None}
DMD = [1000.0, 757.0, 522.0]


def run_ours(config: Config, levels: Levels, noise: Any = ()) -> np.ndarray:
    specification = read_scheduler_config(config)
    steps = len(levels.sigmas or levels.timesteps or ())
    schedule = levels.of(specification.schedule)
    program = compile_program(specification.solver, schedule, steps, image_seq_len=IMAGE_SEQ_LEN)
    return run_reference(program, model, program.initial_scale * initial_noise(), noise)


SIGMAS: dict[str, tuple[Config, list[float]]] = {
    "euler-shifted": (FLOW_EULER | {"shift": 5.0}, FOUR),
    "euler-one-step": (FLOW_EULER, [1.0]),
    "ltx-distilled": (PLAIN_LTX, LTX_DISTILLED),
    "ltx-second-pass": (PLAIN_LTX, [0.9094, 0.725, 0.4219]),
    "ltx-dynamic-and-terminal": (LTX, FOUR),
    "hunyuan-two": (HUNYUAN_VIDEO, [1.0, 0.5]),
    "karras-between-the-ends": (HUNYUAN_VIDEO | {"use_karras_sigmas": True}, FOUR),
    "unipc": (WAN_21, FOUR),
    "unipc-shift-5": (WAN_22_5B, [1.0, 0.9, 0.6]),
}


@pytest.mark.parametrize("name", SIGMAS)
def test_given_sigmas_match_diffusers(name: str) -> None:
    config, sigmas = SIGMAS[name]
    theirs = run_diffusers(scheduler_of(config, sigmas=np.array(sigmas)))
    assert relative(run_ours(config, Levels(sigmas=tuple(sigmas))), theirs) <= TOLERANCE


TIMESTEPS: dict[str, tuple[Config, list[float]]] = {
    "euler": (FLOW_EULER, DMD),
    "euler-shifted": (FLOW_EULER | {"shift": 5.0}, [1000.0, 750.0, 500.0, 250.0]),
    "ltx-as-its-pipeline-is-called": (PLAIN_LTX, [1000, 993, 987, 981, 975, 909, 725, 0.03]),
    "dpm-epsilon": (DPM, [999, 700, 400, 100]),
    "euler-epsilon": (EULER | SCALED, [999.0, 700.5, 300.0, 0.0]),
}


@pytest.mark.parametrize("name", TIMESTEPS)
def test_given_timesteps_match_diffusers(name: str) -> None:
    config, timesteps = TIMESTEPS[name]
    theirs = run_diffusers(scheduler_of(config, timesteps=timesteps))
    assert relative(run_ours(config, Levels(timesteps=tuple(timesteps))), theirs) <= TOLERANCE


RENOISED: dict[str, tuple[Config, dict[str, list[float]]]] = {
    "flow-lcm-sigmas": (FLOW_LCM, {"sigmas": FOUR}),
    "flow-lcm-timesteps": (FLOW_LCM | {"shift": 1.0}, {"timesteps": DMD}),
    "flow-lcm-timesteps-shifted": (FLOW_LCM, {"timesteps": DMD}),
    "euler-stochastic": (FLOW_EULER | {"shift": 5.0, "stochastic_sampling": True}, {"sigmas": FOUR}),
    "lcm": (LCM, {"timesteps": [999, 759, 499, 259]}),
    "lcm-off-the-distilled-grid": (LCM, {"timesteps": [901, 400]}),
}


@pytest.mark.parametrize("name", RENOISED)
def test_given_levels_with_fresh_noise_match_diffusers(name: str) -> None:
    config, levels = RENOISED[name]
    scheduler = scheduler_of(config, **levels)
    noise = step_noise(len(scheduler.timesteps))
    with given_noise(scheduler, noise):
        theirs = run_diffusers(scheduler)
    ours = run_ours(config, Levels(**{key: tuple(values) for key, values in levels.items()}), noise)
    assert relative(ours, theirs) <= TOLERANCE


def test_distribution_matching_is_denoise_then_renoise() -> None:
    """DMD2 (arXiv:2405.14867, section 4.4): x0 from the model, then ``(1 - s) x0 + s z`` at the next level."""
    levels = Levels(timesteps=tuple(DMD), shift=1.0)
    noise = step_noise(2)
    x, fresh = initial_noise(), iter(noise)
    for t, following in zip(DMD, [*DMD[1:], 0.0], strict=True):
        x0 = x - t / 1000 * model(x, t)
        s = following / 1000
        x = (1 - s) * x0 + s * next(fresh) if s else x0
    assert relative(run_ours(FLOW_LCM, levels, noise), x) < 1e-6  # timesteps are float32


def test_a_shift_of_its_own_takes_the_place_of_the_models() -> None:
    """What distilled Wan is sampled with: 1000, 750, 500, 250 warped by a shift of 5, whatever its scheduler says."""
    warped = [5 * s / (1 + 4 * s) for s in FOUR]
    for config in (FLOW_EULER | {"shift": 3.0}, LTX, HUNYUAN_VIDEO | {"use_karras_sigmas": True}):
        schedule = Levels(tuple(FOUR), shift=5.0).of(read_scheduler_config(config).schedule).build(4, IMAGE_SEQ_LEN)
        np.testing.assert_allclose(schedule.sigmas, [*warped, 0.0], rtol=1e-7)
        np.testing.assert_allclose(schedule.timesteps, [1000 * s for s in warped], rtol=1e-7)
        assert schedule.name == "flow, 4 given sigmas, shift 5"


def test_no_guidance_and_the_second_transformer_below_the_boundary() -> None:
    """Wan 2.2 in 4 steps: two of each transformer, one evaluation a step."""
    specification = read_scheduler_config(FLOW_EULER)
    schedule = Levels(tuple(FOUR), shift=5.0).of(specification.schedule)
    program = compile_program(specification.solver, schedule, 4, Guidance(boundary_ratio=0.875))
    assert program.rows["engine"].tolist() == [0, 0, 1, 1] and program.evaluations == 4


@pytest.mark.parametrize(
    ("config", "levels", "message"),
    [
        (FLOW_EULER, Levels(sigmas=(0.25, 0.5)), r"custom sigmas \[0.25, 0.5\] do not descend"),
        (FLOW_EULER, Levels(sigmas=(1.0, 0.5, 0.0)), "without the final 0"),
        (FLOW_EULER, Levels(timesteps=(1000.0, 1000.0)), r"custom timesteps .* do not descend within \(0, 1000\]"),
        (FLOW_EULER, Levels(timesteps=(1001.0, 500.0)), "do not descend within"),
        (FLOW_EULER, Levels(sigmas=(1.0,), timesteps=(1000.0,)), "both given"),
        (FLOW_HEUN, Levels(sigmas=(float("nan"),)), "do not descend"),
        (DPM, Levels(sigmas=(1.0, 0.5)), r"sigmas = \[1.0, 0.5\] is for flow-matching models"),
        (DPM, Levels(timesteps=(999.0,), shift=3.0), "shift = 3 is for flow-matching models"),
        (DPM, Levels(timesteps=(1000.0, 3.0)), r"do not descend within \(-1, 999\]"),
        (DPM, Levels(timesteps=(99.5, 3.0)), "not whole numbers"),
        (DPM | {"use_karras_sigmas": True}, Levels(timesteps=(999.0, 3.0)), "given to karras sigmas"),
        (COGVIDEOX_2B, Levels(timesteps=(999.0, 3.0)), "cannot be given to ddim; use solver lcm"),
        (LCM, Levels(timesteps=tuple(map(float, range(60, 0, -1)))), "original_inference_steps"),
    ],
)
def test_levels_that_cannot_be_are_refused(config: Config, levels: Levels, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        run_ours(config, levels)
