"""The simulation of a fleet against queueing theory: waits, tails, reclaims, retries, and that no clip is lost."""

from __future__ import annotations

import heapq
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from sora_runtime.cost.queueing import (
    Job,
    Replicas,
    erlang_c,
    expected_replicas,
    late_share,
    least_replicas,
    mean_wait,
)
from sora_runtime.cost.simulation import Clips, Outcome, simulate

Array = NDArray[np.float64]
SEEDS = range(100, 120)
CLIPS = 15_000


def clips_of(servers: int, utilisation: float, services: Array, seed: int) -> Clips:
    """Poisson arrivals for a mean service of 1 second."""
    gaps = np.random.default_rng([seed, 0]).exponential(1 / (servers * utilisation), len(services))
    return Clips(np.cumsum(gaps), services, np.ones(len(services), np.int64))


def run(servers: int, utilisation: float, services: Array, seed: int) -> Outcome:
    return simulate(clips_of(servers, utilisation, services, seed), Replicas(servers), Job(1.0))


def exponential(seed: int) -> Array:
    return np.random.default_rng([seed, 9]).exponential(1.0, CLIPS)


def assert_near(values: list[float], theory: float) -> None:
    """Within three standard errors of the runs' mean, and the error itself is small enough to mean something."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    assert error < 0.08 * theory
    assert abs(float(np.mean(values)) - theory) < 3 * error


def fixed_service_wait(servers: int, load: float) -> float:
    """Mean wait of M/D/c for service 1, exactly: the number present after one service is max(n - c, 0) + Poisson."""
    size = 400
    counts = np.arange(size)
    log_factorials = np.cumsum(np.log(np.maximum(counts, 1)))
    poisson = np.exp(counts * math.log(load) - load - log_factorials)
    present = np.full(size, 1 / size)
    for _ in range(4000):
        left = np.zeros(size)
        left[0] = present[: servers + 1].sum()
        left[1 : size - servers] = present[servers + 1 :]
        present = np.convolve(left, poisson)[:size]
        present /= present.sum()
    return float((np.maximum(counts - servers, 0) * present).sum() / load)  # Little


def test_erlang_c_has_its_known_values() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(10, 8.0) == pytest.approx(0.4092, abs=1e-4)
    assert erlang_c(3, 3.0) == 1.0


def test_mean_wait_is_exact_for_one_server() -> None:
    assert mean_wait(1, 0.8, 2.0) == pytest.approx(8.0)  # M/M/1: rho s / (1 - rho)
    assert mean_wait(1, 0.8, 2.0, variation=0.0) == pytest.approx(4.0)  # M/D/1: half of it
    assert mean_wait(2, 2.0, 1.0) == math.inf


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.7), (4, 0.8), (20, 0.9)])
def test_exponential_service_waits_as_erlang_says(servers: int, utilisation: float) -> None:
    runs = [run(servers, utilisation, exponential(seed), seed).waits[CLIPS // 10 :] for seed in SEEDS]
    load = servers * utilisation
    assert_near([float(waits.mean()) for waits in runs], mean_wait(servers, load, 1.0))
    assert_near([float((waits > 0).mean()) for waits in runs], erlang_c(servers, load))
    late = erlang_c(servers, load) * math.exp(-(servers - load) * 0.5)
    assert_near([float((waits > 0.5).mean()) for waits in runs], late)


@pytest.mark.parametrize(("servers", "utilisation"), [(1, 0.8), (4, 0.85), (10, 0.9)])
def test_fixed_service_waits_as_the_exact_chain_says(servers: int, utilisation: float) -> None:
    runs = [run(servers, utilisation, np.ones(CLIPS), seed).waits[CLIPS // 10 :] for seed in SEEDS]
    theory = fixed_service_wait(servers, servers * utilisation)
    assert_near([float(waits.mean()) for waits in runs], theory)
    # The bracket need only be near: Allen and Cunneen are a few percent off here.
    assert mean_wait(servers, servers * utilisation, 1.0, variation=0.0) == pytest.approx(theory, rel=0.1)


def test_busy_share_is_the_offered_load() -> None:
    outcomes = [run(5, 0.7, exponential(seed), seed) for seed in SEEDS]
    assert_near([outcome.busy for outcome in outcomes], 0.7)


def test_every_clip_takes_what_the_recursion_of_kiefer_and_wolfowitz_gives() -> None:
    clips = clips_of(3, 0.9, exponential(5), 5)
    free, expected = [0.0] * 3, []
    for arrival, service in zip(clips.arrivals, clips.services, strict=True):
        end = max(arrival, heapq.heappop(free)) + service
        heapq.heappush(free, end)
        expected.append(end - arrival)
    outcome = simulate(clips, Replicas(3), Job(1.0))
    np.testing.assert_allclose(outcome.latencies, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("until", [3.0, 200.0, 1500.0])
@pytest.mark.parametrize("replicas", [Replicas(4), Replicas(2, 2), Replicas(0, 4)])
def test_no_clip_is_lost(replicas: Replicas, until: float) -> None:
    job = Job(1.0, 0.3, 0.1, reclaim_mean=20.0, reclaim_outage=5.0)
    clips = Clips.draw(clips_of(4, 1.2, np.ones(8000), 1).arrivals, job, 1)
    outcome = simulate(clips, replicas, job, until=until)
    assert outcome.arrived == np.count_nonzero(clips.arrivals <= until)
    assert outcome.arrived == outcome.served + outcome.running + outcome.waiting
    assert outcome.waiting > 0 or until < 100
    assert np.count_nonzero(~np.isnan(outcome.latencies)) == outcome.served


def test_all_clips_are_served_in_the_end_and_reclaims_happen() -> None:
    job = Job(1.0, 0.05, 0.05, reclaim_mean=10.0, reclaim_outage=3.0)
    clips = Clips.draw(clips_of(6, 0.6, np.ones(5000), 2).arrivals, job, 2)
    outcome = simulate(clips, Replicas(1, 5), job)
    assert outcome.served == outcome.arrived == 5000
    assert outcome.running == outcome.waiting == 0
    assert outcome.failed == pytest.approx(5000 * 0.05 / 0.95, rel=0.2)
    cycles = clips.arrivals[-1] * 5 / (10 + 3)
    assert outcome.reclaimed == pytest.approx(cycles, rel=0.15)
    assert np.array_equal(outcome.latencies, simulate(clips, Replicas(1, 5), job).latencies)


def test_a_saturated_spot_replica_does_what_theory_says() -> None:
    job = Job(1.0, 0.0, 0.0, reclaim_mean=2.0, reclaim_outage=1.0)
    clips = Clips(np.zeros(20_000), np.ones(20_000), np.ones(20_000, np.int64))
    outcome = simulate(clips, Replicas(0, 1), job)
    assert 20_000 / outcome.latencies.max() == pytest.approx(job.spot_worth, rel=0.03)


def test_what_one_attempt_takes() -> None:
    clips = Clips.draw(np.arange(50_000.0), Job(100.0, 0.05, 0.2), 3)
    assert np.median(clips.services) == pytest.approx(100, rel=0.002)
    assert clips.services.std() / clips.services.mean() == pytest.approx(0.05, rel=0.02)
    assert np.percentile(clips.services, 95) == pytest.approx(Job(100.0).p95, rel=0.002)
    assert clips.attempts.mean() == pytest.approx(1.25, rel=0.01)


def test_theory_brackets_the_fleet() -> None:
    job = Job(100.0, failed_share=0.02, reclaim_mean=24 * 3600, reclaim_outage=700)
    for rate in (1e-5, 0.01, 0.3, 2.0):
        for share in (0.0, 0.5, 1.0):
            count = expected_replicas(rate, job, 250.0, share, 0.95)
            assert late_share(Replicas.split(count, share), rate, job, 250.0) <= 0.05
            least = least_replicas(rate, job, share, 0.95)
            assert least <= count
            assert rate * job.work <= 0.95 * Replicas.split(least, share).worth(job) + 1e-9
            if count > least:
                assert late_share(Replicas.split(count - 1, share), rate, job, 250.0) > 0.05
