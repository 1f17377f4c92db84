"""Today's figure for each claim: from the price catalogues, from published measurements, or from an estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from sora_runtime.cost.claims import Claim, claims, serving_gpus
from sora_runtime.cost.hardware import find_gpu
from sora_runtime.cost.money import DEFAULTS, energy_wh
from sora_runtime.cost.prices import ApiPrice, api_prices, exchange_rate, median, usd_per_hour


class GpuSeconds(Protocol):
    """What an estimate must answer: the median GPU-seconds of one whole clip."""

    def __call__(self, model: str, gpu: str, *, width: int, height: int, frames: int, steps: int) -> float:
        """GPU-seconds, the 50th percentile."""


@dataclass(frozen=True)
class Origin:
    """Where a figure is from."""

    what: str
    date: str
    source: str


@dataclass(frozen=True)
class Today:
    """Today's figure for the same thing, and where it is from."""

    text: str
    values: dict[str, float]
    origins: tuple[Origin, ...]


@dataclass(frozen=True)
class Measured:
    """A published time of one clip on one GPU."""

    label: str
    gpu: str
    seconds: float
    video_seconds: float
    origin: Origin

    @property
    def per_second(self) -> float:
        """GPU-seconds a second of video."""
        return self.seconds / self.video_seconds


_DELAVANDE = Origin("1898.4 s and 364.9 Wh a clip, one H100", "2025-09", "arXiv 2509.19222")
_TRTLLM = Origin("3.3814 s a clip, one B200", "2026", "https://github.com/NVIDIA/TensorRT-LLM/pull/19434")
WAN = Measured("Wan2.1-T2V-14B, 720p, 50 steps, H100", "h100-sxm", 1898.4, 81 / 16, _DELAVANDE)
WAN_WH = 364.9
FASTWAN = Measured("FastWan2.2-5B, 720p, 3 steps, B200", "b200", 3.3814, 121 / 24, _TRTLLM)
OPEN_SORA_USD = 200_000.0
_OPEN_SORA = Origin("training of Open-Sora 2.0 (11B)", "2025-03", "https://github.com/hpcaitech/Open-Sora README")
LONGEST = 241 / 24
_LONGEST = Origin("241 frames at 24 fps", "2025", "https://github.com/ai-forever/Kandinsky-5/blob/873617b/README.md")


def rounded(value: float) -> str:
    """Three significant digits, with separators."""
    return f"{float(f'{value:.3g}'):,.0f}"


@dataclass(frozen=True)
class Context:
    """What the figures are computed with."""

    on: str  # YYYY-MM-DD: services withdrawn by then are left out
    wan: Measured


def today(claim: Claim, estimate: GpuSeconds | None = None, on: str | None = None) -> Today:
    """Today's figure for one claim.

    Args:
        claim: which.
        estimate: replaces the published time of Wan2.1-T2V-14B by an estimated one.
        on: the day, YYYY-MM-DD; today by default.
    """
    wan = WAN
    if estimate is not None:
        seconds = estimate("wan2.1-t2v-14b", WAN.gpu, width=1280, height=720, frames=81, steps=50)
        wan = Measured(WAN.label, WAN.gpu, seconds, 81 / 16, Origin("estimated", "today", "sora-bench estimate"))
    context = Context(on or datetime.now(UTC).date().isoformat(), wan)
    return TODAY[claim.id](claim, context)


def offers(tier: str, on: str) -> list[ApiPrice]:
    """List prices of text-to-video at one tier that can be had on that day, cheapest first."""
    found = (
        price
        for price in api_prices()
        if price.tier == tier and price.kind == "list" and price.task == "t2v" and price.offered(on)
    )
    return sorted(found, key=lambda price: price.usd_per_second)


def _priced(prices: Sequence[ApiPrice], what: str) -> Origin:
    dates = sorted(price.date for price in prices)
    sources = ", ".join(dict.fromkeys(price.provider for price in prices))
    return Origin(what, f"{dates[0]} to {dates[-1]}", f"api_prices.csv: {sources}")


def _of(price: ApiPrice) -> Origin:
    return Origin(f"{price.provider} {price.model}, {price.usd_per_second:g} USD/s", price.date, price.source)


def _find(provider: str, model: str, tier: str = "") -> ApiPrice:
    return next(
        price
        for price in api_prices()
        if price.provider == provider and price.model == model and tier in {"", price.tier}
    )


def _per_minute(_claim: Claim, context: Context) -> Today:
    texts: list[str] = []
    values: dict[str, float] = {}
    origins: list[Origin] = []
    for tier in ("720p", "1080p"):
        found = offers(tier, context.on)
        low, middle = found[0].usd_per_second * 60, median([price.usd_per_second for price in found]) * 60
        texts.append(f"{tier}: {low:.2f} at least, {middle:.2f} in the median of {len(found)} offers")
        values |= {f"usd_per_minute_{tier}_cheapest": low, f"usd_per_minute_{tier}_median": middle}
        origins += [_of(found[0]), _priced(found, f"{len(found)} offers at {tier}")]
    return Today(f"USD/min by API, {'; '.join(texts)}", values, tuple(origins))


def _render(_claim: Claim, context: Context) -> Today:
    pair = (context.wan, FASTWAN)
    text = "; ".join(f"{rounded(each.per_second * 60)} s a minute on one GPU ({each.label})" for each in pair)
    values = {each.gpu: each.per_second * 60 for each in pair}
    return Today(text, values, tuple(each.origin for each in pair))


def _runway(_claim: Claim, _context: Context) -> Today:
    found = [_find("Runway API", "gen4_turbo"), _find("Runway API", "gen4.5")]
    values = {price.model: price.usd_per_second * 450 for price in found}
    text = "; ".join(f"{value:.2f} USD for 7.5 minutes ({name})" for name, value in values.items())
    return Today(text, values, tuple(_of(price) for price in found))


def _image(_claim: Claim, context: Context) -> Today:
    found = offers("720p", context.on)
    usd = median([price.usd_per_second for price in found]) / 24
    text = f"{usd:.4f} USD for a frame of 720p video at 24 fps, in the median; images are not in the catalogue"
    return Today(text, {"usd_per_frame": usd}, (_priced(found, f"{len(found)} offers at 720p"),))


def _video_tokens(_claim: Claim, _context: Context) -> Today:
    price = _find("fal.ai", "bytedance/seedance-2.0/text-to-video", "720p")
    usd = price.usd_per_second / (1280 * 720 * 24 / 1024 / 1000)
    text = f"{usd:.4f} USD for 1000 video tokens (Seedance 2.0); text tokens are not in the catalogue"
    return Today(text, {"usd_per_1k_video_tokens": usd}, (_of(price),))


def _length(_claim: Claim, _context: Context) -> Today:
    text = f"{LONGEST:.0f} s in one piece (Kandinsky 5.0 Lite): the longest of the open models with published times"
    return Today(text, {"seconds": LONGEST}, (_LONGEST,))


def _server(claim: Claim, _context: Context) -> Today:
    gpu, rate = find_gpu("h100-sxm"), exchange_rate("CNY")
    hours = claim.inputs["hours"]
    kwh = 8 * energy_wh(hours * 3600, 0, gpu.tdp_w or 0, DEFAULTS) / 1000
    cny = kwh * DEFAULTS.electricity_price * rate.per_usd * claim.inputs["servers"]
    text = f"{rounded(cny)} CNY/month for 1000 servers of 8 busy H100 ({kwh:,.0f} kWh each), at the site's meter"
    electricity = next(each for each in DEFAULTS.stated() if each.name == "electricity_price")
    origins = (
        Origin(f"{electricity.value:g} {electricity.unit}", "2026-01", electricity.origin),
        Origin(f"{rate.per_usd:g} CNY per USD", rate.date, rate.source),
    )
    return Today(text, {"cny_per_month": cny, "kwh_per_server": kwh}, origins)


def _clips_of_energy(claim: Claim, _context: Context) -> Today:
    clips = claim.stated[0] * 1000 / WAN_WH
    text = f"enough for {clips / 1e6:.2f}M clips of 5 s a day at {WAN_WH} Wh ({WAN.label})"
    return Today(text, {"clips_per_day": clips}, (WAN.origin,))


def _open_sora(_claim: Claim, _context: Context) -> Today:
    price = usd_per_hour("h100-sxm")
    gpus = OPEN_SORA_USD / price.usd_per_hour / 720
    text = f"{gpus:.0f} H100 for a month: what Open-Sora 2.0's {OPEN_SORA_USD:,.0f} USD rent"
    rent = Origin(price.summary, price.date, ", ".join(price.sources))
    return Today(text, {"gpus": gpus}, (_OPEN_SORA, rent))


def _fleets(context: Context) -> list[tuple[Measured, float]]:
    # The published demand and its factor, so that only the GPU-seconds of a clip differ from the claim.
    asked = claims()["sora-inference-gpus"].inputs
    return [
        (each, serving_gpus(asked["minutes"], 60 / each.per_second, asked["factor"])) for each in (context.wan, FASTWAN)
    ]


def _serving(_claim: Claim, context: Context) -> Today:
    found = _fleets(context)
    text = "; ".join(f"{rounded(gpus)} GPUs ({each.label})" for each, gpus in found)
    values = {each.gpu: gpus for each, gpus in found}
    return Today(f"same demand, same factor of 8: {text}", values, tuple(each.origin for each, _ in found))


def _power(claim: Claim, context: Context) -> Today:
    values = {each.gpu: gpus * (find_gpu(each.gpu).tdp_w or 0) / 1e6 for each, gpus in _fleets(context)}
    a = DEFAULTS
    meter = claim.stated[0] * a.busy_power_share * (1 + a.host_power_share) * a.pue
    fleets = ", ".join(f"{rounded(value)} MW of {gpu}" for gpu, value in values.items())
    text = (
        f"{fleets} in the fleets above; the stated {claim.stated[0]:.0f} MW are {meter:.0f} at the site's meter "
        f"({a.busy_power_share:.0%} of TDP, hosts {a.host_power_share:.0%}, PUE {a.pue})"
    )
    return Today(text, {**values, "meter": meter}, (context.wan.origin, FASTWAN.origin))


def _daya_bay(claim: Claim, context: Context) -> Today:
    values = {
        each.gpu: gpus * (find_gpu(each.gpu).tdp_w or 0) / 1e6 / claim.stated[0] for each, gpus in _fleets(context)
    }
    text = ", ".join(f"{value * 100:.3g}% of it for the fleet of {gpu}" for gpu, value in values.items())
    return Today(text, values, (context.wan.origin, FASTWAN.origin))


def _rent(claim: Claim, _context: Context) -> Today:
    price = usd_per_hour("h100-sxm")
    usd = claim.stated[0] * price.usd_per_hour * 24
    text = f"no count is published; as many rent for {usd / 1e6:.1f}M USD a day"
    return Today(text, {"usd_per_day": usd}, (Origin(price.summary, price.date, ", ".join(price.sources)),))


def _kling(_claim: Claim, _context: Context) -> Today:
    rate = exchange_rate("CNY")
    found = [_find("fal.ai", "Kling v2.5 Turbo Pro"), _find("Runway API", "gen4_turbo")]
    values = {price.model: price.usd_per_second * 5 * rate.per_usd for price in found}
    text = "; ".join(f"{value:.2f} CNY for 5 s ({name})" for name, value in values.items())
    dated = Origin(f"{rate.per_usd:g} CNY per USD", rate.date, rate.source)
    return Today(text, values, (*(_of(price) for price in found), dated))


TODAY: dict[str, Callable[[Claim, Context], Today]] = {
    "sora-tokens-1min-usd": _per_minute,
    "sora-render-time": _render,
    "gen2-price": _runway,
    "dalle3-price": _image,
    "chatgpt-price": _video_tokens,
    "sora-length": _length,
    "gen2-length": _length,
    "pika-length": _length,
    "pre-sora-length": _length,
    "server-electricity": _server,
    "chatgpt-energy": _clips_of_energy,
    "sora-training-gpus": _open_sora,
    "sora-inference-gpus": _serving,
    "sora-inference-power": _power,
    "daya-bay-power": _daya_bay,
    "openai-h100-stock": _rent,
    "kling-runway-price": _kling,
    "clip-consistency": _length,
}
