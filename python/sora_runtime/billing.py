"""Writes the receipt of a clip from what the stages report."""

import hashlib
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from .budget_record import BudgetRecord, PresetRecord
from .bundle import Bundle
from .cost.profile_path import default_path
from .denoise import Conditions, DenoiseResult, Embeddings
from .embedding_tiers import EncoderUse
from .engines.gpu_meter import Measurement
from .engines.registry import DEFAULT_ENGINE, GPU_ENGINES, engine_version
from .errors import InvalidRequest
from .forecast import Band, Predicted
from .foresight import PastClip
from .machine import (
    DEFAULT_PRICE_SOURCE,
    Machine,
    default_usd_per_hour,
    peak_host_memory_bytes,
    this_machine,
)
from .programs import ChosenReuse
from .receipt import (
    NOT_SAVED,
    CacheRecord,
    Cost,
    EngineRecord,
    Evaluations,
    GuidanceRecord,
    Hashes,
    MachineRecord,
    ModelRecord,
    Receipt,
    RequestRecord,
    Seconds,
    Tokens,
    cost_of,
)
from .request import ResolvedRequest
from .reuse_record import ReuseSettings
from .sampling import Evaluation, SamplerProgram
from .text import TextUse

_NO_PROFILE = "no profile of this machine with so many threads; run `sora-bench calibrate`"
_OTHER_ENGINE = f"a machine's profile is of {DEFAULT_ENGINE}, and another engine ran"


@dataclass(frozen=True)
class Record:
    """What happened to one clip; times in seconds of wall clock."""

    bundle: Bundle
    engine: str
    num_threads: int
    request: ResolvedRequest
    program: SamplerProgram
    reuse: ChosenReuse | None
    embeddings: Embeddings
    text: TextUse
    denoised: DenoiseResult
    graphs: list[str]  # that ran, beside the encoders'
    load: float
    queued: float
    denoise: float
    picture: EncoderUse | None  # None: a clip without a picture
    vae_decode: float
    total: float
    decoder_engine_seconds: float
    gpu: Measurement
    budget: BudgetRecord | None = None


def past_clip(record: Record) -> PastClip:
    """What a clip took, to foresee later ones by."""
    given_up = 0.0 if record.budget is None else record.budget.given_up_seconds
    return PastClip(
        program=record.program.sha256,
        evaluations=record.denoised.statistics.evaluations,
        denoise=record.denoise,
        decode=record.vae_decode,
        total=record.total - given_up,
    )


def write_receipt(record: Record) -> Receipt:
    """Put together the receipt of a clip that was just decoded."""
    manifest, request = record.bundle.manifest, record.request
    machine = this_machine()
    tokens = request.geometry.tokens
    statistics = record.denoised.statistics
    video_seconds = request.geometry.shown_frames / request.fps
    cost = _cost(record, machine.cores, record.total, video_seconds)
    predicted = _predicted(record, cost.usd_per_hour)
    gpu_use = record.gpu.end()
    return Receipt(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelRecord(name=manifest.name, family=manifest.family, bundle_sha256=record.bundle.sha256),
        engine=EngineRecord(
            name=record.engine,
            version=engine_version(record.engine),
            precision=manifest.precision,
            num_threads=record.num_threads,
        ),
        machine=_machine(record.engine, machine),
        request=_request_record(request, record.program, record.reuse),
        tokens=Tokens(latent_tokens=tokens, tokens_processed=tokens * statistics.evaluations),
        evaluations=_evaluations(record.denoised),
        embedding_cache=CacheRecord(hits=record.text.hits, misses=record.text.misses),
        image_cache=_image_cache(record.picture),
        seconds=_seconds(record),
        engine_seconds=_engine_seconds(record),
        gpu_use=gpu_use,
        peak_host_memory_bytes=peak_host_memory_bytes(),
        video_seconds=video_seconds,
        cost=cost,
        hashes=_hashes(record),
        predicted=predicted,
        budget=record.budget,
        reasons=_reasons(record)
        | _budget_reasons(record.budget)
        | ({} if gpu_use else {"gpu_use": record.gpu.why_not})
        | ({} if predicted else {"predicted": _why_no_forecast(record)}),
    )


def _predicted(record: Record, usd_per_hour: float) -> Predicted | None:
    """What the machine's profile says of this clip; the estimator is imported only where there is a profile."""
    if record.engine != DEFAULT_ENGINE or not default_path().is_file():  # a profile is of one engine
        return None
    from .cost.clips import Shape
    from .cost.on_machine import RunsAs, predicted_here

    request, statistics = record.request, record.denoised.statistics
    geometry, rows = request.geometry, len(record.program.rows)
    shape = Shape(
        width=geometry.width,
        height=geometry.height,
        frames=geometry.num_frames,
        steps=rows,
        guided=bool(np.any(record.program.rows["guidance_scale"] != 1.0)),
        image=request.image is not None,
        prompts=record.text.misses,
    )
    reused = statistics.skipped / max(statistics.evaluations + statistics.skipped, 1)
    here = RunsAs(record.bundle.manifest.precision, record.num_threads, reused)
    found = predicted_here(record.bundle.root, shape, here)
    if found is None:
        return None
    prediction, origin = found
    band = Band(p10=prediction.p10, p50=prediction.p50, p90=prediction.p90)
    return Predicted(seconds=band, usd_per_clip=band.p50 * usd_per_hour / 3600, origin=origin)


def _why_no_forecast(record: Record) -> str:
    return _NO_PROFILE if record.engine == DEFAULT_ENGINE else _OTHER_ENGINE


def _evaluations(denoised: DenoiseResult) -> Evaluations:
    statistics = denoised.statistics
    reused = [i for i, done in enumerate(statistics.done) if done in (Evaluation.REUSE, Evaluation.CONDITIONAL)]
    return Evaluations(made=statistics.evaluations, skipped=statistics.skipped, reused_rows=reused)


def _seconds(record: Record) -> Seconds:
    return Seconds(
        load=record.load,
        queued=record.queued,
        tokenize=record.text.tokenize_seconds,
        text_encode=record.text.encode_seconds,
        image_encode=None if record.picture is None else record.picture.encode_seconds,
        denoise=record.denoise,
        per_step=list(record.denoised.statistics.row_seconds) if record.denoised.timed_by_row else [],
        vae_decode=record.vae_decode,
        encode_mp4=None,
        total=record.total,
    )


def _engine_seconds(record: Record) -> float:
    picture = 0.0 if record.picture is None else record.picture.engine_seconds
    given_up = [] if record.budget is None else record.budget.given_up
    denoising = record.denoised.engine_seconds + sum(work.engine_seconds for work in given_up)
    return record.text.engine_seconds + picture + denoising + record.decoder_engine_seconds


def _image_cache(picture: EncoderUse | None) -> CacheRecord | None:
    return None if picture is None else CacheRecord(hits=picture.hits, misses=picture.misses)


def _machine(engine: str, machine: Machine) -> MachineRecord:
    host = MachineRecord(cpu=machine.cpu, cores=machine.cores, memory_bytes=machine.memory_bytes, os=machine.os)
    if engine not in GPU_ENGINES:
        return host
    from .engines import cuda

    return host.model_copy(update={"gpu": cuda.current_device().name, "gpu_count": 1})


def default_price(engine: str, cores: int) -> tuple[float, str]:
    """What an hour of this machine costs where nobody said, in USD, and where that is from.

    Raises:
        InvalidRequest: the engine runs on a GPU whose price is not in the catalogue.
    """
    if engine not in GPU_ENGINES:
        return default_usd_per_hour(cores), DEFAULT_PRICE_SOURCE
    from .cost.prices import usd_per_hour
    from .engines import cuda

    name = cuda.current_device().name
    try:
        chosen = usd_per_hour(name)
    except InvalidRequest as error:
        raise InvalidRequest(f"the price of '{name}' is not in the catalogue; give price_per_hour in USD") from error
    return chosen.usd_per_hour, f"default for '{name}': {chosen.describe}; state yours as price per hour"


def _cost(record: Record, cores: int, total_seconds: float, video_seconds: float) -> Cost:
    price = record.request.price_per_hour
    usd, source = default_price(record.engine, cores) if price is None else (price, "stated in the request")
    return cost_of(total_seconds, video_seconds, usd_per_hour=usd, price_source=source, price_is_default=price is None)


def _uses_seed(request: ResolvedRequest, program: SamplerProgram) -> bool:
    return request.latents is None or bool(np.any(program.rows["noise"] != 0.0))


def _request_record(request: ResolvedRequest, program: SamplerProgram, reuse: ChosenReuse | None) -> RequestRecord:
    seeded, preset = _uses_seed(request, program), request.preset
    return RequestRecord(
        task=request.bucket.task,
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=request.seed if seeded else None,
        rng=request.rng if seeded else None,
        solver=program.solver,
        schedule=program.schedule,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_scale_2=request.guidance_scale_2,
        guidance_rescale=request.guidance_rescale,
        height=request.geometry.height,
        width=request.geometry.width,
        num_frames=request.geometry.num_frames,
        fps=request.fps,
        guidance=_guidance(request),
        step_reuse=None if reuse is None else ReuseSettings(**asdict(reuse.settings)),
        step_reuse_calibrated=None if reuse is None else reuse.calibrated,
        preset=None if preset is None else PresetRecord(name=preset.name, changed=list(preset.changed)),
    )


def _guidance(request: ResolvedRequest) -> GuidanceRecord | None:
    record = GuidanceRecord(
        **asdict(request.guidance_rule),
        interval=request.guidance_interval,
        decay=request.guidance_decay,
        zero_init_steps=request.zero_init_steps,
    )
    plain = record.method == "cfg" and record.interval is None and record.decay == 0.0 and record.zero_init_steps == 0
    return None if plain else record


def _hashes(record: Record) -> Hashes:
    files = record.bundle.manifest.files
    picture = () if record.picture is None else record.picture.ran
    ran = list(dict.fromkeys((*record.text.ran, *picture, *record.graphs)))
    embeds = {"prompt": _sha256(record.embeddings.conditional)}
    if record.embeddings.unconditional is not None:
        embeds["negative_prompt"] = _sha256(record.embeddings.unconditional)
    latents, image = record.request.latents, record.request.image
    return Hashes(
        sampler_program=record.program.sha256,
        graphs={name: files[name].sha256 for name in ran},
        weights={weights: files[weights].sha256 for name in ran for weights in files[name].data},
        prompt_embeds=embeds,
        latents=None if latents is None else _sha256({"latents": latents}),
        image=None if image is None else image.sha256,
    )


def _sha256(arrays: Conditions) -> str:
    """Over the bytes of all arrays, in the order of their names."""
    content = hashlib.sha256()
    for name in sorted(arrays):
        content.update(np.ascontiguousarray(arrays[name]).tobytes())
    return content.hexdigest()


def _reasons(record: Record) -> dict[str, str]:
    request, program = record.request, record.program
    reasons = {"seconds.encode_mp4": NOT_SAVED, "forecast": "measured, not estimated"}
    if record.engine in GPU_ENGINES:
        reasons["engine.attention"] = "the engine does not say which kernel it chose"
    else:
        reasons |= dict.fromkeys(("machine.gpu", "machine.gpu_count", "engine.attention"), "the engine ran on the CPU")
    reasons["batch"] = "the clip was made alone"
    if request.guidance_scale_2 is None:
        reasons["request.guidance_scale_2"] = "guidance_scale holds for every transformer"
    if request.step_reuse is None:
        reasons["request.step_reuse"] = reasons["request.step_reuse_calibrated"] = "every step was evaluated"
    if request.preset is None:
        reasons["request.preset"] = "the request named none"
    if _guidance(request) is None:
        reasons["request.guidance"] = "guidance_scale and guidance_rescale say it all"
    elif request.guidance_interval is None:
        reasons["request.guidance.interval"] = "guidance was not kept to an interval"
    if request.image is None:
        reasons |= dict.fromkeys(("seconds.image_encode", "hashes.image", "image_cache"), "the request had no image")
    if request.latents is None:
        reasons["hashes.latents"] = "the start noise was drawn from the seed"
    if not _uses_seed(request, program):
        reasons["request.seed"] = reasons["request.rng"] = "latents were passed in and no step draws noise"
    return reasons


def _budget_reasons(budget: BudgetRecord | None) -> dict[str, str]:
    if budget is None:
        return {"budget": "the request had none"}
    unset = [f"budget.{name}" for name in ("max_usd", "deadline_s") if getattr(budget, name) is None]
    return dict.fromkeys(unset, "the request set no such limit")
