"""Plans of a GPU's memory: exact where sizes follow from shapes, and honest about what fits."""

import math

import pytest

from sora_runtime.cost.device_memory import (
    BLOCKS,
    CAPACITIES,
    MODELS,
    ONE_NETWORK,
    PRECISIONS,
    RESIDENT,
    all_plans,
    default_shape,
    device_plan,
    step_traffic,
)
from sora_runtime.cost.hardware import find_gpu
from sora_runtime.cost.memory import USABLE
from sora_runtime.cost.models import load_model
from sora_runtime.errors import InvalidRequest

WAN = load_model("wan2.1-t2v-14b")
LATENTS = 16 * 21 * 90 * 160  # of 81 frames of 1280x720


def test_the_buffers_of_a_clip_follow_from_its_shape() -> None:
    plan = device_plan(WAN, default_shape(WAN), "bf16")
    sizes = {tensor.name: tensor.bytes for tensor in plan.tensors}
    assert sizes["latents"] == 4 * LATENTS
    assert sizes["transformer's input"] == 2 * LATENTS and sizes["transformer's outputs"] == 4 * LATENTS
    assert sizes["sampler's history"] % (4 * LATENTS) == 0 and sizes["sampler's history"] >= 8 * LATENTS
    assert sizes["prompt embeddings"] == 2 * 512 * 4096 * 2
    assert sizes["decoded frames"] == 3 * 4 * 720 * 1280 * 2
    assert plan.layout.bytes < sum(sizes.values())  # the networks share their scratch
    assert plan.layout.bytes >= plan.layout.alive


def test_weights_are_in_the_precision_and_of_both_experts() -> None:
    one, two = (load_model(name) for name in ("wan2.1-t2v-14b", "wan2.2-t2v-a14b"))
    plans = {model.name: device_plan(model, default_shape(model), "bf16") for model in (one, two)}
    assert plans[two.name].weights["transformer"] == pytest.approx(2 * plans[one.name].weights["transformer"], rel=0.01)
    assert plans[two.name].active == pytest.approx(plans[one.name].active, rel=0.01)
    half = device_plan(one, default_shape(one), "fp8")
    assert half.weights["transformer"] == pytest.approx(plans[one.name].weights["transformer"] / 2, rel=0.05)
    assert half.weights["text encoders"] == plans[one.name].weights["text encoders"]


def test_what_is_milder_needs_more() -> None:
    plans = all_plans()
    assert len(plans) == len(MODELS) * 2 * len(PRECISIONS)
    for plan in plans:
        needed = [plan.needed(how) for how in (RESIDENT, ONE_NETWORK, BLOCKS)]
        assert needed == sorted(needed, reverse=True)
        order = [RESIDENT, ONE_NETWORK, BLOCKS, None]
        found = [order.index(plan.fits(capacity)) for capacity in CAPACITIES]
        assert found == sorted(found, reverse=True)  # a larger GPU needs no harsher way
        edge = plan.needed(RESIDENT) / USABLE / 1e9
        assert plan.fits(edge * 1.001) == RESIDENT and plan.fits(edge * 0.999) != RESIDENT
    assert {plan.fits(80) for plan in plans} <= {RESIDENT, ONE_NETWORK}


def test_a_stage_needs_its_own_weights_and_what_is_alive() -> None:
    plan = device_plan(WAN, default_shape(WAN), "bf16")
    sizes = {tensor.name: tensor.bytes for tensor in plan.tensors}
    elsewhere = ("text encoder's scratch", "decoder's scratch", "decoded frames", "pictures for the encoder")
    denoising = sum(size for name, size in sizes.items() if name not in elsewhere)
    assert plan.needed(ONE_NETWORK) == pytest.approx(plan.weights["transformer"] + denoising)


@pytest.mark.parametrize("gpu", ["h100-sxm", "rtx-4090"])
def test_a_fused_step_moves_what_its_rows_read_and_write(gpu: str) -> None:
    step = step_traffic("wan2.1-t2v-14b", default_shape(WAN), gpu)
    # Latents in and out, two outputs in, the next input out; at most three entries of history in and one out.
    least = LATENTS * (2 * 4 + 3 * 2)
    assert least < step.bytes <= least + LATENTS * 4 * 4
    assert step.seconds == pytest.approx(step.bytes / find_gpu(gpu).bandwidth)
    assert 0 < step.share < 1e-4 and math.isfinite(step.share)


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="precision = 'int3' is not planned for; use one of bf16"):
        device_plan(WAN, default_shape(WAN), "int3")
    with pytest.raises(InvalidRequest, match="width = 1281"):
        device_plan(WAN, default_shape(WAN, width=1281), "bf16")
