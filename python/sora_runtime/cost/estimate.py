"""`estimate`: the receipt of a clip that was not made, with its band of time, its work, memory, money and energy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sora_runtime.cost import settings
from sora_runtime.cost.checked import checked, left_to_the_model, parallelism_of, reuse_of
from sora_runtime.cost.clips import Shape, check_shape, clip_of
from sora_runtime.cost.hardware import Gpu, find_gpu
from sora_runtime.cost.memory import memory_of
from sora_runtime.cost.models import Model, load_model
from sora_runtime.cost.money import DEFAULTS as MONEY_DEFAULTS
from sora_runtime.cost.money import Assumptions, MoneyRecord, cost_of_clip, owned_price
from sora_runtime.cost.predict import Prediction, predict
from sora_runtime.cost.prices import ChosenPrice, NoPrice, usd_per_hour
from sora_runtime.cost.profile_path import is_this_machine
from sora_runtime.cost.rates import fitted
from sora_runtime.cost.roofline import Clip
from sora_runtime.cost.settings import Setting
from sora_runtime.cost.why import reasons_of
from sora_runtime.errors import InvalidRequest
from sora_runtime.geometry import Geometry

if TYPE_CHECKING:
    from sora_runtime.cost.on_machine import OnMachine
    from sora_runtime.receipt import Receipt

MOST_GPUS = 4096
LEAST_PRICE, MOST_PRICE = 1e-6, 1e6  # USD per GPU-hour; a slip of the decimal point is nearer than either
_MOST_VIDEO_SECONDS = 1e6
_MOST_USD = 1e12  # a minute of video
# Assumptions that decide only what a bought GPU costs.
OWNERS = ("electricity_price", "capital_price", "lifetime_years", "upkeep_share")
_SINGULAR = {"clips": "clip", "months": "month", "years": "year"}


@dataclass(frozen=True)
class Ask:
    """What is to be estimated; None takes the model's own default."""

    model: str
    gpu: str = "h100-sxm"
    gpu_count: int = 1
    width: int | None = None  # pixels
    height: int | None = None
    num_frames: int | None = None
    seconds: float | None = None  # of video, instead of num_frames
    fps: float | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None  # 1 or less: no guidance, one evaluation a step
    image: bool = False  # the clip begins with a picture
    precision: str = "bf16"
    engine: str = "diffusers"
    attention: str | None = None
    compiled: bool | None = None
    step_reuse: str | float | None = None  # a method's name or the share of steps reused
    parallelism: str | None = None  # such as "cfg2 ulysses4"
    price: str | float | None = None  # USD per GPU-hour, a provider or a commitment
    assumptions: Mapping[str, float] = field(default_factory=dict)
    pace: float | None = None  # of this machine, as `bench.pace.pace_now` reads it; None: as it was calibrated


@dataclass(frozen=True)
class Estimate:
    """All that an estimate knows, before it is written as a receipt."""

    ask: Ask
    model: Model
    shape: Shape
    fps: float
    geometry: Geometry
    clip: Clip
    gpu: Gpu
    setting: Setting
    prediction: Prediction
    money: MoneyRecord | None  # None: the GPU has no price
    reasons: tuple[str, ...]
    assumed: tuple[tuple[str, str, str], ...]  # name, value, origin

    @property
    def video_seconds(self) -> float:
        """Length of the clip."""
        return self.shape.frames / self.fps

    def money_at(self, seconds: float) -> MoneyRecord | None:
        """The clip's cost if it took so long."""
        if self.money is None:
            return None
        gpu_seconds, price = seconds * self.ask.gpu_count, self.money.price
        return cost_of_clip(gpu_seconds, seconds, self.gpu, price, self.video_seconds, self.money.assumptions)

    def all_assumed(self) -> Iterator[tuple[str, str, str]]:
        """Every input that nobody measured: name, value with its unit, origin."""
        yield from self.assumed
        if self.money is None:
            return
        for each in self.money.assumptions.stated():
            if self.money.price.owned or each.name not in OWNERS:
                unit = each.unit.partition(";")[0]
                unit = _SINGULAR.get(unit, unit) if each.value == 1 else unit
                yield each.name, f"{each.value:g} {unit}", each.origin


def estimate_of(ask: Ask) -> Estimate:
    """Work out one estimate.

    Raises:
        InvalidRequest: anything that is not a clip, a model, a GPU, a price.
    """
    ask = checked(ask)
    here = _here(ask.pace) if is_this_machine(ask.gpu) else None
    model, gpu = _model(ask.model), here.profile.gpu if here else find_gpu(ask.gpu)
    most = 1 if here else MOST_GPUS
    if not 1 <= ask.gpu_count <= most:
        raise InvalidRequest(f"gpu count = {ask.gpu_count} is out of range; use {'1 to ' if most > 1 else ''}{most}")
    assumptions = MONEY_DEFAULTS.with_overrides(ask.assumptions)
    rented = here is not None and ask.price is None and assumptions.capital_price <= 0
    price = here.price if here and rented else _price(ask, gpu, assumptions)
    shape, fps = _shape(ask, model)
    geometry, clip = clip_of(model, shape)
    setting, assumed = _setting(ask, model, gpu, guided=shape.guided)
    if here:
        setting, assumed = here.setting(ask.precision, setting)
    memory = memory_of(model, clip, gpu, setting)
    if memory.offload and not setting.offload:
        setting = replace(setting, offload=memory.offload)
        assumed = (*assumed, ("offload", memory.offload, f"{memory.resident / 1e9:.0f} GB do not fit on the GPU"))
    unsaid = ("attention",) if not setting.attention_stated and gpu.architecture in {"hopper", "blackwell"} else ()
    if here:
        prediction = here.predict(model, shape, setting)
        reasons = prediction.reasons
    else:
        prediction = predict(clip, gpu, setting, fitted(), assumed=unsaid)
        reasons = tuple(reasons_of(model, gpu, setting, prediction, fitted(), unsaid))
    return Estimate(
        ask,
        model,
        shape,
        fps,
        geometry,
        clip,
        gpu,
        setting,
        prediction,
        None if price is None else _money(ask, gpu, price, shape.frames / fps, prediction, assumptions),
        reasons,
        (*assumed, *left_to_the_model(ask)),
    )


def estimate(model: str, *, gpu: str = "h100-sxm", **wanted: object) -> Receipt:
    """Quote a clip before it is made.

    Args:
        model: a name of the catalogue, a model card, a bundle or a checkpoint folder.
        gpu: a name of the catalogue.
        **wanted: the fields of `Ask`.

    Returns:
        The record that a measured clip's receipt is, with `estimated: true`: `seconds` and `cost` are the median's
        GPU time and rent of one clip as made, `forecast` holds the band and the cost with everything beside it.

    Raises:
        InvalidRequest: in one sentence what is wrong, its value and the remedy.
    """
    from sora_runtime.cost.record import receipt_of

    unknown = set(wanted) - set(Ask.__dataclass_fields__)
    if unknown:
        raise InvalidRequest(f"{sorted(unknown)[0]!r} is not an input; use {', '.join(Ask.__dataclass_fields__)}")
    return receipt_of(estimate_of(Ask(model, gpu=gpu, **wanted)), datetime.now(UTC))  # type: ignore[arg-type]


def _here(pace: float | None) -> OnMachine:
    from sora_runtime.cost.on_machine import OnMachine  # 20 ms that no estimate of a GPU needs

    return OnMachine.here(pace)


def _model(text: str) -> Model:
    try:
        return load_model(text)
    except OSError as error:  # no path can be so long
        raise InvalidRequest(f"model = {text[:40]!r}... is no path ({error.strerror}); use a name or a path") from None


def _shape(ask: Ask, model: Model) -> tuple[Shape, float]:
    defaults = model.defaults
    fps = defaults.fps if ask.fps is None else ask.fps
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise InvalidRequest(f"fps = {fps:g} is out of range; use more than 0 and at most 1000")
    frames = ask.num_frames
    if ask.seconds is not None:
        if frames is not None:
            raise InvalidRequest("frames and seconds were both given; give one of them")
        frames = _frames(ask.seconds, fps, model)
    guided = defaults.guided
    if ask.guidance_scale is not None:
        if not math.isfinite(ask.guidance_scale) or ask.guidance_scale < 0:
            raise InvalidRequest(f"guidance_scale = {ask.guidance_scale:g} is not 0 or more; use 1 for no guidance")
        guided = guided and ask.guidance_scale > 1
    shape = Shape(
        width=defaults.width if ask.width is None else ask.width,
        height=defaults.height if ask.height is None else ask.height,
        frames=defaults.frames if frames is None else frames,
        steps=defaults.steps if ask.num_inference_steps is None else ask.num_inference_steps,
        guided=guided,
        image=ask.image or model.tasks == ("i2v",),
    )
    check_shape(shape)
    if shape.frames / fps > _MOST_VIDEO_SECONDS:
        raise InvalidRequest(
            f"fps = {fps:g} makes a clip of {shape.frames / fps:g} s; use one such as {defaults.fps:g}"
        )
    return shape, fps


def _frames(seconds: float, fps: float, model: Model) -> int:
    """The nearest number of frames that the model can make."""
    if not (math.isfinite(seconds) and 0 < seconds <= 36_000):
        raise InvalidRequest(f"seconds = {seconds:g} is out of range; use more than 0 and at most 36000")
    step = model.strides.temporal_stride
    return max(round((seconds * fps - 1) / step), 0) * step + 1


def _setting(ask: Ask, model: Model, gpu: Gpu, *, guided: bool) -> tuple[Setting, tuple[tuple[str, str, str], ...]]:
    engine = settings.parse_engine(ask.engine)
    if ask.precision not in settings.PRECISIONS:
        raise InvalidRequest(f"precision = {ask.precision!r} is not known; use one of {', '.join(settings.PRECISIONS)}")
    if ask.attention is not None and ask.attention not in settings.ATTENTIONS:
        raise InvalidRequest(f"attention = {ask.attention!r} is not known; use one of {', '.join(settings.ATTENTIONS)}")
    usual = settings.default_attention(engine, gpu.architecture, model.released, masked=model.masked)
    reuse, share = reuse_of(ask.step_reuse)
    plan = parallelism_of(ask.parallelism, ask.gpu_count, guided=guided, engine=engine)
    setting = Setting(
        engine=engine,
        compiled=engine.compiled if ask.compiled is None else ask.compiled,
        attention=ask.attention or usual,
        attention_stated=ask.attention is not None,
        attention_method=model.sparse,
        attention_density=settings.SPARSE[model.sparse][1] if model.sparse else 1.0,
        precision=ask.precision,
        reuse=reuse,
        reuse_share=share,
        parallelism=plan,
    )
    assumed = [("software", "as published in 2024 to 2026", "the rows that the rates were fitted to")]
    if ask.attention is None:
        assumed.append(
            ("attention", usual, f"what {engine.name} uses there for a model of {model.released or 'today'}")
        )
    if ask.gpu_count > 1 and ask.parallelism is None:
        assumed.append(("parallelism", f"cfg {plan.cfg} x ulysses {plan.ulysses}", "usual for this engine"))
    return setting, tuple(assumed)


def _price(ask: Ask, gpu: Gpu, assumptions: Assumptions) -> ChosenPrice | None:
    """An hour of the GPU: bought where `capital_price` is given, else rented; None: the catalogue has no price."""
    if assumptions.capital_price > 0:
        if ask.price is not None:
            raise InvalidRequest(f"price = {ask.price} and capital_price are both given; a bought GPU has no rent")
        price = owned_price(assumptions)
    else:
        try:
            price = usd_per_hour(gpu, ask.price)
        except NoPrice:
            if ask.price is not None:
                raise
            return None
    if not LEAST_PRICE <= price.usd_per_hour <= MOST_PRICE:
        raise InvalidRequest(
            f"price = {price.usd_per_hour:g} USD a GPU-hour is out of range; use {LEAST_PRICE:f} to {MOST_PRICE:.0f}"
        )
    return price


def _money(
    ask: Ask, gpu: Gpu, price: ChosenPrice, video_seconds: float, prediction: Prediction, assumptions: Assumptions
) -> MoneyRecord:
    """The median's cost; refused where not even the band's upper end is a sum of money."""
    for seconds in (prediction.p90, prediction.p50):
        money = cost_of_clip(seconds * ask.gpu_count, seconds, gpu, price, video_seconds, assumptions)
        if not money.usd_per_minute <= _MOST_USD:
            raise InvalidRequest(
                f"{money.usd_per_minute:g} USD for a minute of video is no price; use smaller assumptions"
            )
    return money
