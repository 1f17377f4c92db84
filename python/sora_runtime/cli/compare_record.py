"""A comparison as JSON and as CSV, with the assumptions, dates and sources that its tables show."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from sora_runtime.cost.break_even import HOURS_PER_MONTH, BreakEven, Holding
from sora_runtime.cost.compare import ApiRow, Comparison, GpuRow
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.hosted import SAME_CLASS
from sora_runtime.cost.prices import ChosenPrice

Json = dict[str, Any]
NEVER = "dearer than this price even when busy all the time"
_UNSAID = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale")


def record_of(found: Comparison) -> Json:
    """The whole comparison; null is what is not known or not so, with its reason beside it."""
    at, ask = found.estimate, found.question.ask
    return {
        "estimated": True,
        "date": found.question.on,
        "model": {"name": at.model.name, "title": at.model.title, "source": at.model.source, "date": at.model.date},
        "clip": {**asdict(at.shape), "fps": at.fps, "video_seconds": at.video_seconds},
        "settings": {"engine": ask.engine, "precision": ask.precision, "step_reuse": ask.step_reuse},
        "task": found.task,
        "match": found.question.match,
        "volume_seconds_per_month": found.question.volume,
        "against": [asdict(target) for target in found.targets],
        "against_same_family": found.same_family,
        "rows": [_gpu(row, found) if isinstance(row, GpuRow) else _api(row) for row in found.rows],
        "left_out": dict(found.left_out),
        "gpus_without_price": list(found.without_price),
        "assumptions": [{"name": name, "value": value, "origin": origin} for name, value, origin in assumed(found)],
    }


def assumed(found: Comparison) -> Iterator[tuple[str, str, str]]:
    """Every assumption: name, value, origin."""
    at, ask = found.estimate, found.question.ask
    unsaid = [name for name in _UNSAID if getattr(ask, name) is None]
    if ask.seconds is not None:
        unsaid.remove("num_frames")
    if unsaid:
        yield "default", ", ".join(unsaid), "the model's reference pipeline"
    yield (
        "software",
        f"{at.setting.engine.name}, as published in 2024 to 2026",
        "the rows that the rates were fitted to",
    )
    if ask.attention is None:
        kernels = ", ".join(dict.fromkeys(row.attention for row in found.gpus))
        yield "attention", kernels, f"what {at.setting.engine.name} uses on each GPU"
    yield "GPUs", "each clip on one, which is paid for whether it is used or not", "the cheapest way to make clips"
    yield "month", f"{HOURS_PER_MONTH:g} hours", "8760 / 12"
    tier = f"list prices still offered on {found.question.on}, at the tier nearest to the clip's shorter side"
    yield "API prices", f"{tier}, if within a factor of {SAME_CLASS:g}", "api_prices.csv of the catalogue"
    yield "API bill", "failed clips are not billed, delivery is included, clips are discarded as ours are", "assumed"
    for each in found.assumptions.stated():
        yield each.name, f"{each.value:g} {each.unit.partition(';')[0]}", each.origin


def comparison_csv(found: Comparison) -> str:
    """One row a GPU or hosted model, cheapest first; what is not known or never so is empty."""
    table = [_gpu_cells(row, found) if isinstance(row, GpuRow) else _api_cells(row, found) for row in found.rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return file.getvalue()


def _price(price: ChosenPrice) -> Json:
    record = asdict(price)
    return {"usd_per_hour": record.pop("usd_per_hour"), **record, "sources": price.sources or ["as stated"]}


def _break_even(point: BreakEven) -> Json:
    return {**asdict(point), "reason": NEVER if point.utilisation is None else None}


def _holding(holding: Holding | None) -> Json | None:
    if holding is None:
        return None
    return {
        "price": _price(holding.price),
        "usd_per_month": holding.usd_per_month,
        "usd_at_volume": holding.usd_at_volume,
        "break_even": [_break_even(point) for point in holding.break_even],
    }


def _gpu(row: GpuRow, found: Comparison) -> Json:
    sheet, memory = gpus()[row.gpu], row.memory
    names = [target.name for target in found.targets]
    return {
        "kind": "gpu",
        "gpu": row.gpu,
        "usd_per_second": row.usd_per_second and asdict(row.usd_per_second),
        "seconds_per_clip": asdict(row.seconds),
        "attention": row.attention,
        "memory": {
            "peak": memory.peak,
            "capacity": memory.capacity,
            "fits": memory.fits,
            "offload": memory.offload,
        },
        "seconds_per_month": row.seconds_per_month,
        "rent": _holding(row.rent),
        "own": _holding(row.own),
        "buy_below_usd": dict(zip(names, row.buy_below, strict=False)),
        "data_sheet": {"source": sheet.source, "date": sheet.date, "read_again": sheet.verified},
        "reasons": _reasons(row, found),
    }


def _reasons(row: GpuRow, found: Comparison) -> dict[str, str]:
    """Why a field of a GPU is null."""
    reasons: dict[str, str] = {}
    if row.usd_per_second is None:
        reasons |= dict.fromkeys(("usd_per_second", "rent"), row.reason)
    if row.own is None:
        reasons["own"] = row.reason if not row.memory.fits else "no price to buy is known; state capital_price"
    if found.question.volume is None:
        reasons["usd_at_volume"] = "no volume was asked for"
    return reasons


def _api(row: ApiRow) -> Json:
    price = asdict(row.price)
    return {
        "kind": "api",
        **{name: price[name] for name in ("provider", "model", "task", "tier", "audio")},
        "usd_per_second": row.usd_per_second,
        "list_usd_per_second": row.price.usd_per_second,
        "comparable": row.comparable,
        "usd_at_volume": row.usd_at_volume,
        **{name: price[name] for name in ("date", "source", "note")},
    }


def _gpu_cells(row: GpuRow, found: Comparison) -> Json:
    usd, rent, price = row.usd_per_second, row.rent, row.rent and row.rent.price
    cells: Json = {
        **_clip_cells(found),
        "kind": "gpu",
        "estimated": 1,
        "name": row.gpu,
        "provider": price.what if price else "",
        "usd_per_second": usd and usd.p50,
        "usd_per_second_p10": usd and usd.p10,
        "usd_per_second_p90": usd and usd.p90,
        "offload": row.memory.offload,
        "fits": int(row.memory.fits),
        "usd_at_volume": rent and rent.usd_at_volume,
        "usd_per_gpu_hour": price and price.usd_per_hour,
        "seconds_per_month": row.seconds_per_month,
    }
    for index, target in enumerate(found.targets):
        for name, holding in (("rent", row.rent), ("own", row.own)):
            point = holding and holding.break_even[index]
            cells[f"{name}_utilisation_{target.name}"] = point and point.utilisation
            cells[f"{name}_seconds_per_month_{target.name}"] = point and point.seconds_per_month
        cells[f"buy_below_usd_{target.name}"] = row.buy_below[index] if row.buy_below else None
    sources = "; ".join(price.sources or ("as stated",)) if price else ""
    return {**cells, "date": price.date if price else "", "source": sources, "note": row.reason}


def _api_cells(row: ApiRow, found: Comparison) -> Json:
    price = row.price
    return {
        **_clip_cells(found),
        "kind": "api",
        "estimated": 0,
        "name": price.model,
        "provider": price.provider,
        "usd_per_second": row.usd_per_second,
        "usd_at_volume": row.usd_at_volume,
        "tier": price.tier,
        "audio": "" if price.audio is None else "yes" if price.audio else "no",
        "comparable": int(row.comparable),
        "date": price.date,
        "source": price.source,
        "note": price.note,
    }


def _clip_cells(found: Comparison) -> Json:
    at = found.estimate
    shape = at.shape
    size = {"width": shape.width, "height": shape.height, "frames": shape.frames, "fps": at.fps, "steps": shape.steps}
    values = " ".join(f"{each.name}={each.value:g}" for each in found.assumptions.stated())
    return {"model": at.model.name, "task": found.task, **size, "assumptions": values}
