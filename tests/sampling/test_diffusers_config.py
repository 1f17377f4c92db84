"""scheduler_config.json: what is read, what is refused by name, and how a solver is swapped."""

from typing import Any

import pytest
from scheduler_configs import (
    COGVIDEOX_5B,
    DDIM,
    DETERMINISTIC,
    DPM,
    DPM_FLOW,
    EULER,
    FLOW_EULER,
    FLOW_LCM,
    HEUN,
    HUNYUAN_VIDEO,
    LCM,
    LTX,
    STOCHASTIC,
    UNIPC,
    WAN_21,
    Config,
)

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling import SOLVERS, compile_program, read_scheduler_config, with_solver

SQUARED: Config = {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"_class_name": "DEISMultistepScheduler"}, "DEISMultistepScheduler"),
        ({}, "None"),
        (WAN_21 | {"thresholding": True}, "thresholding"),
        (WAN_21 | {"predict_x0": False}, "predict_x0"),
        (WAN_21 | {"solver_p": {"_class_name": "DDIMScheduler"}}, "solver_p"),
        (WAN_21 | {"use_karras_sigmas": True}, "use_karras_sigmas"),
        (WAN_21 | {"use_exponential_sigmas": True}, "use_exponential_sigmas"),
        (WAN_21 | {"use_beta_sigmas": True}, "use_beta_sigmas"),
        (WAN_21 | {"final_sigmas_type": "sigma_min"}, "final_sigmas_type"),
        (WAN_21 | {"flow_shift": "3.0"}, "flow_shift"),
        (WAN_21 | {"num_train_timesteps": "1000"}, "num_train_timesteps"),
        (WAN_21 | {"a_new_option": 2}, "a_new_option"),
        (UNIPC | {"trained_betas": [0.1, 0.2]}, "trained_betas"),
        (UNIPC | {"prediction_type": "flow_prediction"}, "prediction_type"),
        (UNIPC | {"prediction_type": "noise"}, "prediction_type"),
        (UNIPC | {"solver_type": "logrho"}, "solver_type"),
        (UNIPC | {"sigma_max": 80.0}, "sigma_max"),
        (UNIPC | {"use_karras_sigmas": True, "use_exponential_sigmas": True}, "use_exponential"),
        (DPM | SQUARED, "use_karras_sigmas"),
        (DPM | {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        (DPM | {"use_lu_lambdas": True}, "use_lu_lambdas"),
        (DPM | {"lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        (DPM | {"variance_type": "learned_range"}, "variance_type"),
        (EULER | {"timestep_spacing": "quadratic"}, "timestep_spacing"),
        (EULER | {"timestep_type": "continuous"}, "timestep_type"),
        (EULER | {"interpolation_type": "log_linear"}, "interpolation_type"),
        (EULER | {"sigma_min": 0.002}, "sigma_min"),
        (HEUN | {"beta_schedule": "exp"}, "beta_schedule"),
        (HEUN | {"clip_sample": True}, "clip_sample"),
        ({"_class_name": "DDIMScheduler"}, "clip_sample"),  # diffusers clips unless told not to
        (LCM | {"clip_sample": True}, "clip_sample"),
        (COGVIDEOX_5B | {"set_alpha_to_one": False}, "set_alpha_to_one"),
        (FLOW_EULER | {"invert_sigmas": True}, "invert_sigmas"),
        (FLOW_LCM | {"scale_factors": [0.5, 1.0]}, "scale_factors"),
        (LTX | {"time_shift_type": "quadratic"}, "time_shift_type"),
    ],
)
def test_unsupported_option_is_refused_by_name(config: Config, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        read_scheduler_config(config)


def test_options_without_effect_are_accepted() -> None:
    unused = {"dynamic_thresholding_ratio": 0.9, "clip_sample_range": 2.0, "skip_prk_steps": False}
    assert read_scheduler_config(WAN_21 | unused) == read_scheduler_config(WAN_21)


def test_wan_facts_are_read() -> None:
    specification = read_scheduler_config(WAN_21)
    assert specification.solver.name == "unipc"
    program = compile_program(specification.solver, specification.schedule, 20)
    assert program.rows["timestep"][0] == 999  # 1000 (1 - 1e-6), truncated
    assert program.initial_scale == 1.0
    assert "shift 3" in program.schedule


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", DETERMINISTIC | STOCHASTIC)
def test_every_model_runs_with_every_solver_that_applies(name: str, solver: str) -> None:
    config = (DETERMINISTIC | STOCHASTIC)[name]
    flow = "flow" in config["_class_name"].lower() or config.get("use_flow_sigmas", False)
    if flow and solver == "ddim":
        with pytest.raises(InvalidRequest, match="use euler"):
            with_solver(config, solver)
        return
    swapped = with_solver(config, solver)
    spaced = config.get("use_karras_sigmas") or config.get("use_exponential_sigmas")
    if flow and spaced and solver in ("unipc", "dpm++2m"):
        with pytest.raises(InvalidRequest, match="where use_flow_sigmas is true"):
            read_scheduler_config(swapped)
        return
    specification = read_scheduler_config(swapped)
    assert specification.solver.name == solver
    compile_program(specification.solver, specification.schedule, 10, image_seq_len=1024)


@pytest.mark.parametrize(
    ("config", "solver", "facts"),
    [
        (WAN_21, "euler", {"shift": 3.0}),
        (WAN_21, "lcm", {"shift": 3.0}),
        (HUNYUAN_VIDEO, "dpm++2m", {"flow_shift": 7.0, "use_flow_sigmas": True}),
        (LTX, "heun", {"use_dynamic_shifting": True, "base_shift": 0.95, "shift_terminal": 0.1}),
        (COGVIDEOX_5B, "unipc", {"snr_shift_scale": 1.0, "rescale_betas_zero_snr": True}),
        (COGVIDEOX_5B, "ddim", {"prediction_type": "v_prediction", "clip_sample": False}),
        (HEUN, "euler", {"beta_start": 0.00085, "beta_end": 0.012}),
        (DPM | {"algorithm_type": "sde-dpmsolver++"}, "dpm++2m", {"algorithm_type": "dpmsolver++"}),
        (HUNYUAN_VIDEO | {"stochastic_sampling": True}, "euler", {"stochastic_sampling": False}),
    ],
)
def test_swapped_solver_keeps_the_facts_of_the_model(config: Config, solver: str, facts: dict[str, Any]) -> None:
    swapped = with_solver(config, solver)
    assert {key: swapped[key] for key in facts} == facts


def test_same_solver_keeps_its_own_settings() -> None:
    config = WAN_21 | {"solver_order": 3, "solver_type": "bh1"}
    assert with_solver(config, "unipc") == config


def test_swapping_does_not_hide_what_is_refused() -> None:
    swapped = with_solver(DPM_FLOW | {"thresholding": True}, "unipc")
    with pytest.raises(InvalidRequest, match="thresholding"):
        read_scheduler_config(swapped)
    with pytest.raises(InvalidRequest, match="clip_sample"):
        read_scheduler_config(with_solver(DDIM | {"clip_sample": True}, "ddim"))


def test_unknown_solver_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"'ddpm' is unknown; use one of euler, unipc"):
        with_solver(WAN_21, "ddpm")
