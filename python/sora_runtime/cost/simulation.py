"""Plays a fleet clip by clip: arrivals, one queue, replicas on demand and on spot, retries and reclaims (simpy)."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

from sora_runtime.cost.queueing import Job, Replicas, log_deviation

Seconds = NDArray[np.float64]
Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Clips:
    """The clips of one run; the same draws for every fleet, so that fleets are compared and not their luck.

    Args:
        arrivals: seconds, ascending.
        services: seconds of one attempt, one for each clip.
        attempts: how many times each must be made until one is good, at least 1.
    """

    arrivals: Seconds
    services: Seconds
    attempts: NDArray[np.int64]

    @classmethod
    def draw(cls, arrivals: Seconds, job: Job, seed: int) -> Clips:
        """Log-normal services about the median, geometric attempts."""
        random = np.random.default_rng([seed, 1])
        services = job.service * np.exp(log_deviation(job.variation) * random.standard_normal(len(arrivals)))
        attempts = np.random.default_rng([seed, 2]).geometric(1.0 - job.failed_share, len(arrivals))
        return cls(arrivals, services, attempts)


@dataclass(frozen=True)
class Outcome:
    """What happened to the clips of one run.

    `waits` (arrival to first start) and `latencies` (arrival to good end) are in seconds, one for each clip, NaN
    where that has not happened; `busy` is the mean share of replicas at work between `since` and the last arrival.
    """

    arrived: int
    served: int
    running: int
    waiting: int
    failed: int
    reclaimed: int
    waits: Seconds
    latencies: Seconds
    busy: float


class _Run:
    """The state of one simulation."""

    def __init__(self, clips: Clips, job: Job, seed: int, window: tuple[float, float]) -> None:
        self.environment = simpy.Environment()
        self.queue = simpy.PriorityStore(self.environment)  # of indices: who came first is served first
        self.job = job
        self.window = window
        self.random = np.random.default_rng([seed, 3])
        self.arrivals: list[float] = clips.arrivals.tolist()
        self.services: list[float] = clips.services.tolist()
        self.attempts: list[int] = clips.attempts.tolist()
        self.waits = [math.nan] * len(self.arrivals)
        self.latencies = [math.nan] * len(self.arrivals)
        self.arrived = self.served = self.running = self.failed = self.reclaimed = 0
        self.busy = 0.0

    def arrive(self) -> Steps:
        for index, arrival in enumerate(self.arrivals):
            yield self.environment.timeout(max(0.0, arrival - self.environment.now))
            self.arrived += 1
            self.queue.put(index)

    def serve(self, index: int) -> Steps:
        """One clip on one replica, again and again until it is good; an interrupt hands it back to the queue."""
        environment = self.environment
        if math.isnan(self.waits[index]):
            self.waits[index] = environment.now - self.arrivals[index]
        self.running += 1
        started = environment.now
        try:
            while True:
                yield environment.timeout(self.services[index])
                self.attempts[index] -= 1
                if self.attempts[index] == 0:
                    break
                self.failed += 1
            self.latencies[index] = environment.now - self.arrivals[index]
            self.served += 1
        except simpy.Interrupt:
            self.queue.put(index)
            raise
        finally:
            self.running -= 1
            since, until = self.window
            self.busy += max(0.0, min(environment.now, until) - max(started, since))

    def on_demand(self) -> Steps:
        while True:
            index = yield self.queue.get()
            yield from self.serve(index)

    def spot(self) -> Steps:
        """A replica that is reclaimed now and then, idle or not, and replaced by a cold one."""
        environment = self.environment
        # In the steady state some replicas are away; starting with all of them would flatter the fleet.
        away = self.job.reclaim_outage / (self.job.reclaim_mean + self.job.reclaim_outage)
        if self.random.random() < away:
            yield environment.timeout(self.random.random() * self.job.reclaim_outage)
        while True:
            environment.process(self.reclaim(environment.active_process))
            request: Any = None
            try:
                while True:
                    request = self.queue.get()
                    index = yield request
                    request = None
                    yield from self.serve(index)
            except simpy.Interrupt:
                self.reclaimed += 1
                if request is not None and request.triggered:
                    self.queue.put(request.value)  # handed over in the very moment of the reclaim
                elif request is not None:
                    request.cancel()
            yield environment.timeout(self.job.reclaim_outage)

    def reclaim(self, replica: Any) -> Steps:
        yield self.environment.timeout(self.random.exponential(self.job.reclaim_mean))
        if self.served < len(self.arrivals):  # after the last clip nothing is left to disturb, and the run may end
            replica.interrupt()


def simulate(
    clips: Clips, replicas: Replicas, job: Job, *, seed: int = 0, since: float = 0.0, until: float | None = None
) -> Outcome:
    """Serves clips in the order of their arrival.

    Args:
        clips: what arrives.
        replicas: of one queue; on-demand ones first take what comes when all are idle at the start.
        job: for reclaims; services and attempts are those of `clips`.
        seed: of the reclaims.
        since: seconds from which `busy` is measured, after the start-up of an empty fleet.
        until: stops at this time, else when all clips are served.
    """
    last = float(clips.arrivals[-1])
    run = _Run(clips, job, seed, (since, last if until is None else min(last, until)))
    run.environment.process(run.arrive())
    never = math.isinf(job.reclaim_mean)
    for _ in range(replicas.on_demand + (replicas.spot if never else 0)):
        run.environment.process(run.on_demand())
    for _ in range(0 if never else replicas.spot):
        run.environment.process(run.spot())
    run.environment.run(until=until)
    span = max(run.window[1] - since, 1e-9)
    return Outcome(
        arrived=run.arrived,
        served=run.served,
        running=run.running,
        waiting=len(run.queue.items),
        failed=run.failed,
        reclaimed=run.reclaimed,
        waits=np.asarray(run.waits),
        latencies=np.asarray(run.latencies),
        busy=run.busy / (span * replicas.count),
    )
