"""The LTX-Video VAE: a decoder of one tile of a clip and an encoder of its first frame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKLLTXVideo
from diffusers.models.autoencoders.autoencoder_kl_ltx import (
    LTXVideoCausalConv3d,
    LTXVideoResnetBlock3d,
    LTXVideoUpsampler3d,
)
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn

from sora_export.families.ltx_graphs import OneOperatorNorm

DECODE_TIMESTEP = 0.0
"""The default of LTXPipeline for VAEs that are told how much noise is left; at 0 no noise is added either."""


class _EdgePaddedConv(nn.Module):
    """LTXVideoCausalConv3d with the repeated frames in front (and behind) as one `Pad` operator."""

    def __init__(self, conv: LTXVideoCausalConv3d) -> None:
        super().__init__()
        self.conv = conv.conv
        extent = conv.kernel_size[0] - 1
        front = extent if conv.is_causal else extent // 2
        self.padding = (0, 0, 0, 0, front, 0 if conv.is_causal else extent // 2)

    def forward(self, x: Tensor) -> Tensor:
        """Convolves x [1,C,t,h,w]; zeros surround each frame."""
        if any(self.padding):
            x = nn.functional.pad(x, self.padding, mode="replicate")
        result: Tensor = self.conv(x)
        return result


class _Upsample(nn.Module):
    """LTXVideoUpsampler3d: channels become frames, rows and columns; the frames before the first go."""

    def __init__(self, upsampler: LTXVideoUpsampler3d) -> None:
        super().__init__()
        self.conv = upsampler.conv
        self.stride = upsampler.stride
        factor = self.stride[0] * self.stride[1] * self.stride[2]
        self.repeats = factor // upsampler.upscale_factor if upsampler.residual else 0

    def forward(self, x: Tensor) -> Tensor:
        """Makes [1,C',s*(t-1)+1,s*h,s*w] of x [1,C,t,h,w] for a stride of s."""
        result = self._spread(self.conv(x))
        if self.repeats:
            result = result + torch.cat([self._spread(x)] * self.repeats, dim=1)
        return result

    def _spread(self, x: Tensor) -> Tensor:
        frames, rows, columns = self.stride
        _, channels, t, h, w = x.shape
        depth = channels // (frames * rows * columns)
        x = x.reshape(1, depth, frames, rows, columns, t, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(1, depth, t * frames, h * rows, w * columns)[:, :, frames - 1 :]


def make_vae(config: Mapping[str, Any]) -> Any:
    """AutoencoderKLLTXVideo of a config, with modules replaced by equal ones that export small.

    `latents_mean` and `latents_std`, buffers that are stored with the weights, become parameters, so that
    the graph reads them from there. The noise that some decoders add to their features (`inject_noise`)
    has a mean of zero and is left out: the frames of a clip must not depend on how it is cut into tiles.
    """
    vae = AutoencoderKLLTXVideo.from_config(dict(config))
    for name, module in list(vae.named_modules()):
        if isinstance(module, LTXVideoUpsampler3d):
            vae.set_submodule(name, _Upsample(module))
        elif isinstance(module, RMSNorm):
            vae.set_submodule(name, OneOperatorNorm(module))
        elif isinstance(module, LTXVideoResnetBlock3d):
            module.per_channel_scale1 = module.per_channel_scale2 = None
    for name, module in list(vae.named_modules()):
        if isinstance(module, LTXVideoCausalConv3d):
            vae.set_submodule(name, _EdgePaddedConv(module))
    for name in ("latents_mean", "latents_std"):
        statistic = getattr(vae, name)
        delattr(vae, name)
        vae.register_parameter(name, nn.Parameter(statistic))
    return vae


class VaeTileGraph(nn.Module):
    """latents [1,C,t,h,w], a tile of a clip -> frames [1,3,s*(t-1)+1,H,W], about -1 to 1."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = make_vae(config)

    def forward(self, latents: Tensor) -> Tensor:
        """Decodes latents as the transformer gives them."""
        vae = self.model
        std = vae.latents_std / vae.config.scaling_factor
        x = latents * std.view(1, -1, 1, 1, 1) + vae.latents_mean.view(1, -1, 1, 1, 1)
        timestep = torch.full((1,), DECODE_TIMESTEP) if vae.config.timestep_conditioning else None
        frames: Tensor = vae.decoder(x, timestep)
        return frames


class VaeFrameEncoderGraph(nn.Module):
    """frames [1,3,1,H,W] in -1 to 1 -> latents [1,C,1,h,w] as the transformer takes them.

    The latents are the mode of the posterior.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = make_vae(config)

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes the first frame of a clip."""
        vae = self.model
        encoder = vae.encoder
        _, channels, t, h, w = frames.shape
        p, p_t = encoder.patch_size, encoder.patch_size_t
        x = frames.reshape(1, channels, t // p_t, p_t, h // p, p, w // p, p)
        x = x.permute(0, 1, 3, 7, 5, 2, 4, 6).reshape(1, -1, t // p_t, h // p, w // p)
        x = encoder.conv_in(x)
        for block in encoder.down_blocks:
            x = block(x)
        x = encoder.norm_out(encoder.mid_block(x).movedim(1, -1)).movedim(-1, 1)
        # One channel more than the latents have: the logarithm of the variance, which all of them share.
        mode = encoder.conv_out(encoder.conv_act(x))[:, :-1]
        std = vae.latents_std / vae.config.scaling_factor
        latents: Tensor = (mode - vae.latents_mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)
        return latents
