"""What a fleet plan asks and what it answers: the records, with no work in them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sora_runtime.cost.demand import Demand
from sora_runtime.cost.fleet import FleetAssumptions
from sora_runtime.errors import InvalidRequest


@dataclass(frozen=True)
class ClipSettings:
    """What is asked of the estimator beside the model and the GPU; None: the model's own default."""

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    seconds: float | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    precision: str | None = None
    engine: str | None = None
    attention: str | None = None


@dataclass(frozen=True)
class PlanRequest:
    """What a fleet must do.

    Args:
        demand: clips per hour and how they come.
        latency: seconds from arrival to finished clip that 95% of clips keep.
        spot_share: of the replicas; None: the planner takes none or `assumptions.max_spot_share`, whichever is cheaper.
        assumptions: all the rest.
    """

    demand: Demand
    latency: float
    spot_share: float | None = None
    assumptions: FleetAssumptions = field(default_factory=FleetAssumptions)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency) and self.latency > 0):
            raise InvalidRequest(f"latency = {self.latency:g} s is not above 0; use one such as 300")
        if self.spot_share is not None and not 0 <= self.spot_share <= 1:
            raise InvalidRequest(f"spot share = {self.spot_share:g} is not between 0 and 1; use one such as 0.5")


@dataclass(frozen=True)
class FleetOption:
    """A fleet that keeps the target, what it costs and how it does; money in USD, times in seconds.

    `utilisation` is simulated, in the busiest hour (lost and repeated work included); `utilisation_month` is its mean
    over the month. `megawatts` are those of the GPUs at work, `site_megawatts` with hosts and cooling.
    """

    gpu: str
    gpus_per_clip: int
    gpus: int
    on_demand_gpus: int
    spot_gpus: int
    cells: int
    replicas: int
    replicas_by_theory: int
    service_seconds: float
    utilisation: float
    utilisation_month: float
    wait_mean: float
    latency_p50: float
    latency_p95: float
    latency_p95_error: float
    usd_per_month: float
    usd_per_clip: float
    usd_per_video_second: float
    megawatts: float
    site_megawatts: float
    simulated_clips: int

    @property
    def spot_share(self) -> float:
        """Of all GPUs."""
        return self.spot_gpus / self.gpus


@dataclass(frozen=True)
class Refused:
    """A kind of replica that cannot be used, and why."""

    gpu: str
    gpus_per_clip: int
    reason: str


@dataclass(frozen=True)
class Stated:
    """One assumption with its origin."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True)
class Change:
    """How the cheapest fleet moves when one thing does; `usd_per_month` is None where no fleet keeps the target."""

    what: str
    usd_per_month: float | None
    change: float | None  # over the plan's: 0.2 is 20% more
    fleet: str


@dataclass(frozen=True)
class Plan:
    """The answer of `sora-bench plan`.

    `if_fast` and `if_slow` are the chosen kind sized for the 10th and 90th percentile of the service time: how wrong
    the estimate may be moves the whole fleet, as it is common to all clips. `following_usd_per_month` is what the
    chosen kind would cost if replicas were started and stopped every hour (cold starts paid); None for a flat day.
    """

    clips_per_hour: float
    peak_factor: float
    latency: float
    chosen: FleetOption
    if_fast: FleetOption | None
    if_slow: FleetOption | None
    following_usd_per_month: float | None
    runners_up: tuple[FleetOption, ...]
    refused: tuple[Refused, ...]
    assumptions: tuple[Stated, ...]
    sensitivity: tuple[Change, ...]
