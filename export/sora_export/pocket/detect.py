"""Reads colour, shape, motion and background off the pixels of a clip: the judge of wan-pocket (NumPy only)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from sora_export.pocket.captions import BACKGROUNDS, COLOURS, RGB, SHAPES
from sora_export.pocket.shapes import signed_distance

Array = np.ndarray[Any, Any]

MIN_CONTRAST = 25.0  # RGB distance under which a frame is taken to show nothing
AREA_RATIO = 1.7  # growing and shrinking change the area by more than 4
TRAVEL = 0.2  # fraction of the picture; moving shapes travel at least 0.38 of it
SPIN_OVERLAP = 0.84  # a square overlaps itself by 0.71 when turned by 45 degrees; one standing still by 0.95
_GRID = 40
_EXTENT = 1.9  # half width of the comparison window in equivalent radii
_ANGLES = 24


@dataclass(frozen=True)
class Seen:
    """What a clip shows; a word is "none" where nothing could be made out."""

    colour: str
    shape: str
    motion: str
    background: str


def detect(frames: Array) -> Seen:
    """Describe a clip, uint8 [T, H, W, 3], in the words of `captions`."""
    pixels = frames.astype(np.float32)
    ground = _ground_colour(pixels)
    background = _nearest(ground, BACKGROUNDS)
    distance = np.sqrt(((pixels - ground) ** 2).sum(-1))
    peak = np.quantile(distance.reshape(len(distance), -1), 0.99, axis=1)
    if float(np.median(peak)) < MIN_CONTRAST:
        return Seen("none", "none", "none", background)
    strong = distance > 0.85 * np.maximum(peak, MIN_CONTRAST)[:, None, None]
    colour_rgb = np.median(pixels[strong], axis=0)
    coverage = _coverage(pixels, ground, colour_rgb)
    return Seen(_nearest(colour_rgb, COLOURS), _shape(coverage), _motion(coverage), background)


def _ground_colour(pixels: Array) -> Array:
    border = np.concatenate(
        [
            pixels[:, :2].reshape(-1, 3),
            pixels[:, -2:].reshape(-1, 3),
            pixels[:, :, :2].reshape(-1, 3),
        ]
    )
    return np.asarray(np.median(border, axis=0))


def _nearest(colour: Array, palette: dict[str, RGB]) -> str:
    names = list(palette)
    distance = ((np.array([palette[name] for name in names]) - colour) ** 2).sum(-1)
    return names[int(distance.argmin())]


def _coverage(pixels: Array, ground: Array, colour: Array) -> Array:
    """How far each pixel lies from the ground's colour towards the shape's, clipped to [0, 1]."""
    axis = colour - ground
    alpha = ((pixels - ground) @ axis) / max(float(axis @ axis), 1.0)
    alpha = np.clip(alpha, 0, 1)
    return np.asarray(np.where(alpha < 0.2, 0.0, alpha))


def _moments(alpha: Array) -> tuple[Array, Array, Array]:
    """Area and centre of each frame as fractions of the picture."""
    _, height, width = alpha.shape
    area = np.maximum(alpha.sum((1, 2)), 1e-6)
    centre_x = (alpha.sum(1) @ ((np.arange(width) + 0.5) / width)) / area
    centre_y = (alpha.sum(2) @ ((np.arange(height) + 0.5) / height)) / area
    return area / (height * width), centre_x, centre_y


def _motion(alpha: Array) -> str:
    area, centre_x, centre_y = _moments(alpha)
    growth = np.median(area[-3:]) / max(float(np.median(area[:3])), 1e-6)
    if growth > AREA_RATIO or growth < 1 / AREA_RATIO:
        return "growing" if growth > 1 else "shrinking"
    right = centre_x[-3:].mean() - centre_x[:3].mean()
    down = centre_y[-3:].mean() - centre_y[:3].mean()
    if np.ptp(centre_y) > TRAVEL and abs(down) < 0.5 * np.ptp(centre_y):
        return "bouncing"
    if max(abs(right), abs(down)) > TRAVEL:
        if abs(right) > abs(down):
            return "right" if right > 0 else "left"
        return "down" if down > 0 else "up"
    windows = _windows(alpha, np.arange(0, len(alpha), 2))
    overlaps = np.minimum(windows, windows[:1]).sum(1) / (np.maximum(windows, windows[:1]).sum(1) + 1e-6)
    return "spinning" if overlaps.min() < SPIN_OVERLAP else "still"


def _windows(alpha: Array, indices: Array) -> Array:
    """The chosen frames, centred and scaled to unit equivalent radius: [n, _GRID * _GRID]."""
    area, centre_x, centre_y = _moments(alpha)
    _, height, width = alpha.shape
    rows = []
    axis = (np.arange(_GRID) + 0.5) / _GRID * 2 - 1
    for i in indices:
        radius = np.sqrt(area[i] * height * width / np.pi)
        x = centre_x[i] * width - 0.5 + axis * _EXTENT * radius
        y = centre_y[i] * height - 0.5 + axis * _EXTENT * radius
        rows.append(_bilinear(alpha[i], x, y).reshape(-1))
    return np.stack(rows)


def _bilinear(image: Array, x: Array, y: Array) -> Array:
    padded = np.pad(image, 1)
    x = np.clip(x + 1, 0, padded.shape[1] - 1.001)
    y = np.clip(y + 1, 0, padded.shape[0] - 1.001)
    x0, y0 = x.astype(int), y.astype(int)
    fx, fy = x - x0, (y - y0)[:, None]
    top = padded[y0][:, x0] * (1 - fx) + padded[y0][:, x0 + 1] * fx
    bottom = padded[y0 + 1][:, x0] * (1 - fx) + padded[y0 + 1][:, x0 + 1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


@lru_cache(maxsize=1)
def _templates() -> Array:
    """Every shape at every angle, normalised as `_windows` does: [len(SHAPES), _ANGLES, _GRID * _GRID]."""
    axis = (np.arange(192) + 0.5) / 96 - 1
    x, y = np.meshgrid(axis * 1.6, axis * 1.6)
    result = []
    for shape in SHAPES:
        turned = []
        for angle in np.arange(_ANGLES) * (2 * np.pi / _ANGLES):
            cos, sin = np.cos(angle), np.sin(angle)
            distance = signed_distance(shape, x * cos + y * sin, y * cos - x * sin, np)
            # as soft as the edge of a shape of 12 pixels radius
            mask = np.clip(0.5 - distance * 12, 0, 1)
            turned.append(_windows(mask[None], np.array([0]))[0])
        result.append(turned)
    return np.array(result, dtype=np.float32)


def _shape(alpha: Array) -> str:
    indices = np.linspace(0, len(alpha) - 1, 7).astype(int)
    windows = _windows(alpha, indices).astype(np.float32)
    templates = _templates()
    score = np.zeros(len(SHAPES))
    for window in windows:
        overlap = np.minimum(templates, window).sum(-1) / np.maximum(templates, window).sum(-1)
        score += overlap.max(1)
    return SHAPES[int(score.argmax())]
