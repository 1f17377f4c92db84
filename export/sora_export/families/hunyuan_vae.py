"""The HunyuanVideo VAE: a decoder of one tile of a clip and an encoder of its first frame.

Its group norms take their statistics over all frames of what they see, so the decoder cannot be cut into chunks
that pass caches on; diffusers decodes long or large clips in tiles too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo
from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import (
    HunyuanVideoCausalConv3d,
    HunyuanVideoMidBlock3D,
)
from torch import Tensor, nn


class _EdgePaddedConv(nn.Module):
    """HunyuanVideoCausalConv3d, whose padding repeats the edges, without a `Pad` where there is none."""

    def __init__(self, conv: HunyuanVideoCausalConv3d) -> None:
        super().__init__()
        assert conv.pad_mode == "replicate"
        self.conv = conv.conv
        self.padding = conv.time_causal_padding

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x [1,C,t,h,w]; a frame sees itself and those before it."""
        if any(self.padding):
            x = nn.functional.pad(x, self.padding, mode="replicate")
        result: Tensor = self.conv(x)
        return result


class _MidBlock(nn.Module):
    """HunyuanVideoMidBlock3D with the attention of each frame to all frames up to it, and no mask.

    A mask would have (tokens of the tile)^2 values and double the work. The one head has 512 channels, for which
    TensorRT has no fused attention, so it is written as products and a softmax.
    """

    def __init__(self, block: HunyuanVideoMidBlock3D) -> None:
        super().__init__()
        self.resnets = block.resnets
        self.attentions = block.attentions

    def forward(self, x: Tensor) -> Tensor:
        """[1,C,t,h,w] -> the same shape."""
        x = self.resnets[0](x)
        for attention, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            x = resnet(x if attention is None else x + _attend_frames(attention, x))
        return x


def _attend_frames(attention: Any, x: Tensor) -> Tensor:
    """What diffusers' Attention under a mask that is causal from frame to frame adds to x [1,C,t,h,w]."""
    assert attention.heads == 1 and attention.residual_connection and attention.rescale_output_factor == 1
    frames = x.shape[2]
    # The norm's statistics are those of all positions, in whatever order they stand.
    tokens = attention.group_norm(x).flatten(2).transpose(1, 2)
    query = attention.to_q(tokens) * attention.scale
    key_t, value = attention.to_k(tokens).transpose(1, 2), attention.to_v(tokens)
    size = tokens.shape[1] // frames
    parts = []
    for end in range(size, size * frames + 1, size):
        weights = (query[:, end - size : end] @ key_t[..., :end]).softmax(dim=-1)
        parts.append(weights @ value[:, :end])
    attended: Tensor = attention.to_out[0](torch.cat(parts, dim=1))
    return attended.transpose(1, 2).reshape(x.shape)


def make_vae(config: Mapping[str, Any]) -> Any:
    """AutoencoderKLHunyuanVideo of a config, with modules replaced by equal ones that export small."""
    vae = AutoencoderKLHunyuanVideo.from_config(dict(config))
    for name, module in list(vae.named_modules()):
        if isinstance(module, HunyuanVideoMidBlock3D):
            vae.set_submodule(name, _MidBlock(module))
    for name, module in list(vae.named_modules()):
        if isinstance(module, HunyuanVideoCausalConv3d):
            vae.set_submodule(name, _EdgePaddedConv(module))
    return vae


class VaeTileGraph(nn.Module):
    """latents [1,C,t,h,w], a tile of a clip -> frames [1,3,s*(t-1)+1,H,W], about -1 to 1."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = make_vae(config)
        self.model.encoder = self.model.quant_conv = None

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes latents as the transformer gives them."""
        vae = self.model
        frames: Tensor = vae.decoder(vae.post_quant_conv(latents / vae.config.scaling_factor))
        return frames


class VaeFrameEncoderGraph(nn.Module):
    """frames [1,3,1,H,W] in -1 to 1 -> latents [1,C,1,h,w] as the transformer takes them.

    The latents are the mode of the posterior.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = make_vae(config)
        self.model.decoder = self.model.post_quant_conv = None

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes the first frame of a clip."""
        vae = self.model
        moments = vae.quant_conv(vae.encoder(frames))
        latents: Tensor = moments[:, : vae.config.latent_channels] * vae.config.scaling_factor
        return latents
