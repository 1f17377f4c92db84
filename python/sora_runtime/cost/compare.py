"""`compare`: what a clip costs on each GPU and as a hosted model, in one order, and from where on a GPU is cheaper.

`hosted.py` says which hosted models are near enough to the clip. What GPUs are held against are the cheapest and the
median of those that are of the model's family, or of all where none is. `break_even.py` has the formulas.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sora_runtime.cost.break_even import (
    Band,
    Bar,
    Holding,
    Target,
    buy_below,
    holding,
    owned_hour,
    seconds_per_month,
    usd_per_second,
)
from sora_runtime.cost.estimate import Ask, Estimate, estimate_of
from sora_runtime.cost.hardware import Gpu, find_gpu, gpus
from sora_runtime.cost.hosted import Hosted, Wanted, hosted_near
from sora_runtime.cost.memory import Memory, memory_of
from sora_runtime.cost.money import DEFAULTS, Assumptions
from sora_runtime.cost.prices import (
    COMMITMENTS,
    ApiPrice,
    ChosenPrice,
    NoPrice,
    gpu_prices,
    median,
    usd_per_hour,
)
from sora_runtime.errors import InvalidRequest

# Beyond what is meant, and far from what overflows.
MOST_SECONDS = 1e12  # a month
MOST_CAPITAL = 1e9  # USD for a GPU
TASKS = ("t2v", "i2v")  # what an estimate knows

_Price = ChosenPrice | str  # or why there is none


@dataclass(frozen=True)
class Question:
    """What is to be compared."""

    ask: Ask  # its gpu is not used; its price is every GPU's
    on: str  # YYYY-MM-DD: API prices withdrawn by then are left out
    gpus: tuple[str, ...] = ()  # names; none: all of the catalogue that have a price
    prices: Mapping[str, str] = field(default_factory=dict)  # of single GPUs, by name, before that of the ask
    task: str | None = None  # None: what the clip is
    match: str = ""  # API rows that hold this
    volume: float | None = None  # generated seconds a month


@dataclass(frozen=True)
class GpuRow:
    """The clip on one kind of GPU."""

    gpu: str
    seconds: Band  # of a clip
    usd_per_second: Band | None  # None: `reason` says why
    memory: Memory
    attention: str
    seconds_per_month: float | None  # the most that one GPU makes; None: the clip does not fit
    rent: Holding | None
    own: Holding | None  # None: nothing is known of what it costs to own
    buy_below: tuple[float | None, ...]  # USD for one GPU at the assumed utilisation, by target; None: at no price
    reason: str  # why it has no cost, or does not fit


@dataclass(frozen=True)
class ApiRow:
    """A hosted model of the clip's task and resolution class."""

    price: ApiPrice
    usd_per_second: float  # that is kept: the list price over the share that is
    comparable: bool  # of the model's family; every one, if none is
    usd_at_volume: float | None


@dataclass(frozen=True)
class Comparison:
    """All rows, cheapest first, and what they rest on."""

    question: Question
    estimate: Estimate  # of the first GPU: what the clip is
    task: str
    rows: tuple[GpuRow | ApiRow, ...]
    targets: tuple[Target, ...]  # cheapest and median of the comparable API prices; none: there is no such price
    same_family: bool  # whether the targets are of the model's family
    left_out: Mapping[str, int]  # API prices of this task that are no rows, by reason
    without_price: tuple[str, ...]  # GPUs of the catalogue that were not asked for and have none
    assumptions: Assumptions

    @property
    def gpus(self) -> list[GpuRow]:
        """The GPUs, cheapest first."""
        return [row for row in self.rows if isinstance(row, GpuRow)]

    @property
    def apis(self) -> list[ApiRow]:
        """The hosted models, cheapest first."""
        return [row for row in self.rows if isinstance(row, ApiRow)]


def compare(question: Question) -> Comparison:
    """Put every GPU and every API price in one order.

    Raises:
        InvalidRequest: anything that is not a clip, a model, a GPU, a price, a task or a volume.
    """
    _refuse_absurd(question)
    ask = _with_task(question)
    assumptions = DEFAULTS.with_overrides(ask.assumptions)
    prices = {find_gpu(name).id: text for name, text in question.prices.items()}
    if len(prices) < len(question.prices):
        raise InvalidRequest(f"prices of {', '.join(question.prices)} name one GPU twice; give one for each GPU")
    kinds = _kinds(question, prices)
    if assumptions.capital_price > 0 and len(kinds) > 1:
        capital = f"capital_price = {assumptions.capital_price:g}"
        raise InvalidRequest(f"{capital} would be that of {len(kinds)} kinds of GPU; name one with --gpu")
    chosen = _prices(kinds, ask.price, prices)
    rented = {name: value for name, value in ask.assumptions.items() if name != "capital_price"}
    found = []
    for gpu in kinds:
        price = prices.get(gpu.id, ask.price) if isinstance(chosen[gpu.id], ChosenPrice) else None
        found.append(estimate_of(replace(ask, gpu=gpu.id, price=price, assumptions=rented)))
    task = "i2v" if found[0].shape.image else "t2v"
    hosted = hosted_near(found[0], Wanted(task, question.match, question.on))
    apis = _api_rows(hosted, assumptions, question.volume)
    targets = _targets([row for row in apis if row.comparable])
    asked = Bar(targets, assumptions, question.volume)
    rows = [_gpu_row(each, chosen[each.gpu.id], asked) for each in found]
    left = () if question.gpus else tuple(name for name in gpus() if name not in chosen)
    ordered = _ordered([*rows, *apis])
    return Comparison(
        question, found[0], task, ordered, targets, hosted.of_family > 0, hosted.left_out, left, assumptions
    )


def _refuse_absurd(question: Question) -> None:
    volume, capital = question.volume, question.ask.assumptions.get("capital_price", 0.0)
    if volume is not None and not 0 < volume <= MOST_SECONDS:
        raise InvalidRequest(
            f"volume = {volume:g} is out of range; use generated seconds a month, above 0 and at most {MOST_SECONDS:g}"
        )
    if capital > MOST_CAPITAL:
        raise InvalidRequest(f"capital_price = {capital:g} is out of range; use at most {MOST_CAPITAL:g}")


def _with_task(question: Question) -> Ask:
    ask, task = question.ask, question.task
    if task is None:
        return ask
    if task not in TASKS:
        raise InvalidRequest(f"task = {task!r} is not known; use {' or '.join(TASKS)}")
    model = estimate_of(replace(ask, price=None, assumptions={})).model
    if task not in model.tasks or (task == "t2v" and ask.image):
        usable = "i2v, as an image was given" if task in model.tasks else ", ".join(model.tasks)
        raise InvalidRequest(f"task = {task!r} is not what {model.title} is asked for; use {usable}")
    return replace(ask, image=task == "i2v")


def _kinds(question: Question, prices: Mapping[str, str]) -> list[Gpu]:
    names = [find_gpu(name).id for name in question.gpus]
    if not names:
        priced = {price.gpu for price in gpu_prices() if price.commitment in COMMITMENTS}
        names = [name for name in gpus() if name in priced]
    return [gpus()[name] for name in dict.fromkeys((*names, *prices))]


def _prices(kinds: Sequence[Gpu], common: str | float | None, own: Mapping[str, str]) -> dict[str, _Price]:
    """Each GPU's price or why it has none; a text that is no price of any GPU is refused."""
    found: dict[str, _Price] = {}
    for gpu in kinds:
        try:
            found[gpu.id] = usd_per_hour(gpu, own.get(gpu.id, common))
        except NoPrice:
            found[gpu.id] = f"the catalogue has no price of it; state one with --price {gpu.id}=X"
        except InvalidRequest:
            if len(kinds) == 1 or gpu.id in own or not _is_word(common):
                raise
            found[gpu.id] = f"the catalogue has no price of it that is {common}"
    shared = [price for gpu, price in found.items() if gpu not in own]
    if any(isinstance(price, ChosenPrice) and not price.providers for price in shared) and len(shared) > 1:
        raise InvalidRequest(
            f"price = {common} would be that of {len(shared)} kinds of GPU; name one with --gpu, or use --price GPU=X"
        )
    if common is not None and shared and all(isinstance(price, str) for price in shared):
        usd_per_hour(next(gpu for gpu in kinds if gpu.id not in own), common)  # raises, in its own words
    return found


def _is_word(price: str | float | None) -> bool:
    """Whether a refused price may be another GPU's: a provider or a commitment, not a figure."""
    return isinstance(price, str) and price[:1].isalpha()


def _api_rows(hosted: Hosted, assumptions: Assumptions, volume: float | None) -> list[ApiRow]:
    rows = []
    for index, price in enumerate(hosted.prices):
        usd = price.usd_per_second / (1.0 - assumptions.discarded_share)
        comparable = index < hosted.of_family or not hosted.of_family
        rows.append(ApiRow(price, usd, comparable, None if volume is None else volume * usd))
    return rows


def _targets(rows: Sequence[ApiRow]) -> tuple[Target, ...]:
    if not rows:
        return ()
    cheapest = min(rows, key=lambda row: row.usd_per_second)
    middle = median([row.usd_per_second for row in rows])
    what = f"{cheapest.price.provider}, {cheapest.price.model}"
    return (
        Target("cheapest", cheapest.usd_per_second, what),
        Target("median", middle, f"{len(rows)} offer{'s' if len(rows) > 1 else ''}"),
    )


def _gpu_row(found: Estimate, price: _Price, asked: Bar) -> GpuRow:
    at, memory = found.prediction, memory_of(found.model, found.clip, found.gpu, found.setting)
    reason = price if isinstance(price, str) else ""
    if not memory.fits:
        reason = f"needs {memory.peak / 1e9:.1f} of {memory.capacity / 1e9:.0f} GB even with its weights streamed"
    usd = rent = own = most = None
    ceilings: tuple[float | None, ...] = ()
    if memory.fits:
        most = seconds_per_month(at.p50, found.video_seconds, asked.assumptions)
        if isinstance(price, ChosenPrice):
            rent = holding(found, price, asked)
            costs = (usd_per_second(found, price, asked.assumptions, each) for each in (at.p10, at.p50, at.p90))
            usd = Band(*costs)
        owned = owned_hour(found.gpu, asked.assumptions)
        own = holding(found, owned, asked) if owned else None
        ceilings = tuple(buy_below(found, target, asked.assumptions) for target in asked.targets)
    return GpuRow(
        gpu=found.gpu.id,
        seconds=Band(at.p10, at.p50, at.p90),
        usd_per_second=usd,
        memory=memory,
        attention=found.setting.attention,
        seconds_per_month=most,
        rent=rent,
        own=own,
        buy_below=ceilings,
        reason=reason,
    )


def _ordered(rows: Sequence[GpuRow | ApiRow]) -> tuple[GpuRow | ApiRow, ...]:
    """Cheapest first; what has no cost comes last."""

    def cost(row: GpuRow | ApiRow) -> float:
        usd = row.usd_per_second
        return math.inf if usd is None else usd.p50 if isinstance(usd, Band) else usd

    return tuple(sorted(rows, key=cost))
