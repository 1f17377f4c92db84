"""`sora-bench run`: makes clips of a prompt and prints their receipts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_runtime.cli import run_options as option
from sora_runtime.cli.outputs import STDOUT, Outputs, check_all, write_receipts
from sora_runtime.cli.parse import check_text, parse_frames, parse_levels, parse_seeds, parse_size

if TYPE_CHECKING:
    from sora_runtime.receipt import Receipt


def run(  # noqa: PLR0913, PLR0917  (each option of the command is a parameter)
    prompt: option.Prompt,
    model: option.Model = "wan-pocket",
    image: option.Image = None,
    negative_prompt: option.NegativePrompt = None,
    seed: option.Seed = 0,
    seeds: option.Seeds = None,
    preset: option.Preset = None,
    steps: option.Steps = None,
    sigmas: option.Sigmas = None,
    timesteps: option.Timesteps = None,
    guidance_scale: option.GuidanceScale = None,
    guidance_rescale: option.GuidanceRescale = None,
    guidance_method: option.GuidanceMethod = None,
    guidance_interval: option.GuidanceInterval = None,
    guidance_decay: option.GuidanceDecay = None,
    zero_init_steps: option.ZeroInitSteps = None,
    apg: option.Apg = None,
    solver: option.Solver = None,
    step_reuse: option.StepReuse = None,
    reuse_threshold: option.ReuseThreshold = None,
    force_step_reuse: option.ForceStepReuse = False,
    rng: option.Rng = option.RandomNumbers.philox,
    size: option.Size = None,
    frames: option.Frames = None,
    num_frames: option.NumFrames = None,
    fps: option.Fps = None,
    repeat: option.Repeat = 1,
    out: option.Out = Path("clip.mp4"),
    gif: option.Gif = None,
    frames_dir: option.FramesDir = None,
    json: option.Json = None,
    max_usd: option.MaxUsd = None,
    deadline: option.Deadline = None,
    price_per_hour: option.PricePerHour = None,
    engine: option.Engine = option.EngineName.onnxruntime,
    threads: option.Threads = None,
    embedding_cache: option.EmbeddingCache = None,
    verify: option.Verify = option.VerifyBundle.once,
    quiet: option.Quiet = False,
) -> None:
    """Make a clip of PROMPT and print its receipt: tokens, seconds, dollars."""
    num_frames, frames_dir = parse_frames(frames or [], num_frames, frames_dir)
    width, height = parse_size(size) if size else (None, None)
    check_text("PROMPT", prompt)
    check_text("--negative-prompt", negative_prompt)
    request: dict[str, Any] = {
        "image": image,
        "negative_prompt": negative_prompt,
        "num_inference_steps": steps,
        "sigmas": parse_levels("--sigmas", sigmas),
        "timesteps": parse_levels("--timesteps", timesteps),
        "guidance_scale": guidance_scale,
        "guidance_rescale": guidance_rescale,
        "solver": solver,
        "rng": rng.value,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "fps": fps,
        "price_per_hour": price_per_hour,
    }
    request |= _given(
        guidance_method=option.guidance_of(guidance_method, apg),
        guidance_interval=guidance_interval,
        guidance_decay=guidance_decay,
        zero_init_steps=zero_init_steps,
        step_reuse=None if step_reuse is None else step_reuse.value,
        reuse_threshold=reuse_threshold,
        force_step_reuse=force_step_reuse or None,
        max_usd=max_usd,
        deadline_s=deadline,
    )
    wanted, several = Outputs(out, gif, frames_dir), parse_seeds(seeds, seed, repeat)
    outputs = [wanted.numbered(index) for index in range(len(several))] if len(several) > 1 else [wanted]
    check_all(outputs, json)
    loading = {
        "engine": engine.value,
        "num_threads": threads,
        "verify": verify.value,
        "embedding_cache_dir": embedding_cache,
    }
    loading |= _given(preset=preset)
    receipts = _make_clips(_Job(model, loading, prompt, several, request, outputs, json), quiet=quiet)
    if json == STDOUT:
        write_receipts(json, receipts, as_list=len(several) > 1)
    elif not quiet:
        _print_receipts(receipts, outputs)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


@dataclass(frozen=True)
class _Job:
    """What to make: one clip for each of `outputs` and `seeds`."""

    model: str
    loading: dict[str, Any]
    prompt: str
    seeds: list[int]
    request: dict[str, Any]
    outputs: list[Outputs]
    json: Path | None


def _with_preset(job: _Job) -> dict[str, Any]:
    """What to load with: where only another bundle keeps the budget, also the preset that is for it."""
    if job.loading.get("preset") is not None or not {"max_usd", "deadline_s"} & job.request.keys():
        return job.loading
    from sora_runtime.budget import bundle_within
    from sora_runtime.bundle import Bundle
    from sora_runtime.machine import available_cores

    how = {name: job.loading[name] for name in ("engine", "verify")}
    threads = job.loading["num_threads"] or available_cores()
    bundle = Bundle.load(job.model, verify=how["verify"])
    found = bundle_within(bundle, job.prompt, job.request, num_threads=threads, **how)
    return {**job.loading, **_given(preset=found)}


def _make_clips(job: _Job, *, quiet: bool) -> list[Receipt]:
    from sora_runtime.cli.clip import make_clips
    from sora_runtime.cli.progress import StageProgress
    from sora_runtime.runtime import Runtime

    receipts: list[Receipt] = []
    number = len(job.outputs)
    with StageProgress(quiet=quiet) as progress:
        progress("load", 0, 0)
        runtime = Runtime.load(job.model, **_with_preset(job))
        clips = make_clips(runtime, job.prompt, job.seeds, job.request, job.outputs, progress)
        for index in range(number):
            progress.next_clip(f"{index + 1}/{number} " if number > 1 else "")
            receipts.append(next(clips).receipt)
            # Each time, so that the clips there are have their receipts if a later one fails.
            if job.json is not None and job.json != STDOUT:
                write_receipts(job.json, receipts, as_list=number > 1)
    return receipts


def _print_receipts(receipts: list[Receipt], outputs: list[Outputs]) -> None:
    from sora_runtime.cli.receipts import receipt_tables, repeat_tables
    from sora_runtime.cli.tables import print_all

    names = [files.mp4 for files in outputs]
    if len(receipts) == 1:
        print_all(receipt_tables(receipts[0], str(names[0])))
    else:
        print_all(repeat_tables(receipts, names))
