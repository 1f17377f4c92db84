"""What `sora-bench plan` prints: the fleet, what else was close, what moves it, and every assumption."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from sora_runtime.cli.tables import amount, columns, facts, print_all
from sora_runtime.cost.plan_record import FleetOption, Plan, Refused

if TYPE_CHECKING:
    from rich.console import RenderableType

_OPTION_NAMES = ("GPU", "a clip", "GPUs", "spot", "busy", "p95 s", "USD/month", "USD/clip")


def print_plan(model: str, plan: Plan) -> None:
    """Prints a plan as tables of 80 columns."""
    print_all(_tables(model, plan))


def plan_csv(plan: Plan) -> str:
    """A plan as CSV: one row a fleet, then one a sensitivity; `row` says which."""
    file = io.StringIO()
    names = ["row", *(field.name for field in fields(FleetOption)), "what", "change", "fleet"]
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for row, option in _options(plan):
        writer.writerow({"row": row, **asdict(option)})
    for change in plan.sensitivity:
        writer.writerow({"row": "sensitivity", **asdict(change)})
    return file.getvalue()


def money(value: float) -> str:
    """Whole dollars with thousands, cents below 100."""
    return f"{value:,.0f}" if value >= 100 else amount(value)


def assumptions(plan: Plan) -> RenderableType:
    """Every assumption with its origin."""
    return facts((row.name, f"{row.value}; {row.origin}") for row in plan.assumptions)


def _options(plan: Plan) -> Iterator[tuple[str, FleetOption]]:
    yield "chosen", plan.chosen
    if plan.if_fast:
        yield "service time p10", plan.if_fast
    if plan.if_slow:
        yield "service time p90", plan.if_slow
    for option in plan.runners_up:
        yield "runner-up", option


def _tables(model: str, plan: Plan) -> Iterator[RenderableType]:
    yield facts(_facts(model, plan))
    rows = [_option_row(option) for option in (plan.chosen, *plan.runners_up)]
    yield columns(_OPTION_NAMES, rows, numbers=_OPTION_NAMES[1:])
    changes = [
        (
            change.what,
            "-" if change.usd_per_month is None else money(change.usd_per_month),
            "-" if change.change is None else f"{change.change:+.0%}",
            change.fleet,
        )
        for change in plan.sensitivity
    ]
    yield columns(("if", "USD/month", "change", "cheapest fleet"), changes, numbers=("USD/month", "change"))
    yield assumptions(plan)
    if plan.refused:
        yield facts(_refusals(plan.refused))


def _facts(model: str, plan: Plan) -> Iterator[tuple[str, str]]:
    chosen = plan.chosen
    peak = f", {plan.peak_factor:g} x that in the busiest hour" if plan.peak_factor > 1 else ""
    yield "demand", f"{plan.clips_per_hour:,.4g} clips of {model} an hour{peak}"
    yield "fleet", _fleet(chosen)
    video = f"${amount(chosen.usd_per_video_second)} a second of video"
    yield "cost", f"${money(chosen.usd_per_month)} a month, ${amount(chosen.usd_per_clip)} a clip, {video}"
    error = f" ± {chosen.latency_p95_error:.2g}" if chosen.latency_p95_error else ""
    waits = f"median {chosen.latency_p50:.4g} s, mean wait {chosen.wait_mean:.3g} s"
    yield "latency", f"p95 {chosen.latency_p95:.4g}{error} s of {plan.latency:g} s allowed; {waits}"
    month = f", {chosen.utilisation_month:.0%} over the month" if plan.peak_factor > 1 else ""
    yield "utilisation", f"{chosen.utilisation:.0%}{' in the busiest hour' if month else ''}{month}"
    yield "power", f"{chosen.megawatts:.3g} MW of GPUs, {chosen.site_megawatts:.3g} MW with hosts and cooling"
    yield "fast (p10)", _bound(plan.if_fast, plan.latency)
    yield "slow (p90)", _bound(plan.if_slow, plan.latency)
    if plan.following_usd_per_month is not None:
        dollars = f"${money(plan.following_usd_per_month)} a month"
        yield "elastic", f"{dollars} if replicas start and stop with the hours of the day"
    theory = f"queueing theory alone: {chosen.replicas_by_theory:,} replicas"
    yield "checked", f"{chosen.simulated_clips:,} clips simulated; {theory}"


def _fleet(option: FleetOption) -> str:
    text = f"{option.gpus:,} x {option.gpu}"
    if option.gpus_per_clip > 1:
        text += f": {option.replicas:,} replicas of {option.gpus_per_clip} GPUs, each one clip at a time"
    if option.spot_gpus:
        text += f"; {option.on_demand_gpus:,} on demand, {option.spot_gpus:,} spot"
    return text


def _bound(option: FleetOption | None, latency: float) -> str:
    if option is None:
        return f"no fleet of this kind keeps {latency:g} s"
    seconds = f"a clip takes {option.service_seconds:.4g} s"
    return f"{seconds}: {option.gpus:,} GPUs, ${money(option.usd_per_month)} a month"


def _option_row(option: FleetOption) -> tuple[str, ...]:
    return (
        option.gpu,
        str(option.gpus_per_clip),
        f"{option.gpus:,}",
        f"{option.spot_share:.0%}",
        f"{option.utilisation:.0%}",
        f"{option.latency_p95:.4g}",
        money(option.usd_per_month),
        amount(option.usd_per_clip),
    )


def _refusals(refused: Iterable[Refused]) -> list[tuple[str, str]]:
    """One line a reason, with every kind that it holds for; all that are too slow share one."""
    kinds: dict[str, dict[str, list[str]]] = {}
    for each in refused:
        kinds.setdefault(each.reason, {}).setdefault(each.gpu, []).append(str(each.gpus_per_clip))
    return [
        ("not usable", f"{reason}: " + "; ".join(f"{gpu} x {', '.join(counts)}" for gpu, counts in gpus.items()))
        for reason, gpus in kinds.items()
    ]
