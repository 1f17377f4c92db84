"""A time as a distribution: the roofline's value, and how far it may be off from what the rates do not know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.rates import Fit, Recorder
from sora_runtime.cost.roofline import Clip, Seconds, clip_seconds
from sora_runtime.cost.settings import Setting

Z90 = 1.2815515655446004  # the 90% point of a standard normal
_STEP = 1e-4
_STAGE = {"denoise_only": "denoise", "per_step": "denoise"}
# Relative widths of what a row or a request leaves unsaid.
ASSUMED_SPREAD = {"attention": 0.25, "steps": 0.30, "frames": 0.15, "width": 0.20, "height": 0.20, "precision": 0.05}


# How much a part of a clip varies from one installation to the next, whatever the rates (relative): what is counted
# as the clip, how the decoder tiles and in which dtype it runs, what overlaps. A stage, or a class of the denoising.
PART_SPREAD = {
    "clip": 0.9,
    "text_encode": 0.5,
    "image_encode": 0.5,
    "vae_decode": 0.4,
    "overhead": 0.7,
    "communication": 0.4,
    "offload": 0.6,
    "load": 0.5,
    "elementwise": 0.25,
}

# Of a clip that several GPUs share, for each doubling of their number: what waits for what is seldom stated.
SPLIT_SPREAD = 0.08


@cache
def part_of(stage: str, name: str) -> str:
    """The part of a clip that a class of a stage belongs to; "" varies with the rates alone."""
    if stage == "denoise" or name in {"offload", "load"}:
        return name if name in PART_SPREAD else ""
    return stage


def part_seconds(stages: Mapping[str, Seconds], scope: str, steps: int) -> dict[str, float]:
    """A scope's seconds by part."""
    parts: dict[str, float] = {}
    for stage, seconds in stages.items():
        if scope not in {"end_to_end", stage} and _STAGE.get(scope) != stage:
            continue
        for name, value in seconds.items():
            part = part_of(stage, name)
            parts[part] = parts.get(part, 0.0) + (value / steps if scope == "per_step" else value)
    return parts


def part_variance(parts: Mapping[str, float]) -> float:
    """Of the logarithm of a time, from its parts' own spreads."""
    total = sum(parts.values())
    return sum((value / total * PART_SPREAD[part]) ** 2 for part, value in parts.items() if part)


@dataclass(frozen=True)
class Prediction:
    """Seconds at the tenth, fiftieth and ninetieth percentile, and where the median comes from."""

    p10: float
    p50: float
    p90: float
    stages: dict[str, Seconds]
    reasons: tuple[str, ...]  # why the band is wide

    @property
    def spread(self) -> float:
        """Standard deviation of the logarithm."""
        return math.log(self.p90 / self.p50) / Z90


def median_and_gradient(
    clip: Clip,
    gpu: Gpu,
    setting: Setting,
    rates: Mapping[str, float],
    scope: str,
    factors: Mapping[str, float] | None = None,
) -> tuple[float, dict[str, float], dict[str, Seconds]]:
    """Seconds, d log(seconds) / d log(parameter) for every parameter that matters, and the stages.

    `factors` multiply parts of the clip: what one installation is known to do differently.
    """

    def seconds_at(values: Mapping[str, float]) -> tuple[float, dict[str, Seconds]]:
        stages = clip_seconds(clip, gpu, setting, values)
        parts = part_seconds(stages, scope, clip.steps)
        return sum(value * (factors or {}).get(part, 1.0) for part, value in parts.items()), stages

    recorder = Recorder(rates)
    seconds, stages = seconds_at(recorder)
    values = {name: rates[name] for name in recorder.asked}  # plain, for it is read thousands of times
    gradient = {}
    for name, value in list(values.items()):
        values[name] = value * (1.0 + _STEP)
        changed, _ = seconds_at(values)
        values[name] = value
        slope = math.log(changed / seconds) / math.log1p(_STEP)
        if slope:
            gradient[name] = slope
    return seconds, gradient, stages


def predict(
    clip: Clip, gpu: Gpu, setting: Setting, fit: Fit, *, scope: str = "end_to_end", assumed: tuple[str, ...] = ()
) -> Prediction:
    """The distribution of the seconds that a scope takes."""
    rates = fit.rates()
    seconds, gradient, stages = median_and_gradient(clip, gpu, setting, rates, scope)
    variance = fit.variance(gradient) + fit.source_spread**2 + fit.row_spread**2
    parts = part_seconds(stages, scope, clip.steps)
    variance += part_variance(parts) + (SPLIT_SPREAD * math.log2(setting.parallelism.gpus)) ** 2
    for name in assumed:
        variance += (ASSUMED_SPREAD[name] * _weight(name, stages, sum(parts.values()))) ** 2
    factor = math.exp(Z90 * math.sqrt(variance))
    return Prediction(seconds / factor, seconds, seconds * factor, stages, ())


def _weight(name: str, stages: Mapping[str, Seconds], total: float) -> float:
    """How much of the time an unsaid input decides."""
    return min(stages["denoise"].get("attention", 0.0) / total, 1.0) if name == "attention" else 1.0
