"""The few noise levels that a distilled model is made for, as defaults of its bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sora_export.checkpoint import Checkpoint
from sora_runtime.errors import InvalidRequest

FewStep = Mapping[str, Any]
"""`sigmas` before the shift, `shift`, `solver`: "few_step" of bundle.json's facts."""

SOLVERS = ("euler", "lcm", "unipc", "dpm++2m", "heun")
"""Those of the runtime that step from one flow sigma to the next; lcm denoises and adds fresh noise."""
_QUARTERS = (1.0, 0.75, 0.5, 0.25)

PRESETS: Mapping[str, FewStep] = {
    # LightX2V, models/schedulers/wan/step_distill/scheduler.py: denoising_step_list 1000, 750, 500, 250 at
    # sample_shift 5; Wan 2.1 is renoised between steps (WanStepDistillScheduler), Wan 2.2 takes Euler's steps.
    "wan2.1-4": {"sigmas": _QUARTERS, "shift": 5.0, "solver": "lcm"},
    "wan2.2-4": {"sigmas": _QUARTERS, "shift": 5.0, "solver": "euler"},
    # FastVideo, pipelines/stages/denoising_dmd_strategy.py: dmd_denoising_steps 1000, 757, 522, which are levels
    # as they are. It takes the nearest of its scheduler's 1000 sigmas, at most 0.0012 away (shift 8).
    "fastwan-3": {"sigmas": (1.0, 0.757, 0.522), "shift": 1.0, "solver": "lcm"},
    # The `allowed_inference_steps` of LTX-Video's distilled checkpoints 0.9.7 and 0.9.8, without any shift.
    "ltx-8": {
        "sigmas": (1.0, 0.9937, 0.9875, 0.9812, 0.975, 0.9094, 0.725, 0.4219),
        "shift": 1.0,
        "solver": "euler",
    },
}


def parse_few_step(text: str) -> FewStep:
    """The levels that `PRESET` or `[SOLVER:]SIGMA[,SIGMA...]` names; sigmas are taken as they are, unshifted.

    Raises:
        InvalidRequest: It is neither, or the sigmas do not descend from 1 to above 0.
    """
    if text in PRESETS:
        return PRESETS[text]
    before, colon, after = text.partition(":")
    solver, levels = (before.strip(), after) if colon else ("euler", text)
    if solver not in SOLVERS:
        raise InvalidRequest(f"few-step solver {solver!r} is unknown; use one of {', '.join(SOLVERS)}")
    try:
        sigmas = tuple(float(level) for level in levels.split(","))
    except ValueError:
        known = ", ".join(PRESETS)
        raise InvalidRequest(f"few-step '{text}' is no preset and no list of sigmas; use {known} or 1.0,0.5") from None
    falling = all(later < earlier for earlier, later in zip(sigmas, sigmas[1:], strict=False))
    if not falling or not (sigmas[-1] > 0 and sigmas[0] <= 1):
        raise InvalidRequest(
            f"few-step sigmas {list(sigmas)} do not descend within (0, 1]; "
            "order them from noise to data, without the final 0"
        )
    return {"sigmas": sigmas, "shift": 1.0, "solver": solver}


def with_few_step(facts: Mapping[str, Any], few_step: FewStep | None, checkpoint: Checkpoint) -> dict[str, Any]:
    """The facts with the levels as defaults: as many steps, and no guidance, which is distilled into the weights.

    An embedded guidance scale is an input of the distilled network and stays.

    Raises:
        InvalidRequest: The model is not of flow matching.
    """
    if few_step is None:
        return {**facts, "few_step": None}
    scheduler = checkpoint.json("scheduler/scheduler_config.json")
    flow = str(scheduler.get("_class_name")).startswith("FlowMatch") or scheduler.get("use_flow_sigmas")
    if not flow:
        raise InvalidRequest(
            f"few-step sigmas are for flow matching, and {checkpoint.root} has a {scheduler.get('_class_name')}; "
            "give timesteps with each request instead"
        )
    guidance = {} if facts.get("embedded_guidance") else {"guidance_scale": 1.0}
    defaults = {**facts["defaults"], "num_inference_steps": len(few_step["sigmas"]), **guidance}
    return {**facts, "few_step": {**few_step, "sigmas": list(few_step["sigmas"])}, "defaults": defaults}
