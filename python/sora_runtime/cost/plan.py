"""The cheapest fleet for a demand and a latency target: every kind of replica sized, the cheapest ones simulated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from sora_runtime.cost.demand import hours_of_day
from sora_runtime.cost.fleet import FleetAssumptions, ServiceTime
from sora_runtime.cost.plan_record import FleetOption, Plan, PlanRequest, Refused
from sora_runtime.cost.queueing import Replicas, expected_replicas
from sora_runtime.cost.sizing import Effort, Sized, Sizing, hopeless, size_fleet
from sora_runtime.cost.stated import stated
from sora_runtime.errors import InvalidRequest

MOST_SIMULATED = 4  # kinds, of those that theory prices lowest
RUNNERS_UP = 5


@dataclass(frozen=True)
class Candidate:
    """One kind of replica with a spot share, bracketed by theory."""

    service: ServiceTime
    spot_share: float
    sizing: Sizing

    def monthly(self, replicas: Replicas, assumptions: FleetAssumptions) -> float:
        """USD per month of a fleet with these replicas in each cell."""
        spot_price = self.service.spot_usd_per_gpu_hour
        if spot_price is None:
            spot_price = self.service.usd_per_gpu_hour
        per_hour = replicas.on_demand * self.service.usd_per_gpu_hour + replicas.spot * spot_price
        return per_hour * self.service.gpus_per_clip * self.sizing.cells * assumptions.hours_per_month

    def expected_monthly(self, assumptions: FleetAssumptions) -> float:
        """USD per month of the fleet that theory expects."""
        return self.monthly(Replicas.split(self.sizing.expected, self.spot_share), assumptions)

    def hoped_monthly(self, assumptions: FleetAssumptions) -> float:
        """The same if the simulation finds theory too careful."""
        return self.monthly(Replicas.split(self.sizing.hoped, self.spot_share), assumptions)


class Planner:
    """Sizes kinds of replicas for one request; remembers what it simulated."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self._settled: dict[tuple[object, ...], Sized | None] = {}
        self._confirmed: set[tuple[object, ...]] = set()
        self._correction = 1.0  # of theory, as the last simulation found it

    def candidates(self, services: Iterable[ServiceTime], request: PlanRequest) -> list[Candidate]:
        """Every kind that can keep the target, cheapest first by theory."""
        found = []
        for service in services:
            for share in _spot_shares(service, request):
                sizing = self._sizing(service, service.p50, share, request)
                if sizing is not None:
                    found.append(Candidate(service, share, sizing))
        return sorted(found, key=lambda candidate: candidate.expected_monthly(request.assumptions))

    def confirmed(self, services: Iterable[ServiceTime], request: PlanRequest) -> tuple[Candidate, FleetOption] | None:
        """The cheapest fleet, simulated with other seeds too; if that costs it a replica, another may be cheapest."""
        services = list(services)
        best = None
        for _ in range(MOST_SIMULATED):
            best = self.cheapest(services, request)
            if best is None or self._key(best[0].sizing) in self._confirmed:
                break
            key = self._key(best[0].sizing)
            self._settle(best[0].sizing, self.effort)
            self._confirmed.add(key)
        return best

    def cheapest(self, services: Iterable[ServiceTime], request: PlanRequest) -> tuple[Candidate, FleetOption] | None:
        """The cheapest simulated fleet; None where no kind keeps the target."""
        best: tuple[Candidate, FleetOption] | None = None
        for tried, candidate in enumerate(self.candidates(services, request)):
            if best and tried >= MOST_SIMULATED:
                break
            if best and candidate.hoped_monthly(request.assumptions) >= best[1].usd_per_month:
                continue
            option = self.option(candidate, request)
            if option and (best is None or option.usd_per_month < best[1].usd_per_month):
                best = candidate, option
        return best

    def option(self, candidate: Candidate, request: PlanRequest) -> FleetOption | None:
        """A candidate simulated and priced."""
        key = self._key(candidate.sizing)
        if key not in self._settled:
            self._settle(candidate.sizing, replace(self.effort, checks=1))
        sized = self._settled[key]
        return None if sized is None else _priced(candidate, sized, request)

    def at(self, candidate: Candidate, seconds: float, request: PlanRequest) -> FleetOption | None:
        """The same kind and spot share if a clip took `seconds`."""
        sizing = self._sizing(candidate.service, seconds, candidate.spot_share, request)
        return None if sizing is None else self.option(replace(candidate, sizing=sizing), request)

    def _settle(self, sizing: Sizing, effort: Effort) -> None:
        sized = sizing.settle(effort, self._correction)
        if sized is not None:
            self._correction = sized.replicas.count / sized.expected
        self._settled[self._key(sizing)] = sized

    @staticmethod
    def _key(sizing: Sizing) -> tuple[object, ...]:
        """The demand stays alive in the key, so that the identity of its arrivals stays its own."""
        return sizing.demand, id(sizing.demand.arrivals), sizing.job, sizing.limit, sizing.spot_share

    def _sizing(self, service: ServiceTime, seconds: float, share: float, request: PlanRequest) -> Sizing | None:
        job = request.assumptions.job(service, seconds)
        return size_fleet(request.demand, job, request.latency, share, request.assumptions.max_utilisation)


def plan(services: Sequence[ServiceTime], request: PlanRequest, effort: Effort | None = None) -> Plan:
    """Finds the cheapest fleet.

    Args:
        services: one for each kind of replica (GPU and GPUs per clip) that may be used.
        request: demand, target, assumptions.
        effort: how much is simulated; None: a few seconds.

    Raises:
        InvalidRequest: No kind fits the model or keeps the target; the message names the fastest.
    """
    from sora_runtime.cost.sensitivity import sensitivity

    planner = Planner(effort or Effort())
    fitting = [service for service in services if service.fits]
    _check_any(services, fitting)
    best = planner.confirmed(fitting, request)
    if best is None:
        raise InvalidRequest(_too_fast(fitting, request))
    candidate, chosen = best
    return Plan(
        clips_per_hour=request.demand.clips_per_hour,
        peak_factor=request.demand.peak_factor,
        latency=request.latency,
        chosen=chosen,
        if_fast=planner.at(candidate, candidate.service.p10, request),
        if_slow=planner.at(candidate, candidate.service.p90, request),
        following_usd_per_month=following(candidate, chosen, request),
        runners_up=_runners_up(planner, fitting, request, chosen),
        refused=_refused(services, request),
        assumptions=stated(candidate.service, request, chosen),
        sensitivity=sensitivity(planner, fitting, request, best),
    )


def following(candidate: Candidate, chosen: FleetOption, request: PlanRequest) -> float | None:
    """USD per month if every hour had just the replicas it needs, each start paying its cold start."""
    if request.demand.peak_factor == 1 or request.demand.arrivals is not None:
        return None
    sizing = candidate.sizing
    mean_rate = request.demand.clips_per_hour / 3600 / sizing.cells
    bound = request.assumptions.max_utilisation
    needed = [
        expected_replicas(float(hour) * mean_rate, sizing.job, sizing.limit, sizing.spot_share, bound)
        for hour in hours_of_day(request.demand.peak_factor)
    ]
    starts = sum(max(0, count - before) for before, count in zip([needed[-1], *needed[:-1]], needed, strict=True))
    paid_hours = (sum(needed) + starts * candidate.service.load_seconds / 3600) / 24
    return chosen.usd_per_month * min(1.0, paid_hours / max(needed))


def _spot_shares(service: ServiceTime, request: PlanRequest) -> tuple[float, ...]:
    if service.spot_usd_per_gpu_hour is None:
        return (0.0,)
    if request.spot_share is None:
        return tuple({0.0, request.assumptions.max_spot_share})
    return (request.spot_share,)


def _priced(candidate: Candidate, sized: Sized, request: PlanRequest) -> FleetOption:
    service, assumptions, demand = candidate.service, request.assumptions, request.demand
    width = service.gpus_per_clip * sized.cells
    gpus = sized.replicas.count * width
    monthly = candidate.monthly(sized.replicas, assumptions)
    per_clip = monthly / (demand.clips_per_hour * assumptions.hours_per_month)
    megawatts = gpus * service.watts_per_gpu / 1e6
    return FleetOption(
        gpu=service.gpu,
        gpus_per_clip=service.gpus_per_clip,
        gpus=gpus,
        on_demand_gpus=sized.replicas.on_demand * width,
        spot_gpus=sized.replicas.spot * width,
        cells=sized.cells,
        replicas=sized.replicas.count * sized.cells,
        replicas_by_theory=sized.expected * sized.cells,
        service_seconds=candidate.sizing.job.service,
        utilisation=sized.busy,
        utilisation_month=sized.busy / demand.peak_factor,
        wait_mean=sized.wait_mean,
        latency_p50=sized.latency_p50,
        latency_p95=sized.latency_p95,
        latency_p95_error=sized.latency_p95_error,
        usd_per_month=monthly,
        usd_per_clip=per_clip,
        usd_per_video_second=per_clip / service.video_seconds,
        megawatts=megawatts,
        site_megawatts=megawatts * assumptions.power_overhead,
        simulated_clips=sized.clips,
    )


def _runners_up(
    planner: Planner, fitting: Sequence[ServiceTime], request: PlanRequest, chosen: FleetOption
) -> tuple[FleetOption, ...]:
    """The best of every other GPU first, then other shapes of the same ones; sorted by dollars."""
    ranked: dict[tuple[str, int], Candidate] = {}
    for candidate in planner.candidates(fitting, request):
        kind = candidate.service.gpu, candidate.service.gpus_per_clip
        if kind != (chosen.gpu, chosen.gpus_per_clip):
            ranked.setdefault(kind, candidate)
    firsts = {gpu: kind for kind in reversed(ranked) for gpu in [kind[0]] if gpu != chosen.gpu}
    order = sorted(ranked, key=lambda kind: firsts.get(kind[0]) != kind)[:RUNNERS_UP]
    options = [planner.option(ranked[kind], request) for kind in order]
    return tuple(sorted((option for option in options if option), key=lambda option: option.usd_per_month))


def _refused(services: Iterable[ServiceTime], request: PlanRequest) -> tuple[Refused, ...]:
    refused = []
    for service in services:
        if not service.fits:
            refused.append(Refused(service.gpu, service.gpus_per_clip, service.reason))
        elif hopeless(request.assumptions.job(service, service.p50), request.latency, Replicas(1)):
            reason = f"one clip takes more than {request.latency:g} s"
            refused.append(Refused(service.gpu, service.gpus_per_clip, reason))
    return tuple(refused)


def _check_any(services: Sequence[ServiceTime], fitting: Sequence[ServiceTime]) -> None:
    if not services:
        raise InvalidRequest("no kind of GPU was given; name one with --gpu")
    if not fitting:
        nearest = max(services, key=lambda service: service.gpus_per_clip)
        raise InvalidRequest(
            f"none of {len(services)} kinds can run it ({nearest.gpu} x {nearest.gpus_per_clip}: {nearest.reason}); "
            "give another --gpu or --precision"
        )


def _too_fast(fitting: Sequence[ServiceTime], request: PlanRequest) -> str:
    fastest = min(fitting, key=lambda service: service.p50)
    job = request.assumptions.job(fastest, fastest.p50)
    needed = next(attempts for attempts in range(1, 200) if job.failed_share**attempts <= 0.05) * job.p95
    kind = f"{fastest.gpu} x {fastest.gpus_per_clip}"
    if request.latency < needed:
        return (
            f"latency = {request.latency:g} s is below what a clip takes on every candidate; the fastest, {kind}, "
            f"needs {fastest.p50:.4g} s: allow {math.ceil(needed * 1.02)} s, or ask for fewer steps, frames or pixels"
        )
    return (
        f"no fleet with spot share {request.spot_share or 0:g} keeps latency = {request.latency:g} s, as reclaimed "
        f"clips start again (the fastest, {kind}, needs {fastest.p50:.4g} s); use a lower spot share"
    )
