"""Claims: each figure against the arithmetic done by hand, and every row with a verdict and a figure of today."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sora_runtime.cost import claims as recompute
from sora_runtime.cost.claims import CHECKS, check, claims
from sora_runtime.cost.claims_today import FASTWAN, TODAY, WAN, offers, today

ON = "2026-11-22"


def test_every_row_has_a_check_and_a_today() -> None:
    assert set(claims()) == set(CHECKS) == set(TODAY)
    assert len(claims()) == 18
    for claim in claims().values():
        answer = check(claim)
        assert answer.verdict in {"follows", "differs", "cannot be checked"}
        assert answer.computed and answer.why
        figure = today(claim, on=ON)
        assert figure.text and figure.values and figure.origins
        assert all(origin.date and origin.source and origin.what for origin in figure.origins)


VERDICTS = {
    "sora-tokens-1min-usd": "differs",
    "pre-sora-length": "differs",
    "gen2-price": "follows",
    "sora-training-gpus": "follows",
    "sora-inference-gpus": "follows",
    "sora-inference-power": "follows",
    "daya-bay-power": "follows",
}


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_verdicts(name: str) -> None:
    assert check(claims()[name]).verdict == VERDICTS.get(name, "cannot be checked")


def values(name: str) -> dict[str, float]:
    return dict(check(claims()[name]).values)


def test_tokens() -> None:
    found = values("sora-tokens-1min-usd")
    assert found["usd_per_second_tokens"] == pytest.approx(28.8)
    assert found["usd_per_frame_tokens"] == pytest.approx(864)
    assert found["latent_positions"] == 128 * 128 * 30
    why = check(claims()["sora-tokens-1min-usd"]).why
    assert "20.8 times less" in why and "1.44 times more" in why


def test_inference() -> None:
    found = values("sora-inference-gpus")
    assert found["gpus_busy"] == pytest.approx(89_166.7, abs=0.1)
    assert round(found["gpus_busy"], -2) == 89_200
    assert found["gpus"] == pytest.approx(713_333, abs=1)
    assert found["minutes_a_day"] == pytest.approx(10.65e6)
    assert found["gpus_with_stated_share"] == pytest.approx(14.95e6 / 120 * 8)


def test_power() -> None:
    assert values("sora-inference-power")["mw"] == 504
    assert values("daya-bay-power") == {"mw": 6120, "share": pytest.approx(0.08235, abs=1e-5)}


def test_training() -> None:
    found = values("sora-training-gpus")
    assert found["flops_low"] == pytest.approx(1.08e25, rel=0.001)
    assert found["flops_high"] == pytest.approx(2.70e25, rel=0.001)
    assert found["gpus_low"] == pytest.approx(4250) and found["gpus_high"] == pytest.approx(10583.3, abs=0.1)


def test_the_rest_of_the_arithmetic() -> None:
    assert values("gen2-price") == {"usd": 90, "usd_per_second": pytest.approx(0.2)}
    assert values("sora-render-time") == {
        "gpu_seconds_on_1": 60,
        "gpu_seconds_on_8": 480,
        "gpu_seconds_on_64": 3840,
    }
    electricity = values("server-electricity")
    assert electricity["cny_per_server"] == 200
    assert electricity["kw_low"] == pytest.approx(250 / 730) and electricity["kw_high"] == pytest.approx(400 / 730)
    assert values("chatgpt-energy")["mw"] == pytest.approx(20.83, abs=0.01)
    kling = values("kling-runway-price")
    assert kling["usd_per_second_low"] == pytest.approx(0.1 / 7.116)
    assert kling["usd_per_second_high"] == pytest.approx(0.4 / 7.116)


def test_a_claim_that_follows_no_longer_does_with_other_inputs() -> None:
    claim = claims()["sora-inference-power"]
    other = check(replace(claim, inputs={"gpus": 720_000, "watts": 1000}))
    assert (other.verdict, other.computed) == ("differs", "720 MW")
    assert other.why.startswith("by a factor of 1.43; ")


def test_lengths_that_agree() -> None:
    claim = claims()["pre-sora-length"]
    assert check(replace(claim, stated=(3.0, 18.0))).verdict == "follows"


def test_today_uses_an_estimate_where_there_is_one() -> None:
    asked: list[object] = []

    def estimate(model: str, gpu: str, *, width: int, height: int, frames: int, steps: int) -> float:
        asked.append((model, gpu, width, height, frames, steps))
        return 81 / 16 * 100

    claim = claims()["sora-inference-gpus"]
    found = today(claim, estimate, on=ON)
    assert asked == [("wan2.1-t2v-14b", "h100-sxm", 1280, 720, 81, 50)]
    assert found.values["h100-sxm"] == pytest.approx(10.7e6 * 60 * 100 / 86400 * 8)
    assert found.values["b200"] == pytest.approx(10.7e6 * 60 * FASTWAN.per_second / 86400 * 8)
    assert "sora-bench estimate" in {origin.source for origin in found.origins}


def test_today_without_an_estimate_uses_what_was_published() -> None:
    assert pytest.approx(375, abs=0.1) == WAN.per_second
    found = today(claims()["sora-render-time"], on=ON)
    assert found.values["h100-sxm"] == pytest.approx(1898.4 / (81 / 16) * 60)


def test_api_prices_of_today_leave_out_what_is_gone() -> None:
    before, after = offers("720p", "2026-09-23"), offers("720p", ON)
    assert any(price.model == "sora-2" and price.provider == "OpenAI" for price in before)
    assert not any(price.provider == "OpenAI" for price in after)
    assert all(price.task == "t2v" and price.kind == "list" for price in after)
    found = today(claims()["sora-tokens-1min-usd"], on=ON)
    assert found.values["usd_per_minute_720p_cheapest"] == pytest.approx(after[0].usd_per_second * 60)


def test_figures_are_written_as_people_do() -> None:
    written = [recompute.figure(value) for value in (600.0, 0.04, 720_000.0, 3600.0, 8.235)]
    assert written == ["600", "0.04", "720,000", "3,600", "8.235"]
