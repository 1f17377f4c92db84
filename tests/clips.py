"""Clips to write, and what was written of them."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from sora_runtime.video import Rgb8, VideoWriter

HEIGHT, WIDTH = 48, 64


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def smooth_clip(num_frames: int = 25) -> Rgb8:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    frames = [
        np.stack([128 + 100 * np.sin(x / 20 + i / 5), 128 + 100 * np.cos(y / 25 - i / 7), 2 * (x + y)], axis=-1)
        for i in range(num_frames)
    ]
    return np.stack(frames).clip(0, 255).astype(np.uint8)


def write_mp4(path: Path, frames: Rgb8, fps: float = 12.0, chunk: int = 4) -> VideoWriter:
    height, width = frames.shape[1:3]
    with VideoWriter(path, width=width, height=height, fps=fps) as writer:
        for start in range(0, len(frames), chunk):
            writer.write(frames[start : start + chunk])
    return writer


def read_mp4(path: Path) -> Rgb8:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(got: Rgb8, want: Rgb8) -> float:
    error = np.mean((got.astype(np.float64) - want.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error))
