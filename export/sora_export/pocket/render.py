"""Draws scenes as anti-aliased clips: the training data of wan-pocket, made as it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sora_export.pocket.captions import BACKGROUNDS, COLOURS, Scene
from sora_export.pocket.shapes import signed_distance

HEIGHT = WIDTH = 64
NUM_FRAMES = 25
FPS = 12.0


@dataclass(frozen=True)
class Clips:
    """A batch of rendered clips.

    frames: float32 [B, 3, T, H, W] in [-1, 1]; mask: float32 [B, 1, T, H, W], the shape's coverage in [0, 1].
    """

    frames: torch.Tensor
    mask: torch.Tensor


def render(
    scenes: Sequence[Scene],
    generator: torch.Generator,
    *,
    num_frames: int = NUM_FRAMES,
    size: int = HEIGHT,
) -> Clips:
    """Render one clip for each scene, with random position, size, speed and starting angle.

    A clip of fewer than NUM_FRAMES frames is the beginning of a full one.
    """
    paths = [_path(scene.motion, generator) for scene in scenes]
    centre_x, centre_y, radius, angle = (torch.stack([path[i] for path in paths])[:, :num_frames] for i in range(4))
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    x = (axis.view(1, 1, 1, size) - centre_x[:, :, None, None]) / radius[:, :, None, None]
    y = (axis.view(1, 1, size, 1) - centre_y[:, :, None, None]) / radius[:, :, None, None]
    x, y = x + 0 * y, y + 0 * x
    cos, sin = torch.cos(angle)[:, :, None, None], torch.sin(angle)[:, :, None, None]
    x, y = x * cos + y * sin, y * cos - x * sin
    mask = torch.empty_like(x)
    for shape in {scene.shape for scene in scenes}:
        index = torch.tensor([i for i, scene in enumerate(scenes) if scene.shape == shape])
        distance = signed_distance(shape, x[index], y[index], torch)
        mask[index] = (0.5 - distance * radius[index][:, :, None, None] * size).clamp(0, 1)
    mask = mask[:, None]
    shape_rgb = torch.tensor([COLOURS[scene.colour] for scene in scenes]) / 127.5 - 1
    ground_rgb = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes]) / 127.5 - 1
    frames = torch.lerp(ground_rgb[:, :, None, None, None], shape_rgb[:, :, None, None, None], mask)
    return Clips(frames, mask)


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, H, W] in [-1, 1] -> uint8 [B, T, H, W, 3], rounded."""
    scaled = ((frames.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.permute(0, 2, 3, 4, 1).to(torch.uint8)


def _path(motion: str, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    """Centre x, centre y, radius (fractions of the picture) and angle (radians, clockwise), each [NUM_FRAMES]."""
    low_high = torch.rand(6, generator=generator).tolist()
    time = torch.linspace(0, 1, NUM_FRAMES)
    centre_x = torch.full_like(time, 0.5 + 0.06 * (2 * low_high[0] - 1))
    centre_y = torch.full_like(time, 0.5 + 0.06 * (2 * low_high[1] - 1))
    radius = torch.full_like(time, 0.20 + 0.04 * low_high[2])
    angle = torch.zeros_like(time)
    travel = (0.38 + 0.10 * low_high[3]) * (time - 0.5)
    if motion in ("left", "right"):
        centre_x = 0.5 + 0.02 * (2 * low_high[0] - 1) + (travel if motion == "right" else -travel)
    elif motion in ("up", "down"):
        centre_y = 0.5 + 0.02 * (2 * low_high[1] - 1) + (travel if motion == "down" else -travel)
    elif motion in ("growing", "shrinking"):
        small, large = 0.12 + 0.02 * low_high[2], 0.28 + 0.05 * low_high[3]
        progress = time if motion == "growing" else 1 - time
        radius = small + (large - small) * progress
    elif motion == "spinning":
        radius = radius + 0.03
        angle = 2 * math.pi * low_high[4] + (1.1 + 0.3 * low_high[5]) * math.pi * time
    elif motion == "bouncing":
        height = 0.14 + 0.04 * low_high[3]
        floor = 0.5 + 0.02 * (2 * low_high[1] - 1)
        centre_y = floor + height * (1 - 2 * torch.sin(2 * math.pi * time).abs())
    return centre_x, centre_y, radius, angle
