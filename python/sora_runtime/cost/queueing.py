"""What theory says of a queue before several identical servers: Erlang's C, its tail, the bracket of a simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

NORMAL_P95 = 1.6448536269514722  # the 95th percentile of a standard normal


@dataclass(frozen=True)
class Job:
    """What serving one clip takes, and what can go wrong meanwhile.

    Args:
        service: seconds of one undisturbed attempt on one replica (the median).
        variation: standard deviation over mean of that time from clip to clip.
        failed_share: share of attempts whose clip is thrown away and made again at once.
        reclaim_mean: mean seconds between two reclaims of one spot replica.
        reclaim_outage: seconds from a reclaim until its successor serves: replacement and cold start.
    """

    service: float
    variation: float = 0.05
    failed_share: float = 0.0
    reclaim_mean: float = math.inf
    reclaim_outage: float = 0.0

    @property
    def p95(self) -> float:
        """Seconds that 95% of attempts need at most."""
        return self.service * math.exp(NORMAL_P95 * log_deviation(self.variation))

    @property
    def work(self) -> float:
        """Mean busy seconds that one clip costs a replica which nobody reclaims."""
        deviation = log_deviation(self.variation)
        return self.service * math.exp(deviation**2 / 2) / (1.0 - self.failed_share)

    @property
    def spot_worth(self) -> float:
        """How much of an on-demand replica a spot replica replaces.

        It is away for part of the time, and a clip that it loses starts again: mean busy time to finish s seconds
        of work with restarts at rate 1/m is m (exp(s/m) - 1).
        """
        if math.isinf(self.reclaim_mean):
            return 1.0
        ratio = self.service / self.reclaim_mean
        restarts = ratio / math.expm1(ratio) if ratio < 700 else 0.0
        return restarts * self.reclaim_mean / (self.reclaim_mean + self.reclaim_outage)


@dataclass(frozen=True)
class Replicas:
    """Servers of one queue, each of which makes one clip at a time."""

    on_demand: int
    spot: int = 0

    @classmethod
    def split(cls, count: int, spot_share: float) -> Replicas:
        """`count` replicas; the share is rounded down to whole ones, so that what is promised stays on demand."""
        spot = int(count * spot_share + 1e-9)
        return cls(count - spot, spot)

    @property
    def count(self) -> int:
        """All of them."""
        return self.on_demand + self.spot

    def worth(self, job: Job) -> float:
        """The number of undisturbed replicas with the same capacity."""
        return self.on_demand + self.spot * job.spot_worth


def log_deviation(variation: float) -> float:
    """Standard deviation of the logarithm of a log-normal with this coefficient of variation."""
    return math.sqrt(math.log1p(variation**2))


def erlang_c(servers: int, load: float) -> float:
    """The share of arrivals that wait in M/M/c, by the recursion of Erlang's B.

    Args:
        servers: c, at least 1.
        load: arrival rate times mean service time, in Erlangs; 1.0 is returned where it is c or more.
    """
    if load >= servers:
        return 1.0
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    utilisation = load / servers
    return blocked / (1.0 - utilisation * (1.0 - blocked))


def mean_wait(servers: int, load: float, service: float, variation: float = 1.0) -> float:
    """Mean seconds in the queue of M/G/c after Allen and Cunneen; exact for M/M/c and for M/G/1.

    Args:
        servers: c.
        load: in Erlangs.
        service: mean seconds.
        variation: standard deviation of service over its mean: 1 for M/M/c, 0 for M/D/c.
    """
    if load >= servers:
        return math.inf
    return erlang_c(servers, load) * service / (servers - load) * (1.0 + variation**2) / 2.0


def late_share(replicas: Replicas, rate: float, job: Job, limit: float) -> float:
    """Roughly the share of clips that take more than `limit` seconds from arrival to end.

    The wait has an exponential tail with the mean of Allen and Cunneen; a clip needs one more attempt with the
    probability that the last one failed or its machine was reclaimed.

    Args:
        replicas: of one queue.
        rate: Poisson arrivals per second.
        job: one clip.
        limit: seconds.
    """
    worth = replicas.worth(job)
    load = rate * job.work
    if load >= worth:
        return 1.0
    waiting = erlang_c(max(1, int(worth)), load)
    drain = (worth - load) / job.work * 2.0 / (1.0 + job.variation**2)
    again = job.failed_share
    if replicas.spot:
        again += (1.0 - again) * replicas.spot / replicas.count * -math.expm1(-job.service / job.reclaim_mean)
    late, reached = 0.0, 1.0
    for attempts in range(1, 200):
        slack = limit - attempts * job.p95
        if slack < 0 or reached < 1e-9:
            return late + reached
        late += reached * (1.0 - again) * waiting * math.exp(-drain * slack)
        reached *= again
    return late + reached


def expected_replicas(rate: float, job: Job, limit: float, spot_share: float, max_utilisation: float) -> int:
    """The number of replicas that theory calls enough for 95% within `limit`; where a simulation starts.

    Args:
        rate: Poisson arrivals per second.
        job: one clip.
        limit: seconds that 95% of clips may take; at least what one attempt takes.
        spot_share: share of replicas on spot machines.
        max_utilisation: never busier than this on average.
    """
    low = least_replicas(rate, job, spot_share, max_utilisation)
    if late_share(Replicas.split(low, spot_share), rate, job, limit) <= 0.05:
        return low
    high = low + 1
    while late_share(Replicas.split(high, spot_share), rate, job, limit) > 0.05 and high < 8 * low + 64:
        low, high = high, high + 2 * (high - low)
    while high - low > 1:
        middle = (low + high) // 2
        if late_share(Replicas.split(middle, spot_share), rate, job, limit) <= 0.05:
            high = middle
        else:
            low = middle
    return high


def least_replicas(rate: float, job: Job, spot_share: float, max_utilisation: float) -> int:
    """The fewest replicas whose mean utilisation stays at or below the bound: nothing smaller can serve."""
    needed = rate * job.work / max_utilisation
    count = max(1, math.floor(needed))
    while Replicas.split(count, spot_share).worth(job) < needed - 1e-9:
        count += max(1, math.floor(needed - Replicas.split(count, spot_share).worth(job)))
    return count
