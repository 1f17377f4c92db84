"""How long a clip takes: for each operator class the larger of arithmetic and memory time, plus what neither explains.

The model (Williams et al. 2009, by operator class): a class takes max(FLOPs / achieved FLOP rate, bytes / achieved
bandwidth). The achieved rate of matrix products is bounded by the data sheet's peak and by the board's power.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.settings import Setting
from sora_runtime.cost.work import Load

BF16_BYTES = 2.0
_SMALL_HEAD = 64
_REFERENCE_W = 700.0
_POWER_EXPONENT = 0.7  # 1 at constant voltage, 1/3 where voltage follows the clock
_SHARPNESS = 4.0  # of the bend between two limits: at the corner a rate is 16% below both
_BYTES = {
    "fp8": 1.0,
    "int8": 1.0,
    "int8-weights": 1.0,
    "nvfp4": 0.56,
    "int4-weights": 0.56,
    "fp6-weights": 0.75,
    "fp32": 4.0,
}

Seconds = dict[str, float]  # by operator class, and "overhead", "communication"


@dataclass(frozen=True)
class Clip:
    """The work of one clip: what runs, how often."""

    tokens: int
    transformer: Load
    steps: int
    passes: int  # evaluations in each step: 2 with classifier-free guidance
    decoder: Load | None
    encoder: Load | None  # of the picture that a clip begins with
    conditioners: tuple[Load, ...]  # text and image encoders
    prompts: int  # texts encoded: 2 with a negative prompt
    width: int  # of the transformer, for what is communicated
    head: int  # channels of one attention head


def soft_min(a: float, b: float) -> float:
    """The smaller of two limits, with a bend where they meet."""
    return float((a**-_SHARPNESS + b**-_SHARPNESS) ** (-1.0 / _SHARPNESS))


def soft_max(a: float, b: float) -> float:
    """The larger of two times, with a bend where they meet."""
    return float((a**_SHARPNESS + b**_SHARPNESS) ** (1.0 / _SHARPNESS))


def weight_bytes(precision: str) -> float:
    """Bytes of one weight of the linear layers, scales included."""
    return _BYTES.get(precision, BF16_BYTES)


def matrix_rate(gpu: Gpu, rates: Mapping[str, float]) -> float:
    """FLOP/s that large bf16 matrix products reach: what the data sheet and the board's power allow."""
    architecture = gpu.architecture
    peak = gpu.peak("bf16") * rates["matrix"] * rates["matrix." + architecture]
    if gpu.tdp_w is None:
        return peak / rates["gpu." + gpu.id]
    # A board at less power runs at less voltage too, so its rate falls more slowly than its power.
    power = _REFERENCE_W / (rates["power." + architecture] * 1e-12) * (gpu.tdp_w / _REFERENCE_W) ** _POWER_EXPONENT
    return soft_min(peak, power) / rates["gpu." + gpu.id]


def linear_gain(gpu: Gpu, setting: Setting, rates: Mapping[str, float]) -> float:
    """How much faster than bf16 the linear layers run in the setting's precision."""
    precision = setting.precision
    if precision in {"bf16", "fp16"}:
        return 1.0
    if precision.endswith("-weights"):
        return rates["precision." + precision]
    ratio = gpu.peak(precision) / gpu.peak("bf16")
    eager = 1.0 if setting.compiled or precision == "fp32" else rates["quantise.eager"]
    return max(ratio * rates["precision." + precision], 0.1) * eager


def attention_rate(matrix: float, gpu: Gpu, setting: Setting, rates: Mapping[str, float], head: int = 128) -> float:
    """FLOP/s of attention beside `matrix` of matrix products, counted as if dense; sparse methods do a part of it."""
    kernel = setting.attention
    pair = rates[f"attention.pair.{kernel}.{gpu.architecture}"]
    rate = matrix * rates["attention." + kernel] * pair
    if head <= _SMALL_HEAD:
        rate *= rates["attention.head64"]
    if setting.attention_method:
        share = setting.attention_density / rates["sparse." + setting.attention_method]
        rate /= min(share, 1.0)
    return rate


def evaluation_seconds(
    work: Load, gpu: Gpu, setting: Setting, rates: Mapping[str, float], *, split: int = 1, head: int = 128
) -> Seconds:
    """GPU time of one evaluation by class, `split` GPUs sharing it evenly."""
    flops, elements = work.flops, work.elements
    bandwidth = gpu.bandwidth * rates["memory"] / rates["gpu." + gpu.id]
    matrix = matrix_rate(gpu, rates)
    fusion = rates["fusion.compiled" if setting.compiled else "fusion.eager"]
    weights = work.read * weight_bytes(setting.precision)
    engine = rates["engine." + setting.engine.name] * rates["split"] ** math.log2(split) / split
    seconds = {
        "linear": soft_max(
            flops["linear"] / (matrix * linear_gain(gpu, setting, rates)),
            (elements["linear"] * BF16_BYTES + weights) / bandwidth,
        ),
        "attention": soft_max(
            flops["attention"] / attention_rate(matrix, gpu, setting, rates, head),
            elements["attention"] * BF16_BYTES / bandwidth,
        ),
        "elementwise": elements["elementwise"] * BF16_BYTES * fusion / bandwidth,
    }
    if flops["convolution"]:
        rate = matrix * rates["convolution"] * rates["convolution." + gpu.architecture]
        seconds["convolution"] = soft_max(flops["convolution"] / rate, elements["convolution"] * BF16_BYTES / bandwidth)
    busy = {name: value * engine for name, value in seconds.items()}
    host = work.layers * rates["overhead.compiled" if setting.compiled else "overhead.eager"]
    total = sum(busy.values())
    busy["overhead"] = soft_max(total, host) - total  # kernels are queued ahead: only the excess is seen
    return busy


def communication_seconds(clip: Clip, gpu: Gpu, setting: Setting, rates: Mapping[str, float]) -> float:
    """Of one evaluation: all-to-alls (Ulysses), a ring of keys and values, or all-reduces (tensor parallel).

    Volumes by layer of N tokens and width d in bf16: Ulysses 4 N d / n (arXiv 2309.14509), ring 2 N d of which all
    but the first part hides behind the attention (arXiv 2310.01889), tensor parallel 2 all-reduces of N d.
    """
    plan = setting.parallelism
    sequence = plan.ulysses * plan.ring
    if sequence * plan.tensor == 1:
        return 0.0
    bandwidth = gpu.link_bandwidth * rates["link." + gpu.link]
    activations = clip.tokens * clip.width * BF16_BYTES
    volume, calls = 0.0, 0
    if plan.ulysses > 1:
        volume += 4.0 * activations / sequence * (plan.ulysses - 1) / plan.ulysses
        calls += 4
    if plan.ring > 1:
        volume += 2.0 * activations / sequence
        calls += 2 * (plan.ring - 1)
    if plan.tensor > 1:
        volume += 2.0 * 2.0 * activations / sequence * (plan.tensor - 1) / plan.tensor
        calls += 4
    return clip.transformer.layers * (volume / bandwidth + calls * rates["collective"])


def evaluated_share(setting: Setting, rates: Mapping[str, float]) -> float:
    """The share of steps whose transformer runs; the rest reuse an earlier one."""
    if not setting.reuse:
        return 1.0
    if setting.reuse_share is not None:
        return 1.0 - setting.reuse_share
    share = rates["reuse." + setting.reuse]
    if setting.reuse == "teacache" and setting.reuse_threshold:
        share *= (setting.reuse_threshold / 0.15) ** -math.log(rates["reuse.slope"])
    return min(share, 1.0)


def denoise_seconds(clip: Clip, gpu: Gpu, setting: Setting, rates: Mapping[str, float]) -> Seconds:
    """All steps: GPU time by class, overhead and communication."""
    plan = setting.parallelism
    split = plan.ulysses * plan.ring * plan.tensor
    one = evaluation_seconds(clip.transformer, gpu, setting, rates, split=split, head=clip.head)
    one["communication"] = communication_seconds(clip, gpu, setting, rates)
    passes = math.ceil(clip.passes / plan.cfg)
    evaluations = clip.steps * passes * evaluated_share(setting, rates)
    seconds = {name: value * evaluations for name, value in one.items()}
    if setting.offload == "block":
        weights = clip.transformer.read * weight_bytes(setting.precision)
        streaming = weights / (rates["offload.block"] * 1e9) * clip.steps
        busy = sum(seconds.values())
        seconds["offload"] = soft_max(busy, streaming) - busy
    return seconds


def clip_seconds(clip: Clip, gpu: Gpu, setting: Setting, rates: Mapping[str, float]) -> dict[str, Seconds]:
    """Wall seconds of every stage of a clip by class; their sum is the clip.

    Stages: text_encode, image_encode, denoise, vae_decode and clip (all that no network does).
    """
    plain = _plain(setting)
    stages: dict[str, Seconds] = {"text_encode": {}, "image_encode": {}}
    for work in clip.conditioners:
        _add(stages["text_encode"], evaluation_seconds(work, gpu, plain, rates), clip.prompts)
    if clip.encoder is not None:
        _add(stages["image_encode"], evaluation_seconds(clip.encoder, gpu, plain, rates), 1)
    stages["denoise"] = denoise_seconds(clip, gpu, setting, rates)
    stages["vae_decode"] = {}
    if clip.decoder is not None:
        split = setting.parallelism.gpus if setting.parallelism.vae else 1
        decode = evaluation_seconds(clip.decoder, gpu, plain, rates, split=split)
        _add(stages["vae_decode"], decode, 0.1 if setting.small_decoder else 1)
    stages["clip"] = {"overhead": rates["clip"] * rates["clip." + setting.engine.name]}
    weights = clip.transformer.parameters + sum(work.parameters for work in clip.conditioners)
    if setting.offload == "model":
        stages["clip"]["offload"] = weights * BF16_BYTES / (rates["offload.model"] * 1e9)
    if setting.loads:
        stages["clip"]["load"] = weights * BF16_BYTES / (rates["load"] * 1e9)
    return stages


def stage_work(clip: Clip) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
    """FLOPs and bytes (bf16 activations, weights once an evaluation) of every stage of a clip by operator class."""
    stages: dict[str, tuple[dict[str, float], dict[str, float]]] = {}

    def add(stage: str, work: Load, times: float) -> None:
        flops, moved = stages.setdefault(stage, ({}, {}))
        for name, value in work.flops.items():
            weights = work.read if name == "linear" else 0.0
            flops[name] = flops.get(name, 0.0) + value * times
            moved[name] = moved.get(name, 0.0) + (work.elements[name] + weights) * BF16_BYTES * times

    for work in clip.conditioners:
        add("text_encode", work, clip.prompts)
    if clip.encoder is not None:
        add("image_encode", clip.encoder, 1)
    add("denoise", clip.transformer, clip.steps * clip.passes)
    if clip.decoder is not None:
        add("vae_decode", clip.decoder, 1)
    return stages


def limit_seconds(clip: Clip, gpu: Gpu, precision: str, gpus: int) -> float:
    """The clip at the data sheet: each class of each stage at the larger of FLOPs / peak and bytes / bandwidth.

    Elementwise work is taken as free: a perfect compiler hides it inside the others.
    """
    total = 0.0
    for stage, (flops, moved) in stage_work(clip).items():
        for name in ("linear", "attention", "convolution"):
            own = (
                precision if stage == "denoise" and name == "linear" and not precision.endswith("-weights") else "bf16"
            )
            total += max(flops[name] / gpu.peak(own), moved[name] / gpu.bandwidth if name != "convolution" else 0.0)
    return total / gpus


@lru_cache(maxsize=1024)
def _plain(setting: Setting) -> Setting:
    """The setting of encoders and VAE: bf16 and eager, whatever the transformer is."""
    attention = "cpu" if setting.attention == "cpu" else "fa2"
    precision = setting.precision if setting.precision == "fp32" else "bf16"
    return replace(setting, precision=precision, attention=attention, attention_method="", attention_density=1.0)


def _add(total: Seconds, part: Seconds, times: float) -> None:
    for name, value in part.items():
        total[name] = total.get(name, 0.0) + value * times
