"""The HunyuanVideo 1.5 VAE: its decoder latent frame by latent frame with caches, its encoder for one picture.

Everything in it that looks along time looks back only, so decoding in chunks is exact:

- a causal convolution of three frames keeps the last two of its input; before the first frame stand copies of it;
- the middle block's attention of a frame is to all frames up to it. Its cache has room for the whole clip, filled
  from the back, and a mask that says which frames are filled. What it keeps are the normed features x that keys and
  values are made of, not both of those: with q' = Wk^T q a query's scores are q'.x, as bk adds the same to all of
  them, and the weighted sum of values is Wv(sum p x) + bv, as the weights p sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKLHunyuanVideo15
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import (
    HunyuanVideo15AttnBlock,
    HunyuanVideo15CausalConv3d,
    HunyuanVideo15Downsample,
    HunyuanVideo15RMS_norm,
    HunyuanVideo15Upsample,
)
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sora_export.families.common import MASKED_SCORE

CacheShapes = Sequence[tuple[int, ...]]


class _Memory:
    """What the layers keep from one chunk to the next, in the order in which they run.

    Args:
        frames: Latent frames of the whole clip.
    """

    def __init__(self, frames: int) -> None:
        self.earlier = frames - 1
        self.first = True
        self.left: list[Tensor] = []
        self._given: Iterator[Tensor] = iter(())

    def begin(self, caches: Sequence[Tensor]) -> None:
        """A chunk with these caches; without any it is the first of a clip."""
        self.first, self.left, self._given = not caches, [], iter(caches)

    def take(self) -> Tensor:
        """The next cache of the chunk before."""
        return next(self._given)

    def leave(self, cache: Tensor) -> None:
        """Keeps a cache for the chunk after."""
        self.left.append(cache)


class _CausalConv(nn.Module):
    """HunyuanVideo15CausalConv3d of three frames on its own past."""

    def __init__(self, original: HunyuanVideo15CausalConv3d, memory: _Memory) -> None:
        super().__init__()
        self.conv = original.conv
        self._memory = memory
        assert original.conv.kernel_size == (3, 3, 3) and original.pad_mode == "replicate"

    def forward(self, x: Tensor) -> Tensor:
        """[1,c,t,h,w] -> [1,c',t,h,w]."""
        past = [x] * 2 if self._memory.first else [self._memory.take()]
        x = torch.cat((*past, x), dim=2)
        self._memory.leave(x[:, :, -2:])
        output: Tensor = self.conv(nn.functional.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate"))
        return output


class _ChannelNorm(nn.Module):
    """HunyuanVideo15RMS_norm without the expansion of the norm to every channel; `gamma` keeps its name."""

    def __init__(self, norm: HunyuanVideo15RMS_norm) -> None:
        super().__init__()
        assert norm.channel_first and not isinstance(norm.bias, nn.Parameter)
        self.gamma = norm.gamma
        self.scale = float(norm.scale)

    def forward(self, x: Tensor) -> Tensor:
        """F.normalize over channels, times sqrt(channels) and gamma."""
        length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)
        output: Tensor = x / length * (self.gamma * self.scale)
        return output


class _FrameAttention(nn.Module):
    """HunyuanVideo15AttnBlock for one more frame: its pixels attend to those of all frames so far.

    A head has as many channels as the block (1024), for which TensorRT has no fused kernel: it refuses the
    `Attention` operator, hence products and a softmax.
    """

    def __init__(self, original: HunyuanVideo15AttnBlock, memory: _Memory) -> None:
        super().__init__()
        self.norm = original.norm
        self.to_q, self.to_k, self.to_v = original.to_q, original.to_k, original.to_v
        self.proj_out = original.proj_out
        self._memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """[1,c,1,h,w] -> [1,c,1,h,w]."""
        normed = self.norm(x)
        own = normed.flatten(2).transpose(1, 2)
        query = self.to_q(normed).flatten(2).transpose(1, 2) @ self.to_k.weight.flatten(1)
        seen, mask = self._past(own)
        scores = (query * x.shape[1] ** -0.5) @ seen.transpose(1, 2)
        if mask is not None:
            scores = scores + mask
        mixed = torch.softmax(scores, dim=-1) @ seen
        value = self.to_v(mixed.transpose(1, 2).reshape(x.shape))
        output: Tensor = x + self.proj_out(value)
        return output

    def _past(self, own: Tensor) -> tuple[Tensor, Tensor | None]:
        """The pixels [1,n,c] of all frames so far, and what is added to their scores."""
        room, (_, pixels, channels) = self._memory.earlier, own.shape
        if room == 0:
            return own, None
        if self._memory.first:
            self._memory.leave(torch.cat((torch.zeros(1, (room - 1) * pixels, channels), own), dim=1))
            self._memory.leave(torch.cat((torch.zeros(1, room - 1), torch.ones(1, 1)), dim=1))
            return own, None
        earlier, filled = self._memory.take(), self._memory.take()
        seen = torch.cat((earlier, own), dim=1)
        self._memory.leave(seen[:, pixels:])
        filled = torch.cat((filled, torch.ones(1, 1)), dim=1)
        self._memory.leave(filled[:, 1:])
        mask = ((1.0 - filled) * MASKED_SCORE).unsqueeze(-1).expand(-1, -1, pixels)
        return seen, mask.reshape(1, 1, -1)


class _Upsample(nn.Module):
    """HunyuanVideo15Upsample for a chunk: only the first frame of a clip is not doubled in time."""

    def __init__(self, original: HunyuanVideo15Upsample, memory: _Memory) -> None:
        super().__init__()
        self.conv = original.conv
        self.temporal, self.repeats = original.add_temporal_upsample, original.repeats
        self._memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """[1,c,t,h,w] -> [1,c',t or 2t,2h,2w]."""
        h = self.conv(x)
        if not self.temporal:
            return _to_pixels(h, 1) + _to_pixels(_repeated(x, self.repeats), 1)
        if self._memory.first:
            h = _to_pixels(h, 1)
            return h[:, : h.shape[1] // 2] + _repeated(_to_pixels(x, 1), self.repeats // 2)
        return _to_pixels(h, 2) + _repeated(_to_pixels(x, 2), self.repeats)


class _DownsampleOne(nn.Module):
    """HunyuanVideo15Downsample for the first frame of a clip, which is not halved in time."""

    def __init__(self, original: HunyuanVideo15Downsample) -> None:
        super().__init__()
        self.conv = original.conv
        self.temporal, self.group_size = original.add_temporal_downsample, original.group_size

    def forward(self, x: Tensor) -> Tensor:
        """[1,c,1,h,w] -> [1,c',1,h/2,w/2]."""
        h: Tensor = _to_channels(self.conv(x))
        group = self.group_size
        if self.temporal:
            h, group = torch.cat((h, h), dim=1), group // 2
        _, channels, _, height, width = h.shape
        return h + _to_channels(x).view(1, channels, group, 1, height, width).mean(dim=2)


def _repeated(x: Tensor, repeats: int) -> Tensor:
    """Every channel of [1,c,t,h,w] `repeats` times in a row."""
    return x if repeats == 1 else x.unsqueeze(2).expand(-1, -1, repeats, -1, -1, -1).flatten(1, 2)


def _to_pixels(x: Tensor, frames: int) -> Tensor:
    """[1, frames*2*2*c, t, h, w] -> [1, c, frames*t, 2h, 2w]."""
    _, _, t, h, w = x.shape
    parts = x.reshape(frames, 2, 2, -1, t, h, w).permute(3, 4, 0, 5, 1, 6, 2)
    return parts.reshape(1, -1, t * frames, h * 2, w * 2)


def _to_channels(x: Tensor) -> Tensor:
    """[1,c,1,h,w] -> [1,4c,1,h/2,w/2]."""
    _, channels, _, h, w = x.shape
    parts = x.reshape(channels, h // 2, 2, w // 2, 2).permute(2, 4, 0, 1, 3)
    return parts.reshape(1, -1, 1, h // 2, w // 2)


def _make_vae(config: Mapping[str, Any], memory: _Memory) -> AutoencoderKLHunyuanVideo15:
    """Builds the VAE of a config with the modules replaced that look along time or do not export small."""
    vae = AutoencoderKLHunyuanVideo15.from_config(dict(config))
    # Parts before wholes: an upsampling takes over the convolution that was replaced in it.
    for name, module in reversed(list(vae.named_modules())):
        if isinstance(module, HunyuanVideo15CausalConv3d):
            vae.set_submodule(name, _CausalConv(module, memory))
        elif isinstance(module, HunyuanVideo15RMS_norm):
            vae.set_submodule(name, _ChannelNorm(module))
        elif isinstance(module, HunyuanVideo15AttnBlock):
            vae.set_submodule(name, _FrameAttention(module, memory))
        elif isinstance(module, HunyuanVideo15Upsample):
            vae.set_submodule(name, _Upsample(module, memory))
        elif isinstance(module, HunyuanVideo15Downsample):
            vae.set_submodule(name, _DownsampleOne(module))
    return cast(AutoencoderKLHunyuanVideo15, vae)


class VaeDecoderChunk(nn.Module):
    """latents [1,C,1,h,w] and, after the first chunk, caches -> frames [1,3,1 or 4,H,W] and caches.

    Args:
        config: The VAE's.
        frames: Latent frames of the whole clip.
    """

    def __init__(self, config: Mapping[str, Any], frames: int) -> None:
        super().__init__()
        self.memory = _Memory(frames)
        self.model = _make_vae(config, self.memory)
        self.scale = float(config["scaling_factor"])

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Decodes one latent frame; without caches it is the first of a clip."""
        self.memory.begin(caches)
        frames = self.model.decoder(latents / self.scale)
        # Where one latent frame is the whole clip nothing comes after it.
        return (frames, *self.memory.left) if self.memory.earlier else (frames,)


class VaeEncoderFrame(nn.Module):
    """frames [1,3,1,H,W] in -1..1 -> latents [1,C,1,h,w] as the transformer takes them, the posterior's mode."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.memory = _Memory(1)
        self.model = _make_vae(config, self.memory)
        self.channels, self.scale = config["latent_channels"], float(config["scaling_factor"])

    def forward(self, frames: Tensor) -> Tensor:
        """Encodes a picture."""
        self.memory.begin(())
        moments: Tensor = self.model.encoder(frames)
        return moments[:, : self.channels] * self.scale


def cache_shapes(config: Mapping[str, Any], frames: int, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """The shapes of the decoder's caches for a clip of that many latent frames of `size`; runs on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        chunk = VaeDecoderChunk(config, frames).eval()
        first = chunk(torch.zeros(1, config["latent_channels"], 1, *size))
        return [tuple(cache.shape) for cache in first[1:]]
