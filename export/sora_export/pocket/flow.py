"""Rectified flow: the training objective of the transformer and a plain Euler sampler to look at its progress.

x_s = (1 - s) x_0 + s eps, velocity = eps - x_0, timestep = 1000 s (Liu et al., arXiv:2209.03003; Esser et al.,
arXiv:2403.03206 for the shifted, logit-normal choice of s).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000


def shift_sigma(u: Tensor, shift: float) -> Tensor:
    """Equation 23 of arXiv:2403.03206: more of the noise levels near 1 for shift > 1."""
    return shift * u / (1 + (shift - 1) * u)


def flow_loss(
    transformer: WanTransformer3DModel,
    latents: Tensor,
    prompt_embeds: Tensor,
    shift: float,
    first_frame: bool,
) -> Tensor:
    """Mean squared velocity error of a batch of normalised latents [B, C, T, h, w].

    With `first_frame` the first latent frame is given clean under its own timestep 0, through timesteps
    per token as Wan 2.2 TI2V does, and bears no loss.
    """
    batch = latents.shape[0]
    uniform = torch.sigmoid(1.2 * torch.randn(batch, device=latents.device))
    sigma = shift_sigma(uniform, shift)
    noise = torch.randn_like(latents)
    target = noise - latents
    level = sigma.view(-1, 1, 1, 1, 1)
    noisy = torch.lerp(latents, noise, level)
    timestep = NUM_TRAIN_TIMESTEPS * sigma
    if first_frame:
        noisy = torch.cat([latents[:, :, :1], noisy[:, :, 1:]], dim=2)
        _, frame_patch, height_patch = transformer.config.patch_size
        frames, tokens = (
            latents.shape[2],
            latents.shape[3] * latents.shape[4] // (frame_patch * height_patch),
        )
        timestep = timestep[:, None].repeat(1, frames * tokens)
        timestep[:, :tokens] = 0
    output = transformer(noisy, timestep, prompt_embeds, return_dict=False)[0].float()
    error = (output - target).square()
    loss: Tensor = error[:, :, 1:].mean() if first_frame else error.mean()
    return loss


@torch.no_grad()
def sample(
    velocity: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    num_inference_steps: int,
    shift: float,
) -> Tensor:
    """Euler's method from `noise` at s = 1 to latents at s = 0; `velocity(x, timestep)` already holds guidance."""
    sigmas = shift_sigma(torch.linspace(1, 0, num_inference_steps + 1), shift)
    x = noise
    for now, after in zip(sigmas[:-1], sigmas[1:], strict=True):
        timestep = torch.full((len(x),), float(NUM_TRAIN_TIMESTEPS * now), device=x.device)
        x = x + (after - now) * velocity(x, timestep)
    return x
