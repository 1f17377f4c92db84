"""What was said of Sora's cost when it appeared, recomputed from the inputs that were stated with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sora_runtime.cost.prices import exchange_rate
from sora_runtime.cost.tables import rows

Verdict = Literal["follows", "differs", "cannot be checked"]
TOLERANCE = 0.02  # published figures are rounded to two or three digits


@dataclass(frozen=True)
class Claim:
    """One row of claims.csv."""

    id: str
    date: str
    subject: str
    claim: str
    stated: tuple[float, ...]  # one value, or the ends of a range
    unit: str
    inputs: Mapping[str, float]
    source: str
    note: str

    @property
    def stated_text(self) -> str:
        """The figure as it was given, with its unit."""
        return f"{'-'.join(figure(value) for value in self.stated)} {self.unit}"


@dataclass(frozen=True)
class Check:
    """What the inputs give, and what that says of the claim."""

    computed: str
    verdict: Verdict
    why: str
    values: Mapping[str, float]  # every figure in `computed` and `why`, by name, for programs


def figure(value: float) -> str:
    """A number as people write it: separators, four digits where there are fractions."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 10_000 else f"{value:.4g}"


@cache
def claims() -> dict[str, Claim]:
    """The catalogue's claims by id."""
    return {row["id"]: _claim(row) for row in rows("claims.csv")}


def _claim(row: Mapping[str, str]) -> Claim:
    pairs = (part.split("=") for part in row["inputs"].split(";") if part.strip())
    return Claim(
        id=row["id"],
        date=row["date"],
        subject=row["subject"],
        claim=row["claim"],
        stated=tuple(float(part) for part in row["stated"].split("-")),
        unit=row["unit"],
        inputs={name.strip(): float(value) for name, value in pairs},
        source=row["source"],
        note=row["note"],
    )


# The arithmetic.


def token_price(tokens: float, steps: float, usd_per_1k_tokens: float) -> float:
    """Cost: tokens x steps x USD per 1000 tokens / 1000."""
    return tokens * steps * usd_per_1k_tokens / 1000


def latent_positions(size: float, compression: float, frames: float) -> float:
    """Positions: (size / compression)^2 x frames."""
    return (size / compression) ** 2 * frames


def seconds_per_video_second(render_seconds: float, video_seconds: float) -> float:
    """Ratio: render seconds / video seconds, for one GPU; n GPUs spend n times as many GPU-seconds."""
    return render_seconds / video_seconds


def kilowatts(kwh: float, hours: float) -> float:
    """Mean power: kWh / h."""
    return kwh / hours


def training_gpus(break_even_minutes: float, minutes_per_gpu_hour: float, days: float) -> float:
    """GPUs: break-even minutes / minutes per GPU-hour / (days x 24): inference costs as much as training there."""
    return break_even_minutes / minutes_per_gpu_hour / (days * 24)


def training_flops(gpus: float, tflops: float, utilisation: float, days: float) -> float:
    """FLOPs: GPUs x TFLOP/s x 10^12 x utilisation x days x 86400."""
    return gpus * tflops * 1e12 * utilisation * days * 86400


def minutes_a_day(tiktok: float, tiktok_share: float, youtube: float, youtube_share: float) -> float:
    """Minutes: TikTok's minutes x share + YouTube's minutes x share."""
    return tiktok * tiktok_share + youtube * youtube_share


def serving_gpus(minutes: float, minutes_per_gpu_hour: float, factor: float = 1.0) -> float:
    """GPUs: minutes a day / (minutes per GPU-hour x 24) x factor (utilisation, peak load, candidates)."""
    return minutes / (minutes_per_gpu_hour * 24) * factor


def megawatts(gpus: float, watts: float) -> float:
    """Power in MW: GPUs x W / 10^6."""
    return gpus * watts / 1e6


# The verdicts.


def _compare(computed: float, stated: float, text: str, why: str, values: Mapping[str, float]) -> Check:
    ratio = computed / stated
    if abs(ratio - 1) <= TOLERANCE:
        return Check(text, "follows", why, values)
    return Check(text, "differs", f"by a factor of {max(ratio, 1 / ratio):.3g}; {why}", values)


def _unchecked(why: str, computed: str = "-", **values: float) -> Check:
    return Check(computed, "cannot be checked", why, values)


def _tokens(claim: Claim) -> Check:
    i, stated = claim.inputs, claim.stated[0]
    unit = token_price(i["tokens"], i["steps"], i["usd_per_1k_tokens"])
    per_second = unit * i["seconds"]
    per_frame = per_second * i["frames_per_second"]
    positions = latent_positions(i["size"], i["compression"], i["frames"])
    why = (
        f"{i['tokens']:,.0f} tokens for each second give {per_second:.1f}, {stated / per_second:.1f} times less than "
        f"stated; for each frame at {i['frames_per_second']:.0f} fps {per_frame:.0f}, {per_frame / stated:.2f} times "
        f"more; 8x spatial compression alone leaves {positions:,.0f} positions in 30 frames, not {i['tokens']:,.0f}"
    )
    values = {"usd_per_second_tokens": per_second, "usd_per_frame_tokens": per_frame, "latent_positions": positions}
    text = f"{per_second:.1f}, {per_frame:.0f} USD/min"
    return Check(text, "differs", why, values)


def _render_time(claim: Claim) -> Check:
    seconds = seconds_per_video_second(**claim.inputs)
    counts = {f"gpu_seconds_on_{gpus}": seconds * gpus for gpus in (1, 8, 64)}
    text = f"{seconds:.0f} s per second"
    per_count = ", ".join(f"{seconds * gpus:,.0f} on {gpus}" for gpus in (1, 8, 64))
    return _unchecked(f"the number of GPUs is not stated: GPU-seconds a video second are {per_count}", text, **counts)


def _gen2(claim: Claim) -> Check:
    seconds = claim.inputs["minutes"] * 60
    usd = seconds * claim.inputs["usd_per_second"]
    why = f"{seconds:.0f} s at {claim.inputs['usd_per_second']:.2f} USD a second"
    return _compare(usd, claim.stated[0], f"{usd:.0f} USD", why, {"usd": usd, "usd_per_second": usd / seconds})


def _earlier_lengths(claim: Claim) -> Check:
    low, high = claim.stated
    others = (claim.inputs["pika_seconds"], claim.inputs["gen2_seconds"])
    text = f"{min(others):.0f}-{max(others):.0f} s"
    why = f"Pika's {others[0]:.0f} s and Gen-2's {others[1]:.0f} s, stated with it, lie outside {low:.0f} to {high:.0f}"
    values = {"low": min(others), "high": max(others)}
    if low <= min(others) and max(others) <= high:
        return Check(text, "follows", "the other lengths lie inside", values)
    return Check(text, "differs", f"by factors of {low / min(others):.3g} and {max(others) / high:.3g}; {why}", values)


def _server_electricity(claim: Claim) -> Check:
    i = claim.inputs
    each = claim.stated[0] / i["servers"]
    high, low = (kilowatts(each / i[f"cny_per_kwh_{end}"], i["hours"]) for end in ("low", "high"))
    why = "that is what one server may draw; an ordinary one of two CPUs does, one of eight GPUs draws far more"
    return _unchecked(why, f"{low:.2f}-{high:.2f} kW", kw_low=low, kw_high=high, cny_per_server=each)


def _chatgpt_energy(claim: Claim) -> Check:
    average = kilowatts(claim.inputs["kwh_per_day"], 24) / 1000
    return _unchecked(
        "that is the mean power; neither requests nor the energy of one are stated", f"{average:.1f} MW", mw=average
    )


def _training(claim: Claim) -> Check:
    i = claim.inputs
    low, high = (training_gpus(i[f"break_even_{end}"], i["minutes_per_gpu_hour"], i["days"]) for end in ("low", "high"))
    flops = [training_flops(gpus, i["tflops"], i["utilisation"], i["days"]) for gpus in claim.stated]
    why = (
        f"{i['break_even_low'] / 1e6:.1f}M to {i['break_even_high'] / 1e6:.1f}M minutes to break even, at "
        f"{i['minutes_per_gpu_hour']:.0f} minutes a GPU-hour; "
        f"{flops[0] / 1e25:.2f} to {flops[1] / 1e25:.2f} x 10^25 FLOPs, but from the "
        f"sparse peak of {i['tflops']:.0f} TFLOP/s: with the dense one every count doubles"
    )
    values = {"gpus_low": low, "gpus_high": high, "flops_low": flops[0], "flops_high": flops[1]}
    worst = max((low, claim.stated[0]), (high, claim.stated[1]), key=lambda pair: abs(pair[0] / pair[1] - 1))
    return _compare(*worst, f"{low:,.0f}-{high:,.0f} GPUs", why, values)


def _inference(claim: Claim) -> Check:
    i = claim.inputs
    minutes, rate, factor = i["minutes"], i["minutes_per_gpu_hour"], i["factor"]
    busy, total = serving_gpus(minutes, rate), serving_gpus(minutes, rate, factor)
    summed, literal = (
        minutes_a_day(i["tiktok_minutes"], i["tiktok_share"], i["youtube_minutes"], i[share])
        for share in ("youtube_share", "youtube_share_stated")
    )
    as_stated = serving_gpus(literal, rate, factor)
    why = (
        f"{minutes / 1e6:.1f}M minutes a day / {rate * 24:.0f} = {busy:,.0f}, about 90,000, x {factor:.0f}; the "
        f"minutes need {i['youtube_share']:.0%} of YouTube's ({summed / 1e6:.2f}M): the "
        f"{i['youtube_share_stated']:.0%} that is stated gives {literal / 1e6:.2f}M and {as_stated:,.0f} GPUs; with "
        "the dense peak of an H100 every count doubles"
    )
    values = {"gpus": total, "gpus_busy": busy, "minutes_a_day": summed, "gpus_with_stated_share": as_stated}
    return _compare(total, claim.stated[0], f"{total:,.0f} GPUs", why, values)


def _inference_power(claim: Claim) -> Check:
    power = megawatts(**claim.inputs)
    why = f"{claim.inputs['gpus']:,.0f} x {claim.inputs['watts']:.0f} W; the GPUs alone, without hosts and cooling"
    return _compare(power, claim.stated[0], f"{power:.0f} MW", why, {"mw": power})


def _daya_bay(claim: Claim) -> Check:
    i = claim.inputs
    blocks = [(i[f"reactors_{name}"], i[f"mw_{name}"]) for name in ("daya_bay", "ling_ao_1", "ling_ao_2")]
    power = sum(count * each for count, each in blocks)
    share = i["demand_mw"] / power
    sums = " + ".join(f"{count:.0f} x {each:.0f}" for count, each in blocks)
    why = f"{sums} MW, Ling Ao's four reactors included; {i['demand_mw']:.0f} MW are {share:.1%} of it"
    return _compare(power, claim.stated[0], f"{power:,.0f} MW", why, {"mw": power, "share": share})


def _stock(claim: Claim) -> Check:
    share = claim.stated[0] / claim.inputs["needed"]
    return _unchecked("no count was published", f"{share:.0%} of 720,000", share=share)


def _kling(claim: Claim) -> Check:
    rate = exchange_rate("CNY", "2024-10-31")
    low, high = (value / claim.inputs["seconds"] for value in claim.stated)
    usd = low / rate.per_usd, high / rate.per_usd
    why = (
        f"no list price of that month is in the catalogue; {low:.1f} to {high:.1f} CNY a second at {rate.per_usd:g} "
        f"CNY per USD ({rate.date}, {rate.source})"
    )
    return _unchecked(why, f"{usd[0]:.3f}-{usd[1]:.3f} USD/s", usd_per_second_low=usd[0], usd_per_second_high=usd[1])


def _list_price(_claim: Claim) -> Check:
    return _unchecked("a list price: nothing to derive it from")


def _observed(_claim: Claim) -> Check:
    return _unchecked("an observation: nothing to derive it from")


CHECKS: dict[str, Callable[[Claim], Check]] = {
    "sora-tokens-1min-usd": _tokens,
    "sora-render-time": _render_time,
    "gen2-price": _gen2,
    "dalle3-price": _list_price,
    "chatgpt-price": _list_price,
    "sora-length": _observed,
    "gen2-length": _observed,
    "pika-length": _observed,
    "pre-sora-length": _earlier_lengths,
    "server-electricity": _server_electricity,
    "chatgpt-energy": _chatgpt_energy,
    "sora-training-gpus": _training,
    "sora-inference-gpus": _inference,
    "sora-inference-power": _inference_power,
    "daya-bay-power": _daya_bay,
    "openai-h100-stock": _stock,
    "kling-runway-price": _kling,
    "clip-consistency": _observed,
}


def check(claim: Claim) -> Check:
    """Recompute one claim from its stated inputs."""
    return CHECKS[claim.id](claim)
