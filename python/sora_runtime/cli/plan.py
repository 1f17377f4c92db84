"""`sora-bench plan`: the cheapest fleet for a demand and a latency target, and published fleets redone."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sora_runtime.cli import plan_options as option
from sora_runtime.cli.estimate import parse_assumptions
from sora_runtime.cli.parse import parse_size
from sora_runtime.errors import InvalidRequest

if TYPE_CHECKING:
    from sora_runtime.cost.demand import Demand
    from sora_runtime.cost.fleet import FleetAssumptions, ServiceTime
    from sora_runtime.cost.plan_record import ClipSettings

GPUS_PER_CLIP = (1, 2, 4, 8)
DEFAULT_LATENCY = 300.0
# Beside a published calculation: a model and the GPU that it names, where the user names none.
COMPARED_MODEL = "wan2.1-t2v-14b"
COMPARED_GPU = "h100-sxm"


def plan(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    model: option.Model = None,
    requests_per_hour: option.RequestsPerHour = None,
    trace: option.Trace = None,
    peak_factor: option.PeakFactor = None,
    latency: option.Latency = None,
    size: option.Size = None,
    frames: option.Frames = None,
    seconds: option.Seconds = None,
    steps: option.Steps = None,
    guidance_scale: option.GuidanceScale = None,
    precision: option.Precision = None,
    engine: option.Engine = None,
    attention: option.Attention = None,
    gpu: option.Gpu = None,
    spot_share: option.SpotShare = None,
    assume: option.Assume = None,
    published: option.Published = None,
    json: option.Json = False,
    csv: option.Csv = False,
) -> None:
    """Find the cheapest fleet that serves MODEL at this demand and latency, by simulation."""
    from sora_runtime.cost.plan_record import ClipSettings

    if frames is not None and seconds is not None:
        raise InvalidRequest("--frames and --seconds are both given; use one")
    width, height = parse_size(size) if size else (None, None)
    settings = ClipSettings(width, height, frames, seconds, steps, guidance_scale, precision, engine, attention)
    question = _Question(model, gpu or [], settings, latency, spot_share, _assumptions(assume or []), _form(json, csv))
    if published is None:
        _answer(question, _demand(requests_per_hour, trace, peak_factor))
    elif requests_per_hour is not None or trace is not None or peak_factor is not None:
        raise InvalidRequest(f"--published {published} has a demand of its own; leave the other one out")
    else:
        _redo(published, question)


@dataclass(frozen=True)
class _Question:
    """The options that both ways of the command share."""

    model: str | None
    gpus: list[str]
    settings: ClipSettings
    latency: float | None
    spot_share: float | None
    assumptions: FleetAssumptions
    form: str  # tables, json or csv


def service_times(model: str, gpus: Sequence[str], settings: ClipSettings) -> list[ServiceTime]:
    """What the estimator says of every kind of replica: the one place where a plan meets it.

    Args:
        model: name or file.
        gpus: names; none: all of the catalogue that have a price.
        settings: of the clip.

    Raises:
        InvalidRequest: A name or setting is not known, or a GPU that was named has no price.
    """
    from sora_runtime.cost.hardware import gpus as catalogue
    from sora_runtime.cost.prices import NoPrice
    from sora_runtime.cost.service import service_time

    found = []
    for gpu in gpus or catalogue():
        try:
            found += [service_time(model, gpu, count, settings) for count in GPUS_PER_CLIP]
        except NoPrice:
            if gpus:
                raise
    return found


def _answer(question: _Question, demand: Demand) -> None:
    from sora_runtime.cli import plan_tables
    from sora_runtime.cost.plan import plan as find_fleet
    from sora_runtime.cost.plan_record import PlanRequest

    if question.model is None:
        raise InvalidRequest("no MODEL was given; name one, for example sora-bench plan wan2.1-t2v-14b")
    latency = DEFAULT_LATENCY if question.latency is None else question.latency
    request = PlanRequest(demand, latency, question.spot_share, question.assumptions)
    result = find_fleet(service_times(question.model, question.gpus, question.settings), request)
    if question.form == "tables":
        plan_tables.print_plan(question.model, result)
    elif question.form == "csv":
        typer.echo(plan_tables.plan_csv(result), nl=False)
    else:
        typer.echo(_json({"estimated": True, "model": question.model, **asdict(result)}))


def _redo(name: str, question: _Question) -> None:
    from sora_runtime.cli import published_tables
    from sora_runtime.cost.published import published

    model = question.model or COMPARED_MODEL
    services = service_times(model, question.gpus or [COMPARED_GPU], question.settings)
    spot_share = question.spot_share or 0.0
    result = published(name, services, question.latency, question.assumptions, spot_share)
    if question.form == "tables":
        published_tables.print_published(model, result)
    elif question.form == "csv":
        typer.echo(published_tables.published_csv(result), nl=False)
    else:
        typer.echo(_json({"model": model, **asdict(result)}))


def _json(record: dict[str, object]) -> str:
    return json_format.dumps(record, indent=2, allow_nan=False)


def _form(json: bool, csv: bool) -> str:
    if json and csv:
        raise InvalidRequest("--json and --csv are both given; use one")
    return "json" if json else "csv" if csv else "tables"


def _demand(requests_per_hour: float | None, trace: Path | None, peak_factor: float | None) -> Demand:
    from sora_runtime.cost.demand import Demand, read_trace

    if trace is not None:
        if requests_per_hour is not None or peak_factor is not None:
            raise InvalidRequest("--trace has its own rate and peaks; leave --requests-per-hour and --peak-factor out")
        return read_trace(trace)
    if requests_per_hour is None:
        raise InvalidRequest("no demand was given; use --requests-per-hour 100 or --trace FILE")
    if peak_factor is None:
        return Demand(requests_per_hour)
    return Demand(requests_per_hour, peak_factor, peak_source="--peak-factor")


def _assumptions(texts: Sequence[str]) -> FleetAssumptions:
    from sora_runtime.cost.fleet import FleetAssumptions

    values = parse_assumptions(texts, "failed_share=0.05")
    return FleetAssumptions().with_overrides(values)
