"""The VAEs of HunyuanVideo (AutoencoderKLHunyuanVideo) and HunyuanVideo-1.5 (AutoencoderKLHunyuanVideo15).

Both attend once, in the middle of each half, among all positions of the clip: work that grows with the square of the
clip. Tiling, which diffusers needs for any real clip (it also makes a mask of all pairs of positions, left out of
`peak`), replaces that by more convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import (
    RESIDUAL,
    SCALED_RMS_NORM,
    AutoencoderBuilder,
    causal,
    option,
)
from sora_runtime.cost.work import ComponentWork

# Default config of AutoencoderKLHunyuanVideo: latent_channels 16, block_out_channels (128, 256, 512, 512),
# layers_per_block 2, in_channels = out_channels = 3, spatial_compression_ratio 8, temporal_compression_ratio 4,
# mid_block_add_attention true. The number of groups of the norms changes no count.
_WIDTHS = (128, 256, 512, 512)
# Default config of AutoencoderKLHunyuanVideo15: latent_channels 32, block_out_channels (128, 256, 512, 1024, 1024),
# layers_per_block 2, in_channels = out_channels = 3, spatial_compression_ratio 16, temporal_compression_ratio 4,
# downsample_match_channel = upsample_match_channel = true.
_WIDTHS_15 = (128, 256, 512, 1024, 1024)


def hunyuan_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLHunyuanVideo; `quant_conv` is the encoder's, `post_quant_conv` the decoder's."""
    return Autoencoder(decoder=_decoder(config), encoder=_encoder(config))


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(option(config, "block_out_channels", _WIDTHS))[::-1]
    space, time = _scales(config, len(widths))
    latent = option(config, "latent_channels", 16)
    builder = AutoencoderBuilder(channels=latent)
    builder.convolve(latent, 1)
    builder.convolve(widths[0], 27)
    _middle(builder, attention=option(config, "mid_block_add_attention", True))
    for level, width in enumerate(widths):
        for _ in range(option(config, "layers_per_block", 2) + 1):
            builder.resnet(width)
        if space[level] * time[level] > 1:
            builder.elementwise(builder.grid.rows, width, passes=1.0)
            builder.resize(space[level], time[level])
            # Interpolated, joined with the first frame, padded.
            builder.elementwise(builder.grid.rows, width, passes=3.0)
            builder.convolve(width, 27)
            builder.hold(3.0 * width)
            builder.layers += 1
    builder.activate(builder.channels)
    builder.convolve(option(config, "out_channels", 3), 27)
    return builder.finish(builder.grid)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(option(config, "block_out_channels", _WIDTHS))
    space, time = _scales(config, len(widths), encoder=True)
    moments = 2 * option(config, "latent_channels", 16)
    pixels = causal(2 ** sum(scale == 2 for scale in space), 2 ** sum(scale == 2 for scale in time))
    builder = AutoencoderBuilder(grid=pixels, channels=option(config, "in_channels", 3))
    builder.convolve(widths[0], 27)
    for level, width in enumerate(widths):
        for _ in range(option(config, "layers_per_block", 2)):
            builder.resnet(width)
        if space[level] * time[level] > 1:
            builder.elementwise(builder.grid.rows, width, passes=2.0)
            builder.resize(1.0 / space[level], 1.0 / time[level])
            builder.convolution(builder.grid.rows, width, width, 27)
            builder.layers += 1
    _middle(builder, attention=option(config, "mid_block_add_attention", True))
    builder.activate(builder.channels)
    builder.convolve(moments, 27)
    builder.convolve(moments, 1)
    return builder.finish(pixels)


def _scales(config: Mapping[str, Any], levels: int, *, encoder: bool = False) -> tuple[list[int], list[int]]:
    """How much each level's resampling changes rows and columns, and frames."""
    spatial = int(option(config, "spatial_compression_ratio", 8)).bit_length() - 1
    ratio = int(option(config, "temporal_compression_ratio", 4))
    temporal = ratio.bit_length() - 1
    space = [2 if level < spatial else 1 for level in range(levels)]
    if encoder and ratio == 8:
        return space, [2 if level < temporal else 1 for level in range(levels)]
    return space, [2 if levels - 1 - temporal <= level < levels - 1 else 1 for level in range(levels)]


def _middle(builder: AutoencoderBuilder, *, attention: bool = True) -> None:
    builder.resnet(builder.channels)
    if attention:
        builder.attend(builder.grid.rows)  # causal by a mask: all pairs are computed
    builder.resnet(builder.channels)


def hunyuan15_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLHunyuanVideo15."""
    return Autoencoder(decoder=_decoder15(config), encoder=_encoder15(config))


def _decoder15(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(option(config, "block_out_channels", _WIDTHS_15))[::-1]
    spatial = int(option(config, "spatial_compression_ratio", 16)).bit_length() - 1
    temporal = int(option(config, "temporal_compression_ratio", 4)).bit_length() - 1
    match = option(config, "upsample_match_channel", True)
    builder = AutoencoderBuilder(channels=option(config, "latent_channels", 32), norm=SCALED_RMS_NORM)
    builder.convolve(widths[0], 27)
    builder.elementwise(builder.grid.rows, widths[0], passes=2.0 + RESIDUAL)
    _middle(builder)
    for level, width in enumerate(widths):
        for _ in range(option(config, "layers_per_block", 2) + 1):
            builder.resnet(width)
        if level < max(spatial, temporal):
            time = 2 if level < temporal else 1
            outputs = widths[level + 1] if match else width
            # Positions become channels: the convolution runs before the map grows.
            builder.convolve(outputs * 4 * time, 27)
            builder.resize(2, time)
            builder.channels = outputs
            builder.elementwise(builder.grid.rows, outputs, passes=6.0 + RESIDUAL)
            builder.hold(4.0 * outputs)
            builder.layers += 1
    builder.activate(builder.channels)
    builder.convolve(option(config, "out_channels", 3), 27)
    return builder.finish(builder.grid)


def _encoder15(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(option(config, "block_out_channels", _WIDTHS_15))
    space_ratio = int(option(config, "spatial_compression_ratio", 16))
    time_ratio = int(option(config, "temporal_compression_ratio", 4))
    spatial = space_ratio.bit_length() - 1
    first_temporal = (space_ratio // time_ratio).bit_length() - 1
    match = option(config, "downsample_match_channel", True)
    pixels = causal(space_ratio, time_ratio)
    builder = AutoencoderBuilder(grid=pixels, channels=option(config, "in_channels", 3), norm=SCALED_RMS_NORM)
    builder.convolve(widths[0], 27)
    for level, width in enumerate(widths):
        for _ in range(option(config, "layers_per_block", 2)):
            builder.resnet(width)
        if level < spatial:
            time = 2 if level >= first_temporal else 1
            outputs = widths[level + 1] if match else width
            builder.convolve(outputs // (4 * time), 27)
            builder.elementwise(builder.grid.rows, width, passes=3.0)
            builder.resize(0.5, 1.0 / time)
            builder.channels = outputs
            builder.elementwise(builder.grid.rows, outputs, passes=2.0 + RESIDUAL)
            builder.layers += 1
    _middle(builder)
    builder.activate(builder.channels)
    builder.elementwise(builder.grid.rows, builder.channels, passes=1.0)
    builder.convolve(2 * option(config, "latent_channels", 32), 27)
    return builder.finish(pixels)


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {
    "AutoencoderKLHunyuanVideo": hunyuan_autoencoder,
    "AutoencoderKLHunyuanVideo15": hunyuan15_autoencoder,
}
