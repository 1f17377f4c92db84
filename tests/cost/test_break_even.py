"""Break-even points of rented and owned GPUs against numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sora_runtime.cost.break_even import (
    Bar,
    CostLine,
    Target,
    buy_below,
    cost_line,
    holding,
    owned_hour,
    seconds_per_month,
)
from sora_runtime.cost.estimate import Ask, Estimate, estimate_of
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.money import Assumptions, cost_of_clip, owned_price
from sora_runtime.cost.prices import ChosenPrice, gpu_prices

WAN = "wan2.1-t2v-14b"
VIDEO = 81 / 16  # seconds of its clip
_NOTHING = ("failed_share", "cold_start_seconds", "storage_price", "egress_price", "host_power_share")
BARE = Assumptions(
    **dict.fromkeys(_NOTHING, 0.0), pue=1.0, busy_power_share=1.0, idle_power_share=0.5, electricity_price=0.1
)
RENT = ChosenPrice(3.6, "test", 3.6, 3.6, (), "", ())  # a thousandth of a dollar a second
CALL = Target("cheapest", 0.04, "test")


def clip_of(p10: float, p50: float, p90: float) -> Estimate:
    """An estimate of WAN's clip on an H100 (700 W) with a time of one's own."""
    found = estimate_of(Ask(WAN, gpu="h100-sxm"))
    return replace(found, prediction=replace(found.prediction, p10=p10, p50=p50, p90=p90))


def test_renting_by_hand() -> None:
    """100 s of a GPU at 0.001 USD a second make 5.0625 s: 0.0198 USD for each, 49% of a call's 0.04."""
    held = holding(clip_of(50, 100, 210), RENT, Bar((CALL,), BARE, None))
    assert held.usd_per_month == pytest.approx(3.6 * 730)
    (point,) = held.break_even
    assert point.utilisation == pytest.approx(0.1 / VIDEO / 0.04)
    assert point.utilisation_if_fast == pytest.approx(0.05 / VIDEO / 0.04)
    assert point.utilisation_if_slow is None, "0.21 / 5.0625 is more than 0.04"
    assert point.seconds_per_month == pytest.approx(65_700), "2628 USD / 0.04"


def test_what_each_second_adds_is_taken_off_the_price_of_a_call() -> None:
    """5 Mbit/s at 0.032 USD a GB are 0.00002 USD a second."""
    spending = replace(BARE, storage_price=0.02, egress_price=0.012)
    line = cost_line(clip_of(1, 100, 200), RENT, spending, 100)
    assert line.spent == pytest.approx(0.00002, rel=1e-9)
    (point,) = holding(clip_of(1, 100, 200), RENT, Bar((CALL,), spending, None)).break_even
    assert point.seconds_per_month == pytest.approx(2628 / 0.03998)


def test_a_gpu_that_would_have_to_make_more_than_it_can_is_never_cheaper() -> None:
    most = seconds_per_month(200, VIDEO, BARE)
    assert most == pytest.approx(3600 * 730 * VIDEO / 200)
    assert most > 65_700, "at 200 s a clip 65,700 s a month just fit"
    (possible,) = holding(clip_of(100, 200, 300), RENT, Bar((CALL,), BARE, None)).break_even
    assert possible.seconds_per_month == pytest.approx(65_700)
    assert seconds_per_month(203, VIDEO, BARE) < 65_700
    (never,) = holding(clip_of(100, 203, 300), RENT, Bar((CALL,), BARE, None)).break_even
    assert (never.utilisation, never.seconds_per_month) == (None, None)
    assert never.utilisation_if_fast == pytest.approx(0.1 / VIDEO / 0.04)


def test_capacity_counts_failures_and_cold_starts() -> None:
    wasteful = replace(BARE, failed_share=0.5, cold_start_seconds=1000, clips_per_start=10)
    assert seconds_per_month(100, VIDEO, wasteful) == pytest.approx(3600 * 730 * VIDEO / (2 * 200))


def test_owning_by_hand() -> None:
    """35,040 USD over 4 years with 25% of upkeep are 2 USD an hour; an idle GPU of 700 W draws 0.35 kW."""
    assumptions = replace(BARE, capital_price=35_040, lifetime_years=4, upkeep_share=0.25)
    found, call = clip_of(1800, 3600, 7200), Target("cheapest", 1.0, "test")
    held = holding(found, owned_price(assumptions), Bar((call,), assumptions, None))
    assert held.usd_per_month == pytest.approx((2 + 0.035) * 730)
    (point,) = held.break_even
    assert point.utilisation == pytest.approx(2.035 / (VIDEO - 0.035))
    assert point.seconds_per_month == pytest.approx(2.035 * 730 / (1 - 0.035 / VIDEO))


@pytest.mark.parametrize("price", [RENT, owned_price(Assumptions(capital_price=30_000))])
def test_at_the_break_even_a_second_costs_what_a_call_does(price: ChosenPrice) -> None:
    assumptions, call = Assumptions(capital_price=30_000, discarded_share=0.2), Target("cheapest", 0.07, "test")
    found = clip_of(80, 120, 180)
    (point,) = holding(found, price, Bar((call,), assumptions, None)).break_even
    assert point.utilisation is not None and point.seconds_per_month is not None
    there = replace(assumptions, utilisation=point.utilisation)
    assert cost_of_clip(120, 120, found.gpu, price, VIDEO, there).usd_per_second == pytest.approx(0.07, rel=1e-9)
    busy = point.seconds_per_month / seconds_per_month(120, VIDEO, assumptions)
    assert busy == pytest.approx(point.utilisation, rel=1e-12)


def test_what_a_gpu_may_cost() -> None:
    found, call = clip_of(80, 120, 180), Target("cheapest", 0.07, "test")
    limit = buy_below(found, call, Assumptions())
    assert limit is not None and limit > 0
    price = owned_price(Assumptions(capital_price=limit))
    assert cost_of_clip(120, 120, found.gpu, price, VIDEO).usd_per_second == pytest.approx(0.07, rel=1e-9)
    assert buy_below(found, Target("cheapest", 1e-4, "test"), Assumptions()) is None, "the power alone costs more"


def test_a_source_that_reckons_what_owning_costs_stands_in_for_a_capital_price() -> None:
    (known,) = (price for price in gpu_prices("b200") if price.commitment == "owner")
    hour = owned_hour(gpus()["b200"], Assumptions())
    assert (hour.usd_per_hour, hour.owned) == (known.usd_per_gpu_hour, False)
    assert hour.date == known.date and hour.sources == (known.source,)
    assert owned_hour(gpus()["h100-sxm"], Assumptions()) is None
    assert owned_hour(gpus()["b200"], Assumptions(capital_price=1000)).owned


def test_bills_of_a_month() -> None:
    line = CostLine(held=0.02, spent=0.001)
    assert line.monthly(1000, most=1000) == pytest.approx(21)
    assert line.monthly(1001, most=1000) == pytest.approx(2 * 20 + 1.001), "a second GPU is paid in full"
