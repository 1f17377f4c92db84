"""The VAE of Cosmos-1.0 (AutoencoderKLCosmos); later Cosmos models use that of Wan 2.1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import RESIDUAL, AutoencoderBuilder, Grid, causal, option
from sora_runtime.cost.work import ComponentWork

# Default config, used for missing keys.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "encoder_block_out_channels": (128, 256, 512, 512),
    "decode_block_out_channels": (256, 512, 512, 512),
    "attention_resolutions": (32,),
    "resolution": 1024,
    "num_layers": 2,
    "patch_size": 4,
    "patch_type": "haar",
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 8,
}


def cosmos_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLCosmos; `quant_conv` is the encoder's, `post_quant_conv` the decoder's."""
    full = {name: option(config, name, default) for name, default in _DEFAULTS.items()}
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full))


class _Builder(AutoencoderBuilder):
    """Convolutions are a spatial one followed by a temporal one."""

    def convolve(self, outputs: int, kernel: int, *, grid: Grid | None = None, bias: bool = True) -> None:
        if kernel == 27:
            super().convolve(outputs, 9, grid=grid, bias=bias)
            super().convolve(outputs, 3, grid=grid, bias=bias)
        else:
            super().convolve(outputs, kernel, grid=grid, bias=bias)

    def attend_factorized(self) -> None:
        """Attention within each frame, then among the frames of each position."""
        self.attend(self.grid.plane)
        self.attend(self.grid.line)

    def transform(self, levels: int, channels: int) -> None:
        """A Haar transform between the clip and the current map: each level has 14 depthwise convolutions of two taps.

        They run along time, rows and columns, each halving what the next runs over; one row and one column of padding
        are left out. The inverse reads as much as the transform writes.
        """
        for level in range(levels):
            scale = 2.0**level
            count = channels * 8.0 ** (levels - 1 - level)  # channels before this level's split into eight
            coarse = Grid(self.grid.area * scale**2, self.grid.frames * scale, self.grid.extra * scale)
            # Two convolutions have four times as many positions as this map, four have twice as many, eight as many.
            outputs = count * (2 * 4 + 4 * 2 + 8)
            self._add("convolution", coarse.rows, 4.0 * outputs, 2.0 * outputs)
            self.elementwise(coarse.rows, 8 * count, passes=6.0)


def _log2(value: int) -> int:
    return int(value).bit_length() - 1


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["decode_block_out_channels"])[::-1]
    patch, levels = config["patch_size"], len(widths) - 1
    spatial = _log2(config["spatial_compression_ratio"]) - _log2(patch)
    temporal = _log2(config["temporal_compression_ratio"]) - _log2(patch)
    resolution = config["resolution"] // patch // 2 ** (levels - 1)
    builder = _Builder(channels=config["latent_channels"])
    builder.convolve(builder.channels, 1)
    builder.convolve(widths[0], 27)
    _middle(builder)
    for level in range(levels):
        for _ in range(config["num_layers"] + 1):
            builder.resnet(widths[level + 1])
            if resolution in config["attention_resolutions"]:
                builder.attend_factorized()
        if level < levels - 1:
            faster = 0 < level < temporal + 1
            larger = faster or (level < spatial and spatial > temporal)
            _upsample(builder, larger=larger, faster=faster)
            resolution *= 2
    builder.activate(builder.channels)
    builder.convolve(config["out_channels"] * patch**3, 27)
    latent = builder.grid
    pixels = Grid(latent.area * patch**2, latent.frames * patch, (latent.extra - 1.0) * patch + 1.0)
    if config["patch_type"] == "haar":
        builder.transform(_log2(patch), config["out_channels"])
    else:
        builder.elementwise(pixels.rows, config["out_channels"], passes=2.0)
    return builder.finish(pixels)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["encoder_block_out_channels"])
    patch, levels = config["patch_size"], len(widths) - 1
    spatial = _log2(config["spatial_compression_ratio"]) - _log2(patch)
    temporal = _log2(config["temporal_compression_ratio"]) - _log2(patch)
    resolution = config["resolution"] // patch
    larger = [level < levels - 1 and level < spatial for level in range(levels)]
    faster = [level < levels - 1 and level < temporal for level in range(levels)]
    grid = causal(2 ** sum(larger), 2 ** sum(faster))
    pixels = causal(2 ** sum(larger) * patch, 2 ** sum(faster) * patch)
    builder = _Builder(grid=grid, channels=config["in_channels"] * patch**3)
    if config["patch_type"] == "haar":
        builder.transform(_log2(patch), config["in_channels"])
    else:
        builder.elementwise(pixels.rows, config["in_channels"], passes=2.0)
    builder.convolve(widths[0], 27)
    for level in range(levels):
        for _ in range(config["num_layers"]):
            builder.resnet(widths[level + 1])
            if resolution in config["attention_resolutions"]:
                builder.attend_factorized()
        if level < levels - 1:
            _downsample(builder, larger=larger[level], faster=faster[level])
            resolution //= 2
    _middle(builder)
    builder.activate(builder.channels)
    builder.convolve(config["latent_channels"], 27)
    builder.convolve(config["latent_channels"], 1)
    return builder.finish(pixels)


def _middle(builder: _Builder) -> None:
    builder.resnet(builder.channels)
    builder.attend_factorized()
    builder.resnet(builder.channels)


def _upsample(builder: _Builder, *, larger: bool, faster: bool) -> None:
    width = builder.channels
    if faster:
        builder.resize(time=2)
        builder.elementwise(builder.grid.rows, width, passes=2.0 + RESIDUAL)
        builder.convolve(width, 3)
    if larger:
        builder.resize(space=2)
        builder.elementwise(builder.grid.rows, width, passes=4.0 + RESIDUAL)
        builder.convolve(width, 9)
        builder.hold(4.0 * width)
    if larger or faster:
        builder.convolve(width, 1)
        builder.layers += 1


def _downsample(builder: _Builder, *, larger: bool, faster: bool) -> None:
    width = builder.channels
    if larger:
        builder.elementwise(builder.grid.rows, width, passes=3.0)  # padded, pooled
        builder.resize(space=0.5)
        builder.convolution(builder.grid.rows, width, width, 9)
        builder.elementwise(builder.grid.rows, width, passes=1.0 + RESIDUAL)
    if faster:
        builder.elementwise(builder.grid.rows, width, passes=5.0)
        builder.resize(time=0.5)
        builder.convolution(builder.grid.rows, width, width, 3)
        builder.elementwise(builder.grid.rows, width, passes=1.0 + RESIDUAL)
    if larger or faster:
        builder.convolve(width, 1)
        builder.layers += 1


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderKLCosmos": cosmos_autoencoder}
