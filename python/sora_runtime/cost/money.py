"""What a clip costs and draws once its GPU-seconds are known: a flat sum of named items, every assumption stated.

All amounts are USD for one clip that is kept. With t GPU-seconds of a good attempt and p USD per GPU-hour:

    compute    = t p / 3600
    failed     = compute f / (1 - f)                       f: share of attempts that fail
    discarded  = (compute + failed) d / (1 - d)            d: share of good clips that nobody keeps
    cold start = c g / n x p / 3600 x attempts             c: seconds, g: GPUs of a clip, n: clips per start
    idle       = (all above) (1 / u - 1)                   u: utilisation
    storage    = size x months x USD per GB-month
    egress     = size x downloads x USD per GB
    electricity = energy x USD per kWh                     where the GPU is owned; rent includes it
    energy     = (busy hours x busy share + idle hours x idle share) x TDP x (1 + host) x PUE

with attempts = 1 / ((1 - f) (1 - d)) and size = bit rate x video seconds / 8.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.prices import ChosenPrice
from sora_runtime.errors import InvalidRequest

HOURS_PER_YEAR = 8760.0
_ASSUMED = "assumed; no published figure"


def _assumption(default: float, unit: str, origin: str, low: float = 0.0, high: float = math.inf) -> Any:
    """A field with what `sora-bench` prints beside it; `low` and `high` bound what a user may set."""
    return field(default=default, metadata={"unit": unit, "origin": origin, "low": low, "high": high})


@dataclass(frozen=True)
class Assumption:
    """One assumption as an output shows it."""

    name: str
    value: float
    unit: str
    origin: str  # where the value is from; "stated" where the user set it


@dataclass(frozen=True)
class Assumptions:
    """Everything beside GPU-seconds and price that decides what a kept clip costs."""

    utilisation: float = _assumption(0.6, "busy share of paid hours", _ASSUMED, 0.001, 1.0)
    failed_share: float = _assumption(0.02, "of attempts", _ASSUMED, 0.0, 0.99)
    discarded_share: float = _assumption(0.0, "of good clips", "none, as prices of APIs are per made clip", 0.0, 0.99)
    cold_start_seconds: float = _assumption(120.0, "s", "assumed: 40 GB of weights at 0.5 GB/s and a warm-up")
    clips_per_start: float = _assumption(100.0, "clips", _ASSUMED, 1.0)
    clip_megabits: float = _assumption(5.0, "Mbit/s of video", "assumed: H.264 at 720p")
    storage_months: float = _assumption(1.0, "months", _ASSUMED)
    storage_price: float = _assumption(0.023, "USD/GB-month", "AWS S3 Standard, us-east-1, 2025 (recalled)")
    downloads: float = _assumption(1.0, "per clip", _ASSUMED)
    egress_price: float = _assumption(0.09, "USD/GB", "AWS to the internet, first 10 TB, 2025 (recalled)")
    electricity_price: float = _assumption(0.0929, "USD/kWh", "US industry, January 2026 (EIA, read at ycharts.com)")
    pue: float = _assumption(1.54, "site power over IT power", "mean of 2025 (Uptime Institute survey)", 1.0, 5.0)
    busy_power_share: float = _assumption(0.9, "of TDP", "Jegham et al., arXiv 2607.04553", 0.0, 1.5)
    idle_power_share: float = _assumption(0.12, "of TDP", _ASSUMED, 0.0, 1.0)
    host_power_share: float = _assumption(0.25, "of GPU power", _ASSUMED, 0.0, 3.0)
    capital_price: float = _assumption(0.0, "USD per GPU with its share of a server; 0: rented", "rented")
    lifetime_years: float = _assumption(4.0, "years", _ASSUMED, 0.1)
    upkeep_share: float = _assumption(0.08, "of capital a year: space, staff, repairs", _ASSUMED)

    def __post_init__(self) -> None:
        for each in fields(self):
            value, bounds = getattr(self, each.name), each.metadata
            if not (math.isfinite(value) and bounds["low"] <= value <= bounds["high"]):
                upper = f" to {bounds['high']:g}" if math.isfinite(bounds["high"]) else " or more"
                raise InvalidRequest(f"{each.name} = {value:g} is out of range; use {bounds['low']:g}{upper}")

    def with_overrides(self, values: Mapping[str, float]) -> Assumptions:
        """The same with some values set by the user.

        Raises:
            InvalidRequest: an unknown name (the nearest is given) or a value out of range.
        """
        known = {each.name for each in fields(self)}
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:3]
                raise InvalidRequest(f"assumption {name!r} is unknown; the nearest are {', '.join(near)}")
        return replace(self, **values)

    def stated(self) -> list[Assumption]:
        """All of them with unit and origin, in the order of the sum."""
        return [
            Assumption(
                name=each.name,
                value=getattr(self, each.name),
                unit=each.metadata["unit"],
                origin=each.metadata["origin"] if getattr(self, each.name) == each.default else "stated",
            )
            for each in fields(self)
        ]


DEFAULTS = Assumptions()


@dataclass(frozen=True)
class MoneyRecord:
    """Cost and energy of one kept clip; `items` add up to `usd_per_clip`."""

    usd_per_clip: float
    usd_per_second: float  # of generated video
    usd_per_minute: float
    items: dict[str, float]  # USD per clip
    attempts: float  # clips made for each one that is kept
    gpu_wh: float | None  # one attempt, GPUs alone; None: the GPU's power is not known
    wh: float | None  # per kept clip at the site's meter, with attempts, idle hours, host and cooling
    price: ChosenPrice
    assumptions: Assumptions


def owned_price(assumptions: Assumptions) -> ChosenPrice:
    """An hour of a GPU that was bought: capital x (1 / lifetime + upkeep) / 8760, electricity not included.

    Raises:
        InvalidRequest: `capital_price` is 0.
    """
    capital = assumptions.capital_price
    if capital <= 0:
        raise InvalidRequest("capital_price = 0 means a rented GPU; state what one costs with its share of a server")
    value = capital * (1 / assumptions.lifetime_years + assumptions.upkeep_share) / HOURS_PER_YEAR
    what = f"owned: {capital:,.0f} USD over {assumptions.lifetime_years:g} years, electricity on top"
    return ChosenPrice(value, what, value, value, (), "", (), owned=True)


def attempts_per_kept_clip(failed_share: float, discarded_share: float) -> float:
    """1 / ((1 - failed) (1 - discarded)): how often a clip is made until one is kept."""
    return 1.0 / ((1.0 - failed_share) * (1.0 - discarded_share))


def clip_gigabytes(megabits_per_second: float, video_seconds: float) -> float:
    """Mbit/s x s / 8000."""
    return megabits_per_second * video_seconds / 8000.0


def energy_wh(gpu_seconds: float, idle_gpu_seconds: float, tdp_w: float, assumptions: Assumptions) -> float:
    """(busy s x busy share + idle s x idle share) x TDP x (1 + host) x PUE / 3600, in Wh at the site's meter."""
    watts = gpu_seconds * assumptions.busy_power_share + idle_gpu_seconds * assumptions.idle_power_share
    return watts * tdp_w * (1.0 + assumptions.host_power_share) * assumptions.pue / 3600.0


def cost_of_clip(
    gpu_seconds: float,
    wall_seconds: float,
    gpu: Gpu,
    price: ChosenPrice,
    video_seconds: float,
    assumptions: Assumptions = DEFAULTS,
) -> MoneyRecord:
    """The cost and energy of one kept clip, by the formulas at the top of this file.

    Args:
        gpu_seconds: of one attempt, over all its GPUs.
        wall_seconds: of one attempt; GPU-seconds over it are the GPUs that also wait through a cold start.
        gpu: for its power; energy is None where that is not known.
        price: of one GPU-hour.
        video_seconds: length of the clip.
        assumptions: everything else.
    """
    _refuse_absurd(gpu_seconds, wall_seconds, gpu, price, video_seconds)
    a = assumptions
    attempts = attempts_per_kept_clip(a.failed_share, a.discarded_share)
    start = a.cold_start_seconds * (gpu_seconds / wall_seconds) / a.clips_per_start * attempts
    busy = gpu_seconds * attempts + start
    idle = busy * (1.0 / a.utilisation - 1.0)
    wh = None if gpu.tdp_w is None else energy_wh(busy, idle, gpu.tdp_w, a)
    bought_wh = wh if price.owned and wh is not None else 0.0
    items = _items(gpu_seconds, start, idle, price.usd_per_hour / 3600.0, video_seconds, bought_wh, a)
    total = sum(items.values())
    return MoneyRecord(
        usd_per_clip=total,
        usd_per_second=total / video_seconds,
        usd_per_minute=total / video_seconds * 60.0,
        items=items,
        attempts=attempts,
        gpu_wh=None if gpu.tdp_w is None else gpu_seconds * gpu.tdp_w * a.busy_power_share / 3600.0,
        wh=wh,
        price=price,
        assumptions=a,
    )


def _refuse_absurd(gpu_seconds: float, wall_seconds: float, gpu: Gpu, price: ChosenPrice, video_seconds: float) -> None:
    if not all(math.isfinite(value) and value > 0 for value in (gpu_seconds, wall_seconds, video_seconds)):
        raise InvalidRequest(
            f"gpu_seconds = {gpu_seconds:g}, wall_seconds = {wall_seconds:g}, video_seconds = {video_seconds:g} "
            "must all be above 0; use measured or estimated ones"
        )
    if price.owned and gpu.tdp_w is None:
        raise InvalidRequest(f"the power of {gpu.id} is not known, so owning it cannot be priced; state a price")


def _items(
    gpu_seconds: float,
    start: float,
    idle: float,
    usd_per_gpu_second: float,
    video_seconds: float,
    wh: float,
    a: Assumptions,
) -> dict[str, float]:
    """USD by item; `start` and `idle` in GPU-seconds, `wh` what is bought beside the rent."""
    size = clip_gigabytes(a.clip_megabits, video_seconds)
    compute = gpu_seconds * usd_per_gpu_second
    failed = compute * a.failed_share / (1.0 - a.failed_share)
    return {
        "compute": compute,
        "failed": failed,
        "discarded": (compute + failed) * a.discarded_share / (1.0 - a.discarded_share),
        "cold start": start * usd_per_gpu_second,
        "idle": idle * usd_per_gpu_second,
        "storage": size * a.storage_months * a.storage_price,
        "egress": size * a.downloads * a.egress_price,
        "electricity": wh / 1000.0 * a.electricity_price,
    }
