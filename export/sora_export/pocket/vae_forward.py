"""Runs AutoencoderKLWan over a whole clip in one pass, instead of chunk by chunk through feature caches.

The chunked loop of diffusers exists to bound memory. A causal convolution over all frames gives the same
numbers, and one large convolution is many times faster than dozens of small ones. Only the temporal
resampling layers treat the first frame on its own; they are written out here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanResample,
    WanResidualBlock,
    patchify,
    unpatchify,
)
from torch import Tensor, nn


def encode(vae: AutoencoderKLWan, frames: Tensor) -> Tensor:
    """Posterior moments of a clip: [B, 3, 4k+1, H, W] in [-1, 1] -> [B, 2C, k+1, h, w] (means, log variances)."""
    x = _to_channels_last(patchify(frames, vae.config.patch_size or 1))
    encoder = vae.encoder
    x = encoder.conv_in(x)
    for layer in encoder.down_blocks:
        x = _layer(layer, x)
    x = _middle(encoder.mid_block, x)
    x = encoder.conv_out(_normalise_activate(encoder.norm_out, x))
    moments: Tensor = vae.quant_conv(x)
    return moments


def decode(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Frames of a clip, unclamped: de-normalised latents [B, C, k+1, h, w] -> [B, 3, 4k+1, H, W]."""
    decoder = vae.decoder
    x = decoder.conv_in(_to_channels_last(vae.post_quant_conv(latents)))
    x = _middle(decoder.mid_block, x)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x)
        if block.upsamplers is not None:
            x = _resample(block.upsamplers[0], x)
    x = decoder.conv_out(_normalise_activate(decoder.norm_out, x))
    frames: Tensor = unpatchify(x, vae.config.patch_size or 1)
    return frames


def _to_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _layer(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, WanResidualBlock):
        return _residual(layer, x)
    if isinstance(layer, WanResample):
        return _resample(layer, x)
    output: Tensor = layer(x)
    return output


def _middle(block: Any, x: Tensor) -> Tensor:
    x = _residual(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, attention(x))
    return x


def _residual(block: WanResidualBlock, x: Tensor) -> Tensor:
    h = block.conv1(_normalise_activate(block.norm1, x))
    h = block.conv2(_normalise_activate(block.norm2, h))
    output: Tensor = h + block.conv_shortcut(x)
    return output


def _normalise_activate(norm: Any, x: Tensor) -> Tensor:
    inverse = torch.rsqrt(x.float().square().sum(1, keepdim=True) + 1e-12).to(x.dtype)
    return F.silu(x * inverse * (norm.gamma * norm.scale).to(x.dtype))


def _resample(layer: WanResample, x: Tensor) -> Tensor:
    if layer.mode == "upsample3d" and x.shape[2] > 1:
        # the first latent frame is one picture; each later one becomes two, computed without seeing the first
        later = layer.time_conv(x[:, :, 1:])
        batch, channels, frames, height, width = later.shape
        later = later.reshape(batch, 2, channels // 2, frames, height, width)
        later = torch.stack((later[:, 0], later[:, 1]), dim=3)
        x = torch.cat([x[:, :, :1], later.reshape(batch, channels // 2, 2 * frames, height, width)], dim=2)
    batch, _, frames, _, _ = x.shape
    x = x.transpose(1, 2).flatten(0, 1)
    if layer.mode.startswith("upsample"):
        x = layer.resample[1](F.interpolate(x, scale_factor=2.0, mode="nearest-exact"))
    else:
        x = layer.resample(x)
    x = x.view(batch, frames, *x.shape[1:]).transpose(1, 2)
    if layer.mode == "downsample3d" and frames > 1:
        x = torch.cat([x[:, :, :1], layer.time_conv(x)], dim=2)
    return x
