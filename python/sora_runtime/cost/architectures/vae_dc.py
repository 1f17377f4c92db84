"""The deep-compression VAE for images (AutoencoderDC), which SANA-Video's pipeline accepts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder
from sora_runtime.cost.architectures.vae_common import RESIDUAL, AutoencoderBuilder, Grid, Norm, option
from sora_runtime.cost.work import ComponentWork

_LAYERS_IN = (2, 2, 2, 3, 3, 3)
_LAYERS_OUT = (3, 3, 3, 3, 3, 3)
_WIDTHS = (128, 256, 512, 512, 1024, 1024)
_SCALES = ((), (), (), (5,), (5,), (5,))

# Default config, used for missing keys.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "latent_channels": 32,
    "attention_head_dim": 32,
    "encoder_block_types": "ResBlock",
    "decoder_block_types": "ResBlock",
    "encoder_block_out_channels": _WIDTHS,
    "decoder_block_out_channels": _WIDTHS,
    "encoder_layers_per_block": _LAYERS_IN,
    "decoder_layers_per_block": _LAYERS_OUT,
    "encoder_qkv_multiscales": _SCALES,
    "decoder_qkv_multiscales": _SCALES,
    "upsample_block_type": "pixel_shuffle",
    "downsample_block_type": "pixel_unshuffle",
    "encoder_out_shortcut": True,
    "decoder_in_shortcut": True,
}
_NORM = Norm(7.0, 2.0)  # root mean square with weight and bias


def dc_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderDC, every frame by itself; for more latent positions than `attention_head_dim`.

    Fewer would attend by the square of the positions instead of linearly.
    """
    full = {name: option(config, name, default) for name, default in _DEFAULTS.items()}
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full))


class _Builder(AutoencoderBuilder):
    """The blocks of this VAE; `head` is the width of an attention head."""

    head: int = 32

    def block(self, kind: str, scales: tuple[int, ...]) -> None:
        if kind == "ResBlock":
            self.convolution(self.grid.rows, self.channels, self.channels, 9)
            self.convolution(self.grid.rows, self.channels, self.channels, 9, bias=False)
            self.activate(self.channels)
            self.shortcut(self.channels, self.channels)
            self.hold(4.0 * self.channels)
        else:
            self.attend_linearly(scales)
            self.gated_convolutions()

    def attend_linearly(self, scales: tuple[int, ...]) -> None:
        """Attention through a head x head matrix, of the positions and of their convolutions with each kernel."""
        rows, width = self.grid.rows, self.channels
        inner = width // self.head * self.head
        self.linear(rows, width, inner, count=3, bias=False)
        for kernel in scales:
            self.depthwise(3 * inner, kernel**2, bias=False)
            self.convolution(rows, self.head, 3 * inner, 1, bias=False)  # one group for each head
        copies = 1 + len(scales)
        self._add("attention", rows, 4.0 * copies * inner * (self.head + 1), 6.0 * copies * inner)
        self.elementwise(rows, copies * inner, passes=14.0)  # joined, cast, activated, divided
        self.linear(rows, copies * inner, width, bias=False)
        self.elementwise(rows, width, passes=_NORM.passes + RESIDUAL, parameters=_NORM.parameters * width)
        self.hold(width + 6.0 * copies * inner)
        self.layers += 1

    def gated_convolutions(self) -> None:
        """Widened eight times, convolved in depth, one half gating the other, and back."""
        rows, width = self.grid.rows, self.channels
        self.convolution(rows, width, 8 * width, 1)
        self.depthwise(8 * width, 9)
        self.convolution(rows, 4 * width, width, 1, bias=False)
        self.elementwise(rows, width, passes=2 * 8.0 + 5 * 4.0)
        self.elementwise(rows, width, passes=_NORM.passes + RESIDUAL, parameters=_NORM.parameters * width)
        self.hold(17.0 * width)
        self.layers += 1

    def shrink(self, outputs: int, kind: str, *, shortcut: bool) -> None:
        """Half the rows and columns, by a convolution before or with the step."""
        inputs, fine = self.channels, self.grid
        self.resize(space=0.5)
        if kind == "pixel_unshuffle":
            self.convolution(fine.rows, inputs, outputs // 4, 9)
            self.elementwise(self.grid.rows, outputs, passes=2.0)
        else:
            self.convolution(self.grid.rows, inputs, outputs, 9)
        if shortcut:
            self.elementwise(fine.rows, inputs, passes=3.0)
            self.elementwise(self.grid.rows, outputs, passes=1.0 + RESIDUAL)
        self.channels = outputs
        self.layers += 1

    def grow(self, outputs: int, kind: str, *, shortcut: bool) -> None:
        """Twice the rows and columns."""
        inputs, coarse = self.channels, self.grid
        self.resize(space=2)
        if kind == "interpolate":
            self.convolution(self.grid.rows, inputs, outputs, 9)
            self.elementwise(self.grid.rows, inputs, passes=1.25)
        else:
            self.convolution(coarse.rows, inputs, 4 * outputs, 9)
            self.elementwise(self.grid.rows, outputs, passes=2.0)
        if shortcut:
            self.elementwise(self.grid.rows, outputs, passes=4.0 + RESIDUAL)
        self.channels = outputs
        self.hold(4.0 * outputs)
        self.layers += 1


def _kinds(value: Any, levels: int) -> tuple[str, ...]:
    return (value,) * levels if isinstance(value, str) else tuple(value)


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths, layers = tuple(config["decoder_block_out_channels"]), tuple(config["decoder_layers_per_block"])
    kinds, scales = _kinds(config["decoder_block_types"], len(widths)), tuple(config["decoder_qkv_multiscales"])
    step = config["upsample_block_type"]
    builder = _Builder(channels=config["latent_channels"], norm=_NORM, causal=False)
    builder.head = config["attention_head_dim"]
    builder.convolution(builder.grid.rows, builder.channels, widths[-1], 9)
    builder.channels = widths[-1]
    if config["decoder_in_shortcut"]:
        builder.elementwise(builder.grid.rows, widths[-1], passes=2.0 + RESIDUAL)
    for level in reversed(range(len(widths))):
        if level < len(widths) - 1 and layers[level]:
            builder.grow(widths[level], step, shortcut=True)
        for _ in range(layers[level]):
            builder.block(kinds[level], tuple(scales[level]))
    builder.activate(builder.channels)
    if layers[0]:
        builder.convolution(builder.grid.rows, builder.channels, config["in_channels"], 9)
    else:
        builder.grow(config["in_channels"], step, shortcut=False)
    return builder.finish(builder.grid)


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    widths, layers = tuple(config["encoder_block_out_channels"]), tuple(config["encoder_layers_per_block"])
    kinds, scales = _kinds(config["encoder_block_types"], len(widths)), tuple(config["encoder_qkv_multiscales"])
    step = config["downsample_block_type"]
    steps = sum(1 for count in layers[:-1] if count) + (0 if layers[0] else 1)
    pixels = Grid(4.0**steps)
    builder = _Builder(grid=pixels, channels=config["in_channels"], norm=_NORM, causal=False)
    builder.head = config["attention_head_dim"]
    if layers[0]:
        builder.convolution(pixels.rows, builder.channels, widths[0], 9)
        builder.channels = widths[0]
    else:
        builder.shrink(widths[1], step, shortcut=False)
    for level, count in enumerate(layers):
        for _ in range(count):
            builder.block(kinds[level], tuple(scales[level]))
        if level < len(widths) - 1 and count:
            builder.shrink(widths[level + 1], step, shortcut=True)
    builder.convolution(builder.grid.rows, builder.channels, config["latent_channels"], 9)
    if config["encoder_out_shortcut"]:
        builder.elementwise(builder.grid.rows, builder.channels, passes=1.0 + RESIDUAL)
    return builder.finish(pixels)


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderDC": dc_autoencoder}
