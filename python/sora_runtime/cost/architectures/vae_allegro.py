"""The VAE of Allegro (AutoencoderKLAllegro): 2D residual blocks, each followed by convolutions along time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import RESIDUAL, AutoencoderBuilder, Grid, option
from sora_runtime.cost.work import ComponentWork

# Default config, used for missing keys; the number of groups of the norms changes no count.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "temporal_downsample_blocks": (True, True, False, False),
    "temporal_upsample_blocks": (False, True, True, False),
    "layers_per_block": 2,
}


def allegro_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLAllegro over the whole clip: every latent frame stands for four frames, the first one too.

    diffusers runs it in tiles only (24 frames of 320 x 320 pixels overlapping by 8, 120 and 80), which adds work.
    `quant_conv` is the encoder's, `post_quant_conv` the decoder's.
    """
    full = {name: option(config, name, default) for name, default in _DEFAULTS.items()}
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full))


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["block_out_channels"])[::-1]
    latent = config["latent_channels"]
    builder = AutoencoderBuilder(channels=latent, causal=False)
    builder.convolution(builder.grid.rows, latent, latent, 1)
    builder.convolution(builder.grid.rows, latent, widths[0], 9)
    builder.channels = widths[0]
    _mix_frames(builder)
    _middle(builder)
    for level, width in enumerate(widths):
        for _ in range(config["layers_per_block"] + 1):
            builder.resnet(width, kernel=9)
            _temporal(builder)
        if config["temporal_upsample_blocks"][level]:
            _temporal(builder, time=2.0)
        if level < len(widths) - 1:
            builder.resize(space=2)
            builder.elementwise(builder.grid.rows, width, passes=1.25)
            builder.convolution(builder.grid.rows, width, width, 9)
            builder.layers += 1
    builder.activate(builder.channels)
    _mix_frames(builder)
    builder.convolution(builder.grid.rows, builder.channels, config["out_channels"], 9)
    return builder.finish(builder.grid)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["block_out_channels"])
    slower = tuple(config["temporal_downsample_blocks"])
    moments = 2 * config["latent_channels"]
    pixels = Grid(4.0 ** (len(widths) - 1), 2.0 ** sum(slower))
    builder = AutoencoderBuilder(grid=pixels, channels=widths[0], causal=False)
    builder.convolution(pixels.rows, config["in_channels"], widths[0], 9)
    _mix_frames(builder)
    for level, width in enumerate(widths):
        for _ in range(config["layers_per_block"]):
            builder.resnet(width, kernel=9)
            _temporal(builder)
        if slower[level]:
            _temporal(builder, time=0.5)
        if level < len(widths) - 1:
            builder.elementwise(builder.grid.rows, width, passes=2.0)
            builder.resize(space=0.5)
            builder.convolution(builder.grid.rows, width, width, 9)
            builder.layers += 1
    _middle(builder)
    builder.activate(builder.channels)
    _mix_frames(builder)
    builder.convolution(builder.grid.rows, builder.channels, moments, 9)
    builder.convolution(builder.grid.rows, moments, moments, 1)
    return builder.finish(pixels)


def _middle(builder: AutoencoderBuilder) -> None:
    builder.resnet(builder.channels, kernel=9)
    _temporal(builder)
    builder.attend(builder.grid.plane)  # each frame by itself
    builder.resnet(builder.channels, kernel=9)
    _temporal(builder)


def _mix_frames(builder: AutoencoderBuilder) -> None:
    """A convolution along time, added to its input."""
    builder.convolution(builder.grid.rows, builder.channels, builder.channels, 3)
    builder.elementwise(builder.grid.rows, builder.channels, passes=RESIDUAL)


def _temporal(builder: AutoencoderBuilder, time: float = 1.0) -> None:
    """Four norms, activations and convolutions along time, the first of which changes the number of frames."""
    width = builder.channels
    builder.activate(width)
    if time == 1.0:
        builder.convolve(width, 3)
    elif time == 2.0:
        builder.convolution(builder.grid.rows, width, 2 * width, 9)
        builder.resize(time=2)
        builder.elementwise(builder.grid.rows, width, passes=3.0)
    else:
        builder.resize(time=time)
        builder.convolution(builder.grid.rows, width, width, 18)
    for _ in range(3):
        builder.activate(width)
        builder.convolve(width, 3 if time == 1.0 else 27)
    builder.shortcut(width, width)
    builder.hold(6.0 * width)  # frames are padded at both ends one after the other


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderKLAllegro": allegro_autoencoder}
