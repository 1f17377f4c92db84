"""What is known of diffusers' scheduler classes: their defaults and which options are supported."""

from __future__ import annotations

import math
from typing import Any

# What a class assumes for a key that its file leaves out. Facts of the model that a class of
# diffusers cannot express (a dynamic shift in Heun, say) are listed too, so that with_solver can
# carry them over.
_TRAINED = {"num_train_timesteps": 1000, "use_beta_sigmas": False}
_SPACED = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "final_sigmas_type": "zero"}
_SHIFTED = {
    "use_dynamic_shifting": False,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
    "time_shift_type": "exponential",
    "shift_terminal": None,
    "invert_sigmas": False,
}
_FLOW_MATCH = _TRAINED | _SPACED | _SHIFTED | {"shift": 1.0, "stochastic_sampling": False}
_DIFFUSION = _TRAINED | {
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
    "snr_shift_scale": 1.0,
    "thresholding": False,
}
_MULTISTEP = (
    _DIFFUSION
    | _SPACED
    | _SHIFTED
    | {"use_flow_sigmas": False, "flow_shift": 1.0, "solver_order": 2, "lower_order_final": True}
)
_K_DIFFUSION = _DIFFUSION | _SPACED | {"sigma_min": None, "sigma_max": None}
_DDIM = _DIFFUSION | {"timestep_spacing": "leading", "set_alpha_to_one": True, "clip_sample": True}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

# Class -> key -> default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "FlowMatchEulerDiscreteScheduler": _FLOW_MATCH,
    "FlowMatchHeunDiscreteScheduler": _FLOW_MATCH,
    "FlowMatchLCMScheduler": _FLOW_MATCH | {"scale_factors": None},
    "UniPCMultistepScheduler": _MULTISTEP
    | {"solver_type": "bh2", "disable_corrector": [], "predict_x0": True, "solver_p": None}
    | {"sigma_min": None, "sigma_max": None},
    "DPMSolverMultistepScheduler": _MULTISTEP
    | {"solver_type": "midpoint", "algorithm_type": "dpmsolver++", "euler_at_final": False}
    | {"use_lu_lambdas": False, "lambda_min_clipped": -math.inf, "variance_type": None},
    "EulerDiscreteScheduler": _K_DIFFUSION | {"interpolation_type": "linear", "timestep_type": "discrete"},
    "HeunDiscreteScheduler": _K_DIFFUSION | {"beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False},
    "DDIMScheduler": _DDIM,
    "CogVideoXDDIMScheduler": _DDIM | _LATENT | {"snr_shift_scale": 3.0},
    "CogVideoXDPMScheduler": _DDIM | _LATENT | {"snr_shift_scale": 3.0},
    "LCMScheduler": _DDIM | _LATENT | {"clip_sample": False, "original_inference_steps": 50, "timestep_scaling": 10.0},
}

# Key -> the values that are supported; other keys are free or checked where they are read.
SUPPORTED: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver++",),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "clip_sample": (False,),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear",),
    "invert_sigmas": (False,),
    "lambda_min_clipped": (-math.inf,),
    "predict_x0": (True,),
    "prediction_type": ("epsilon", "v_prediction", "sample", "flow_prediction"),
    "scale_factors": (None,),
    "sigma_max": (None,),
    "sigma_min": (None,),
    "solver_p": (None,),
    "solver_type": ("bh1", "bh2", "midpoint", "heun"),
    "thresholding": (False,),
    "time_shift_type": ("exponential", "linear"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "timestep_type": ("discrete",),
    "trained_betas": (None,),
    "use_beta_sigmas": (False,),
    "use_lu_lambdas": (False,),
    "variance_type": (None,),
}
# Without effect here, because what they tune is refused.
INERT = {"dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "upscale_mode"}

CLASS_OF_FLOW_SOLVER = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "heun": "FlowMatchHeunDiscreteScheduler",
    "lcm": "FlowMatchLCMScheduler",
}
CLASS_OF_DIFFUSION_SOLVER = {
    "euler": "EulerDiscreteScheduler",
    "unipc": "UniPCMultistepScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "heun": "HeunDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "lcm": "LCMScheduler",
}
SOLVERS = tuple(CLASS_OF_DIFFUSION_SOLVER)
# Settings of one solver that say nothing about another.
KEYS_OF_SOLVER = {
    "solver_type",
    "solver_order",
    "lower_order_final",
    "clip_sample",
    "stochastic_sampling",
}
