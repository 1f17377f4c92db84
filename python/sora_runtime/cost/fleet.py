"""What a fleet plan is made from: the seconds and prices of one kind of replica, and what else is assumed."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from sora_runtime.cost import money
from sora_runtime.cost.queueing import Job
from sora_runtime.errors import InvalidRequest


@dataclass(frozen=True)
class ServiceTime:
    """What the estimator says of one clip on one kind of replica.

    Args:
        gpu: name of the GPU kind.
        gpus_per_clip: GPUs that make one clip together: one replica.
        p10: wall seconds per clip; p10 to p90 is the uncertainty of the estimate, common to all clips.
        p50: the same, median.
        p90: the same.
        usd_per_gpu_hour: on demand.
        spot_usd_per_gpu_hour: None where no spot price is known.
        watts_per_gpu: while a clip is made.
        video_seconds: length of one clip.
        load_seconds: of a cold start, from a running machine to the first clip.
        fits: False where the model does not fit or cannot run.
        reason: why not, in words.
        price_origin: provider, date and source of the on-demand price.
        spot_price_origin: the same of the spot price.
        price_range: lowest and highest known USD per GPU-hour; None: the planner's own factors are used.
        clip: size, frames, steps and software, in words.
    """

    gpu: str
    gpus_per_clip: int
    p10: float
    p50: float
    p90: float
    usd_per_gpu_hour: float
    spot_usd_per_gpu_hour: float | None
    watts_per_gpu: float
    video_seconds: float
    load_seconds: float
    fits: bool
    reason: str
    price_origin: str = ""
    spot_price_origin: str = ""
    price_range: tuple[float, float] | None = None
    clip: str = ""


@dataclass(frozen=True)
class FleetAssumptions:
    """What no estimate and no price list says; every one can be overridden.

    Args:
        clip_variation: standard deviation over mean of the time from clip to clip of one request.
        failed_share: share of attempts thrown away (errors, filters) and made again.
        reclaim_hours: mean hours between two reclaims of one spot machine.
        replacement_seconds: until a reclaimed machine is replaced; the cold start comes on top.
        max_utilisation: mean utilisation in the busiest hour is never planned above it.
        max_spot_share: of a fleet whose spot share is left to the planner: one kind is reclaimed all at once.
        hours_per_month: 365 x 24 / 12.
        host_power_share: watts of hosts and network for a watt of GPU.
        pue: watts of the site for a watt of IT.
        price_low: the cheap end of prices over the price used, where the catalogue says nothing better.
        price_high: the dear end.
    """

    clip_variation: float = 0.05
    failed_share: float = money.DEFAULTS.failed_share
    reclaim_hours: float = 24.0
    replacement_seconds: float = 600.0
    max_utilisation: float = 0.95
    max_spot_share: float = 0.5
    hours_per_month: float = 730.0
    host_power_share: float = money.DEFAULTS.host_power_share
    pue: float = money.DEFAULTS.pue
    price_low: float = 0.7
    price_high: float = 1.4

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not (math.isfinite(value) and value >= 0):
                raise InvalidRequest(f"{item.name} = {value:g} is not a number of 0 or more; use {item.default}")
        for name, low, high in (("clip_variation", 0, 2), ("failed_share", 0, 0.9), ("max_utilisation", 0.01, 0.99)):
            if not low <= getattr(self, name) <= high:
                raise InvalidRequest(f"{name} = {getattr(self, name):g} is not between {low} and {high}")
        if self.reclaim_hours < 0.01:
            raise InvalidRequest(f"reclaim_hours = {self.reclaim_hours:g} is below 0.01; use 24")

    @property
    def power_overhead(self) -> float:
        """Watts of the site for a watt of GPU."""
        return (1 + self.host_power_share) * self.pue

    def with_overrides(self, values: Mapping[str, float]) -> FleetAssumptions:
        """The same with some values set by the user.

        Raises:
            InvalidRequest: A name is not known or a value is out of range.
        """
        known = [item.name for item in fields(self)]
        for name in values:
            if name not in known:
                nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or known[:3]
                raise InvalidRequest(f"assumption {name!r} is not known; the nearest are {', '.join(nearest)}")
        return replace(self, **values)

    def job(self, service: ServiceTime, seconds: float) -> Job:
        """One clip of `seconds` on replicas of this kind."""
        outage = self.replacement_seconds + service.load_seconds
        return Job(seconds, self.clip_variation, self.failed_share, self.reclaim_hours * 3600, outage)
