"""The VAEs of Wan 2.1 and Wan 2.2 (AutoencoderKLWan), which many other models use as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import (
    PAD,
    RESIDUAL,
    SCALED_RMS_NORM,
    AutoencoderBuilder,
    Grid,
    causal,
    option,
)
from sora_runtime.cost.work import ComponentWork

# Default config (Wan 2.1), used for missing keys: base_dim 96, decoder_base_dim = base_dim, z_dim 16,
# dim_mult (1, 2, 4, 4), num_res_blocks 2, temperal_downsample (False, True, True), is_residual False,
# in_channels = out_channels = 3, patch_size none (1). `attn_scales` is left out: diffusers cannot encode with any.
_MULTIPLIERS = (1, 2, 4, 4)
_TEMPORAL = (False, True, True)


def wan_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLWan from its config.json; `quant_conv` is the encoder's, `post_quant_conv` the decoder's."""
    return Autoencoder(decoder=_decoder(config), encoder=_encoder(config))


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    multipliers = tuple(option(config, "dim_mult", _MULTIPLIERS))
    temporal = tuple(option(config, "temperal_downsample", _TEMPORAL))[::-1]
    residual = bool(option(config, "is_residual", False))
    base = option(config, "decoder_base_dim", option(config, "base_dim", 96))
    latent = option(config, "z_dim", 16)
    widths = [base * multiplier for multiplier in multipliers[::-1]]

    builder = AutoencoderBuilder(channels=latent, norm=SCALED_RMS_NORM)
    builder.convolve(latent, 1)
    builder.convolve(widths[0], 27)
    _middle(builder)
    for level, width in enumerate(widths):
        start, inputs = builder.grid, builder.channels
        builder.beside = float(inputs) if residual else 0.0
        for _ in range(option(config, "num_res_blocks", 2) + 1):
            builder.resnet(width)
        builder.beside = 0.0
        if level == len(widths) - 1:
            break
        _upsample(builder, time=2 if temporal[level] else 1, outputs=width if residual else width // 2)
        if residual:
            # The input of the block is repeated into the output's shape and added.
            builder.elementwise(start.rows, inputs, passes=2.0)
            builder.elementwise(builder.grid.rows, builder.channels, passes=2.0 + RESIDUAL)
    builder.activate(builder.channels)
    builder.convolve(option(config, "out_channels", 3), 27)
    # One latent frame is decoded at a time: of the feature maps only its share (four frames at full rate) is alive,
    # with the caches of all convolutions.
    return builder.finish_chunked(_pixels(config), latent_frames=1)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    multipliers = tuple(option(config, "dim_mult", _MULTIPLIERS))
    temporal = tuple(option(config, "temperal_downsample", _TEMPORAL))
    residual = bool(option(config, "is_residual", False))
    base = option(config, "base_dim", 96)
    moments = 2 * option(config, "z_dim", 16)

    grid = causal(2 ** (len(multipliers) - 1), 2 ** sum(temporal))
    builder = AutoencoderBuilder(grid=grid, channels=option(config, "in_channels", 3), norm=SCALED_RMS_NORM)
    builder.convolve(base, 27)
    for level, multiplier in enumerate(multipliers):
        start, inputs = builder.grid, builder.channels
        builder.beside = float(inputs) if residual else 0.0
        for _ in range(option(config, "num_res_blocks", 2)):
            builder.resnet(base * multiplier)
        builder.beside = 0.0
        if level < len(multipliers) - 1:
            _downsample(builder, time=2 if temporal[level] else 1)
        if residual:
            builder.elementwise(start.rows, inputs, passes=PAD + 5.0)
            builder.elementwise(builder.grid.rows, builder.channels, passes=RESIDUAL)
    _middle(builder)
    builder.activate(builder.channels)
    builder.convolve(moments, 27)
    builder.convolve(moments, 1)
    # The first frame, then four frames at a time.
    return builder.finish_chunked(_pixels(config), latent_frames=1)


def _middle(builder: AutoencoderBuilder) -> None:
    builder.resnet(builder.channels)
    builder.attend(builder.grid.plane)  # each frame by itself
    builder.resnet(builder.channels)


def _upsample(builder: AutoencoderBuilder, time: int, outputs: int) -> None:
    width = builder.channels
    if time == 2:
        # The first frame of the clip is not doubled and skips the convolution.
        builder.convolve(2 * width, 3, grid=builder.grid.later)
        builder.elementwise(builder.grid.rows, 2 * width, passes=2.0)
    builder.channels = width
    builder.elementwise(builder.grid.rows, width, passes=4.0)
    builder.resize(space=2, time=time)
    # Nearest-neighbour in float32: its result (two elements' worth) and the copy cast back are alive together.
    builder.elementwise(builder.grid.rows, width, passes=4.0)
    builder.hold(3.0 * width)
    builder.convolution(builder.grid.rows, width, outputs, 9)
    builder.channels = outputs
    builder.layers += 1


def _downsample(builder: AutoencoderBuilder, time: int) -> None:
    width = builder.channels
    builder.elementwise(builder.grid.rows, width, passes=PAD + 2.0)
    builder.hold(2.0 * width)
    builder.resize(space=0.5)
    builder.convolution(builder.grid.rows, width, width, 9)
    if time == 2:
        # The first frame of the clip passes as it is.
        builder.resize(time=0.5)
        builder.convolve(width, 3, grid=builder.grid.later)
    builder.layers += 1


def _pixels(config: Mapping[str, Any]) -> Grid:
    levels = len(tuple(option(config, "dim_mult", _MULTIPLIERS)))
    temporal = tuple(option(config, "temperal_downsample", _TEMPORAL))
    return causal(2 ** (levels - 1) * option(config, "patch_size", 1), 2 ** sum(temporal))


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderKLWan": wan_autoencoder}
