"""Fleet plans from made-up service times: the choice, its money, what moves it, traces, and what is refused."""

from __future__ import annotations

import json
import random
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from sora_runtime.cost.demand import Demand, busiest, hours_of_day, read_trace
from sora_runtime.cost.fleet import FleetAssumptions, ServiceTime
from sora_runtime.cost.plan import plan
from sora_runtime.cost.plan_record import Plan, PlanRequest
from sora_runtime.cost.sizing import CELL_LOAD, Effort, size_fleet, smallest
from sora_runtime.errors import InvalidRequest

QUICK = Effort(clips=2000, checks=2)


def service(gpu: str = "fast", gpus: int = 1, seconds: float = 100.0, usd: float = 3.0, **more: object) -> ServiceTime:
    known = ServiceTime(gpu, gpus, seconds * 0.8, seconds, seconds * 1.25, usd, None, 700.0, 5.0, 90.0, True, "")
    return replace(known, **more)  # type: ignore[arg-type]


def request(per_hour: float = 100.0, latency: float = 300.0, peak: float = 1.0, **more: object) -> PlanRequest:
    return PlanRequest(Demand(per_hour, peak), latency, **more)  # type: ignore[arg-type]


def find(services: list[ServiceTime], wanted: PlanRequest) -> Plan:
    return plan(services, wanted, QUICK)


def test_the_cheapest_kind_that_keeps_the_target_is_chosen() -> None:
    kinds = [service(), service("cheap", seconds=200, usd=1.0), service("slow", seconds=400, usd=0.1)]
    found = find(kinds, request())
    assert found.chosen.gpu == "cheap"
    assert found.chosen.latency_p95 <= 300
    assert [option.gpu for option in found.runners_up] == ["fast"]
    assert found.runners_up[0].usd_per_month > found.chosen.usd_per_month
    assert [(row.gpu, row.reason) for row in found.refused] == [("slow", "one clip takes more than 300 s")]


def test_a_tight_target_takes_more_gpus_a_clip() -> None:
    kinds = [service(), service(gpus=4, seconds=30)]
    assert find(kinds, request(latency=300)).chosen.gpus_per_clip == 1
    assert find(kinds, request(latency=60)).chosen.gpus_per_clip == 4


@pytest.mark.parametrize(("per_hour", "share"), [(20, 0.0), (300, 0.0), (300, 0.5), (3000, 1.0)])
def test_one_replica_less_would_be_late(per_hour: float, share: float) -> None:
    assumptions = FleetAssumptions()
    sizing = size_fleet(Demand(per_hour), assumptions.job(service(), 100), 160, share, 0.95)
    assert sizing is not None
    sized = sizing.settle(Effort(clips=4000, checks=1))
    assert sized is not None
    count = sized.replicas.count
    assert sized.latency_p95 <= 160
    assert abs(count - sizing.expected) <= max(1, 0.1 * count)
    if count > sizing.least:
        fewer = sizing.play(count - 1, 4000, 0)
        assert np.percentile(fewer.latencies[400:], 95) > 160


def test_money_and_power_add_up() -> None:
    spot = service(gpus=2, spot_usd_per_gpu_hour=1.0)
    chosen = find([spot], request(spot_share=0.5, peak=2.0)).chosen
    assert chosen.gpus == chosen.on_demand_gpus + chosen.spot_gpus == 2 * chosen.replicas
    assert chosen.spot_gpus > 0
    assert chosen.usd_per_month == pytest.approx(730 * (3.0 * chosen.on_demand_gpus + 1.0 * chosen.spot_gpus))
    assert chosen.usd_per_clip == pytest.approx(chosen.usd_per_month / 730 / 100)
    assert chosen.usd_per_video_second == pytest.approx(chosen.usd_per_clip / 5)
    assert chosen.megawatts == pytest.approx(chosen.gpus * 700e-6)
    assert chosen.site_megawatts > chosen.megawatts
    # Work done is work asked for: 200 clips of 100 s an hour in the peak, 2% of them twice, some lost to reclaims.
    assert chosen.utilisation * chosen.replicas == pytest.approx(200 * 100 / 3600 * 1.02, rel=0.05)
    assert chosen.utilisation_month == pytest.approx(chosen.utilisation / 2)


def test_the_spot_share_is_taken_where_it_pays() -> None:
    dear, cheap = service(spot_usd_per_gpu_hour=3.0), service(spot_usd_per_gpu_hour=1.0)
    assert find([dear], request()).chosen.spot_gpus == 0
    assert find([cheap], request()).chosen.spot_gpus > 0
    assert find([cheap], request(spot_share=0.0)).chosen.spot_gpus == 0
    assert find([service()], request(spot_share=1.0)).chosen.spot_gpus == 0  # no spot price: all on demand


def test_the_band_of_the_estimate_moves_the_whole_fleet() -> None:
    found = find([service()], request(1000))
    assert found.if_fast is not None and found.if_slow is not None
    assert found.if_fast.usd_per_month == pytest.approx(0.8 * found.chosen.usd_per_month, rel=0.1)
    assert found.if_slow.usd_per_month == pytest.approx(1.25 * found.chosen.usd_per_month, rel=0.1)
    assert find([service(seconds=250)], request()).if_slow is None  # 312 s is not within 300


def test_what_moves_it_is_sorted_and_follows() -> None:
    kinds = [service(spot_usd_per_gpu_hour=1.5), service(gpus=4, seconds=30, spot_usd_per_gpu_hour=1.5)]
    found = find(kinds, request(500))
    rows = {row.what: row for row in found.sensitivity}
    assert len(rows) == 10
    effects = [max(1 + (row.change or 0), 1 / (1 + (row.change or 0))) for row in found.sensitivity]
    assert effects == sorted(effects, reverse=True)
    assert rows["requests x 2"].change == pytest.approx(1.0, abs=0.15)
    assert rows["service time +20%"].change == pytest.approx(0.2, abs=0.1)
    assert rows["price low: $2.1/h"].change == pytest.approx(-0.3)
    assert (rows["spot share 0%"].change or 0) > 0 > (rows["spot share 100%"].change or 0)
    assert rows["spot share 50%"].change == 0
    assert (rows["latency target x 2"].change or 0) <= 0
    ranged = find([service(price_range=(1.5, 6.0))], request(latency=120))
    rows = {row.what: row for row in ranged.sensitivity}
    assert rows["price high: $6/h"].change == pytest.approx(1.0)
    assert ranged.sensitivity[0].usd_per_month is None  # half of 120 s is below the service time


def test_every_assumption_has_an_origin() -> None:
    found = find([service(price_origin="ACME, 2026-11-01")], request(assumptions=FleetAssumptions(failed_share=0.1)))
    rows = {row.name: row for row in found.assumptions}
    assert all(row.value and row.origin for row in found.assumptions)
    assert rows["on demand"].origin == "ACME, 2026-11-01"
    assert rows["failed clips"].origin == "given as failed_share"
    json.dumps(asdict(found), allow_nan=False)


def test_a_day_with_a_peak_is_cheaper_to_follow() -> None:
    found = find([service()], request(1000, peak=2.5))
    assert found.following_usd_per_month is not None
    assert 0.4 < found.following_usd_per_month / found.chosen.usd_per_month < 0.6
    assert find([service()], request(1000)).following_usd_per_month is None


@pytest.mark.parametrize("peak", [1.0, 1.5, 3.0, 24.0])
def test_the_hours_of_a_day(peak: float) -> None:
    hours = hours_of_day(peak)
    assert hours.mean() == pytest.approx(1)
    assert hours.max() == pytest.approx(peak, rel=1e-3)
    assert hours.min() >= 0


def test_a_huge_fleet_is_many_queues_and_takes_no_longer() -> None:
    started = time.process_time()
    found = plan([service(), service(gpus=8, seconds=15)], request(1e7, peak=2.0))
    assert time.process_time() - started < 15  # seconds; about 1 on a free core
    assert found.chosen.cells == pytest.approx(2e7 / 36 / 0.98 / CELL_LOAD, rel=0.01)
    assert found.chosen.replicas == pytest.approx(2e7 / 36 / 0.98 / 0.95, rel=0.02)
    assert 0.9 < found.chosen.utilisation < 0.97


def test_the_smallest_count_is_found_from_anywhere() -> None:
    chance = random.Random(0)
    for _ in range(500):
        least, answer = chance.randint(1, 50), chance.randint(1, 200)
        guess, most = least + chance.randint(0, 150), least + 200
        assert smallest(lambda count, answer=answer: count >= answer, least, guess, most) == max(least, answer)
    assert smallest(lambda count: False, 1, 5, 100) is None


def write(path: Path, text: str) -> Path:
    file = path / "trace.csv"
    file.write_text(text)
    return file


def test_a_trace_is_read_in_any_order(tmp_path: Path) -> None:
    demand = read_trace(write(tmp_path, "clips,arrival_seconds\n2,3600\n,0\n\n1,1800\n"))
    assert demand.arrivals is not None
    assert demand.arrivals.tolist() == [0, 1800, 3600, 3600]
    assert demand.clips_per_hour == pytest.approx(4 * 2 / 3)


def test_a_doubled_trace_has_twice_the_clips_between_the_same_ends() -> None:
    demand = Demand(4.0, arrivals=np.array([0.0, 0.0, 10.0, 40.0]))
    doubled = demand.scaled(2)
    assert doubled.arrivals is not None
    assert doubled.arrivals.tolist() == [0, 0, 5, 5, 10, 25, 40, 40]
    assert doubled.clips_per_hour == 8
    assert busiest(np.array([0.0, 5.0, 6.0, 7.0, 20.0]), 3).tolist() == [5, 6, 7]


def test_a_bursty_trace_needs_more_than_its_mean() -> None:
    arrivals = np.repeat(np.arange(40) * 3600.0, 50)
    bursts = PlanRequest(Demand(50, arrivals=arrivals, source="trace"), 300.0)
    found = find([service()], bursts)
    # 50 clips at once on n replicas end within ceil(50 / n) x 100 s, so that 95% in 300 s take 16 to 25.
    assert 16 <= found.chosen.gpus <= 25
    assert find([service()], request(50)).chosen.gpus < 6
    assert {row.name: row.value for row in found.assumptions}["arrivals"] == "as in the trace"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arrival_seconds\n1\nsoon\n", "line 3: arrival 'soon'"),
        ("arrival_seconds\n1\n-2\n", "line 3: arrival '-2'"),
        ("arrival_seconds,clips\n1,1\n2,0\n", "line 3: clips '0'"),
        ("arrival_seconds,clips\n1,1\n\n2,x\n", "line 4: clips 'x'"),
        (f"arrival_seconds,clips\n1,1\n2,{'9' * 5000}\n", "line 3: clips"),
        ("when\n1\n2\n", "has no column arrival_seconds"),
        ("arrival_seconds\n7\n7\n", "holds 1 different times"),
        ("", "has no column arrival_seconds"),
        ("arrival_seconds,clips\n" + "".join(f"{i},1000000\n" for i in range(12)), "line 12: more than 10,000,000"),
    ],
)
def test_a_malformed_trace_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        read_trace(write(tmp_path, text))


def test_a_missing_trace_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_trace(tmp_path / "none.csv")


def test_bad_requests_are_refused() -> None:
    for wrong, words in (
        (lambda: request(0), "requests per hour = 0"),
        (lambda: request(float("nan")), "requests per hour = nan"),
        (lambda: request(latency=-5), "latency = -5 s"),
        (lambda: request(peak=0.5), "peak factor = 0.5"),
        (lambda: request(spot_share=1.5), "spot share = 1.5"),
        (lambda: FleetAssumptions(failed_share=1.0), "failed_share = 1 "),
        (lambda: FleetAssumptions().with_overrides({"failed": 1}), "nearest are failed_share"),
        (lambda: find([], request()), "no kind of GPU"),
        (lambda: find([service(fits=False, reason="needs 96 GB")], request()), "needs 96 GB"),
        (lambda: find([service(), service("quick", 8, 20)], request(latency=15)), "fastest, quick x 8, needs 20 s"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            wrong()


def test_the_latency_that_a_refusal_allows_is_enough() -> None:
    kinds = [service("quick", 8, 20)]
    with pytest.raises(InvalidRequest, match="allow 23 s"):
        find(kinds, request(latency=21))
    assert find(kinds, request(latency=23)).chosen.latency_p95 <= 23


def test_spot_machines_that_never_finish_a_clip_are_not_used() -> None:
    hasty = FleetAssumptions(reclaim_hours=0.01)
    kinds = [service(spot_usd_per_gpu_hour=0.1, seconds=200)]
    assert find(kinds, request(assumptions=hasty)).chosen.spot_gpus == 0
    with pytest.raises(InvalidRequest, match="lower spot share"):
        find(kinds, request(assumptions=hasty, spot_share=1.0))
