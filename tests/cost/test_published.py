"""Published fleets redone: the stated numbers come out, their rounding shows, and ours stand beside them."""

from __future__ import annotations

import pytest

from sora_runtime.cost.fleet import ServiceTime
from sora_runtime.cost.published import Step, published
from sora_runtime.errors import InvalidRequest

H100 = ServiceTime("h100-sxm", 1, 160.0, 200.0, 250.0, 2.7, 0.8, 700.0, 5.0, 120.0, True, "")


def steps(*services: ServiceTime) -> dict[str, Step]:
    return {step.what: step for step in published("factorial-funds", services).steps}


def test_the_stated_fleet_follows_from_its_inputs() -> None:
    found = steps()
    busy, peak, power = found["GPUs if always at work"], found["GPUs at the peak"], found["power of the GPUs"]
    assert busy.stated == 89_200
    assert round(busy.computed) == 89_167
    assert round(busy.computed, -2) == busy.stated
    assert peak.stated == peak.computed == 720_000
    assert power.stated == power.computed == 504
    assert found["price of the GPUs"].computed == 21.6e9
    assert found["utilisation, peak, candidates"].computed == 8
    assert "8 x 89,167 = 713,333" in peak.how
    assert "89,167, published as 89,200" in busy.how


def test_the_sums_that_do_not_follow_are_said() -> None:
    found = steps()
    assert found["both"].computed == pytest.approx(10.65e6)
    assert "14.95M" in found["YouTube, by models"].how
    assert found["GPU time a minute of video"].computed == pytest.approx(715, abs=0.5)


def test_the_dense_peak_doubles_every_count() -> None:
    found = steps()
    factor = 1979 / 989.4
    sparse = found["GPU time a minute of video"]
    assert sparse.dense == pytest.approx(factor * sparse.computed)
    assert found["GPUs at the peak"].dense == pytest.approx(factor * 8 * 10.65e6 * sparse.computed / 86400)
    assert found["power of the GPUs"].dense == pytest.approx((found["GPUs at the peak"].dense or 0) * 700e-6)


def test_without_a_model_there_is_no_column_of_ours() -> None:
    result = published("factorial-funds")
    assert result.ours is None
    assert all(step.ours is None or step.unit == "min/day" for step in result.steps)


def test_ours_is_the_same_demand_with_our_seconds_and_utilisation() -> None:
    result = published("factorial-funds", [H100])
    found = {step.what: step.ours or 0 for step in result.steps}
    assert result.ours is not None
    chosen = result.ours.plan.chosen
    assert found["GPU time a minute of video"] == pytest.approx(40 * 60)
    assert found["GPUs if always at work"] == pytest.approx(10.65e6 * 40 * 60 / 86400)
    assert found["GPUs at the peak"] == chosen.gpus
    # Peak of 2, 2 candidates, 2% failed clips, and no busier than simulated.
    assert found["utilisation, peak, candidates"] == pytest.approx(4 / 0.98 / chosen.utilisation, rel=0.01)
    assert found["power of the GPUs"] == pytest.approx(chosen.gpus * 700e-6)
    assert chosen.spot_gpus == 0
    assert any("at p10 to p90" in remark for remark in result.remarks)


def test_an_unknown_publication_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="use factorial-funds"):
        published("someone")
