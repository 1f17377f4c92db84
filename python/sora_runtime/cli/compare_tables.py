"""What `sora-bench compare` prints: the answer, every GPU and hosted model, where a GPU pays, and what it rests on."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sora_runtime.cli.compare_record import assumed
from sora_runtime.cli.listing import listing, numbered
from sora_runtime.cli.tables import amount, facts, print_all
from sora_runtime.cost.compare import ApiRow, Comparison, GpuRow
from sora_runtime.cost.hardware import gpus
from sora_runtime.cost.prices import ChosenPrice

if TYPE_CHECKING:
    from rich.console import RenderableType

    from sora_runtime.cost.break_even import BreakEven, Holding

_MEMORY = {"": "fits", "model": "offloaded", "block": "streamed"}
_SOUND = {True: "sound", False: "silent", None: ""}


def print_comparison(found: Comparison) -> None:
    """Prints a comparison as tables of 80 columns."""
    print_all(_tables(found))


def _tables(found: Comparison) -> Iterator[RenderableType]:
    yield facts([*_what(found), *_answer(found)])
    notes = [_note(row) for row in found.rows]
    numbers = numbered(notes)
    yield _rows(found, [f"[{numbers[note]}]" for note in notes])
    yield facts(_left_out(found))
    if found.targets:
        renting = [row for row in found.gpus if row.rent]
        if renting:
            yield _renting(renting, found)
        owning = [row for row in found.gpus if row.buy_below]
        if owning:
            yield _owning(owning, found)
        yield facts(_legend(found))
    yield facts((name, f"{value}; {origin}") for name, value, origin in assumed(found))
    yield facts([("model", f"{found.estimate.model.source} ({found.estimate.model.date})")])
    yield facts((f"[{number}]", note) for note, number in numbers.items())


def _what(found: Comparison) -> Iterator[tuple[str, str]]:
    at, shape, ask = found.estimate, found.estimate.shape, found.question.ask
    size = f"{shape.width}x{shape.height}, {shape.frames} frames at {at.fps:g} fps ({at.video_seconds:.2f} s)"
    yield "clip", f"{at.model.title}: {size}, {shape.steps} steps, {'guided' if shape.guided else 'no guidance'}"
    reuse = f", reuse {ask.step_reuse}" if ask.step_reuse else ""
    yield "runs with", f"{at.setting.engine.name}, {at.setting.precision}{reuse}; one GPU a clip"
    side = min(shape.width, shape.height)
    if not found.targets:
        words = f" and with {found.question.match!r}" if found.question.match else ""
        yield "hosted", f"none for {found.task} at about {side} lines{words} has a list price on {found.question.on}"
        return
    cheapest, middle = found.targets
    whose = f"{at.model.family}, this model's family" if found.same_family else "other models, as none is of its family"
    prices = f"${amount(cheapest.usd_per_second)} a second at least ({cheapest.what})"
    yield "hosted", f"{whose}: {prices}, ${amount(middle.usd_per_second)} in the median of {middle.what}"


def _answer(found: Comparison) -> Iterator[tuple[str, str]]:
    best = next((row for row in found.gpus if row.usd_per_second), None)
    if best is None or best.usd_per_second is None or best.rent is None:
        yield "answer", "no GPU here has both a price and the memory for this clip"
        return
    usd, use = best.usd_per_second, f"busy {found.assumptions.utilisation:.0%} of its time"
    band = f"${amount(usd.p50)} a second ({amount(usd.p10)} to {amount(usd.p90)}) on {_named(best)}, {use}"
    if not found.targets:
        yield "answer", f"the cheapest GPU makes it for {band}"
        return
    price = found.targets[0].usd_per_second
    ratio = f"{price / usd.p50:.3g} times cheaper than" if usd.p50 < price else f"{usd.p50 / price:.3g} times"
    if found.question.volume is not None:
        yield "answer", _bills(found, found.question.volume)
        yield "", f"{band}: {ratio} the cheapest call"
    else:
        yield "answer", f"{'rent' if usd.p50 < price else 'call'}: {band}, is {ratio} the cheapest call"
    yield from _pays(found, best)
    first = found.apis[0]
    if first.usd_per_second < min(price, usd.p50):
        yield (
            "",
            f"another model is hosted for ${amount(first.usd_per_second)}: {first.price.provider}, {first.price.model}",
        )
    if usd.p10 < price < usd.p90:
        yield "", "the estimate's band holds the call's price: time one clip before deciding"


def _pays(found: Comparison, best: GpuRow) -> Iterator[tuple[str, str]]:
    """From where on renting the cheapest GPU pays, and the one that pays from the least volume."""
    points = [(row.rent.break_even[0], row.gpu) for row in found.gpus if row.rent]
    paying = [(point.seconds_per_month, gpu) for point, gpu in points if point.seconds_per_month is not None]
    share = next(point.utilisation for point, gpu in points if gpu == best.gpu)
    if share is None:
        yield "", f"renting one {best.gpu} does not pay even if it is always busy"
    else:
        seconds = next(seconds for seconds, gpu in paying if gpu == best.gpu)
        yield "", f"renting one {best.gpu} pays when it is busy over {_share(share)} of its time: {_volume(seconds)}"
    least = min(paying, default=(0.0, best.gpu))
    if least[1] != best.gpu:
        yield "", f"of all, one {least[1]} pays from the least volume: {_volume(least[0])}"


def _volume(seconds: float) -> str:
    return f"{_thousands(seconds)} s a month"


def _named(row: GpuRow) -> str:
    return f"one {row.gpu}, {_MEMORY[row.memory.offload]}" if row.memory.offload else f"one {row.gpu}"


def _bills(found: Comparison, volume: float) -> str:
    """The smaller of the two bills of a month first."""
    rented = [(row.rent.usd_at_volume, row) for row in found.gpus if row.rent and row.rent.usd_at_volume]
    usd, row = min(rented, key=lambda pair: pair[0])
    count = math.ceil(volume / (row.seconds_per_month or math.inf))
    call = volume * found.targets[0].usd_per_second
    rent, calls = f"${_dollars(usd)} for {count} x {row.gpu}", f"${_dollars(call)} for the cheapest calls"
    text = f"rent: {rent} against {calls}" if usd < call else f"call: {calls} against {rent}"
    return f"{text}, for {_thousands(volume)} generated seconds in a month"


def _rows(found: Comparison, marks: Sequence[str]) -> RenderableType:
    bill = () if found.question.volume is None else ("USD/month",)
    names = ("USD/s", "kind", "GPU or model", "band, memory; who, what", *bill, "date", "")
    rows = []
    for row, mark in zip(found.rows, marks, strict=True):
        cells, usd, date = _gpu_cells(row) if isinstance(row, GpuRow) else _api_cells(row, found)
        bills = (("-" if usd is None else _dollars(usd)),) if bill else ()
        rows.append((*cells, *bills, date, mark))
    return listing(names, rows, whole=("kind", "date", ""), numbers=("USD/s", "USD/month"), gap=1)


def _gpu_cells(row: GpuRow) -> tuple[tuple[str, ...], float | None, str]:
    usd, rent = row.usd_per_second, row.rent
    if usd is None or rent is None:
        return ("-", "GPU", row.gpu, "no price" if row.memory.fits else "does not fit"), None, "-"
    about = f"{amount(usd.p10)}-{amount(usd.p90)}, {_MEMORY[row.memory.offload]}"
    return (amount(usd.p50), "GPU", row.gpu, about), rent.usd_at_volume, _month(rent.price.date)


def _api_cells(row: ApiRow, found: Comparison) -> tuple[tuple[str, ...], float | None, str]:
    price = row.price
    kind = "same" if found.same_family and row.comparable else "other"
    model = re.sub(r"/(text|image)-to-video$", "", price.model)
    about = ", ".join(filter(None, (price.provider, price.tier, _SOUND[price.audio])))
    return (amount(row.usd_per_second), kind, model, about), row.usd_at_volume, _month(price.date)


def _renting(rows: Sequence[GpuRow], found: Comparison) -> RenderableType:
    cells = []
    for row in rows:
        if row.rent:
            points = [cell for point in row.rent.break_even for cell in _point(point)]
            cells.append((row.gpu, _dollars(row.rent.usd_per_month), _thousands(row.seconds_per_month), *points))
    names = ("rented GPU", "USD/month", "most s", "busy", "s/month", "busy*", "s/month*")
    return listing(names, cells, whole=names[:1], numbers=names[1:])


def _owning(rows: Sequence[GpuRow], found: Comparison) -> RenderableType:
    cells = []
    for row in rows:
        points = ["-"] * len(found.targets)
        if row.own:
            points = [_thousands(point.seconds_per_month) for point in row.own.break_even]
        monthly = _dollars(row.own.usd_per_month) if row.own else "-"
        limits = ("never" if price is None else _dollars(price) for price in row.buy_below)
        cells.append((row.gpu, monthly, *points, *limits))
    names = ("owned GPU", "USD/month", "s/month", "s/month*", "buy below", "buy below*")
    return listing(names, cells, whole=names[:1], numbers=names[1:])


def _legend(found: Comparison) -> Iterator[tuple[str, str]]:
    cheapest, middle = found.targets
    yield "no star", f"against the cheapest: ${amount(cheapest.usd_per_second)} a second, {cheapest.what}"
    yield "*", f"against the median: ${amount(middle.usd_per_second)} a second, {middle.what}"
    yield "busy", "the share of its hours above which the GPU is cheaper; never: dearer even if always busy"
    yield "if fast", "never at the median of the estimated time, but at its p10"
    yield "s/month", "generated seconds a month from which one GPU is cheaper; most s: what it makes at most"
    use = f"busy {found.assumptions.utilisation:.0%} of its time"
    yield "buy below", f"USD for one GPU with its share of a server at which owning it, {use}, costs what calling does"
    if not any(row.own for row in found.gpus):
        yield "owning", "no price to buy is known; state one with --gpu NAME --assume capital_price=USD"


def _point(point: BreakEven) -> tuple[str, str]:
    if point.utilisation is None:
        return ("if fast" if point.utilisation_if_fast is not None else "never"), "-"
    return _share(point.utilisation), _thousands(point.seconds_per_month)


def _left_out(found: Comparison) -> Iterator[tuple[str, str]]:
    yield "USD/s", "for a generated second that is kept, cheapest first; date: of the newest price that was used"
    yield "GPU", "rented; estimated p50, then p10-p90"
    yield "offloaded", "one network at a time is on the GPU; streamed: weights are brought to it in every evaluation"
    yield "same, other", "a hosted model of this one's family (its version or size may differ), or another model"
    for row in found.gpus:
        if row.reason:
            yield row.gpu, row.reason
    if found.left_out:
        counts = ", ".join(f"{count} {reason}" for reason, count in found.left_out.items())
        yield "left out", f"prices of hosted models for {found.task}: {counts}"
    if found.without_price:
        yield "no price", f"{', '.join(found.without_price)}: state one with --price NAME=X"


def _note(row: GpuRow | ApiRow) -> str:
    """Where a row's price is from, and when."""
    if isinstance(row, ApiRow):
        price = row.price
        return f"{price.source} ({price.date}){f'; {price.note}' if price.note else ''}"
    sheet = gpus()[row.gpu]
    held = "; ".join(f"{_price(holding)}" for holding in (row.rent, row.own) if holding)
    recalled = "" if sheet.verified else ", recalled"
    return f"{row.gpu}: {held}{'; ' if held else ''}data sheet {sheet.source} ({sheet.date}{recalled})"


def _price(holding: Holding) -> str:
    price: ChosenPrice = holding.price
    return f"{price.describe}{'; ' if price.sources else ''}{'; '.join(price.sources)}"


def _month(date: str) -> str:
    """The newest month of a date or range of dates; a price without one was stated."""
    return date.rsplit(maxsplit=1)[-1][:7] if date else "stated"


def _share(value: float) -> str:
    return f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def _dollars(value: float) -> str:
    """Whole dollars with thousands, cents below 100."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _thousands(value: float | None) -> str:
    """Three significant digits with separators."""
    return "-" if value is None else f"{float(f'{value:.3g}'):,.0f}"
