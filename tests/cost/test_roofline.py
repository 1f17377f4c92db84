"""The roofline: limits, splits, reuse, and the predictions' bands."""

import dataclasses
import math

import pytest

from sora_runtime.cost import predict, rates, roofline
from sora_runtime.cost.clips import Shape, clip_of
from sora_runtime.cost.hardware import find_gpu
from sora_runtime.cost.models import load_model
from sora_runtime.cost.roofline import Clip
from sora_runtime.cost.settings import ENGINE_BY_NAME, Parallelism, Setting

PRIORS = rates.Rates()
VLLM = Setting(engine=ENGINE_BY_NAME["vllm-omni"], compiled=True, attention="fa3", attention_stated=True)


def wan(frames: int = 81, steps: int = 50, **shape: bool) -> Clip:
    _, clip = clip_of(
        load_model("wan2.1-t2v-14b"), Shape(1280, 720, frames, steps, guided=shape.pop("guided", True), **shape)
    )
    return clip


def total(clip: Clip, gpu: str = "h100-sxm", setting: Setting = VLLM) -> float:
    stages = roofline.clip_seconds(clip, find_gpu(gpu), setting, PRIORS)
    return sum(sum(stage.values()) for stage in stages.values())


def test_soft_limits_are_near_the_smaller_and_the_larger() -> None:
    assert roofline.soft_min(1.0, 100.0) == pytest.approx(1.0, rel=1e-6)
    assert roofline.soft_max(1.0, 100.0) == pytest.approx(100.0, rel=1e-6)
    assert roofline.soft_min(1.0, 1.0) == pytest.approx(2 ** (-1 / 4))


def test_no_gpu_is_faster_than_its_data_sheet() -> None:
    clip = wan()
    for name in ("a100-80gb", "h100-sxm", "h20", "b200", "rtx-4090", "rtx-pro-6000", "mi300x"):
        gpu = find_gpu(name)
        assert roofline.matrix_rate(gpu, PRIORS) < gpu.peak("bf16")
        assert roofline.limit_seconds(clip, gpu, "bf16", 1) < total(clip, name)


def test_power_limits_the_card_with_the_same_chip_and_less_power() -> None:
    """H100 NVL has 84% of the SXM's peak and 57% of its power: its rate lies between the two shares."""
    share = roofline.matrix_rate(find_gpu("h100-nvl"), PRIORS) / roofline.matrix_rate(find_gpu("h100-sxm"), PRIORS)
    assert 400 / 700 < share < 835 / 989.4


def test_denoising_is_linear_in_steps_and_evaluations() -> None:
    once = roofline.denoise_seconds(wan(steps=10), find_gpu("h100"), VLLM, PRIORS)
    twice = roofline.denoise_seconds(wan(steps=20), find_gpu("h100"), VLLM, PRIORS)
    unguided = roofline.denoise_seconds(wan(steps=20, guided=False), find_gpu("h100"), VLLM, PRIORS)
    assert sum(twice.values()) == pytest.approx(2 * sum(once.values()), rel=1e-12)
    assert sum(unguided.values()) == pytest.approx(sum(once.values()), rel=1e-12)


def test_reused_steps_cost_nothing_and_the_rest_is_unchanged() -> None:
    reuse = dataclasses.replace(VLLM, reuse="stated", reuse_share=0.25)
    whole = roofline.clip_seconds(wan(), find_gpu("h100"), VLLM, PRIORS)
    less = roofline.clip_seconds(wan(), find_gpu("h100"), reuse, PRIORS)
    assert sum(less["denoise"].values()) == pytest.approx(0.75 * sum(whole["denoise"].values()))
    assert less["vae_decode"] == whole["vae_decode"]


def test_fp8_speeds_up_linear_layers_alone() -> None:
    fp8 = dataclasses.replace(VLLM, precision="fp8")
    gpu = find_gpu("h100")
    plain = roofline.denoise_seconds(wan(), gpu, VLLM, PRIORS)
    quantised = roofline.denoise_seconds(wan(), gpu, fp8, PRIORS)
    assert quantised["attention"] == plain["attention"]
    assert 1.3 < plain["linear"] / quantised["linear"] < 2.0


def test_a_clip_over_eight_gpus_is_faster_and_costs_more_gpu_seconds() -> None:
    eight = dataclasses.replace(VLLM, parallelism=Parallelism(cfg=2, ulysses=4))
    one = total(wan())
    shared = total(wan(), setting=eight)
    assert one / 8 < shared < one / 4


def test_pcie_makes_splitting_dearer_than_nvlink() -> None:
    four = dataclasses.replace(VLLM, parallelism=Parallelism(ulysses=4))
    clip = wan()
    nvlink = roofline.communication_seconds(clip, find_gpu("h100-sxm"), four, PRIORS)
    pcie = roofline.communication_seconds(clip, find_gpu("h100-pcie"), four, PRIORS)
    assert pcie > 3 * nvlink > 0
    assert roofline.communication_seconds(clip, find_gpu("h100-sxm"), VLLM, PRIORS) == 0.0


def test_ulysses_volume_is_four_sequences_over_the_group() -> None:
    """By hand: 4 all-to-alls of N d / n bf16 values, of which (n - 1) / n leave the GPU, and 4 starts a layer."""
    clip, gpu = wan(), find_gpu("h100-sxm")
    setting = dataclasses.replace(VLLM, parallelism=Parallelism(ulysses=4))
    volume = 4 * 75_600 * 5120 * 2 / 4 * 3 / 4
    by_hand = 40 * (volume / (gpu.link_bandwidth * PRIORS["link.nvlink"]) + 4 * PRIORS["collective"])
    assert roofline.communication_seconds(clip, gpu, setting, PRIORS) == pytest.approx(by_hand, rel=1e-12)


def test_the_gradient_is_what_a_changed_parameter_does() -> None:
    clip, gpu = wan(), find_gpu("h100")
    seconds, gradient, _ = predict.median_and_gradient(clip, gpu, VLLM, PRIORS, "end_to_end")
    for name in ("matrix", "power.hopper", "attention.fa3", "memory"):
        changed = rates.Rates({name: math.log(PRIORS[name] * 1.01)})
        again, _, _ = predict.median_and_gradient(clip, gpu, VLLM, changed, "end_to_end")
        assert math.log(again / seconds) == pytest.approx(gradient[name] * math.log(1.01), rel=0.05)


def test_the_band_is_wider_where_less_is_known() -> None:
    clip, fit = wan(), rates.fitted()
    known = predict.predict(clip, find_gpu("h100"), VLLM, fit)
    unseen = predict.predict(clip, find_gpu("mi300x"), VLLM, fit)
    unsaid = predict.predict(clip, find_gpu("h100"), VLLM, fit, assumed=("attention", "steps"))
    assert known.p10 < known.p50 < known.p90
    assert unseen.spread > 1.3 * known.spread
    assert unsaid.spread > 1.2 * known.spread


def test_scopes_are_parts_of_the_clip() -> None:
    clip, gpu = wan(), find_gpu("h100")
    stages = roofline.clip_seconds(clip, gpu, VLLM, PRIORS)
    parts = {scope: sum(predict.part_seconds(stages, scope, 50).values()) for scope in ("end_to_end", "denoise_only")}
    assert parts["denoise_only"] < parts["end_to_end"]
    assert sum(predict.part_seconds(stages, "per_step", 50).values()) == pytest.approx(parts["denoise_only"] / 50)


def test_a_parameter_outside_the_fit_widens_by_its_prior() -> None:
    fit = rates.fitted()
    assert "gpu.mi300x" not in fit.names
    assert fit.variance({"gpu.mi300x": 2.0}) == pytest.approx((2.0 * rates.prior_of("gpu.mi300x").spread) ** 2)
