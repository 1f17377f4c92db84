"""The detectors against the renderer, and against clips they must not be fooled by."""

import random

import numpy as np
import torch

from sora_export.pocket.captions import Scene, all_scenes
from sora_export.pocket.detect import detect
from sora_export.pocket.render import HEIGHT, NUM_FRAMES, WIDTH, render, to_uint8
from sora_export.pocket.score import ATTRIBUTES, wilson_interval


def _clips(scenes: list[Scene], seed: int) -> np.ndarray:
    return to_uint8(render(scenes, torch.Generator().manual_seed(seed)).frames).numpy()


def test_detectors_read_rendered_clips() -> None:
    scenes = random.Random(0).sample(all_scenes(), 300)
    hits = dict.fromkeys(ATTRIBUTES, 0)
    for start in range(0, len(scenes), 50):
        batch = scenes[start : start + 50]
        for scene, frames in zip(batch, _clips(batch, start), strict=True):
            seen = detect(frames)
            for name in ATTRIBUTES:
                hits[name] += getattr(seen, name) == getattr(scene, name)
    assert min(hits.values()) >= 0.98 * len(scenes), hits


def test_detectors_survive_noise() -> None:
    scenes = random.Random(1).sample(all_scenes(), 60)
    noise = np.random.default_rng(0).normal(0, 8, (NUM_FRAMES, HEIGHT, WIDTH, 3))
    hits = 0
    for scene, frames in zip(scenes, _clips(scenes, 1), strict=True):
        seen = detect(np.clip(frames + noise, 0, 255).astype(np.uint8))
        hits += all(getattr(seen, name) == getattr(scene, name) for name in ATTRIBUTES)
    assert hits >= 0.9 * len(scenes)


def test_reversed_clip_moves_the_other_way() -> None:
    frames = _clips([Scene("red", "circle", "left", "navy"), Scene("blue", "star", "growing", "black")], 0)
    assert detect(frames[0][::-1]).motion == "right"
    assert detect(frames[1][::-1]).motion == "shrinking"


def test_empty_ground_shows_nothing() -> None:
    frames = np.full((NUM_FRAMES, HEIGHT, WIDTH, 3), (18, 24, 85), dtype=np.uint8)
    seen = detect(frames)
    assert (seen.shape, seen.colour, seen.motion, seen.background) == (
        "none",
        "none",
        "none",
        "navy",
    )


def test_render_is_repeatable_and_short_clips_are_beginnings() -> None:
    scenes = [Scene("green", "ring", "bouncing", "maroon")]
    whole = render(scenes, torch.Generator().manual_seed(3))
    again = render(scenes, torch.Generator().manual_seed(3), num_frames=5)
    assert torch.equal(whole.frames[:, :, :5], again.frames)
    assert whole.frames.shape == (1, 3, NUM_FRAMES, HEIGHT, WIDTH)
    assert float(whole.frames.abs().max()) <= 1.0


def test_wilson_interval_matches_published_value() -> None:
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662
    low, high = wilson_interval(81, 263)
    assert abs(low - 0.2553) < 1e-4
    assert abs(high - 0.3662) < 1e-4
