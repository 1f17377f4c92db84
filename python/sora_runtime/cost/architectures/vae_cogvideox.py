"""The VAE of CogVideoX (AutoencoderKLCogVideoX)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import ACTIVATION, AutoencoderBuilder, causal, option
from sora_runtime.cost.work import ComponentWork

# Default config, used for missing keys: latent_channels 16, block_out_channels (128, 256, 256, 512),
# layers_per_block 3, in_channels = out_channels = 3, temporal_compression_ratio 4, use_quant_conv =
# use_post_quant_conv = false. The number of groups of the norms changes no count.
_WIDTHS = (128, 256, 256, 512)


class _ConditionedBuilder(AutoencoderBuilder):
    """The decoder's norms are scaled and shifted by 1x1 convolutions of the latents, resized to the map."""

    latent_channels: int = 16

    def activate(self, channels: int) -> None:
        super().activate(channels)
        rows = self.grid.rows
        self.elementwise(rows, self.latent_channels, passes=3.0)  # resized, joined
        self.convolution(rows, self.latent_channels, channels, 1, count=2)
        self.elementwise(rows, channels, passes=2 * ACTIVATION + 2.0)

    def resnet(self, outputs: int, *, kernel: int = 27) -> None:
        inputs = self.channels
        super().resnet(outputs, kernel=kernel)
        self.hold(inputs + 6.0 * max(inputs, outputs))  # the norm's result, its scale, its shift, product and sum


def cogvideox_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLCogVideoX for an odd number of latent frames, which the reference pipelines use.

    diffusers decodes two latent frames at a time, with the odd one joined to the first two: of 2k + 1 latent frames
    the first stands for one frame. Of an even number each stands for four, 3 frames more than counted here.
    """
    return Autoencoder(decoder=_decoder(config), encoder=_encoder(config))


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(option(config, "block_out_channels", _WIDTHS))[::-1]
    temporal = int(option(config, "temporal_compression_ratio", 4)).bit_length() - 1
    latent = option(config, "latent_channels", 16)
    outputs = option(config, "out_channels", 3)
    builder = _ConditionedBuilder(channels=latent)
    builder.latent_channels = latent
    if option(config, "use_post_quant_conv", False):
        builder.convolution(builder.grid.rows, outputs, outputs, 1)  # diffusers gives it the clip's channels
    builder.convolve(widths[0], 27)
    for _ in range(2):
        builder.resnet(widths[0])
    for level, width in enumerate(widths):
        for _ in range(option(config, "layers_per_block", 3) + 1):
            builder.resnet(width)
        if level < len(widths) - 1:
            builder.elementwise(builder.grid.rows, width, passes=2.0)
            builder.resize(2, 2 if level < temporal else 1)
            builder.elementwise(builder.grid.rows, width, passes=5.0)  # interpolated, joined, made contiguous
            builder.convolution(builder.grid.rows, width, width, 9)
            builder.layers += 1
    builder.activate(builder.channels)
    builder.convolve(outputs, 27)
    # Two latent frames (three for the first batch) are decoded at a time; each convolution keeps two frames, and the
    # caches of a batch are all made before those of the last one go.
    builder.cached *= 2.0
    return builder.finish_chunked(builder.grid, latent_frames=2)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(option(config, "block_out_channels", _WIDTHS))
    temporal = int(option(config, "temporal_compression_ratio", 4)).bit_length() - 1
    moments = 2 * option(config, "latent_channels", 16)
    pixels = causal(2 ** (len(widths) - 1), 2 ** min(temporal, len(widths) - 1))
    builder = AutoencoderBuilder(grid=pixels, channels=option(config, "in_channels", 3))
    builder.convolve(widths[0], 27)
    for level, width in enumerate(widths):
        for _ in range(option(config, "layers_per_block", 3)):
            builder.resnet(width)
        if level < len(widths) - 1:
            if level < temporal:
                builder.elementwise(builder.grid.rows, width, passes=3.0)
                builder.resize(time=0.5)
            builder.elementwise(builder.grid.rows, width, passes=4.0)
            builder.resize(space=0.5)
            builder.convolution(builder.grid.rows, width, width, 9)
            builder.layers += 1
    for _ in range(2):
        builder.resnet(builder.channels)
    builder.activate(builder.channels)
    builder.convolve(moments, 27)
    if option(config, "use_quant_conv", False):
        channels = 2 * option(config, "out_channels", 3)
        builder.convolution(builder.grid.rows, channels, channels, 1)
    # Eight frames (nine for the first batch) are encoded at a time.
    builder.cached *= 2.0
    return builder.finish_chunked(pixels, latent_frames=2)


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderKLCogVideoX": cogvideox_autoencoder}
