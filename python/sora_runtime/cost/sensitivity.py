"""How the dollars of a fleet plan move when one assumption does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from sora_runtime.cost.fleet import FleetAssumptions, ServiceTime
from sora_runtime.cost.plan import Candidate, Planner
from sora_runtime.cost.plan_record import Change, FleetOption, PlanRequest


def sensitivity(
    planner: Planner, services: Sequence[ServiceTime], request: PlanRequest, base: tuple[Candidate, FleetOption]
) -> tuple[Change, ...]:
    """One row for each thing that moves, largest effect first; the cheapest fleet is found anew in each."""
    candidate, chosen = base
    rows = [
        _change(what, planner.cheapest(varied, changed), chosen)
        for what, varied, changed in _variations(services, request)
    ]
    rows += _prices(candidate.service, chosen, request.assumptions)
    return tuple(sorted(rows, key=_effect, reverse=True))


def fleet_text(option: FleetOption) -> str:
    """A fleet in a few words: 12 x H100 SXM, 2 per clip, 50% spot."""
    text = f"{option.gpus:,} x {option.gpu}"
    if option.gpus_per_clip > 1:
        text += f", {option.gpus_per_clip} a clip"
    return text + (f", {option.spot_share:.0%} spot" if option.spot_gpus else "")


def _variations(
    services: Sequence[ServiceTime], request: PlanRequest
) -> list[tuple[str, Sequence[ServiceTime], PlanRequest]]:
    rows: list[tuple[str, Sequence[ServiceTime], PlanRequest]] = [
        ("service time -20%", [_slower(service, 0.8) for service in services], request),
        ("service time +20%", [_slower(service, 1.2) for service in services], request),
        ("requests x 2", services, replace(request, demand=request.demand.scaled(2))),
        ("latency target / 2", services, replace(request, latency=request.latency / 2)),
        ("latency target x 2", services, replace(request, latency=request.latency * 2)),
    ]
    if any(service.spot_usd_per_gpu_hour is not None for service in services):
        rows += [(f"spot share {share:.0%}", services, replace(request, spot_share=share)) for share in (0.0, 0.5, 1.0)]
    return rows


def _slower(service: ServiceTime, factor: float) -> ServiceTime:
    return replace(service, p10=service.p10 * factor, p50=service.p50 * factor, p90=service.p90 * factor)


def _change(what: str, found: tuple[Candidate, FleetOption] | None, chosen: FleetOption) -> Change:
    if found is None:
        return Change(what, None, None, "no fleet keeps the target")
    option = found[1]
    return Change(what, option.usd_per_month, option.usd_per_month / chosen.usd_per_month - 1, fleet_text(option))


def _prices(service: ServiceTime, chosen: FleetOption, assumptions: FleetAssumptions) -> list[Change]:
    """The chosen fleet at the ends of the price range; other kinds keep theirs, so it is not chosen anew."""
    price = service.usd_per_gpu_hour
    if price <= 0:
        return []
    low, high = service.price_range or (price * assumptions.price_low, price * assumptions.price_high)
    return [
        Change(
            f"price {word}: ${value:.3g}/h", chosen.usd_per_month * value / price, value / price - 1, fleet_text(chosen)
        )
        for word, value in (("low", low), ("high", high))
    ]


def _effect(row: Change) -> float:
    if row.change is None:
        return math.inf
    return abs(math.log(max(1e-9, 1 + row.change)))
