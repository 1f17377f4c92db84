"""The CogVideoX VAE as chunks: the last frames before each causal convolution as inputs and outputs.

diffusers decodes two latents at a time, the first time three where their number is odd, and its group norms see
all frames of such a batch: so the chunks here are exactly those batches. A clip of 8k+1 frames has an odd number
of latents. The encoder is for the picture that a clip begins with: one frame, no history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import (
    CogVideoXCausalConv3d,
    CogVideoXSafeConv3d,
    CogVideoXSpatialNorm3D,
)
from diffusers.models.downsampling import CogVideoXDownsample3D
from diffusers.models.upsampling import CogVideoXUpsample3D
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from sora_export.families.common import like

FIRST_LATENTS, NEXT_LATENTS = 3, 2
"""The batches in which AutoencoderKLCogVideoX decodes an odd number of latents."""

CacheShapes = Sequence[tuple[int, ...]]
Size = tuple[int, int, int]


class _History:
    """The caches of one run, by the number of the convolution: those it is given and those it leaves."""

    def __init__(self) -> None:
        self.given: Sequence[Tensor] = ()
        self.left: dict[int, Tensor] = {}


class _CausalConv(nn.Module):
    """CogVideoXCausalConv3d that keeps its last frames in a `_History`; `conv` keeps its name."""

    def __init__(self, causal: Any, history: _History, index: int) -> None:
        super().__init__()
        self.conv = _plain(causal.conv)
        self.past = causal.time_kernel_size - 1
        self.history, self.index = history, index

    def forward(self, inputs: Tensor, conv_cache: None = None) -> tuple[Tensor, None]:
        """The convolution over the frames before and these; the second value is diffusers' own cache."""
        if self.past:
            given = self.history.given
            # Before the first frame of a clip stands that frame again.
            before = [given[self.index]] if given else [inputs[:, :, :1]] * self.past
            inputs = torch.cat((*before, inputs), dim=2)
            self.history.left[self.index] = inputs[:, :, -self.past :]
        return self.conv(inputs), None


class _SpatialNorm(nn.Module):
    """CogVideoXSpatialNorm3D: a group norm scaled and shifted by the latents; the parts keep their names."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm_layer, self.conv_y, self.conv_b = norm.norm_layer, norm.conv_y, norm.conv_b

    def forward(self, f: Tensor, zq: Tensor, conv_cache: None = None) -> tuple[Tensor, None]:
        """F [1,C,t,h,w] normalised with the latents zq of the chunk."""
        frames, rows, columns = f.shape[2:]
        zq = _enlarge_in_time(zq, (frames, rows, columns))
        return self.norm_layer(f) * self.conv_y(zq)[0] + self.conv_b(zq)[0], None


class _Upsample(nn.Module):
    """CogVideoXUpsample3D: twice the size, perhaps twice the frames but for the first of a clip, then a convolution."""

    def __init__(self, upsample: Any) -> None:
        super().__init__()
        self.conv, self.compress_time = upsample.conv, upsample.compress_time

    def forward(self, inputs: Tensor) -> Tensor:
        """[1,C,t,h,w] to [1,C,t or 2t or 2t-1,2h,2w]."""
        frames, rows, columns = inputs.shape[2:]
        if self.compress_time:
            target = frames if frames == 1 else 2 * frames - frames % 2
            large = _enlarge_in_time(inputs, (target, 2 * rows, 2 * columns))
        else:
            large = _nearest(inputs, (frames, 2 * rows, 2 * columns))
        return _on_frames(self.conv, large)


class _DownsampleOne(nn.Module):
    """CogVideoXDownsample3D on a single frame, which has nothing to average in time."""

    def __init__(self, downsample: Any) -> None:
        super().__init__()
        self.conv = downsample.conv

    def forward(self, x: Tensor) -> Tensor:
        """[1,C,1,h,w] to [1,C,1,h/2,w/2]."""
        assert x.shape[2] == 1
        return _on_frames(self.conv, F.pad(x, (0, 1, 0, 1)))


def _on_frames(conv: nn.Module, x: Tensor) -> Tensor:
    frames: Tensor = conv(x.squeeze(0).transpose(0, 1))
    return frames.transpose(0, 1)[None]


def _enlarge_in_time(x: Tensor, size: Size) -> Tensor:
    """Repeats frames and pixels up to `size`; of an odd number of frames the first is not repeated in time."""
    frames, rows, columns = size
    if frames == 1 or frames % 2 == 0:
        return _nearest(x, size)
    first, rest = _nearest(x[:, :, :1], (1, rows, columns)), _nearest(x[:, :, 1:], (frames - 1, rows, columns))
    return torch.cat((first, rest), dim=2)


def _nearest(x: Tensor, size: Size) -> Tensor:
    return x if tuple(x.shape[2:]) == size else F.interpolate(x, size=size)


def _plain(conv: nn.Conv3d) -> nn.Conv3d:
    """A Conv3d on the same parameters; CogVideoXSafeConv3d cuts large inputs in pieces, with the same result."""
    with torch.device("meta"):
        plain = nn.Conv3d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
        )
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain


def _rebuild(part: nn.Module, history: _History) -> None:
    """Replaces modules of the encoder or decoder by equal ones that export small."""
    count = 0
    for name, module in list(part.named_modules()):
        if isinstance(module, CogVideoXCausalConv3d):
            assert module.pad_mode != "replicate"
            part.set_submodule(name, _CausalConv(module, history, count))
            count += module.time_kernel_size > 1
    for name, module in list(part.named_modules()):
        if isinstance(module, CogVideoXSafeConv3d):
            part.set_submodule(name, _plain(module))
        elif isinstance(module, CogVideoXSpatialNorm3D):
            part.set_submodule(name, _SpatialNorm(module))
        elif isinstance(module, CogVideoXUpsample3D):
            part.set_submodule(name, _Upsample(module))
        elif isinstance(module, CogVideoXDownsample3D):
            part.set_submodule(name, _DownsampleOne(module))


class VaeDecoderChunk(nn.Module):
    """latents [1,C,n,h,w] and, after the first chunk, caches -> frames [1,3,m,H,W] and caches.

    Args:
        config: of AutoencoderKLCogVideoX.
        whole: whether the chunk is the whole clip, so that nobody wants the caches.
    """

    def __init__(self, config: Mapping[str, Any], whole: bool) -> None:
        super().__init__()
        self.model = AutoencoderKLCogVideoX.from_config(dict(config))
        del self.model.encoder
        self.history, self.whole = _History(), whole
        _rebuild(self.model.decoder, self.history)

    def forward(self, latents: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        """Decodes a chunk; without caches it is the first of a clip."""
        self.history.given, self.history.left = caches, {}
        frames = self.model.decoder(latents * (1.0 / self.model.config.scaling_factor))[0]
        left = self.history.left
        self.history.given, self.history.left = (), {}
        if self.whole:
            return (frames,)
        return (frames, *(left[index] for index in sorted(left)))


class VaeEncoderFrame(nn.Module):
    """One frame [1,3,1,H,W] in -1..1 -> latents [1,C,1,h,w], the mode of the posterior, scaled for the transformer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = AutoencoderKLCogVideoX.from_config(dict(config))
        del self.model.decoder
        _rebuild(self.model.encoder, _History())

    def forward(self, frames: Tensor) -> Tensor:
        """The latents that CogVideoXImageToVideoPipeline puts beside the first frame's."""
        config = self.model.config
        moments: Tensor = self.model.encoder(frames)[0]
        # Where a model was trained on pictures scaled the wrong way round, its config says so.
        scale: float = 1.0 / config.scaling_factor if config.invert_scale_latents else config.scaling_factor
        return moments[:, : config.latent_channels] * scale


def cache_shapes(config: Mapping[str, Any], first: Tensor) -> list[tuple[int, ...]]:
    """The shapes of the caches after a first chunk of that shape; runs on fake tensors only."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        chunk = VaeDecoderChunk(config, whole=False).eval()
        return [tuple(cache.shape) for cache in chunk(torch.zeros(first.shape))[1:]]


def latents_like(config: Mapping[str, Any], frames: int, size: tuple[int, int]) -> Tensor:
    """Stands for that many latent frames of `size` (rows, columns)."""
    return like(1, config["latent_channels"], frames, *size)
