"""Dated prices: of a GPU's hour at who rents it, of a hosted model's second of video, and of currencies in dollars."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from sora_runtime.cost.hardware import Gpu, find_gpu, gpus
from sora_runtime.cost.tables import rows
from sora_runtime.errors import InvalidRequest

__all__ = [
    "ApiPrice",
    "ChosenPrice",
    "ExchangeRate",
    "GpuPrice",
    "NoPrice",
    "api_prices",
    "exchange_rate",
    "find_gpu",
    "gpu_prices",
    "gpus",
    "median",
    "usd_per_hour",
]

# What a price may be asked for by; the default tries them from the left. The rest of the catalogue's commitments
# (a survey's median, a list price that was cut, the cost of owning) are shown but never chosen for the user.
COMMITMENTS = ("on-demand", "serverless", "reserved", "spot")
_STATED = re.compile(r"(?P<amount>\S+?)\s*(?P<currency>[A-Za-z]{3})?(?:/h)?", re.ASCII)


class NoPrice(InvalidRequest):
    """The catalogue has no price for this GPU; its seconds and energy can still be estimated."""


@dataclass(frozen=True)
class GpuPrice:
    """What one provider asks for an hour of one GPU."""

    provider: str
    gpu: str  # id in gpus.csv
    gpu_count: int  # GPUs that must be rented together
    usd_per_gpu_hour: float
    commitment: str
    date: str  # YYYY, YYYY-MM or YYYY-MM-DD
    source: str
    note: str


@dataclass(frozen=True)
class ApiPrice:
    """What one provider asks for a second of one hosted model's video."""

    provider: str
    model: str
    task: str  # t2v, i2v, r2v (reference images), v2v
    tier: str  # 480p ... 4k; empty: one price or not stated
    audio: bool | None  # None: not stated
    usd_per_second: float
    kind: str  # list, reseller, plan (credits of a subscription), measured (average of what was paid), secondary
    withdrawn: str  # date from which it is no longer offered; empty: none known
    date: str
    source: str
    note: str

    def offered(self, on: str) -> bool:
        """Whether it could be had on that day (YYYY-MM-DD), as far as is known."""
        return not self.withdrawn or on < self.withdrawn


@dataclass(frozen=True)
class ExchangeRate:
    """Units of a currency for one US dollar on one day."""

    currency: str
    per_usd: float
    date: str
    source: str


@dataclass(frozen=True)
class ChosenPrice:
    """The price of a GPU-hour that an estimate uses, and where it is from."""

    usd_per_hour: float
    what: str  # such as "median of 14 on-demand offers"
    low: float
    high: float
    providers: tuple[str, ...]
    date: str  # one or a range; empty: stated by the user
    sources: tuple[str, ...]
    owned: bool = False  # capital only: electricity comes on top

    @property
    def summary(self) -> str:
        """Price, what it is and range."""
        spread = "" if self.low == self.high else f", {self.low:.2f} to {self.high:.2f}"
        return f"{self.usd_per_hour:.4g} USD per GPU-hour: {self.what}{spread}"

    @property
    def describe(self) -> str:
        """The summary with its date."""
        return f"{self.summary} ({self.date})" if self.date else self.summary


@cache
def gpu_prices(gpu: str | None = None) -> tuple[GpuPrice, ...]:
    """Prices of one GPU (its id), or all."""
    found = (_gpu_price(row) for row in rows("gpu_prices.csv"))
    return tuple(price for price in found if gpu in {None, price.gpu})


def _gpu_price(row: dict[str, str]) -> GpuPrice:
    price = float(row["usd_per_gpu_hour"])
    return GpuPrice(**{**row, "gpu_count": int(row["gpu_count"]), "usd_per_gpu_hour": price})  # type: ignore[arg-type]


@cache
def api_prices() -> tuple[ApiPrice, ...]:
    """Every price of a hosted model in the catalogue, withdrawn ones too."""
    return tuple(_api_price(row) for row in rows("api_prices.csv"))


def _api_price(row: dict[str, str]) -> ApiPrice:
    audio = {"yes": True, "no": False}.get(row["audio"])
    price = float(row["usd_per_second"])
    return ApiPrice(**{**row, "audio": audio, "usd_per_second": price})  # type: ignore[arg-type]


@cache
def _exchange_rates() -> tuple[ExchangeRate, ...]:
    read = (
        ExchangeRate(row["currency"], float(row["per_usd"]), row["date"], row["source"])
        for row in rows("currencies.csv")
    )
    return tuple(sorted(read, key=lambda rate: rate.date))


def exchange_rate(currency: str, on: str | None = None) -> ExchangeRate:
    """The newest rate, or the newest that is no younger than `on` (YYYY-MM-DD; the oldest, if all are).

    Raises:
        InvalidRequest: the catalogue lacks the currency.
    """
    code = currency.upper()
    if code == "USD":
        return ExchangeRate("USD", 1.0, on or "any day", "by definition")
    known = [rate for rate in _exchange_rates() if rate.currency == code]
    if not known:
        codes = ", ".join(dict.fromkeys(rate.currency for rate in _exchange_rates()))
        raise InvalidRequest(f"currency = {currency!r} has no rate in the catalogue; use USD, {codes}")
    return next((rate for rate in reversed(known) if on is None or rate.date <= on), known[0])


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two middle ones."""
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def usd_per_hour(gpu: Gpu | str, wanted: str | float | None = None) -> ChosenPrice:
    """The price of an hour of one GPU.

    Args:
        gpu: the GPU or any of its names.
        wanted: None for the median of single GPUs on demand; a number of USD an hour ("2.5", "2.3 EUR"); a commitment
            (on-demand, serverless, reserved, spot); a provider; or both ("nebius spot"). Of a provider's prices only
            the newest count.

    Raises:
        NoPrice: the catalogue has none for this GPU.
        InvalidRequest: a price that is not above zero, or a word that names no price of this GPU.
    """
    gpu = find_gpu(gpu) if isinstance(gpu, str) else gpu
    if wanted is not None:
        stated = _stated(str(wanted).strip())
        if stated is not None:
            return stated
    choosable = [price for price in gpu_prices(gpu.id) if price.commitment in COMMITMENTS]
    if not choosable:
        raise NoPrice(f"the catalogue has no price of {gpu.id}; state one with --price, in USD an hour")
    if wanted is None:
        commitment = next(name for name in COMMITMENTS if any(price.commitment == name for price in choosable))
        return _middle(choosable, commitment)
    return _named(gpu, choosable, str(wanted).strip())


def _stated(text: str) -> ChosenPrice | None:
    """A price in figures; None if the text is not one."""
    match = None if _float(text) is not None else _STATED.fullmatch(text)
    amount = _float(match["amount"] if match else text)
    if amount is None:
        return None
    if not (math.isfinite(amount) and amount > 0):
        raise InvalidRequest(f"price = {text} is not above 0 USD an hour; use one such as 2.5")
    rate = exchange_rate((match and match["currency"]) or "USD")
    value = amount / rate.per_usd
    if rate.currency == "USD":
        return ChosenPrice(value, "as stated", value, value, (), "", ())
    what = f"{amount:g} {rate.currency} as stated, at {rate.per_usd:g} {rate.currency} per USD"
    return ChosenPrice(value, what, value, value, (), rate.date, (rate.source,))


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _named(gpu: Gpu, prices: Sequence[GpuPrice], text: str) -> ChosenPrice:
    """The price that a commitment, a provider or both stand for."""
    *words, last = text.split() or [""]
    commitment = last.lower() if last.lower() in COMMITMENTS else None
    provider = _plain(" ".join(words) if commitment else text)
    anyone = commitment is not None and not words
    found = [price for price in prices if anyone or (provider and provider in _plain(price.provider))]
    if commitment is None and found:
        commitment = next(name for name in COMMITMENTS if any(price.commitment == name for price in found))
    found = [price for price in found if price.commitment == commitment]
    if found and commitment:
        return _middle(found, commitment)
    names = sorted({price.provider for price in prices})
    nearest = difflib.get_close_matches(text, names, n=3, cutoff=0.3) or names[:3]
    kinds = ", ".join(name for name in COMMITMENTS if any(price.commitment == name for price in prices))
    raise InvalidRequest(
        f"price = {text!r} is neither a number of USD an hour nor a price of {gpu.id} in the catalogue; "
        f"it has {kinds}, and providers such as {', '.join(nearest)}"
    )


def _middle(prices: Iterable[GpuPrice], commitment: str) -> ChosenPrice:
    """The median of the newest prices of each provider, of single GPUs if there are any."""
    offers = newest([price for price in prices if price.commitment == commitment])
    single = [price for price in offers if price.gpu_count == 1]
    used = single or offers
    values = [price.usd_per_gpu_hour for price in used]
    dates = sorted(price.date for price in used)
    names = tuple(dict.fromkeys(price.provider for price in used))
    what = f"{commitment}, {names[0]}" if len(used) == 1 else f"median of {len(used)} {commitment} offers"
    return ChosenPrice(
        usd_per_hour=median(values),
        what=what if single else f"{what}, rented by {used[0].gpu_count}",
        low=min(values),
        high=max(values),
        providers=names,
        date=dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
        sources=tuple(dict.fromkeys(price.source for price in used)),
    )


def newest(prices: Sequence[GpuPrice]) -> list[GpuPrice]:
    """Each provider's prices of its newest date; a date known only to the year counts as its beginning."""
    latest: dict[tuple[str, int], str] = {}
    for price in prices:
        key = (price.provider, price.gpu_count)
        latest[key] = max(latest.get(key, ""), price.date)
    return [price for price in prices if price.date == latest[price.provider, price.gpu_count]]


def _plain(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum())
