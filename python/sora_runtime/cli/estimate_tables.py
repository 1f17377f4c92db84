"""What `sora-bench estimate` prints: the answer, then work, time, memory, money, the limit and every assumption."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sora_runtime.cli.listing import listing, numbered
from sora_runtime.cli.tables import amount, facts, print_all
from sora_runtime.cost.memory import memory_of
from sora_runtime.cost.rates import fitted
from sora_runtime.cost.roofline import limit_seconds, stage_work

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.cost.estimate import Estimate
    from sora_runtime.cost.money import MoneyRecord

_STAGES = {
    "text_encode": "text encoder",
    "image_encode": "image encoder",
    "denoise": "denoise",
    "vae_decode": "VAE decode",
    "clip": "around them",
}
# Of the whole: a stage below the first is one row, a class below the second is counted with the others.
_WHOLE_STAGE, _OWN_ROW = 0.01, 0.0005
_BAND = ("p10", "p50", "p90")


def print_estimate(found: Estimate) -> None:
    """Prints an estimate as tables of 80 columns."""
    print_all(_tables(found))


def estimate_csv(found: Estimate) -> str:
    """One row with the figures of the answer; what is not known is empty."""
    ask, shape, setting, at = found.ask, found.shape, found.setting, found.prediction
    low, middle, high = _moneys(found)
    row: dict[str, object] = {
        "model": found.model.name,
        "gpu": found.gpu.id,
        "gpu_count": ask.gpu_count,
        "width": shape.width,
        "height": shape.height,
        "frames": shape.frames,
        "fps": found.fps,
        "steps": shape.steps,
        "cfg": int(shape.guided),
        "precision": setting.precision,
        "engine": setting.engine.name,
        "attention": setting.attention,
        "tokens": found.clip.tokens,
        "flops": sum(sum(flops.values()) for flops, _ in stage_work(found.clip).values()),
        **{f"predicted_{name}": value for name, value in zip(_BAND, (at.p10, at.p50, at.p90), strict=True)},
        **{
            f"usd_per_clip_{name}": money and money.usd_per_clip
            for name, money in zip(_BAND, (low, middle, high), strict=True)
        },
        "usd_per_second": middle and middle.usd_per_second,
        "usd_per_minute": middle and middle.usd_per_minute,
        "energy_wh": middle and middle.wh,
        "memory_bytes": memory_of(found.model, found.clip, found.gpu, setting).peak,
        "limit_seconds": _limit(found),
        "usd_per_gpu_hour": middle and middle.price.usd_per_hour,
        "price": middle.price.describe if middle else "",
        "price_sources": " ".join(middle.price.sources) if middle else "",
        "assumptions": "; ".join(f"{name} = {value} ({origin})" for name, value, origin in found.all_assumed()),
    }
    file = io.StringIO()
    writer = csv.DictWriter(file, list(row), lineterminator="\n")
    writer.writeheader()
    writer.writerow(row)
    return file.getvalue()


def _moneys(found: Estimate) -> tuple[MoneyRecord | None, MoneyRecord | None, MoneyRecord | None]:
    at = found.prediction
    return found.money_at(at.p10), found.money, found.money_at(at.p90)


def _limit(found: Estimate) -> float:
    return limit_seconds(found.clip, found.gpu, found.setting.precision, found.ask.gpu_count)


def _tables(found: Estimate) -> Iterator[RenderableType]:
    yield _answer(found)
    yield facts(_what(found))
    yield _stages(found)
    yield facts(_beside(found))
    if found.money is not None:
        yield _items(found.money)
    yield facts(_why(found))
    yield facts((name, f"{value}; {origin}") for name, value, origin in found.all_assumed())
    yield _origins((*_sources(found), *price_notes(found)))


def _answer(found: Estimate) -> RenderableType:
    costs = [None if money is None else money.usd_per_clip for money in _moneys(found)]
    video, at = found.video_seconds, found.prediction

    def dollars(scale: float) -> tuple[str, ...]:
        return tuple("-" if value is None else amount(value * scale) for value in costs)

    seconds = tuple(map(_four, (at.p10, at.p50, at.p90)))
    rows = [
        ("USD per clip", *dollars(1.0)),
        ("USD per generated second", *dollars(1.0 / video)),
        ("USD per minute of video", *dollars(60.0 / video)),
        ("seconds until it is there", *seconds),
    ]
    return listing(("estimated", *_BAND), rows, whole=("estimated",), numbers=_BAND, gap=3)


def _what(found: Estimate) -> Iterator[tuple[str, str]]:
    shape, setting, clip, ask = found.shape, found.setting, found.clip, found.ask
    size = f"{shape.width}x{shape.height}, {shape.frames} frames at {found.fps:g} fps ({found.video_seconds:.2f} s)"
    yield "clip", f"{found.model.title}: {size}{', from a picture' if shape.image else ''}"
    guided = f"{clip.passes} evaluations each (guidance)" if clip.passes > 1 else "one evaluation each"
    reuse = f", reuse {setting.reuse}" if setting.reuse else ""
    yield "sampler", f"{shape.steps} steps, {guided}{reuse}"
    how = f"{setting.engine.name}, {setting.precision}, attention {setting.attention}"
    sparse = f", {setting.attention_method} sparse" if setting.attention_method else ""
    yield "runs on", f"{ask.gpu_count} x {found.gpu.id}, {how}{sparse}{', compiled' if setting.compiled else ''}"
    forward = sum(clip.transformer.flops.values()) - clip.transformer.flops["elementwise"]
    yield "tokens", f"{clip.tokens:,} in each evaluation, {clip.tokens * clip.steps * clip.passes:,} in all steps"
    total = f"{_flops(forward * clip.steps * clip.passes)} for all steps{', if none is reused' if reuse else ''}"
    yield "work", f"{_flops(forward)} for one evaluation (linear, attention, convolution), {total}"


def _flops(flops: float) -> str:
    """With four digits, in the unit that suits."""
    unit, name = _unit(flops)
    return f"{_four(flops / unit)} {name}"


def _four(value: float) -> str:
    """Four significant digits without an exponent, as far as there are so many before the point."""
    return f"{value:,.4g}" if 1e-4 <= value < 1e4 else f"{value:,.0f}" if value else "0"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def _unit(flops: float) -> tuple[float, str]:
    """The largest unit that leaves at least 1."""
    names = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
    return next(((unit, name) for unit, name in names if flops >= unit), names[-1])


_Part = tuple[float, float, float]  # seconds, FLOPs, bytes moved


def _stages(found: Estimate) -> RenderableType:
    """Time and work by stage and class; what decides nothing shares a row."""
    work = stage_work(found.clip)
    stages = {stage: _parts(seconds, *work.get(stage, ({}, {}))) for stage, seconds in found.prediction.stages.items()}
    whole = _sum(part for parts in stages.values() for part in parts.values())
    unit, name = _unit(whole[1])
    rows = []
    for stage, parts in stages.items():
        kept = _merged(parts, whole[0], whole_stage=stage == "clip") if parts else {}
        for kind, part in sorted(kept.items(), key=lambda item: -item[1][0]):
            rows.append((_STAGES[stage], kind, *_cells(part, whole, unit)))
    rows = [(stage if not i or rows[i - 1][0] != stage else "", *rest) for i, (stage, *rest) in enumerate(rows)]
    rows.append(("clip", "", *_cells(whole, whole, unit)))
    names = ("stage", "class", name, "GB moved", "seconds", "share")
    return listing(names, rows, whole=("stage", "class"), numbers=names[2:], gap=3)


def _parts(seconds: dict[str, float], flops: dict[str, float], moved: dict[str, float]) -> dict[str, _Part]:
    names = dict.fromkeys((*seconds, *(name for name, value in flops.items() if value)))
    return {name: (seconds.get(name, 0.0), flops.get(name, 0.0), moved.get(name, 0.0)) for name in names}


def _merged(parts: dict[str, _Part], total: float, *, whole_stage: bool) -> dict[str, _Part]:
    stage = _sum(parts.values())
    if whole_stage or stage[0] < _WHOLE_STAGE * total:
        host = "host, offload" if "offload" in parts else "host"
        return {host if whole_stage else "all classes": stage}
    kept = {name: part for name, part in parts.items() if part[0] >= _OWN_ROW * total}
    rest = _sum(part for name, part in parts.items() if name not in kept)
    return {**kept, "the rest": rest} if any(rest) else kept


def _sum(parts: Iterable[_Part]) -> _Part:
    seconds, flops, moved = (sum(column) for column in zip(*parts, (0.0, 0.0, 0.0), strict=True))
    return seconds, flops, moved


def _cells(part: _Part, whole: _Part, unit: float) -> tuple[str, ...]:
    seconds, flops, moved = part
    digits = 0 if whole[2] >= 1e11 else 2
    return (
        f"{flops / unit:,.3f}" if flops else "-",
        f"{moved / 1e9:,.{digits}f}" if moved else "-",
        f"{seconds:,.{2 if whole[0] >= 10 else 3}f}",
        f"{seconds / whole[0]:.1%}",
    )


def _beside(found: Estimate) -> Iterator[tuple[str, str]]:
    memory = memory_of(found.model, found.clip, found.gpu, found.setting)
    need = f"weights {_bytes(memory.weights)}, activations {_bytes(memory.activations)}"
    where = "on each GPU" if found.ask.gpu_count > 1 else "on the GPU"
    fits = f"peak {_bytes(memory.peak)} of {memory.capacity / 1e9:.0f} GB {where}"
    words = {"": "", "model": ", one network at a time", "block": ", weights streamed in every evaluation"}
    verdict = f"fits{words[memory.offload]}" if memory.fits else "does not fit, whatever is offloaded"
    yield "memory", f"{need}; {fits}: {verdict}"
    yield "energy", _energy(found)
    limit, money = _limit(found), found.money_at(_limit(found))
    cost = f" and ${amount(money.usd_per_clip)}" if money else ""
    share = f"this estimate reaches {_share(limit / found.prediction.p50)} of it"
    yield "limit", f"{_four(limit)} s{cost} at the data sheet's peak; {share}"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.01 else f"{100 * value:.1g}%"


def _energy(found: Estimate) -> str:
    if found.gpu.tdp_w is None:
        return f"- (the power of {found.gpu.id} is not known)"
    if found.money is None or found.money.wh is None or found.money.gpu_wh is None:
        return "- (without a price; state one with --price)"
    site, inside = _four(found.money.wh), _four(found.money.gpu_wh)
    where = "GPUs" if found.ask.gpu_count > 1 else "GPU"
    return f"{site} Wh a kept clip at the site's meter; {inside} Wh in the {where} of one attempt"


def _items(money: MoneyRecord) -> RenderableType:
    total = money.usd_per_clip
    digits = max(2, 4 - math.floor(math.log10(total)))  # enough to see that the items add up
    rows = [(name, f"{value:.{digits}f}", f"{value / total:.1%}") for name, value in money.items.items() if value]
    rows.append(("kept clip", f"{total:.{digits}f}", "100.0%"))
    return listing(("item", "USD", "share"), rows, whole=("item",), numbers=("USD", "share"), gap=3)


def _why(found: Estimate) -> Iterator[tuple[str, str]]:
    at, fit = found.prediction, fitted()
    width = f"{at.p10 / at.p50 - 1:+.0%} to {at.p90 / at.p50 - 1:+.0%} around the median with 80% probability"
    yield "band", width
    usual = f"sources that time the same thing differ by {fit.source_spread:.0%}, rows of one by {fit.row_spread:.0%}"
    for index, reason in enumerate((*found.reasons, usual)):
        yield "" if index else "why so wide", reason


def _sources(found: Estimate) -> Iterator[tuple[str, str]]:
    yield "model", f"{found.model.source} ({found.model.date})"
    recalled = "" if found.gpu.verified else ", recalled"
    yield "GPU", f"{found.gpu.id}: {found.gpu.source} ({found.gpu.date}{recalled})"
    about = fitted().about
    yield "rates", f"fitted to {about.get('rows', '?')} published rows of {about.get('sources', '?')} sources"
    if found.money is None:
        yield "price", f"- (the catalogue has no price of {found.gpu.id}; state one with --price)"
        return
    yield "price", found.money.price.describe


def _origins(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """As `facts`, with labels so narrow that most addresses stay in one piece."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, text in rows:
        grid.add_row(label, Text(text))
    return Padding(grid, (0, 1))


def price_notes(found: Estimate) -> Iterator[tuple[str, str]]:
    """The offers behind a price by source, each with its date, as numbered notes."""
    from sora_runtime.cost.prices import COMMITMENTS, gpu_prices, newest

    if found.money is None:
        return
    price = found.money.price
    kind = next((name for name in COMMITMENTS if name in price.what), None)
    every = newest([offer for offer in gpu_prices(found.gpu.id) if offer.commitment == kind])
    offers = [offer for offer in every if offer.gpu_count == 1] or every  # as the price was chosen
    for source, number in numbered(price.sources).items():
        used = [offer for offer in offers if offer.source == source and offer.provider in price.providers]
        said = ", ".join(f"{offer.provider} {offer.usd_per_gpu_hour:g} ({offer.date})" for offer in used)
        yield f"[{number}]", f"{source}: {said or price.date}"
