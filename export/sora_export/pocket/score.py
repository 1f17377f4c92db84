"""Scores how well generated clips follow held-out prompts, attribute by attribute.

python -m sora_export.pocket.score --prompts 240 --out adherence.json [--threads 2] [--steps N]
    [--guidance-scale G] [--seed 0] [--backend sora_runtime|diffusers] [--model wan-pocket|FOLDER]
python -m sora_export.pocket.score --detectors --prompts 500 --out detectors.json
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sora_export.pocket.captions import Scene, held_out_prompts
from sora_export.pocket.detect import detect

ATTRIBUTES = ("colour", "shape", "motion", "background")
Frames = np.ndarray[Any, Any]
Generate = Callable[[str, Scene, int], Frames]


def is_pocket(manifest: Mapping[str, Any]) -> bool:
    """Whether the transformer's weights are those of a shipped pocket model, whatever the bundle is called.

    Args:
        manifest: bundle.json, as JSON.
    """
    from sora_runtime.bundle import Bundle

    weights = "transformer/diffusion_pytorch_model.safetensors"
    shipped = {Bundle.load(name).manifest.files[weights].sha256 for name in ("wan-pocket", "wan-pocket-4step")}
    return manifest["files"].get(weights, {}).get("sha256") in shipped


def wholly_right(frames: Frames, scene: Scene) -> bool:
    """Whether a clip shows all four attributes of a scene."""
    seen = detect(frames)
    return all(getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES)


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95% score interval of a proportion (Wilson 1927)."""
    if count == 0:
        return 0.0, 1.0
    z, share = 1.959964, hits / count
    centre = share + z * z / (2 * count)
    margin = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def score(pairs: list[tuple[str, Scene]], generate: Generate, seed: int) -> dict[str, Any]:
    """Generate a clip for every prompt (seeds count up from `seed`) and compare what is seen with what was asked."""
    hits = dict.fromkeys((*ATTRIBUTES, "all"), 0)
    failures = []
    start = time.monotonic()
    for index, (prompt, scene) in enumerate(pairs):
        seen = detect(generate(prompt, scene, seed + index))
        wrong = [name for name in ATTRIBUTES if getattr(seen, name) != getattr(scene, name)]
        for name in ATTRIBUTES:
            hits[name] += name not in wrong
        hits["all"] += not wrong
        if wrong:
            failures.append({"prompt": prompt, "seed": seed + index, "wrong": wrong, "seen": asdict(seen)})
    count = len(pairs)
    accuracy = {
        name: {"accuracy": value / count, "wilson_95": wilson_interval(value, count)} for name, value in hits.items()
    }
    seconds = (time.monotonic() - start) / count
    return {
        "prompts": count,
        "seconds_per_clip": seconds,
        "accuracy": accuracy,
        "failures": failures,
    }


def sora_runtime_generator(options: argparse.Namespace) -> Generate:
    """Clips from this project's runtime."""
    from sora_runtime import Runtime

    runtime = Runtime.load(options.model)
    arguments: dict[str, Any] = {}
    if options.steps is not None:
        arguments["num_inference_steps"] = options.steps
    if options.guidance_scale is not None:
        arguments["guidance_scale"] = options.guidance_scale

    def generate(prompt: str, scene: Scene, seed: int) -> Frames:
        return np.asarray(runtime.generate(prompt, seed=seed, **arguments).frames)

    return generate


def diffusers_generator(options: argparse.Namespace) -> Generate:
    """Clips from diffusers' WanPipeline over the same weights, float32 on the CPU."""
    import torch
    from diffusers import WanPipeline

    from sora_export.pocket.models import MAX_SEQUENCE_LENGTH
    from sora_export.pocket.render import HEIGHT, NUM_FRAMES, WIDTH

    if options.threads:
        torch.set_num_threads(options.threads)
    folder = model_folder(options.model)
    pipeline = WanPipeline.from_pretrained(folder)
    defaults = json.loads((folder / "sora_defaults.json").read_text())
    pipeline.set_progress_bar_config(disable=True)

    def generate(prompt: str, scene: Scene, seed: int) -> Frames:
        frames = pipeline(
            prompt,
            negative_prompt="",
            height=HEIGHT,
            width=WIDTH,
            num_frames=NUM_FRAMES,
            num_inference_steps=options.steps or defaults["num_inference_steps"],
            guidance_scale=options.guidance_scale or defaults["guidance_scale"],
            max_sequence_length=MAX_SEQUENCE_LENGTH,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        ).frames[0]
        return np.asarray((np.asarray(frames) * 255).round(), dtype=np.uint8)

    return generate


def rendered_generator(options: argparse.Namespace) -> Generate:
    """Clips from the renderer itself: what is scored then is the detectors."""
    import torch

    from sora_export.pocket.render import render, to_uint8

    def generate(prompt: str, scene: Scene, seed: int) -> Frames:
        clips = render([scene], torch.Generator().manual_seed(seed))
        return np.asarray(to_uint8(clips.frames)[0].numpy())

    return generate


def model_folder(model: str) -> Path:
    """The diffusers folder of an embedded model by its name, or of one at a path."""
    if Path(model).exists():
        return Path(model)
    import sora_runtime

    return Path(sora_runtime.__file__).parent / "models" / model


def main(arguments: list[str] | None = None) -> None:
    """Write the scores as JSON and print one line for each attribute."""
    options = _parse(arguments)
    backends = {"sora_runtime": sora_runtime_generator, "diffusers": diffusers_generator}
    make = rendered_generator if options.detectors else backends[options.backend]
    pairs = held_out_prompts(options.prompts)
    result = score(pairs, make(options), options.seed)
    result["settings"] = {key: value for key, value in vars(options).items() if key != "out"}
    Path(options.out).write_text(json.dumps(result, indent=2) + "\n")
    for name, entry in result["accuracy"].items():
        low, high = entry["wilson_95"]
        print(f"{name:10} {entry['accuracy']:.3f}  [{low:.3f}, {high:.3f}]")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=240, help="number of held-out prompts")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--backend", choices=("sora_runtime", "diffusers"), default="sora_runtime")
    parser.add_argument("--model", default="wan-pocket", help="name of an embedded model, or a folder")
    parser.add_argument("--detectors", action="store_true", help="score the detectors on rendered clips instead")
    parser.add_argument("--threads", type=int, help="threads of the diffusers backend")
    parser.add_argument("--steps", type=int, help="the model's default unless told")
    parser.add_argument("--guidance-scale", type=float, help="the model's default unless told")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
