"""A bank of encoded training clips: rendered, passed through the frozen autoencoder, normalised and kept."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from sora_export.pocket import vae_forward
from sora_export.pocket.captions import Scene
from sora_export.pocket.models import LATENT_CHANNELS
from sora_export.pocket.render import HEIGHT, render


@dataclass(frozen=True)
class LatentBank:
    """latents: bfloat16 [N, C, T, h, w], zero mean and unit deviation per channel; scenes[i] is what clip i shows."""

    latents: Tensor
    scenes: list[Scene]


@torch.no_grad()
def encode_scenes(
    vae: AutoencoderKLWan,
    scenes: Sequence[Scene],
    generator: torch.Generator,
    *,
    size: int = HEIGHT,
    amp: bool = True,
) -> Tensor:
    """Render and encode: posterior means, float32 [N, C, T, h, w], not yet normalised."""
    device = vae.device
    means = []
    for start in range(0, len(scenes), 16):
        frames = render(scenes[start : start + 16], generator, size=size).frames.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            means.append(vae_forward.encode(vae, frames)[:, :LATENT_CHANNELS].float())
    return torch.cat(means)


def measure_statistics(vae: AutoencoderKLWan, scenes: Sequence[Scene], seed: int = 1, size: int = HEIGHT) -> None:
    """Set latents_mean and latents_std in the config of `vae` from clips of `scenes`."""
    means = encode_scenes(vae, scenes, torch.Generator().manual_seed(seed), size=size, amp=False)
    vae.register_to_config(
        latents_mean=[round(float(v), 6) for v in means.mean((0, 2, 3, 4))],
        latents_std=[round(float(v), 6) for v in means.std((0, 2, 3, 4))],
    )


def normalise(vae: AutoencoderKLWan, means: Tensor) -> Tensor:
    """(means - latents_mean) / latents_std per channel: what the transformer sees."""
    mean, std = _statistics(vae, means)
    return (means - mean) / std


def denormalise(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Undo `normalise`: what the decoder sees."""
    mean, std = _statistics(vae, latents)
    return latents * std + mean


def _statistics(vae: AutoencoderKLWan, like: Tensor) -> tuple[Tensor, Tensor]:
    mean = torch.tensor(vae.config.latents_mean, device=like.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std, device=like.device).view(1, -1, 1, 1, 1)
    return mean, std


def build_bank(vae: AutoencoderKLWan, scenes: list[Scene], count: int, seed: int, size: int = HEIGHT) -> LatentBank:
    """`count` clips of scenes drawn evenly from `scenes`, each rendered afresh."""
    rng = random.Random(seed)
    drawn: list[Scene] = []
    while len(drawn) < count:
        drawn += rng.sample(scenes, min(len(scenes), count - len(drawn)))
    means = encode_scenes(vae, drawn, torch.Generator().manual_seed(seed), size=size)
    return LatentBank(normalise(vae, means).bfloat16(), drawn)
