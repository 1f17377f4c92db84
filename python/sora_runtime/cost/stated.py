"""Every assumption behind a fleet plan, with its origin."""

from __future__ import annotations

from dataclasses import fields

from sora_runtime.cost import money
from sora_runtime.cost.demand import MAX_TRACE_CLIPS
from sora_runtime.cost.fleet import FleetAssumptions, ServiceTime
from sora_runtime.cost.plan_record import FleetOption, PlanRequest, Stated

DEFAULT = "assumed here, not measured"
GIVEN = "given"
ESTIMATE = "from the estimate"


def stated(service: ServiceTime, request: PlanRequest, chosen: FleetOption) -> tuple[Stated, ...]:
    """The rows for the chosen kind of replica."""
    rows = [*_demand(request, chosen), *_service(service), *_prices(service), *_rest(request.assumptions)]
    return tuple(Stated(*row) for row in rows)


def _demand(request: PlanRequest, chosen: FleetOption) -> list[tuple[str, str, str]]:
    demand = request.demand
    poisson = demand.arrivals is None
    rows = [
        ("clips per hour", f"{_rate(demand.clips_per_hour)} on average", demand.source),
        ("arrivals", "Poisson" if poisson else "as in the trace", "assumed" if poisson else "--trace"),
        ("latency", f"p95 of {request.latency:g} s or less, first come first served", "the target"),
    ]
    if poisson:
        rows.append(("busiest hour", f"{demand.peak_factor:g} x the mean; sized for it", demand.peak_source))
    if demand.arrivals is not None and len(demand.arrivals) > MAX_TRACE_CLIPS * chosen.cells:
        rows.append(("trace", f"its busiest {MAX_TRACE_CLIPS:,} clips in a row are simulated", DEFAULT))
    if chosen.cells > 1:
        rows.append(("queues", f"{chosen.cells:,} of equal size, one of which is simulated", DEFAULT))
    return rows


def _rate(per_hour: float) -> str:
    return f"{per_hour:,.0f}" if per_hour >= 1000 else f"{per_hour:.4g}"


def _service(service: ServiceTime) -> list[tuple[str, str, str]]:
    band = f"p10 {service.p10:.4g}, p50 {service.p50:.4g}, p90 {service.p90:.4g}"
    return [
        *([("clip", service.clip, ESTIMATE)] if service.clip else []),
        ("seconds per clip", band, ESTIMATE),
        ("cold start", f"{service.load_seconds:.4g} s", "assumed by the estimate"),
        ("watts per GPU", f"{service.watts_per_gpu:.4g}", ESTIMATE),
    ]


def _prices(service: ServiceTime) -> list[tuple[str, str, str]]:
    rows = [("on demand", f"${service.usd_per_gpu_hour:.4g} per GPU-hour", service.price_origin or "price list")]
    if service.spot_usd_per_gpu_hour is not None:
        price = f"${service.spot_usd_per_gpu_hour:.4g} per GPU-hour"
        rows.append(("spot", price, service.spot_price_origin or "price list"))
    return rows


def _rest(assumptions: FleetAssumptions) -> list[tuple[str, str, str]]:
    texts = {
        "clip_variation": ("clip to clip", f"{assumptions.clip_variation:.1%} standard deviation of the seconds"),
        "failed_share": ("failed clips", f"{assumptions.failed_share:.1%}, made again at once"),
        "reclaim_hours": ("spot reclaims", f"every {assumptions.reclaim_hours:g} h a machine; the clip starts again"),
        "replacement_seconds": ("replacement", f"{assumptions.replacement_seconds:g} s, then the cold start; all paid"),
        "max_utilisation": ("utilisation", f"at most {assumptions.max_utilisation:.0%} in the busiest hour"),
        "max_spot_share": ("spot at most", f"{assumptions.max_spot_share:.0%} where --spot-share is not given"),
        "hours_per_month": ("month", f"{assumptions.hours_per_month:g} h; the fleet is paid for all of them"),
        "host_power_share": ("host power", f"{assumptions.host_power_share:.0%} of the GPUs'"),
        "pue": ("PUE", f"{assumptions.pue:g}"),
    }
    return [(label, text, _origin(assumptions, name)) for name, (label, text) in texts.items()]


def _origin(assumptions: FleetAssumptions, name: str) -> str:
    if getattr(assumptions, name) != getattr(FleetAssumptions(), name):
        return f"given as {name}"
    shared = {item.name: str(item.metadata["origin"]) for item in fields(money.Assumptions)}
    return shared.get(name, DEFAULT)
