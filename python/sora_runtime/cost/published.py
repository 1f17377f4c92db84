"""Published fleet sizes redone step by step: as stated, as their own inputs give, and with our numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sora_runtime.cost.demand import Demand
from sora_runtime.cost.fleet import FleetAssumptions, ServiceTime
from sora_runtime.cost.plan import plan
from sora_runtime.cost.plan_record import Plan, PlanRequest
from sora_runtime.errors import InvalidRequest

SPARSE_PEAK = 1979e12  # FLOP/s of an H100 with 2:4 sparsity in bf16, which the published analysis used
DENSE_PEAK = 989.4e12  # what a network with dense weights can use
FLOPS_PER_MINUTE = 524e9 * 30 * 250 * 180  # of video: forward x size (20B / 675M, rounded) x steps x latent frames
SUSTAINED_SHARE = 0.5
TIKTOK, TIKTOK_SHARE = 17e6, 0.50  # minutes uploaded a day, share made by a model
YOUTUBE, YOUTUBE_SHARE, YOUTUBE_STATED_SHARE = 43e6, 0.05, 0.15
PEAK_FACTOR = 2.0  # of the stated product of 8 = 2 (50% utilisation) x 2 (peak) x 2 (candidates)
CANDIDATES = 2.0
BOARD_WATTS = 700.0
USD_PER_BOARD = 30e3


@dataclass(frozen=True)
class Step:
    """One line of a published calculation.

    Args:
        what: the quantity.
        unit: of all figures.
        stated: as published; None where only its inputs were.
        computed: from the published inputs of this step, rounded where the publication rounds.
        dense: the published method unrounded, with the peak rate of dense weights.
        ours: with our estimate and simulation; None before `with_ours`, or where there is no such thing.
        how: the arithmetic of `computed`, and what does not follow.
    """

    what: str
    unit: str
    stated: float | None
    computed: float
    dense: float | None
    ours: float | None
    how: str


@dataclass(frozen=True)
class Ours:
    """Our answer to the published question.

    Args:
        plan: of the cheapest fleet; `plan.chosen` is what the column shows.
        service: seconds per clip and GPU.
    """

    plan: Plan
    service: ServiceTime


@dataclass(frozen=True)
class Published:
    """A published calculation, redone."""

    name: str
    title: str
    author: str
    date: str
    source: str
    steps: tuple[Step, ...]
    ours: Ours | None
    remarks: tuple[str, ...]


def published(
    name: str,
    services: Sequence[ServiceTime] = (),
    latency: float | None = None,
    assumptions: FleetAssumptions | None = None,
    spot_share: float = 0.0,
) -> Published:
    """Redoes a published calculation.

    Args:
        name: one of `PUBLISHED`.
        services: kinds of replicas for the column with our numbers; none: without it.
        latency: p95 target of ours; None: twice what a clip takes on the fewest GPUs, the cheapest way.
        assumptions: of ours.
        spot_share: of ours.

    Raises:
        InvalidRequest: The name is not known, or no kind keeps the target.
    """
    if name not in PUBLISHED:
        raise InvalidRequest(f"--published {name} is not known; use {' or '.join(PUBLISHED)}")
    return PUBLISHED[name](services, latency, assumptions or FleetAssumptions(), spot_share)


def minutes_per_day() -> float:
    """Minutes of video that a model makes a day in the published demand, unrounded."""
    return TIKTOK * TIKTOK_SHARE + YOUTUBE * YOUTUBE_SHARE


def our_fleet(
    services: Sequence[ServiceTime], latency: float | None, assumptions: FleetAssumptions, spot_share: float
) -> Ours:
    """The published demand, peak and candidates, served by the cheapest of our fleets."""
    fitting = [service for service in services if service.fits] or list(services)
    video_seconds = fitting[0].video_seconds
    per_hour = minutes_per_day() * 60 / video_seconds / 24 * CANDIDATES
    demand = Demand(per_hour, PEAK_FACTOR, None, "published, x 2 candidates", "published (one split)")
    fewest = min(service.gpus_per_clip for service in fitting)
    alone = min(service.p50 for service in fitting if service.gpus_per_clip == fewest)
    target = math.ceil(2 * alone) if latency is None else latency
    found = plan(services, PlanRequest(demand, target, spot_share, assumptions))
    kind = found.chosen.gpu, found.chosen.gpus_per_clip
    return Ours(found, next(service for service in fitting if (service.gpu, service.gpus_per_clip) == kind))


def _factorial_funds(
    services: Sequence[ServiceTime], latency: float | None, assumptions: FleetAssumptions, spot_share: float
) -> Published:
    ours = our_fleet(services, latency, assumptions, spot_share) if services else None
    return Published(
        name="factorial-funds",
        title="Under The Hood: How OpenAI's Sora Model Works",
        author="M. Plappert, Factorial Funds",
        date="2024-03",
        source="factorialfunds.com/blog/under-the-hood-how-openai-s-sora-model-works",
        steps=(*_demand_steps(), *_rate_steps(ours), *_busy_steps(ours), *_peak_steps(ours)),
        ours=ours,
        remarks=_remarks(ours),
    )


PUBLISHED: dict[str, Callable[[Sequence[ServiceTime], float | None, FleetAssumptions, float], Published]] = {
    "factorial-funds": _factorial_funds
}


def _demand_steps() -> list[Step]:
    tiktok, youtube, total = TIKTOK * TIKTOK_SHARE, YOUTUBE * YOUTUBE_SHARE, minutes_per_day()
    stated_total = tiktok + YOUTUBE * YOUTUBE_STATED_SHARE
    return [
        Step("TikTok, by models", "min/day", None, tiktok, tiktok, tiktok, "17M x 50%"),
        Step(
            "YouTube, by models",
            "min/day",
            None,
            youtube,
            youtube,
            youtube,
            f"43M x 5%; the 15% of the text would give {YOUTUBE * YOUTUBE_STATED_SHARE / 1e6:.2f}M and a sum of "
            f"{stated_total / 1e6:.2f}M: the published sum counts 5% of minutes",
        ),
        Step("both", "min/day", 10.7e6, total, total, total, "8.5M + 2.15M = 10.65M, published as 10.7M"),
    ]


def _rate_steps(ours: Ours | None) -> list[Step]:
    sparse = FLOPS_PER_MINUTE / (SUSTAINED_SHARE * SPARSE_PEAK)
    dense = FLOPS_PER_MINUTE / (SUSTAINED_SHARE * DENSE_PEAK)
    own = _gpu_seconds(ours) * 60 if ours else None
    return [
        Step(
            "GPU time a minute of video",
            "s",
            720.0,
            sparse,
            dense,
            own,
            f"{FLOPS_PER_MINUTE:.3g} FLOP / (50% x 1979 TFLOP/s) = {sparse:.0f} s, published as 12 min; 1979 is the "
            "rate with 2:4 sparsity, 989.4 the dense one: every count doubles",
        ),
        Step(
            "video of one GPU-hour",
            "min",
            5.0,
            3600 / sparse,
            3600 / dense,
            3600 / own if own else None,
            f"3600 / {sparse:.0f} = {3600 / sparse:.2f}, published as 5",
        ),
        Step(
            "video of one GPU-day",
            "min",
            120.0,
            5.0 * 24,
            86400 / dense,
            86400 / own if own else None,
            "5 x 24, from the rounded 5",
        ),
    ]


def _busy_steps(ours: Ours | None) -> list[Step]:
    dense_busy = minutes_per_day() * FLOPS_PER_MINUTE / (SUSTAINED_SHARE * DENSE_PEAK) / 86400
    busy = minutes_per_day() * _gpu_seconds(ours) * 60 / 86400 if ours else None
    chosen = ours.plan.chosen if ours else None
    rounded = 10.7e6 / 120
    return [
        Step(
            "GPUs if always at work",
            "",
            89_200,
            rounded,
            dense_busy,
            busy,
            f"10.7M / 120 = {rounded:,.0f}, published as 89,200; unrounded, 10.65M / 121 = "
            f"{minutes_per_day() * FLOPS_PER_MINUTE / (SUSTAINED_SHARE * SPARSE_PEAK) / 86400:,.0f}",
        ),
        Step(
            "utilisation, peak, candidates",
            "x",
            8.0,
            1 / SUSTAINED_SHARE * PEAK_FACTOR * CANDIDATES,
            8.0,
            chosen.gpus / busy if chosen and busy else None,
            "2 (50% utilisation) x 2 (peak) x 2 (candidates): one split that gives the stated 8",
        ),
    ]


def _peak_steps(ours: Ours | None) -> list[Step]:
    dense_peak = 8 * minutes_per_day() * FLOPS_PER_MINUTE / (SUSTAINED_SHARE * DENSE_PEAK) / 86400
    chosen = ours.plan.chosen if ours else None
    rounded = 10.7e6 / 120
    return [
        Step(
            "GPUs at the peak",
            "",
            720_000,
            8.0 * round(rounded, -4),
            dense_peak,
            chosen.gpus if chosen else None,
            f"8 x 90,000, from the rounded 90,000; 8 x {rounded:,.0f} = {8 * rounded:,.0f}",
        ),
        Step(
            "power of the GPUs",
            "MW",
            504.0,
            720_000 * BOARD_WATTS / 1e6,
            dense_peak * BOARD_WATTS / 1e6,
            chosen.megawatts if chosen else None,
            f"720,000 x 700 W; with 8 x {rounded:,.0f}: {8 * rounded * BOARD_WATTS / 1e6:.0f} MW",
        ),
        Step(
            "price of the GPUs",
            "USD",
            21.6e9,
            720_000 * USD_PER_BOARD,
            dense_peak * USD_PER_BOARD,
            None,
            "720,000 x $30,000",
        ),
    ]


def _gpu_seconds(ours: Ours) -> float:
    """Per second of video."""
    return ours.service.p50 * ours.service.gpus_per_clip / ours.service.video_seconds


def _remarks(ours: Ours | None) -> tuple[str, ...]:
    remarks = [
        "The published method leaves out attention's quadratic term and the second evaluation of guidance; its 20B "
        "parameters, 250 steps and 180 latent frames a minute are its own assumptions.",
    ]
    if ours is None:
        return tuple(remarks)
    chosen, slow, fast = ours.plan.chosen, ours.plan.if_slow, ours.plan.if_fast
    kind = chosen.gpu if chosen.gpus_per_clip == 1 else f"{chosen.gpu}, {chosen.gpus_per_clip} a clip"
    remarks.append(
        f"Ours: {kind}; {_gpu_seconds(ours):.3g} GPU-seconds a second of video (clips of "
        f"{ours.service.video_seconds:.3g} s); the same demand, peak of 2 and 2 candidates; {chosen.utilisation:.0%} "
        f"utilisation in the busiest hour by simulation, p95 {chosen.latency_p95:.4g} s for a target of "
        f"{ours.plan.latency:.4g} s; ${_large(chosen.usd_per_month)} a month."
    )
    if fast and slow:
        remarks.append(f"Ours at p10 to p90 of the service time: {fast.gpus:,} to {slow.gpus:,} GPUs.")
    elif fast:
        remarks.append(f"Ours at p10 of the service time: {fast.gpus:,} GPUs; at p90 none keeps the latency target.")
    return tuple(remarks)


def _large(value: float) -> str:
    return f"{value / 1e9:,.2f} billion" if value >= 1e9 else f"{value / 1e6:,.1f} million"
