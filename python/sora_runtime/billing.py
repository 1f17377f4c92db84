"""Writes the receipt of a clip from what the stages report."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from .denoise import DenoiseResult
from .engines import onnxruntime
from .machine import (
    DEFAULT_PRICE_SOURCE,
    default_usd_per_hour,
    peak_host_memory_bytes,
    this_machine,
)
from .receipt import (
    NOT_SAVED,
    CacheRecord,
    Cost,
    EngineRecord,
    Evaluations,
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
from .sampling import SamplerProgram
from .text import TextUse

if TYPE_CHECKING:
    from .runtime import Runtime


def write_receipt(
    runtime: "Runtime",
    request: ResolvedRequest,
    program: SamplerProgram,
    use: TextUse,
    denoised: DenoiseResult,
    *,
    graphs: Sequence[str],
    seconds: Mapping[str, float],
    engine_seconds: float,
) -> Receipt:
    """Put together the receipt of a clip that was just decoded."""
    manifest = runtime.bundle.manifest
    machine = this_machine()
    geometry = request.geometry
    video_seconds = geometry.num_frames / request.fps
    evaluations = denoised.statistics.evaluations
    return Receipt(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=ModelRecord(name=manifest.name, family=manifest.family, bundle_sha256=runtime.bundle.sha256),
        engine=EngineRecord(
            name="onnxruntime",
            version=onnxruntime.VERSION,
            precision=manifest.precision,
            num_threads=runtime.num_threads,
        ),
        machine=MachineRecord(cpu=machine.cpu, cores=machine.cores, memory_bytes=machine.memory_bytes, os=machine.os),
        request=_request_record(request, program),
        tokens=Tokens(latent_tokens=geometry.tokens, tokens_processed=geometry.tokens * evaluations),
        evaluations=Evaluations(made=evaluations, skipped=denoised.statistics.skipped),
        embedding_cache=CacheRecord(hits=use.hits, misses=use.misses),
        seconds=Seconds(
            load=runtime.load_seconds,
            queued=seconds["queued"],
            tokenize=use.tokenize_seconds,
            text_encode=use.encode_seconds,
            denoise=seconds["denoise"],
            per_step=list(denoised.statistics.row_seconds),
            vae_decode=seconds["vae_decode"],
            encode_mp4=None,
            total=seconds["total"],
        ),
        engine_seconds=engine_seconds,
        peak_host_memory_bytes=peak_host_memory_bytes(),
        video_seconds=video_seconds,
        cost=_cost(request.price_per_hour, machine.cores, seconds["total"], video_seconds),
        hashes=_hashes(runtime, program, graphs),
        reasons=_reasons(request),
    )


def _cost(price: float | None, cores: int, total_seconds: float, video_seconds: float) -> Cost:
    return cost_of(
        total_seconds,
        video_seconds,
        usd_per_hour=default_usd_per_hour(cores) if price is None else price,
        price_source=DEFAULT_PRICE_SOURCE if price is None else "stated in the request",
        price_is_default=price is None,
    )


def _request_record(request: ResolvedRequest, program: SamplerProgram) -> RequestRecord:
    given = request.latents is not None
    return RequestRecord(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        seed=None if given else request.seed,
        rng=None if given else request.rng,
        solver=program.solver,
        schedule=program.schedule,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        guidance_rescale=request.guidance_rescale,
        height=request.geometry.height,
        width=request.geometry.width,
        num_frames=request.geometry.num_frames,
        fps=request.fps,
    )


def _hashes(runtime: "Runtime", program: SamplerProgram, graphs: Sequence[str]) -> Hashes:
    files = runtime.bundle.manifest.files
    encoder = runtime.bundle.manifest.components.text_encoder.graph
    ran = [*([encoder] if runtime.text_encoder.loaded else []), *graphs]
    return Hashes(
        sampler_program=program.sha256,
        graphs={name: files[name].sha256 for name in ran},
        weights={name: record.sha256 for name, record in files.items() if name.endswith(".safetensors")},
    )


def _reasons(request: ResolvedRequest) -> dict[str, str]:
    reasons = {
        "seconds.encode_mp4": NOT_SAVED,
        "machine.gpu": "the engine ran on the CPU",
    }
    if request.latents is not None:
        reasons |= {
            "request.seed": "latents were passed in",
            "request.rng": "latents were passed in",
        }
    return reasons
