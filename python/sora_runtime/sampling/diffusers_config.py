"""Reads diffusers' scheduler_config.json: which solver on which schedule, or a refusal by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sora_runtime.errors import InvalidRequest
from sora_runtime.sampling.diffusers_schedulers import (
    CLASS_OF_DIFFUSION_SOLVER,
    CLASS_OF_FLOW_SOLVER,
    DEFAULTS,
    INERT,
    KEYS_OF_SOLVER,
    SOLVERS,
    SUPPORTED,
)
from sora_runtime.sampling.grids import DiffusionSchedule, FlowSchedule
from sora_runtime.sampling.schedules import Betas, DynamicShift, SigmaSpacing
from sora_runtime.sampling.solvers import (
    DDIM,
    LCM,
    DPMSolverPP,
    Euler,
    Heun,
    Solver,
    StochasticDPMSolverPP,
)
from sora_runtime.sampling.unipc import UniPC

Config = Mapping[str, Any]


@dataclass(frozen=True)
class SamplerSpecification:
    """What a scheduler_config.json asks for; the two arguments of ``compile_program``."""

    solver: Solver
    schedule: FlowSchedule | DiffusionSchedule


def read_scheduler_config(config: Config) -> SamplerSpecification:
    """Map the contents of a scheduler_config.json of diffusers to a solver and a schedule.

    Args:
        config: the parsed file.

    Raises:
        InvalidRequest: a class or an option that is not supported, by its name.
    """
    name, settings = _checked(config)
    if _is_flow(settings):
        return SamplerSpecification(_solver(name, settings), _flow_schedule(name, settings))
    return SamplerSpecification(_solver(name, settings), _diffusion_schedule(name, settings))


def with_solver(config: Config, solver: str) -> dict[str, Any]:
    """Return a scheduler_config for another solver on the same model.

    As ``Scheduler.from_config(pipe.scheduler.config)`` of diffusers, but facts of the model that
    the other class spells differently or does not know (shift, dynamic shift, SNR shift) stay.

    Args:
        config: the parsed scheduler_config.json of the model.
        solver: one of ``SOLVERS``.

    Raises:
        InvalidRequest: an unknown solver, or one that does not apply to the model.
    """
    if solver not in SOLVERS:
        raise InvalidRequest(f"solver {solver!r} is unknown; use one of {', '.join(SOLVERS)}")
    name, settings = _settings(config)
    flow = _is_flow(settings)
    if flow and solver == "ddim":
        raise InvalidRequest("solver ddim on a flow-matching model is the Euler step; use euler")
    target = (CLASS_OF_FLOW_SOLVER if flow else CLASS_OF_DIFFUSION_SOLVER)[solver]
    forced = {"algorithm_type": "dpmsolver++", "stochastic_sampling": False, "_class_name": target}
    keys = {*DEFAULTS[target], "_class_name"}
    if name == target:
        return {**config, **{key: forced[key] for key in keys & set(forced)}}
    forced |= {"clip_sample": False, "use_flow_sigmas": flow}
    if flow:
        shift = settings.get("flow_shift", settings.get("shift"))
        forced |= {"shift": shift, "flow_shift": shift, "prediction_type": "flow_prediction"}
    facts = {key: value for key, value in settings.items() if key not in KEYS_OF_SOLVER} | forced
    return {key: value for key, value in facts.items() if key in keys}


def _settings(config: Config) -> tuple[str, dict[str, Any]]:
    name = config.get("_class_name")
    if name not in DEFAULTS:
        raise InvalidRequest(
            f"scheduler class {name!r} is not supported; choose a solver for the model with "
            f"a scheduler_config.json of one of {', '.join(DEFAULTS)}"
        )
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    return str(name), DEFAULTS[str(name)] | given


def _checked(config: Config) -> tuple[str, dict[str, Any]]:
    name, settings = _settings(config)
    for key, value in settings.items():
        if key in SUPPORTED:
            if value not in SUPPORTED[key]:
                allowed = " or ".join(str(choice) for choice in SUPPORTED[key])
                _refuse(name, key, value, f"set it to {allowed}, or choose another solver")
        elif key not in DEFAULTS[name] and key not in INERT and value not in (None, False):
            _refuse(name, key, value, "remove it from scheduler_config.json")
        default = DEFAULTS[name].get(key)
        if type(default) in (int, float) and not isinstance(value, float | int):
            _refuse(name, key, value, f"use a number such as {default}")
    _check_combinations(name, settings)
    return name, settings


def _check_combinations(name: str, settings: Config) -> None:
    spaced = [key for key in ("use_karras_sigmas", "use_exponential_sigmas") if settings.get(key)]
    flow_in_multistep = settings.get("use_flow_sigmas")
    if len(spaced) == 2:
        _refuse(name, spaced[1], True, f"set it or {spaced[0]} to false")
    if spaced and flow_in_multistep:
        _refuse(name, spaced[0], True, "set it to false where use_flow_sigmas is true")
    if spaced and settings.get("beta_schedule") == "squaredcos_cap_v2":
        _refuse(name, spaced[0], True, "set it to false where beta_schedule is squaredcos_cap_v2")
    if _is_flow(settings) and settings["final_sigmas_type"] != "zero":
        _refuse(name, "final_sigmas_type", "sigma_min", "set it to zero for a flow model")
    if not _is_flow(settings) and settings["prediction_type"] == "flow_prediction":
        _refuse(name, "prediction_type", "flow_prediction", "set use_flow_sigmas to true")
    if name == "CogVideoXDPMScheduler" and not settings["set_alpha_to_one"]:
        _refuse(name, "set_alpha_to_one", False, "set it to true, or choose solver ddim")


def _refuse(name: str, key: str, value: Any, remedy: str) -> None:
    raise InvalidRequest(f"{key} = {value!r} of {name} is not supported; {remedy}")


def _is_flow(settings: Config) -> bool:
    return bool(settings.get("use_flow_sigmas", "shift" in settings))


def _solver(name: str, settings: Config) -> Solver:
    prediction = settings.get("prediction_type", "flow_prediction")
    if name == "UniPCMultistepScheduler":
        # diffusers maps the other family's solver types to its own default.
        bh1 = settings["solver_type"] == "bh1"
        return UniPC(
            prediction_type=prediction,
            order=settings["solver_order"],
            solver_type="bh1" if bh1 else "bh2",
            lower_order_final=settings["lower_order_final"],
            disable_corrector=tuple(settings["disable_corrector"]),
        )
    if name == "DPMSolverMultistepScheduler":
        return DPMSolverPP(
            prediction_type=prediction,
            order=settings["solver_order"],
            solver_type="heun" if settings["solver_type"] == "heun" else "midpoint",
            lower_order_final=settings["lower_order_final"],
            euler_at_final=settings["euler_at_final"],
        )
    if name == "CogVideoXDPMScheduler":
        return StochasticDPMSolverPP(prediction_type=prediction)
    if name in ("DDIMScheduler", "CogVideoXDDIMScheduler"):
        return DDIM(prediction_type=prediction)
    if "LCM" in name or settings.get("stochastic_sampling"):
        return LCM(prediction, timestep_scaling=settings.get("timestep_scaling"))
    return Heun(prediction) if "Heun" in name else Euler(prediction)


def _spacing(settings: Config) -> SigmaSpacing:
    if settings.get("use_karras_sigmas"):
        return "karras"
    return "exponential" if settings.get("use_exponential_sigmas") else "timesteps"


def _flow_schedule(name: str, settings: Config) -> FlowSchedule:
    dynamic = None
    if settings["use_dynamic_shifting"]:
        dynamic = DynamicShift(
            base_shift=settings["base_shift"],
            max_shift=settings["max_shift"],
            base_image_seq_len=settings["base_image_seq_len"],
            max_image_seq_len=settings["max_image_seq_len"],
            time_shift_type=settings["time_shift_type"],
        )
    unipc, dpm = name == "UniPCMultistepScheduler", name == "DPMSolverMultistepScheduler"
    return FlowSchedule(
        shift=settings["flow_shift"] if unipc or dpm else settings["shift"],
        dynamic_shift=dynamic,
        shift_terminal=settings["shift_terminal"],
        spacing=_spacing(settings),
        grid="unipc" if unipc else "dpm" if dpm else "flow_match",
        max_sigma=1.0 - 1e-6 if unipc else 1.0,
        integer_timesteps=unipc or dpm,
        num_train_timesteps=settings["num_train_timesteps"],
    )


def _diffusion_schedule(name: str, settings: Config) -> DiffusionSchedule:
    final = settings.get("final_sigmas_type", "zero")
    grid = "multistep"
    if name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler"):
        grid = "k_diffusion"
    elif name == "LCMScheduler":
        grid = "lcm"
    elif "set_alpha_to_one" in DEFAULTS[name]:
        grid, final = "ddim", "zero" if settings["set_alpha_to_one"] else "sigma_min"
    return DiffusionSchedule(
        betas=Betas(
            num_train_timesteps=settings["num_train_timesteps"],
            start=settings["beta_start"],
            end=settings["beta_end"],
            schedule=settings["beta_schedule"],
            zero_terminal_snr=settings["rescale_betas_zero_snr"],
            snr_shift_scale=settings["snr_shift_scale"],
        ),
        grid=grid,  # type: ignore[arg-type]
        timestep_spacing=settings["timestep_spacing"],
        steps_offset=settings["steps_offset"],
        spacing=_spacing(settings),
        final_sigma=final,
        original_inference_steps=settings.get("original_inference_steps", 50),
    )
