"""The shipped wan-pocket as a teacher: its networks, its guided velocity, and accurate steps along its trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from tokenizers import Tokenizer
from torch import Tensor
from transformers import UMT5EncoderModel

from sora_export.pocket.flow import NUM_TRAIN_TIMESTEPS
from sora_export.pocket.text import PromptEncoder


@dataclass(frozen=True)
class Networks:
    """What a diffusers folder of wan-pocket holds, in float32, in evaluation mode and without gradients."""

    transformer: WanTransformer3DModel
    encoder: PromptEncoder
    vae: AutoencoderKLWan


def load_networks(folder: Path) -> Networks:
    """The networks of a diffusers folder of wan-pocket."""
    transformer = WanTransformer3DModel.from_pretrained(folder / "transformer")
    text_encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder")
    encoder = PromptEncoder(Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json")), text_encoder)
    vae = AutoencoderKLWan.from_pretrained(folder / "vae")
    return Networks(*(module.eval().requires_grad_(False) for module in (transformer, encoder, vae)))


def velocity(
    transformer: WanTransformer3DModel, x: Tensor, sigma: float | Tensor, prompt_embeds: Tensor, first_frame: bool
) -> Tensor:
    """The model output at latents [B, C, T, h, w] of noise level `sigma`, one number or one of each clip [B].

    With `first_frame` the first latent frame is clean and has its own timestep 0, through timesteps per token as
    Wan 2.2 TI2V does; its velocity is 0.
    """
    timestep = NUM_TRAIN_TIMESTEPS * torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
    if first_frame:
        _, frame_patch, height_patch = transformer.config.patch_size
        tokens = x.shape[3] * x.shape[4] // (frame_patch * height_patch)
        timestep = timestep[:, None].repeat(1, x.shape[2] * tokens)
        timestep[:, :tokens] = 0
    output: Tensor = transformer(x, timestep, prompt_embeds, return_dict=False)[0].float()
    if first_frame:
        output = torch.cat([torch.zeros_like(output[:, :, :1]), output[:, :, 1:]], dim=2)
    return output


@dataclass(frozen=True)
class Teacher:
    """Classifier-free guidance (arXiv:2207.12598) and a Runge-Kutta method around the shipped transformer."""

    networks: Networks
    guidance_scale: float
    substeps: int = 1

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """Embeddings of the prompts and then of as many empty ones [2 B, L, D]: both branches of guidance."""
        encoder = self.networks.encoder
        return torch.cat([encoder(prompts), encoder([""]).expand(len(prompts), -1, -1)])

    @torch.no_grad()
    def velocity(self, x: Tensor, sigma: float, embeds: Tensor, first_frame: bool) -> Tensor:
        """The guided velocity at latents [B, C, T, h, w]; `embeds` as `embed` gives them."""
        both = velocity(self.networks.transformer, x.repeat(2, 1, 1, 1, 1), sigma, embeds, first_frame)
        guided, free = both.chunk(2)
        return free + self.guidance_scale * (guided - free)

    def average_velocity(self, x: Tensor, span: tuple[float, float], embeds: Tensor, first_frame: bool) -> Tensor:
        """The velocity that takes `x` from the first to the second noise level of `span` in one straight step.

        The probability flow is integrated over the span by Ralston's method of order 3 (Math. Comp. 16, 1962) in
        `substeps` even parts, so three guided evaluations each.
        """
        start, end = span
        step, state = (end - start) / self.substeps, x
        for index in range(self.substeps):
            sigma = start + index * step
            first = self.velocity(state, sigma, embeds, first_frame)
            second = self.velocity(state + step / 2 * first, sigma + step / 2, embeds, first_frame)
            third = self.velocity(state + 3 / 4 * step * second, sigma + 3 / 4 * step, embeds, first_frame)
            state = state + step / 9 * (2 * first + 3 * second + 4 * third)
        return (state - x) / (end - start)
