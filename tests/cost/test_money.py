"""Money: the items add up, every formula is the stated one, and absurd assumptions are refused."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from sora_runtime.cost.hardware import find_gpu
from sora_runtime.cost.money import Assumptions, attempts_per_kept_clip, clip_gigabytes, cost_of_clip, owned_price
from sora_runtime.cost.prices import ChosenPrice, usd_per_hour
from sora_runtime.errors import InvalidRequest

GPU = find_gpu("h100-sxm")
PRICE = usd_per_hour(GPU, "3.60")  # 0.001 USD a GPU-second
BARE = Assumptions(
    utilisation=1.0,
    failed_share=0.0,
    cold_start_seconds=0.0,
    storage_price=0.0,
    egress_price=0.0,
    host_power_share=0.0,
    pue=1.0,
    busy_power_share=1.0,
)


def test_without_overheads_it_is_gpu_seconds_times_price() -> None:
    money = cost_of_clip(100, 100, GPU, PRICE, 5, BARE)
    assert money.usd_per_clip == pytest.approx(0.1)
    assert money.usd_per_second == pytest.approx(0.02)
    assert money.usd_per_minute == pytest.approx(1.2)
    assert money.wh == money.gpu_wh == pytest.approx(100 * 700 / 3600)


@pytest.mark.parametrize("gpus", [1, 8])
def test_items_add_up(gpus: int) -> None:
    assumptions = Assumptions(discarded_share=0.5, failed_share=0.1, clips_per_start=10)
    money = cost_of_clip(100 * gpus, 100, GPU, PRICE, 5, assumptions)
    assert sum(money.items.values()) == pytest.approx(money.usd_per_clip, rel=1e-12)
    assert money.attempts == pytest.approx(1 / (0.9 * 0.5))
    items = money.items
    made = items["compute"] + items["failed"] + items["discarded"]
    assert made == pytest.approx(0.1 * gpus * money.attempts)
    assert items["cold start"] == pytest.approx(120 * gpus / 10 * 0.001 * money.attempts)
    assert items["idle"] == pytest.approx((made + items["cold start"]) * (1 / 0.6 - 1))
    size = 5 * 5 / 8000
    assert (items["storage"], items["egress"]) == (pytest.approx(size * 0.023), pytest.approx(size * 0.09))
    assert items["electricity"] == 0, "rent includes it"


def test_energy() -> None:
    money = cost_of_clip(3600, 3600, GPU, PRICE, 5, replace(BARE, utilisation=0.5, idle_power_share=0.1))
    assert money.wh == pytest.approx(700 * 1.1)
    whole = cost_of_clip(3600, 3600, GPU, PRICE, 5, replace(BARE, host_power_share=0.25, pue=1.5))
    assert whole.wh == pytest.approx(700 * 1.25 * 1.5)
    assert whole.gpu_wh == 700


def test_a_gpu_of_unknown_power_has_no_energy() -> None:
    unknown = replace(GPU, tdp_w=None)
    money = cost_of_clip(100, 100, unknown, PRICE, 5)
    assert (money.wh, money.gpu_wh) == (None, None)
    with pytest.raises(InvalidRequest, match="power of h100-sxm is not known"):
        cost_of_clip(100, 100, unknown, replace(PRICE, owned=True), 5)


def test_owning() -> None:
    assumptions = replace(BARE, capital_price=35_040.0, lifetime_years=4.0, upkeep_share=0.25, electricity_price=0.1)
    price = owned_price(assumptions)
    assert price.owned and price.usd_per_hour == pytest.approx(35_040 * 0.5 / 8760)
    money = cost_of_clip(3600, 3600, GPU, price, 5, assumptions)
    assert money.items["compute"] == pytest.approx(2.0)
    assert money.items["electricity"] == pytest.approx(0.07)
    assert sum(money.items.values()) == pytest.approx(money.usd_per_clip)
    with pytest.raises(InvalidRequest, match="capital_price = 0"):
        owned_price(Assumptions())


def test_small_formulas() -> None:
    assert attempts_per_kept_clip(0, 0) == 1
    assert attempts_per_kept_clip(0.5, 0.75) == 8
    assert clip_gigabytes(8, 1000) == 1


def test_every_assumption_says_where_it_is_from() -> None:
    stated = {each.name: each for each in Assumptions(pue=1.1).stated()}
    assert set(stated) == {field.name for field in fields(Assumptions)}
    assert all(each.unit and each.origin for each in stated.values())
    assert (stated["pue"].value, stated["pue"].origin) == (1.1, "stated")
    assert "Uptime" in next(each.origin for each in Assumptions().stated() if each.name == "pue")


def test_overrides() -> None:
    assert Assumptions().with_overrides({"utilisation": 0.9, "pue": 1.2}) == Assumptions(utilisation=0.9, pue=1.2)
    with pytest.raises(InvalidRequest, match=r"'utilization' is unknown; the nearest are utilisation"):
        Assumptions().with_overrides({"utilization": 0.9})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("utilisation", 0.0),
        ("utilisation", 1.1),
        ("failed_share", 1.0),
        ("discarded_share", -0.1),
        ("clips_per_start", 0.0),
        ("electricity_price", -1.0),
        ("pue", 0.9),
        ("lifetime_years", 0.0),
        ("egress_price", float("nan")),
        ("storage_price", float("inf")),
    ],
)
def test_absurd_assumptions_are_refused(name: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{name} = .* is out of range; use "):
        Assumptions().with_overrides({name: value})


@pytest.mark.parametrize("seconds", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1), (float("nan"), 1, 1)])
def test_absurd_times_are_refused(seconds: tuple[float, float, float]) -> None:
    gpu_seconds, wall_seconds, video_seconds = seconds
    with pytest.raises(InvalidRequest, match="must all be above 0"):
        cost_of_clip(gpu_seconds, wall_seconds, GPU, PRICE, video_seconds)


def test_the_price_stays_with_the_record() -> None:
    money = cost_of_clip(100, 100, GPU, usd_per_hour(GPU), 5)
    assert isinstance(money.price, ChosenPrice) and money.price.sources and money.price.date


def test_against_a_published_energy() -> None:
    """Wan2.1-14B at 720p on an H100: 364.9 Wh with CPU and memory in 1898.4 s (arXiv 2509.19222)."""
    money = cost_of_clip(1898.4, 1898.4, GPU, PRICE, 81 / 16)
    assert money.gpu_wh is not None
    assert money.gpu_wh == pytest.approx(364.9, rel=0.15)
