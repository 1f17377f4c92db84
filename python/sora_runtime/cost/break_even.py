"""From which use and which volume on a GPU, rented or owned, is cheaper than calling a hosted model.

All amounts are USD for one generated second that is kept. By the sums of `money.py` it costs, on a GPU that is paid
for whether it is used or not and that is busy for the share u of its hours,

    c(u) = h / u + s      h: held, what is paid by the hour: rent, or capital, upkeep and the power of an idle GPU
                          s: spent on each second: storage, egress, an owner's power of being busy above idle

so h = c(1/2) - c(1) and s = 2 c(1) - c(1/2). In a month of 730 hours the GPU makes at most

    m = 3600 x 730 x video seconds / (attempts x (seconds of a clip + cold start / clips per start))

seconds, and its fixed bill is h m. Against an API's price a it is cheaper

    above u* = h / (a - s), that is from m u* = h m / (a - s) seconds a month; never, if a <= s or u* > 1.

How fast the clip is made moves u* and m, but not their product where it is rented: that is the rent over a - s. What
one GPU may cost so that owning it beats the API at u follows from c being linear in that price k:

    k* = k1 + (k2 - k1) (a - c(k1)) / (c(k2) - c(k1)).

With a volume of V seconds a month n = ceil(V / m) GPUs cost n m h + V s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sora_runtime.cost.estimate import Estimate
from sora_runtime.cost.hardware import Gpu
from sora_runtime.cost.money import HOURS_PER_YEAR, Assumptions, attempts_per_kept_clip, cost_of_clip, owned_price
from sora_runtime.cost.prices import ChosenPrice, gpu_prices

HOURS_PER_MONTH = HOURS_PER_YEAR / 12
_CAPITALS = (10_000.0, 20_000.0)  # USD; any two, as the cost is linear in it


@dataclass(frozen=True)
class Band:
    """A value at the tenth, fiftieth and ninetieth percentile of the clip's time."""

    p10: float
    p50: float
    p90: float


@dataclass(frozen=True)
class Target:
    """A price that GPUs are held against."""

    name: str  # cheapest or median
    usd_per_second: float
    what: str


@dataclass(frozen=True)
class BreakEven:
    """From where on a GPU is cheaper than calling; None: never."""

    against: str  # the target's name
    utilisation: float | None
    utilisation_if_fast: float | None  # the clip takes its p10
    utilisation_if_slow: float | None  # its p90
    seconds_per_month: float | None


@dataclass(frozen=True)
class CostLine:
    """USD of a generated second at a utilisation u: `held / u + spent`."""

    held: float  # what is paid by the hour, at u = 1
    spent: float

    def utilisation(self, price: float) -> float | None:
        """Above which this is cheaper than `price`; None: never."""
        margin = price - self.spent
        return self.held / margin if margin > 0 and self.held <= margin else None

    def monthly(self, volume: float, most: float) -> float:
        """The bill of a month in which enough GPUs that make `most` seconds each make `volume` seconds."""
        return math.ceil(volume / most) * most * self.held + volume * self.spent


@dataclass(frozen=True)
class Holding:
    """A GPU that is paid for the whole month, rented or owned."""

    price: ChosenPrice  # of an hour
    usd_per_month: float  # whether used or not
    break_even: tuple[BreakEven, ...]  # one for each target
    usd_at_volume: float | None  # a month at the volume that was asked for


@dataclass(frozen=True)
class Bar:
    """What every GPU is held against."""

    targets: tuple[Target, ...]
    assumptions: Assumptions
    volume: float | None  # generated seconds a month


def seconds_per_month(seconds: float, video_seconds: float, assumptions: Assumptions) -> float:
    """The most generated seconds that one GPU makes in a month, if a clip of `video_seconds` takes `seconds`."""
    a = assumptions
    attempts = attempts_per_kept_clip(a.failed_share, a.discarded_share)
    per_clip = attempts * (seconds + a.cold_start_seconds / a.clips_per_start)
    return 3600.0 * HOURS_PER_MONTH * video_seconds / per_clip


def usd_per_second(found: Estimate, price: ChosenPrice, assumptions: Assumptions, seconds: float) -> float:
    """USD of a generated second on one GPU."""
    return cost_of_clip(seconds, seconds, found.gpu, price, found.video_seconds, assumptions).usd_per_second


def cost_line(found: Estimate, price: ChosenPrice, assumptions: Assumptions, seconds: float) -> CostLine:
    """How the cost of a generated second falls with the GPU's use, if a clip takes `seconds`."""
    whole, half = (
        usd_per_second(found, price, replace(assumptions, utilisation=share), seconds) for share in (1.0, 0.5)
    )
    return CostLine(half - whole, max(2.0 * whole - half, 0.0))


def holding(found: Estimate, price: ChosenPrice, asked: Bar) -> Holding:
    """One GPU paid for all month at a price of its hour, against every target."""
    at = found.prediction
    most = seconds_per_month(at.p50, found.video_seconds, asked.assumptions)
    fast, middle, slow = (cost_line(found, price, asked.assumptions, value) for value in (at.p10, at.p50, at.p90))
    points = []
    for target in asked.targets:
        share = middle.utilisation(target.usd_per_second)
        quick, late = fast.utilisation(target.usd_per_second), slow.utilisation(target.usd_per_second)
        points.append(BreakEven(target.name, share, quick, late, None if share is None else share * most))
    at_volume = None if asked.volume is None else middle.monthly(asked.volume, most)
    return Holding(price, middle.held * most, tuple(points), at_volume)


def owned_hour(gpu: Gpu, assumptions: Assumptions) -> ChosenPrice | None:
    """An hour of a GPU that was bought at the stated capital price, else as a source of the catalogue reckons it."""
    if assumptions.capital_price > 0:
        return owned_price(assumptions) if gpu.tdp_w is not None else None
    known = sorted((price for price in gpu_prices(gpu.id) if price.commitment == "owner"), key=lambda price: price.date)
    if not known:
        return None
    price, usd = known[-1], known[-1].usd_per_gpu_hour
    what = f"owned, all included, by {price.provider}"
    return ChosenPrice(usd, what, usd, usd, (price.provider,), price.date, (price.source,))


def buy_below(found: Estimate, target: Target, assumptions: Assumptions) -> float | None:
    """The capital price at which owning costs what the API does, at the assumed utilisation."""
    if found.gpu.tdp_w is None:
        return None
    low, high = (
        usd_per_second(found, owned_price(replace(assumptions, capital_price=k)), assumptions, found.prediction.p50)
        for k in _CAPITALS
    )
    price = _CAPITALS[0] + (_CAPITALS[1] - _CAPITALS[0]) * (target.usd_per_second - low) / (high - low)
    return price if price > 0 else None
