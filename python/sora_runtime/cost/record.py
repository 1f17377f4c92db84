"""Writes an estimate as the receipt that a serving stack already reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime

from sora_runtime.cost.estimate import Estimate
from sora_runtime.cost.memory import memory_of
from sora_runtime.cost.rates import fitted
from sora_runtime.cost.roofline import evaluated_share, limit_seconds, stage_work
from sora_runtime.forecast import AssumptionRecord, Band, Forecast, LimitRecord, MemoryRecord
from sora_runtime.receipt import (
    Cost,
    EngineRecord,
    Evaluations,
    MachineRecord,
    ModelRecord,
    Receipt,
    RequestRecord,
    Seconds,
    Tokens,
)

_NOTHING_RAN = "an estimate: nothing ran"
_MONEY = ("cost", "forecast.usd_per_clip", "forecast.limit.usd_per_clip")


def receipt_of(estimate: Estimate, now: datetime) -> Receipt:
    """The estimate as a receipt; where the GPU has no price, money is 0 USD an hour and `reasons` says so."""
    ask, shape, clip = estimate.ask, estimate.shape, estimate.clip
    share = evaluated_share(estimate.setting, fitted().rates())
    steps = round(shape.steps * share)
    sums = {name: sum(stage.values()) for name, stage in estimate.prediction.stages.items()}
    total = estimate.prediction.p50
    receipt = Receipt(
        created=now.isoformat(timespec="seconds"),
        model=ModelRecord(name=estimate.model.name, family=estimate.model.family, bundle_sha256=None),
        engine=EngineRecord(
            name=estimate.setting.engine.name,
            version=None,
            precision=estimate.setting.precision,
            num_threads=None,
            attention=estimate.setting.attention,
        ),
        machine=MachineRecord(
            cpu=None, cores=None, memory_bytes=None, os=None, gpu=estimate.gpu.id, gpu_count=ask.gpu_count
        ),
        request=_request(estimate),
        tokens=Tokens(latent_tokens=clip.tokens, tokens_processed=clip.tokens * steps * clip.passes),
        evaluations=Evaluations(made=steps * clip.passes, skipped=(shape.steps - steps) * clip.passes),
        embedding_cache=None,
        seconds=Seconds(
            load=None,
            queued=None,
            tokenize=None,
            text_encode=sums["text_encode"],
            image_encode=sums["image_encode"] if shape.image else None,
            denoise=sums["denoise"],
            per_step=[sums["denoise"] / shape.steps] * shape.steps,
            vae_decode=sums["vae_decode"],
            encode_mp4=None,
            total=total,
        ),
        engine_seconds=total * ask.gpu_count,
        peak_host_memory_bytes=None,
        video_seconds=estimate.video_seconds,
        cost=_cost(estimate),
        hashes=None,
        estimated=True,
        forecast=_forecast(estimate),
    )
    receipt.reasons = _reasons(estimate, receipt)
    return receipt


def _reasons(estimate: Estimate, receipt: Receipt) -> dict[str, str]:
    """Why each null is one, and why money is 0 where there is no price."""
    found = dict.fromkeys(_nulls(receipt.model_dump(exclude={"predicted", "reasons"})), _NOTHING_RAN)
    if "seconds.image_encode" in found:
        found["seconds.image_encode"] = found["image_cache"] = "the clip begins with no picture"
    found["batch"] = "one clip is estimated"
    if "request.guidance_scale" in found:
        found["request.guidance_scale"] = "the model takes none"
    if "forecast.energy_wh" in found:
        unknown = estimate.gpu.tdp_w is None
        found["forecast.energy_wh"] = "the GPU's power is not known" if unknown else "without a price; state one"
    if estimate.money is None:
        found |= dict.fromkeys(_MONEY, f"0 stands for none: the catalogue has no price of {estimate.gpu.id}; state one")
    return found


def _nulls(record: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Dotted names of what is null."""
    for name, value in record.items():
        if value is None:
            yield prefix + name
        elif isinstance(value, dict):
            yield from _nulls(value, f"{prefix}{name}.")


def _request(estimate: Estimate) -> RequestRecord:
    ask, shape = estimate.ask, estimate.shape
    guidance = ask.guidance_scale if ask.guidance_scale is not None else estimate.model.defaults.guidance_scale
    return RequestRecord(
        task="i2v" if shape.image else "t2v",
        prompt=None,
        negative_prompt=None,
        seed=None,
        rng=None,
        solver=None,
        schedule=None,
        num_inference_steps=shape.steps,
        guidance_scale=guidance,
        guidance_scale_2=None,
        guidance_rescale=None,
        height=shape.height,
        width=shape.width,
        num_frames=shape.frames,
        fps=estimate.fps,
    )


def _cost(estimate: Estimate) -> Cost:
    """Rent of the GPU-seconds alone, as a measured receipt has it."""
    price = 0.0 if estimate.money is None else estimate.money.price.usd_per_hour
    hourly = price * estimate.ask.gpu_count
    usd = estimate.prediction.p50 * hourly / 3600
    return Cost(
        usd_per_hour=hourly,
        price_source="no price" if estimate.money is None else estimate.money.price.describe,
        price_is_default=estimate.ask.price is None and not (estimate.money and estimate.money.price.owned),
        usd_per_clip=usd,
        usd_per_generated_second=usd / estimate.video_seconds,
    )


def _forecast(estimate: Estimate) -> Forecast:
    prediction = estimate.prediction
    work = stage_work(estimate.clip)
    memory = memory_of(estimate.model, estimate.clip, estimate.gpu, estimate.setting)
    usd = [
        0.0 if m is None else m.usd_per_clip
        for m in map(estimate.money_at, (prediction.p10, prediction.p50, prediction.p90))
    ]
    limit = limit_seconds(estimate.clip, estimate.gpu, estimate.setting.precision, estimate.ask.gpu_count)
    at_limit = estimate.money_at(limit)
    money = estimate.money
    assumptions = [AssumptionRecord(name=n, value=v, origin=o) for n, v, o in estimate.all_assumed()]
    return Forecast(
        seconds=Band(p10=prediction.p10, p50=prediction.p50, p90=prediction.p90),
        usd_per_clip=Band(p10=usd[0], p50=usd[1], p90=usd[2]),
        why_wide=list(estimate.reasons),
        stage_seconds=prediction.stages,
        flops={stage: flops for stage, (flops, _) in work.items()},
        bytes={stage: moved for stage, (_, moved) in work.items()},
        memory=MemoryRecord(
            weights=memory.weights,
            activations=memory.activations,
            peak=memory.peak,
            capacity=memory.capacity,
            fits=memory.fits,
            offload=memory.offload,
        ),
        items_usd={} if money is None else money.items,
        energy_wh=None if money is None else money.wh,
        limit=LimitRecord(
            seconds=limit,
            usd_per_clip=0.0 if at_limit is None else at_limit.usd_per_clip,
            share=limit / prediction.p50,
        ),
        price="no price" if money is None else money.price.describe,
        price_sources=[] if money is None else list(money.price.sources),
        assumptions=assumptions,
    )
