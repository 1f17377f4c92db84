"""A whole estimate: sums, exact work, order, proportion, and the receipt it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sora_runtime as sora
from cost.whole_estimate import NOW, POCKET, WAN, assert_whole
from sora_runtime.cost.estimate import OWNERS, Ask, Estimate, estimate, estimate_of
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.memory import USABLE, memory_of
from sora_runtime.cost.models import load_model, model_names
from sora_runtime.cost.prices import gpu_prices
from sora_runtime.cost.record import receipt_of
from sora_runtime.cost.settings import Parallelism
from sora_runtime.errors import InvalidRequest

CARDS = Path(sora.__file__).parent / "cost/catalogue/models"


def wan(**wanted: Any) -> Estimate:
    """Wan 2.1 14B at 1280x720 and 81 frames, or something else of it."""
    return estimate_of(Ask(WAN, **{"width": 1280, "height": 720, "num_frames": 81} | wanted))


def denoise(found: Estimate) -> float:
    return sum(found.prediction.stages["denoise"].values())


def nulls(record: object, prefix: str = "") -> set[str]:
    if not isinstance(record, dict):
        return {prefix[:-1]} if record is None else set()
    return set().union(*(nulls(value, f"{prefix}{name}.") for name, value in record.items()))


def test_the_work_of_wan_at_720p_is_exact() -> None:
    """21 x 45 x 80 tokens; a forward by the published dimensions (5120 wide, 40 layers, 13824 in between)."""
    found = wan()
    tokens = 21 * 45 * 80
    assert found.clip.tokens == tokens == 75_600
    width, hidden, layers, text = 5120, 13_824, 40, 512
    attention = layers * 4 * width * (tokens**2 + tokens * text)
    linear = layers * 2 * tokens * (6 * width**2 + 2 * width * hidden)
    flops = found.clip.transformer.flops
    assert flops["attention"] == attention
    # Keys and values of the text, its projection, the timestep's and the last layer: below 1%.
    assert linear < flops["linear"] < 1.01 * linear
    forward = sum(flops.values()) - flops["elementwise"]
    assert f"{forward / 1e15:.2f}" == "6.52"
    assert f"{50 * 2 * forward / 1e15:.0f}" == "652"
    receipt = assert_whole(found)
    assert receipt.tokens.tokens_processed == 7_560_000
    assert sum(receipt.forecast.flops["denoise"].values()) == pytest.approx(100 * sum(flops.values()), rel=1e-12)


def test_money_is_proportional_to_the_price() -> None:
    cheap, dear = wan(price=2.0).money, wan(price=6.0).money
    for name in ("compute", "failed", "cold start", "idle"):
        assert dear.items[name] == pytest.approx(3 * cheap.items[name], rel=1e-12)
    for name in ("storage", "egress"):
        assert dear.items[name] == cheap.items[name] > 0
    assert dear.usd_per_minute == pytest.approx(dear.usd_per_second * 60)


def test_no_guidance_halves_the_denoising_alone() -> None:
    guided, plain = wan(), wan(guidance_scale=1)
    assert denoise(plain) == pytest.approx(denoise(guided) / 2, rel=1e-12)
    assert plain.prediction.stages["vae_decode"] == guided.prediction.stages["vae_decode"]
    assert receipt_of(plain, NOW).evaluations.made == 50


def test_a_distilled_model_has_no_guidance_to_give_up() -> None:
    assert estimate_of(Ask("hunyuanvideo", guidance_scale=6)).clip.passes == 1


def test_seconds_take_the_nearest_length_the_model_can_make() -> None:
    assert wan(num_frames=None, seconds=5).shape.frames == 81
    assert wan(num_frames=None, seconds=5).prediction == wan().prediction
    assert wan(num_frames=None, seconds=0.001).shape.frames == 1
    for name in model_names():
        for seconds in (0.1, 1.0, 3.7, 12.0):
            found = estimate_of(Ask(name, seconds=seconds))
            assert abs(found.video_seconds - seconds) * found.fps <= found.model.strides.temporal_stride


def test_quantised_layers_are_faster_smaller_and_less_certain() -> None:
    plain, quantised = wan(engine="vllm-omni"), wan(engine="vllm-omni", precision="int8")
    assert quantised.prediction.stages["denoise"]["linear"] < plain.prediction.stages["denoise"]["linear"]
    assert quantised.prediction.stages["denoise"]["attention"] == plain.prediction.stages["denoise"]["attention"]
    halved = memory_of(plain.model, plain.clip, plain.gpu, plain.setting).weights
    halved -= memory_of(plain.model, plain.clip, plain.gpu, quantised.setting).weights
    assert halved == plain.clip.transformer.parameters


def test_several_gpus_are_faster_and_cost_more_gpu_seconds() -> None:
    one, four = wan(), wan(gpu_count=4)
    assert one.prediction.p50 / 4 < four.prediction.p50 < one.prediction.p50
    receipt = assert_whole(four)
    assert receipt.engine_seconds == pytest.approx(4 * receipt.seconds.total)
    assert receipt.cost.usd_per_hour == pytest.approx(4 * four.money.price.usd_per_hour)
    assert ("parallelism", "cfg 1 x ulysses 4", "usual for this engine") in four.assumed
    assert "parallelism" not in {name for name, *_ in wan(gpu_count=4, parallelism="cfg2 ulysses2").assumed}


@pytest.mark.parametrize(
    ("text", "count", "plan"),
    [
        ("cfg2 ulysses4", 8, Parallelism(2, 4)),
        ("CFG=2, ring 2", 8, Parallelism(2, 2, 2)),
        ("ulysses16", 16, Parallelism(1, 16)),
        ("tensor8 vae", 8, Parallelism(tensor=8, vae=True)),
        ("cfg2", 4, Parallelism(2, 2)),
        ("cfg1", 1, Parallelism()),
    ],
)
def test_how_gpus_share_a_clip_is_taken_at_its_word(text: str, count: int, plan: Parallelism) -> None:
    found = wan(gpu_count=count, parallelism=text, engine="sglang")
    assert found.setting.parallelism == plan
    assert_whole(found)


@pytest.mark.parametrize(
    ("gpu", "count", "offload"), [("h100-sxm", 1, ""), ("rtx-4090", 1, "block"), ("a100-40gb", 1, "model")]
)
def test_the_mildest_offload_that_fits(gpu: str, count: int, offload: str) -> None:
    found = wan(gpu=gpu, gpu_count=count)
    memory = memory_of(found.model, found.clip, found.gpu, found.setting)
    assert memory.offload == found.setting.offload == offload
    assert memory.fits
    assert (memory.resident <= USABLE * found.gpu.memory_bytes) == (not offload)
    assert ("offload" in {name for name, *_ in found.assumed}) == bool(offload)
    assert any(name == "offload" for stage in found.prediction.stages.values() for name in stage) == bool(offload)


def unpriced() -> str:
    return next(name for name in gpus() if not gpu_prices(name))


def test_a_gpu_without_a_price_has_seconds_and_no_dollars() -> None:
    found = wan(gpu=unpriced())
    assert found.money is None
    assert found.money_at(1.0) is None
    receipt = assert_whole(found)
    for name in ("cost", "forecast.usd_per_clip", "forecast.limit.usd_per_clip"):
        assert "no price" in receipt.reasons[name]
    assert receipt.forecast.price == "no price"
    assert wan(gpu=unpriced(), price=1.5).money.price.usd_per_hour == 1.5
    with pytest.raises(InvalidRequest, match="no price"):
        wan(gpu=unpriced(), price="spot")
    with pytest.raises(InvalidRequest, match="the nearest are"):
        wan(gpu=unpriced(), assumptions={"utilization": 0.5})


def test_a_bought_gpu_pays_for_electricity_and_no_rent() -> None:
    found = wan(assumptions={"capital_price": 35_040.0, "upkeep_share": 0.25})
    assert found.money.price.usd_per_hour == pytest.approx(35_040 * (1 / 4 + 0.25) / 8760)
    assert found.money.items["electricity"] == pytest.approx(found.money.wh / 1000 * 0.0929)
    assert set(OWNERS) < {name for name, *_ in found.all_assumed()}
    assert not set(OWNERS) & {name for name, *_ in wan().all_assumed()}
    assert not assert_whole(found).cost.price_is_default
    with pytest.raises(InvalidRequest, match="both given"):
        wan(price=2.0, assumptions={"capital_price": 35_040.0})


def test_reused_steps_leave_the_rest() -> None:
    plain, reused = wan(), wan(step_reuse=0.4)
    assert denoise(reused) == pytest.approx(0.6 * denoise(plain))
    evaluations = receipt_of(reused, NOW).evaluations
    assert (evaluations.made, evaluations.skipped) == (60, 40)
    assert denoise(wan(step_reuse="teacache")) < denoise(plain)
    assert denoise(wan(step_reuse="0")) == denoise(plain)


def test_every_null_has_its_reason() -> None:
    for found in (wan(), wan(image=True), wan(gpu=unpriced()), estimate_of(Ask("hunyuanvideo"))):
        receipt = assert_whole(found)
        record = receipt.model_dump(exclude={"predicted", "reasons"})
        assert nulls(record) == set(receipt.reasons) - {"cost", "forecast.usd_per_clip", "forecast.limit.usd_per_clip"}


def test_what_makes_a_band_wide_is_said() -> None:
    assert any("VAE of" in reason for reason in _reasons_of_models("the VAE of"))
    unseen = wan(gpu="mi300x")
    assert any("no published row times mi300x" in reason for reason in unseen.reasons)
    assert unseen.prediction.spread > wan().prediction.spread
    assert any("by a kernel that is assumed" in reason for reason in wan().reasons)
    assert not any("assumed" in reason for reason in wan(attention="fa3").reasons)
    pocket = estimate_of(Ask(str(POCKET)))
    assert any("around the networks" in reason for reason in pocket.reasons)


def _reasons_of_models(beginning: str) -> list[str]:
    found = (estimate_of(Ask(name)) for name in model_names())
    return [reason for each in found for reason in each.reasons if reason.startswith(beginning)]


@pytest.mark.parametrize("name", model_names())
def test_every_model_of_the_catalogue_is_whole(name: str) -> None:
    assert_whole(estimate_of(Ask(name)))


@pytest.mark.parametrize("gpu", gpus())
def test_every_gpu_of_the_catalogue_is_whole(gpu: str) -> None:
    assert_whole(wan(gpu=gpu))


def test_the_shipped_bundle_and_a_card_of_ones_own(tmp_path: Path) -> None:
    pocket = assert_whole(estimate_of(Ask(POCKET)))  # type: ignore[arg-type]  # a path is as good as its text
    assert (pocket.model.name, pocket.tokens.latent_tokens) == ("wan-pocket", 112)
    card = tmp_path / "mine.toml"
    text = (CARDS / "wan2.1-t2v-1.3b.toml").read_text()
    card.write_text(text.replace('"wan2.1-t2v-1.3b"', '"mine"', 1).replace("num_layers = 30", "num_layers = 15"))
    mine, whole = estimate_of(Ask(str(card))), estimate_of(Ask("wan2.1-t2v-1.3b"))
    assert mine.model.name == "mine"
    assert mine.clip.transformer.flops["attention"] == whole.clip.transformer.flops["attention"] / 2


def test_the_python_api_returns_a_receipt() -> None:
    receipt = sora.estimate(WAN, gpu="H100", width=1280, height=720, seconds=5, price="2.5")
    assert isinstance(receipt, sora.Receipt)
    assert receipt.estimated
    assert receipt.cost.usd_per_clip == pytest.approx(receipt.seconds.total * 2.5 / 3600)
    assert receipt.forecast.seconds.p50 == receipt.seconds.total
    assert receipt.machine.gpu == "h100-sxm"
    assert "estimated" in str(receipt)
    with pytest.raises(InvalidRequest, match="'count' is not an input; use model, gpu, gpu_count"):
        estimate(WAN, count=2)


def test_the_json_names_every_assumption_and_the_source_of_the_price() -> None:
    forecast = sora.estimate(WAN).forecast
    names = {each.name for each in forecast.assumptions}
    assert names >= {"software", "attention", "default", "utilisation", "pue", "failed_share"}
    assert all(each.value and each.origin for each in forecast.assumptions)
    assert forecast.price_sources
    assert "2026" in forecast.price


def test_models_are_read_once() -> None:
    assert estimate_of(Ask(WAN)).model is load_model(WAN)
