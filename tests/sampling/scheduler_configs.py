"""scheduler_config.json of released video models, and variations that cover each option."""

from typing import Any

Config = dict[str, Any]

WAN_21: Config = {
    "_class_name": "UniPCMultistepScheduler",
    "_diffusers_version": "0.33.0.dev0",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "disable_corrector": [],
    "dynamic_thresholding_ratio": 0.995,
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "solver_order": 2,
    "solver_p": None,
    "solver_type": "bh2",
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "linspace",
    "trained_betas": None,
    "use_beta_sigmas": False,
    "use_exponential_sigmas": False,
    "use_flow_sigmas": True,
    "use_karras_sigmas": False,
}
WAN_22_A14B = WAN_21 | {"time_shift_type": "exponential", "use_dynamic_shifting": False}
WAN_22_5B = WAN_22_A14B | {"flow_shift": 5.0}

LTX: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "_diffusers_version": "0.32.0.dev0",
    "base_image_seq_len": 1024,
    "base_shift": 0.95,
    "invert_sigmas": False,
    "max_image_seq_len": 4096,
    "max_shift": 2.05,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.1,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
HUNYUAN_VIDEO: Config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 7.0,
    "use_dynamic_shifting": False,
}
COGVIDEOX_2B: Config = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}
COGVIDEOX_5B = COGVIDEOX_2B | {"_class_name": "CogVideoXDPMScheduler", "snr_shift_scale": 1.0}

FLOW_EULER: Config = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
FLOW_HEUN: Config = {"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}
FLOW_LCM: Config = {"_class_name": "FlowMatchLCMScheduler", "shift": 3.0}
UNIPC: Config = {"_class_name": "UniPCMultistepScheduler"}
DPM: Config = {"_class_name": "DPMSolverMultistepScheduler"}
DPM_FLOW = DPM | {
    "use_flow_sigmas": True,
    "prediction_type": "flow_prediction",
    "flow_shift": 3.0,
}
EULER: Config = {"_class_name": "EulerDiscreteScheduler"}
HEUN: Config = {"_class_name": "HeunDiscreteScheduler"}
DDIM: Config = {"_class_name": "DDIMScheduler", "clip_sample": False}
LCM: Config = {"_class_name": "LCMScheduler"}
SCALED: Config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = SCALED | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}

DETERMINISTIC: dict[str, Config] = {
    "wan2.1": WAN_21,
    "wan2.2-a14b": WAN_22_A14B,
    "wan2.2-5b": WAN_22_5B,
    "ltx": LTX,
    "hunyuan-video": HUNYUAN_VIDEO,
    "cogvideox-2b": COGVIDEOX_2B,
    "flow-euler": FLOW_EULER,
    "flow-euler-karras": HUNYUAN_VIDEO | {"use_karras_sigmas": True},
    "flow-euler-exponential": FLOW_EULER | {"use_exponential_sigmas": True},
    "flow-euler-linear-mu": LTX | {"time_shift_type": "linear", "shift_terminal": None},
    "flow-heun": FLOW_HEUN,
    "unipc-flow-1": WAN_21 | {"solver_order": 1},
    "unipc-flow-3": WAN_21 | {"solver_order": 3},
    "unipc-flow-no-corrector": WAN_21 | {"disable_corrector": [0, 1, 3]},
    "unipc-flow-dynamic": WAN_21 | {"use_dynamic_shifting": True, "shift_terminal": 0.1},
    "unipc-epsilon": UNIPC,
    "unipc-v-zero-snr": UNIPC | ZERO_SNR,
    "unipc-sample-leading": UNIPC | {"prediction_type": "sample", "timestep_spacing": "leading", "steps_offset": 1},
    "unipc-sigma-min": UNIPC | {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    # diffusers' bh1 is NaN where the final sigma is 0.
    "unipc-bh1": UNIPC | {"final_sigmas_type": "sigma_min", "solver_type": "bh1"},
    "unipc-bh1-3": UNIPC | {"final_sigmas_type": "sigma_min", "solver_type": "bh1", "solver_order": 3},
    "unipc-karras": UNIPC | SCALED | {"use_karras_sigmas": True},
    "unipc-exponential-3": UNIPC | SCALED | {"use_exponential_sigmas": True, "solver_order": 3},
    "dpm-flow": DPM_FLOW,
    "dpm-flow-heun": DPM_FLOW | {"solver_type": "heun", "lower_order_final": False},
    "dpm-flow-1": DPM_FLOW | {"solver_order": 1},
    "dpm-epsilon": DPM,
    "dpm-v-zero-snr": DPM | ZERO_SNR,
    "dpm-sample-cosine": DPM | {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    "dpm-sigma-min": DPM | {"final_sigmas_type": "sigma_min", "lower_order_final": False},
    "dpm-lower-order-final": DPM | {"final_sigmas_type": "sigma_min"},
    "dpm-euler-at-final": DPM | {"final_sigmas_type": "sigma_min", "euler_at_final": True},
    "dpm-karras": DPM | SCALED | {"use_karras_sigmas": True},
    "dpm-exponential": DPM | SCALED | {"use_exponential_sigmas": True},
    "euler-epsilon": EULER,
    "euler-leading": EULER | SCALED | {"timestep_spacing": "leading", "steps_offset": 1},
    "euler-v-zero-snr": EULER | ZERO_SNR,
    "euler-karras": EULER | SCALED | {"use_karras_sigmas": True},
    "euler-exponential": EULER | SCALED | {"use_exponential_sigmas": True},
    "euler-sigma-min": EULER | {"final_sigmas_type": "sigma_min", "prediction_type": "sample"},
    "heun-epsilon": HEUN,
    "heun-v-karras": HEUN | {"prediction_type": "v_prediction", "use_karras_sigmas": True},
    "ddim-epsilon": DDIM,
    "ddim-v-zero-snr": DDIM | ZERO_SNR,
    "ddim-sample": DDIM | {"prediction_type": "sample", "set_alpha_to_one": False},
    "ddim-linspace": DDIM | {"timestep_spacing": "linspace", "steps_offset": 1},
    "ddim-leading": DDIM | SCALED | {"steps_offset": 1, "set_alpha_to_one": False},
}

STOCHASTIC: dict[str, Config] = {
    "cogvideox-5b": COGVIDEOX_5B,
    "flow-lcm": FLOW_LCM,
    "flow-euler-stochastic": HUNYUAN_VIDEO | {"stochastic_sampling": True},
    "lcm-epsilon": LCM,
    "lcm-v": LCM | {"prediction_type": "v_prediction", "timestep_scaling": 5.0},
}
