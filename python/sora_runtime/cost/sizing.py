"""The smallest fleet of one kind that keeps a latency target: bracketed by theory, then simulated and bisected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from sora_runtime.cost.demand import Demand, crowd
from sora_runtime.cost.queueing import Job, Replicas, expected_replicas, late_share, least_replicas
from sora_runtime.cost.simulation import Clips, Outcome, simulate

CELL_LOAD = 250.0  # Erlangs of one simulated queue; a larger fleet is several equal queues, as it is in practice
MAX_RECLAIMS = 30_000  # of one simulation: bounds the work where clips are rare
LEAST_SPOT_WORTH = 0.05  # below, a spot replica is reclaimed before it finishes anything


@dataclass(frozen=True)
class Effort:
    """How long simulations are: clips of one run, and runs with other seeds that check the fleet found."""

    clips: int = 6000
    checks: int = 3


@dataclass(frozen=True)
class Sized:
    """A number of replicas that keeps the target, and how it does.

    `latency_p95` has the standard error `latency_p95_error` over the check runs (0 for a trace, which is one run).
    """

    cells: int
    replicas: Replicas  # of one cell
    expected: int  # replicas of one cell that theory alone would take
    busy: float
    wait_mean: float
    latency_p50: float
    latency_p95: float
    latency_p95_error: float
    clips: int  # simulated, in all


def cells_of(demand: Demand, job: Job) -> int:
    """Equal queues that the demand is split into, so that each can be simulated."""
    return max(1, math.ceil(demand.peak_per_second * job.work / CELL_LOAD))


def hopeless(job: Job, limit: float, replicas: Replicas) -> bool:
    """Whether more than 5% of clips are late however many replicas there are."""
    return late_share(replicas, 1e-12, job, limit) > 0.05


def size_fleet(demand: Demand, job: Job, limit: float, spot_share: float, max_utilisation: float) -> Sizing | None:
    """What theory says; None where no number of replicas keeps the target or spot machines never finish a clip."""
    spot_like = Replicas.split(100, spot_share)
    if spot_share > 0 and job.spot_worth < LEAST_SPOT_WORTH:
        return None
    if hopeless(job, limit, spot_like):
        return None
    cells = cells_of(demand, job)
    rate = demand.peak_per_second / cells
    least = least_replicas(rate, job, spot_share, max_utilisation)
    if demand.arrivals is None:
        expected = expected_replicas(rate, job, limit, spot_share, max_utilisation)
    else:
        # Whoever comes in a crowd of k is in time if c replicas make k clips within the limit: c = k s / limit.
        load = crowd(demand.cell(cells, 0, 0), limit) * job.work / limit
        expected = max(least, least_replicas(load / job.work, job, spot_share, 1.0))
    return Sizing(demand, job, limit, spot_share, cells, least, expected)


@dataclass(frozen=True)
class Sizing:
    """One kind of fleet, bracketed: `least` replicas of a cell by load alone, `expected` by queueing theory."""

    demand: Demand
    job: Job
    limit: float
    spot_share: float
    cells: int
    least: int
    expected: int

    @property
    def hoped(self) -> int:
        """The fewest replicas of a cell that a simulation may well find enough; theory is worse for traces."""
        return max(self.least, self.expected - 1 if self.demand.arrivals is None else int(0.85 * self.expected))

    def settle(self, effort: Effort, correction: float = 1.0) -> Sized | None:
        """Simulates until the smallest number of replicas is found that keeps the target; None if none does.

        Args:
            effort: how much is simulated.
            correction: of `expected`, from other kinds with the same demand; it only saves runs.
        """
        guess = max(self.least, round(self.expected * correction))
        runs: dict[int, Outcome] = {}

        def keeps(count: int) -> bool:
            runs[count] = outcome = self.play(count, effort.clips, 0)
            return _p95(self._counted(outcome)) <= self.limit

        found = smallest(keeps, self.least, guess, self._most(effort.clips))
        if found is None:
            return None
        sized = self._report(found, runs[found], effort)
        for count in range(found + 1, found + 4):  # the first seed may have been a lucky one
            if sized.latency_p95 <= self.limit:
                break
            sized = self._report(count, self.play(count, effort.clips, 0), effort)
        return sized

    def _most(self, clips: int) -> int:
        """With as many replicas as clips nobody waits; Poisson arrivals need far fewer."""
        if self.demand.arrivals is not None:
            return self.least + self._clips(self.expected, clips)
        return 4 * self.expected + 64

    def play(self, count: int, clips: int, seed: int) -> Outcome:
        """One run of one cell with `count` replicas."""
        replicas = Replicas.split(count, self.spot_share)
        drawn = Clips.draw(self.demand.cell(self.cells, self._clips(count, clips), seed), self.job, seed)
        since = float(drawn.arrivals[self._warm_up(len(drawn.arrivals))])
        return simulate(drawn, replicas, self.job, seed=seed, since=since)

    def _clips(self, count: int, clips: int) -> int:
        if self.demand.arrivals is not None:
            return len(self.demand.cell(self.cells, clips, 0))
        spot = Replicas.split(count, self.spot_share).spot
        if spot:
            rate = self.demand.peak_per_second / self.cells
            clips = min(clips, max(500, int(rate * MAX_RECLAIMS * self.job.reclaim_mean / spot)))
        return clips

    def _warm_up(self, clips: int) -> int:
        """Clips that an empty fleet sees before it is in its steady state; a trace is played as it is."""
        if self.demand.arrivals is not None:
            return 0
        load = self.demand.peak_per_second / self.cells * self.job.work
        return min(clips // 2, max(clips // 10, int(4 * load)))

    def _counted(self, outcome: Outcome) -> Outcome:
        start = self._warm_up(outcome.arrived)
        return replace(outcome, waits=outcome.waits[start:], latencies=outcome.latencies[start:])

    def _report(self, found: int, first: Outcome, effort: Effort) -> Sized:
        seeds = 1 if self.demand.arrivals is not None else effort.checks
        more = [self.play(found, effort.clips, seed) for seed in range(1, seeds)]
        counted = [self._counted(outcome) for outcome in (first, *more)]
        tails = [_p95(outcome) for outcome in counted]
        error = float(np.std(tails, ddof=1) / math.sqrt(len(tails))) if len(tails) > 1 else 0.0
        return Sized(
            cells=self.cells,
            replicas=Replicas.split(found, self.spot_share),
            expected=self.expected,
            busy=float(np.mean([outcome.busy for outcome in counted])),
            wait_mean=float(np.mean([outcome.waits.mean() for outcome in counted])),
            latency_p50=float(np.mean([np.median(outcome.latencies) for outcome in counted])),
            latency_p95=float(np.mean(tails)),
            latency_p95_error=error,
            clips=sum(outcome.arrived for outcome in counted),
        )


def _p95(outcome: Outcome) -> float:
    return float(np.percentile(outcome.latencies, 95))


def smallest(keeps: Callable[[int], bool], least: int, guess: int, most: int) -> int | None:
    """The smallest count from `least` to `most` that keeps the target, found in doubling steps from `guess`.

    Args:
        keeps: whether a count does; once true, true for all larger ones.
        least: where to stop downwards.
        guess: where to start.
        most: where to give up upwards.
    """
    step = 1
    if keeps(guess):
        good, bad = guess, least - 1
        while good > least:
            below = max(least, good - step)
            if not keeps(below):
                bad = below
                break
            good, step = below, 2 * step
    else:
        bad, good = guess, guess
        while True:
            if bad >= most:
                return None
            good = min(most, bad + step)
            if keeps(good):
                break
            bad, step = good, 2 * step
    while good - bad > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if keeps(middle) else (good, middle)
    return good
