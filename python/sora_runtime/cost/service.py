"""From the estimator to a fleet plan: seconds, price and power of one clip on one kind of replica."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sora_runtime.cost.fleet import ServiceTime

if TYPE_CHECKING:
    from sora_runtime.cost.estimate import Ask, Estimate
    from sora_runtime.cost.plan_record import ClipSettings
    from sora_runtime.cost.prices import ChosenPrice


def service_time(model: str, gpu: str, gpu_count: int, settings: ClipSettings) -> ServiceTime:
    """Estimates one clip of `model` on `gpu_count` GPUs of one kind.

    Raises:
        NoPrice: The GPU has no price in the catalogue.
        InvalidRequest: A name or a setting is not known.
    """
    from sora_runtime.cost.estimate import estimate_of
    from sora_runtime.cost.money import DEFAULTS
    from sora_runtime.cost.prices import usd_per_hour

    estimate = estimate_of(_ask(model, gpu, gpu_count, settings))
    price, spot = usd_per_hour(estimate.gpu), _spot(estimate.gpu.id)
    streamed = estimate.setting.offload == "block"
    power = estimate.gpu.tdp_w
    reason = "its weights do not fit and would be streamed in every evaluation" if streamed else ""
    if power is None:
        reason = "its power is not known"
    return ServiceTime(
        gpu=estimate.gpu.id,
        gpus_per_clip=gpu_count,
        p10=estimate.prediction.p10,
        p50=estimate.prediction.p50,
        p90=estimate.prediction.p90,
        usd_per_gpu_hour=price.usd_per_hour,
        spot_usd_per_gpu_hour=spot.usd_per_hour if spot else None,
        watts_per_gpu=(power or 0.0) * DEFAULTS.busy_power_share,
        video_seconds=estimate.video_seconds,
        load_seconds=DEFAULTS.cold_start_seconds,
        fits=not reason,
        reason=reason,
        price_origin=_origin(price),
        spot_price_origin=_origin(spot) if spot else "",
        price_range=(price.low, price.high) if price.low < price.high else None,
        clip=_clip(estimate),
    )


def _ask(model: str, gpu: str, gpu_count: int, settings: ClipSettings) -> Ask:
    from sora_runtime.cost.estimate import Ask

    ask = Ask(
        model,
        gpu,
        gpu_count,
        width=settings.width,
        height=settings.height,
        num_frames=settings.frames,
        seconds=settings.seconds,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance_scale,
        attention=settings.attention,
    )
    return replace(ask, precision=settings.precision or ask.precision, engine=settings.engine or ask.engine)


def _clip(estimate: Estimate) -> str:
    shape, setting = estimate.shape, estimate.setting
    guided = "guided" if shape.guided else "no guidance"
    size = f"{shape.width}x{shape.height}, {shape.frames} frames, {shape.steps} steps, {guided}"
    return f"{size}; {setting.engine.name}, {setting.precision}, attention {setting.attention}"


def _spot(gpu: str) -> ChosenPrice | None:
    from sora_runtime.cost.prices import gpu_prices, usd_per_hour

    if not any(price.commitment == "spot" for price in gpu_prices(gpu)):
        return None
    return usd_per_hour(gpu, "spot")


def _origin(price: ChosenPrice) -> str:
    what = f"{price.what}, {price.date}" if price.date else price.what
    more = f" and {len(price.sources) - 1} more of the catalogue" if len(price.sources) > 1 else ""
    return f"{what}; {price.sources[0]}{more}" if price.sources else what
