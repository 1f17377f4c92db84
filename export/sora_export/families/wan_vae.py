"""The Wan VAE as chunks: the feature caches of its causal convolutions as inputs and outputs.

The first chunk is one frame, every later one `temporal_stride` frames, both one latent. diffusers
keeps the caches in a list that starts with None, holds one frame after the first chunk and, for the
temporal upsampling of the decoder, the word "Rep". Here each cache is a tensor of a fixed shape
from the first chunk on. What is missing is zero, which is what the convolutions would pad with, so
that one graph is exact for the second and for every later chunk:

- a causal convolution of three frames sees [0, x0] before x1, as with one cached frame and one
  frame of padding;
- the temporal upsampling ignores the first frame ("Rep"), hence its history is all zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanRMS_norm,
    WanUpsample,
    patchify,
    unpatchify,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

CacheShapes = Sequence[tuple[int, ...]]


class _ChannelNorm(nn.Module):
    """WanRMS_norm without the expansion of the norm to every channel; `gamma` keeps its name."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.gamma = cast(nn.Parameter, norm.gamma)
        self.scale = float(cast(float, norm.scale))

    def forward(self, x: Tensor) -> Tensor:
        """F.normalize over channels, times sqrt(channels) and gamma."""
        length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        return x / length * (self.gamma * self.scale)


def make_vae(config: Mapping[str, Any]) -> AutoencoderKLWan:
    """Builds the VAE of a config with two modules replaced by equal ones that export small.

    "nearest-exact" becomes tables of indices as large as the picture; for a factor of exactly two it
    picks the same pixels as "nearest", which is one operator.
    """
    vae = AutoencoderKLWan.from_config(dict(config))
    for name, module in list(vae.named_modules()):
        if isinstance(module, WanUpsample):
            assert module.scale_factor == (2.0, 2.0)
            vae.set_submodule(name, nn.Upsample(scale_factor=2.0, mode="nearest"))
        elif isinstance(module, WanRMS_norm):
            assert module.channel_first and not isinstance(module.bias, nn.Parameter)
            vae.set_submodule(name, _ChannelNorm(module))
    return vae


class VaeChunk(nn.Module):
    """What decoder and encoder chunks share: the statistics of the latents and the cache list."""

    latents_mean: Tensor
    latents_std: Tensor

    def __init__(self, vae: AutoencoderKLWan, statistics: tuple[Tensor, Tensor], shapes: CacheShapes | None) -> None:
        super().__init__()
        self.model = vae
        self.shapes = shapes
        self.register_buffer("latents_mean", statistics[0])
        self.register_buffer("latents_std", statistics[1])

    def _cache_list(self, caches: Sequence[Tensor], part: nn.Module) -> list[Any]:
        spare = sum(1 for _ in part.modules()) - len(caches)
        return [*caches, *[None] * spare]

    def _steady(self, caches: Sequence[Any]) -> list[Tensor]:
        """The caches after a chunk, filled up with zeros in front to their final shapes."""
        used = [cache for cache in caches if cache is not None]
        if self.shapes is None:
            return used
        if not self.shapes:
            return []
        steady = []
        for cache, shape in zip(used, self.shapes, strict=True):
            if isinstance(cache, str):
                steady.append(torch.zeros(shape))
            elif cache.shape[2] < shape[2]:
                missing = shape[2] - cache.shape[2]
                steady.append(nn.functional.pad(cache, (0, 0, 0, 0, missing, 0)))
            else:
                steady.append(cache)
        return steady


class VaeDecoderChunk(VaeChunk):
    """latents [1,C,1,h,w] and, after the first chunk, caches -> frames [1,3,t,H,W] and caches."""

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Decodes one latent; without caches it is the first of a clip."""
        vae = self.model
        x = vae.post_quant_conv(latents * self.latents_std + self.latents_mean)
        cache_list = self._cache_list(caches, vae.decoder)
        frames = vae.decoder(x, feat_cache=cache_list, feat_idx=[0], first_chunk=not caches)
        if vae.config.patch_size is not None:
            frames = unpatchify(frames, patch_size=vae.config.patch_size)
        return (frames, *self._steady(cache_list))


class VaeEncoderChunk(VaeChunk):
    """frames [1,3,t,H,W] and, after the first chunk, caches -> latents [1,C,1,h,w] and caches.

    The latents are the mode of the posterior, normalised as the transformer takes them. An empty
    list of cache shapes means that there is but one chunk, and no caches come out.
    """

    def forward(self, frames: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Encodes to one latent; without caches it is the first of a clip."""
        vae = self.model
        if vae.config.patch_size is not None:
            frames = patchify(frames, patch_size=vae.config.patch_size)
        cache_list = self._cache_list(caches, vae.encoder)
        moments = vae.quant_conv(vae.encoder(frames, feat_cache=cache_list, feat_idx=[0]))
        mode = moments[:, : vae.config.z_dim]
        latents = (mode - self.latents_mean) / self.latents_std
        return (latents, *self._steady(cache_list))


def cache_shapes(
    config: Mapping[str, Any], chunk: type[VaeChunk], first: Tensor, later: Tensor
) -> list[tuple[int, ...]]:
    """The shapes the caches have once two chunks have passed; runs on fake tensors only."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        vae = make_vae(config)
        statistics = torch.zeros(()), torch.ones(())
        module = chunk(vae, statistics, None).eval()
        caches = module(torch.zeros(first.shape))[1:]
        caches = module(torch.zeros(later.shape), *caches)[1:]
        return [tuple(cache.shape) for cache in caches]
