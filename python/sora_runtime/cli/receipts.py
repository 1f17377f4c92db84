"""The receipt of a clip, and of several, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType

from sora_runtime.cli.tables import amount, byte_size, columns, duration, facts
from sora_runtime.machine import DEFAULT_USD_PER_VCPU_HOUR

if TYPE_CHECKING:
    from sora_runtime.receipt import Receipt, RequestRecord


def receipt_tables(receipt: Receipt, file: str) -> list[RenderableType]:
    """The receipt of one clip: what was made, where the time went, what it cost."""
    cost = receipt.cost
    return [
        facts([("file", file), *_identity(receipt, _seed(receipt))]),
        columns(("stage", "seconds", "share", ""), _stages(receipt), numbers={"seconds", "share"}),
        facts(
            [
                *_work(receipt),
                (
                    "cost",
                    f"{amount(cost.usd_per_clip)} USD a clip, "
                    f"{amount(cost.usd_per_generated_second)} USD a generated second",
                ),
                _price(receipt),
            ]
        ),
    ]


def repeat_tables(receipts: Sequence[Receipt], files: Sequence[Path]) -> list[RenderableType]:
    """The receipts of several clips of one request, a line each; times in seconds."""
    rows = [
        (
            file.name,
            str(receipt.request.seed),
            _cache(receipt, "{}/{}"),
            f"{receipt.seconds.text_encode:.3f}",
            f"{receipt.seconds.denoise:.3f}",
            f"{receipt.seconds.vae_decode:.3f}",
            f"{receipt.seconds.total:.3f}",
            amount(receipt.cost.usd_per_clip),
        )
        for receipt, file in zip(receipts, files, strict=True)
    ]
    names = ("clip", "seed", "hit/miss", "text", "denoise", "vae", "total s", "USD")
    last = receipts[-1]
    bill = amount(sum(receipt.cost.usd_per_clip for receipt in receipts))
    return [
        facts([("folder", str(files[-1].parent)), *_identity(last, f"a seed a clip ({last.request.rng})")]),
        columns(names, rows, numbers=set(names[1:])),
        facts([*_work(last), ("cost", f"{bill} USD for {len(rows)} clips"), _price(last)]),
    ]


def _shortened(prompt: str, length: int = 180) -> str:
    prompt = " ".join(prompt.split())
    return prompt if len(prompt) <= length else f"{prompt[: length - 4]} ..."


def _seed(receipt: Receipt) -> str:
    request = receipt.request
    return "given latents" if request.seed is None else f"seed {request.seed} ({request.rng})"


def _identity(receipt: Receipt, seed: str) -> list[tuple[str, str]]:
    request, engine = receipt.request, receipt.engine
    bundle = receipt.model.bundle_sha256
    return [
        ("prompt", _shortened(request.prompt or "")),
        (
            "clip",
            f"{request.width}x{request.height}, {request.num_frames} frames at "
            f"{request.fps:g} fps, {receipt.video_seconds:.2f} s",
        ),
        (
            "sampler",
            f"{request.solver}, {request.num_inference_steps} steps, guidance {request.guidance_scale or 0:g}, {seed}",
        ),
        *_reuse(request),
        *([] if request.preset is None else [("preset", str(request.preset))]),
        *([] if receipt.budget is None else [("budget", str(receipt.budget))]),
        (
            "model",
            f"{receipt.model.name} {engine.precision}, bundle {(bundle or 'unknown')[:12]}",
        ),
        ("engine", f"{engine.name} {engine.version}, {engine.num_threads} threads"),
        (
            "machine",
            f"{receipt.machine.cpu}, {receipt.machine.cores} cores"
            + (f", {receipt.machine.gpu}" if receipt.machine.gpu else ""),
        ),
    ]


def _reuse(request: RequestRecord) -> list[tuple[str, str]]:
    reuse = request.step_reuse
    if reuse is None:
        return []
    threshold = f", threshold {reuse.threshold:.4g}" if reuse.threshold else ""
    return [("step reuse", f"{reuse.policy}{threshold}, {'calibrated' if request.step_reuse_calibrated else 'forced'}")]


def _stages(receipt: Receipt) -> list[tuple[str, str, str, str]]:
    seconds, made = receipt.seconds, receipt.evaluations
    steps = seconds.per_step
    pace = f", {duration(sum(steps) / len(steps))} a step" if steps else ""
    cache = _cache(receipt, "embedding cache: {} hits, {} misses")
    picture = receipt.image_cache
    pictures = "" if picture is None else f"image cache: {picture.hits} hits, {picture.misses} misses"
    rows: list[tuple[str, float | None, str]] = [
        ("tokenize", seconds.tokenize, ""),
        ("text_encode", seconds.text_encode, cache),
        *([("image_encode", seconds.image_encode, pictures)] if seconds.image_encode is not None else []),
        ("denoise", seconds.denoise, f"{made.made} evaluations, {made.skipped} skipped{pace}"),
        ("vae_decode", seconds.vae_decode, ""),
        ("encode_mp4", seconds.encode_mp4, receipt.reasons.get("seconds.encode_mp4", "beside vae_decode")),
        ("total", seconds.total, _predicted(receipt)),
    ]
    table = [
        (name, "-", "", note)
        if value is None
        else (name, f"{value:.3f}", f"{value / max(seconds.total, 1e-9):.1%}", note)
        for name, value, note in rows
    ]
    if seconds.queued is not None and seconds.queued > 0.0005:  # what would not show as 0.000
        table.insert(0, ("queued", f"{seconds.queued:.3f}", "", "for other clips, not in total"))
    if seconds.load is not None:
        table.insert(0, ("load", f"{seconds.load:.3f}", "", "once per runtime, not in total"))
    return table


def _cache(receipt: Receipt, words: str) -> str:
    cache = receipt.embedding_cache
    return "" if cache is None else words.format(cache.hits, cache.misses)


def _predicted(receipt: Receipt) -> str:
    if receipt.predicted is None:
        return ""
    band = receipt.predicted.seconds
    return f"predicted {band.p50:.3f} ({band.p10:.3f} to {band.p90:.3f})"


def _work(receipt: Receipt) -> list[tuple[str, str]]:
    tokens, memory = receipt.tokens, byte_size(receipt.peak_host_memory_bytes or 0)
    return [
        ("tokens", f"{tokens.latent_tokens:,} latent, {tokens.tokens_processed:,} processed"),
        ("engines", f"{receipt.engine_seconds:.3f} engine-seconds, peak memory {memory}"),
    ]


def _price(receipt: Receipt) -> tuple[str, str]:
    an_hour = f"{amount(receipt.cost.usd_per_hour)} USD an hour"
    if not receipt.cost.price_is_default:
        return "price", f"{an_hour}, as stated"
    rate = f"{DEFAULT_USD_PER_VCPU_HOUR:g} per vCPU-hour, AWS m7g.large"
    return "price", f"{an_hour} (default: {rate}; --price-per-hour sets yours)"
