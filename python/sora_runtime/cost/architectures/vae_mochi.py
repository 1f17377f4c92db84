"""The VAE of Mochi 1 (AutoencoderKLMochi)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import AutoencoderBuilder, causal, option
from sora_runtime.cost.work import ComponentWork

# Default config, used for missing keys.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 15,
    "out_channels": 3,
    "encoder_block_out_channels": (64, 128, 256, 384),
    "decoder_block_out_channels": (128, 256, 512, 768),
    "latent_channels": 12,
    "layers_per_block": (3, 3, 4, 6, 3),
    "temporal_expansions": (1, 2, 3),
    "spatial_expansions": (2, 2, 2),
    "add_attention_block": (False, True, True, True, True),
}


def mochi_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLMochi; its encoder's count holds for more than one frame.

    The decoder makes whole groups of frames from every latent frame and drops what is too many at the start of the
    clip. The encoder attends among the frames of each position; a single frame has its values as the result, without
    queries and keys, which this does not follow.
    """
    full = {name: option(config, name, default) for name, default in _DEFAULTS.items()}
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full))


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["decoder_block_out_channels"])
    layers = tuple(config["layers_per_block"])
    levels = len(widths) - 1
    builder = AutoencoderBuilder(channels=config["latent_channels"], causal=False)
    builder.convolve(widths[-1], 1)
    _resnets(builder, layers[-1], attention=False)
    for level in range(levels):
        _resnets(builder, layers[-level - 2], attention=False)
        time, space = config["temporal_expansions"][-level - 1], config["spatial_expansions"][-level - 1]
        outputs = widths[-level - 2]
        builder.linear(builder.grid.rows, builder.channels, outputs * time * space**2)
        builder.resize(space, time)
        builder.channels = outputs
        builder.elementwise(builder.grid.rows, outputs, passes=4.0)
        builder.layers += 1
    _resnets(builder, layers[0], attention=False)
    builder.elementwise(builder.grid.rows, builder.channels, passes=2.0)
    builder.linear(builder.grid.rows, builder.channels, config["out_channels"])
    return builder.finish(builder.grid)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["encoder_block_out_channels"])
    layers = tuple(config["layers_per_block"])
    attention = tuple(config["add_attention_block"])
    levels = len(widths) - 1
    times, spaces = tuple(config["temporal_expansions"][:levels]), tuple(config["spatial_expansions"][:levels])
    pixels = causal(math.prod(spaces), math.prod(times))
    builder = AutoencoderBuilder(grid=pixels, channels=config["in_channels"])
    builder.elementwise(pixels.rows, builder.channels, passes=5.0)  # sines and cosines of the pixels
    builder.linear(pixels.rows, builder.channels, widths[0])
    builder.channels = widths[0]
    _resnets(builder, layers[0], attention=attention[0])
    for level in range(levels):
        time, space, inputs = times[level], spaces[level], builder.channels
        builder.elementwise(builder.grid.rows, inputs, passes=2.0)
        builder.resize(1.0 / space, 1.0 / time)
        builder.convolution(builder.grid.rows, inputs, widths[level + 1], time * space**2)
        builder.channels = widths[level + 1]
        builder.layers += 1
        _resnets(builder, layers[level + 1], attention=attention[level + 1])
    _resnets(builder, layers[-1], attention=attention[-1])
    builder.activate(builder.channels)
    builder.linear(builder.grid.rows, builder.channels, 2 * config["latent_channels"], bias=False)
    return builder.finish(pixels)


def _resnets(builder: AutoencoderBuilder, count: int, *, attention: bool) -> None:
    for _ in range(count):
        builder.resnet(builder.channels)
        if attention:
            builder.elementwise(builder.grid.rows, builder.channels, passes=14.0)  # l2 norms, transposed copies
            builder.attend(builder.grid.line, bias=False)


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderKLMochi": mochi_autoencoder}
