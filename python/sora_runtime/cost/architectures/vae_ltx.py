"""The VAEs of LTX-Video (AutoencoderKLLTXVideo) and of LTX-2 (AutoencoderKLLTX2Video).

Convolutions run over patches of pixels; the first map is `patch_size` times smaller than the clip. Whether a
convolution pads frames on one side (causal) or on both changes no count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder, constant
from sora_runtime.cost.architectures.vae_common import (
    PLAIN_RMS_NORM,
    RESIDUAL,
    AutoencoderBuilder,
    Grid,
    Norm,
    causal,
    option,
)
from sora_runtime.cost.work import ComponentWork

_FREQUENCIES = 256  # width of the timestep's sinusoidal embedding
_STRIDES = {"conv": (2, 2), "spatial": (1, 2), "temporal": (2, 1), "spatiotemporal": (2, 2)}  # time, space
_OLD_BLOCK = "LTXVideoDownBlock3D"

# Default config of AutoencoderKLLTXVideo (0.9.0).
_LTX: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": (_OLD_BLOCK,) * 4,
    "decoder_block_out_channels": (128, 256, 512, 512),
    "layers_per_block": (4, 3, 3, 3, 4),
    "decoder_layers_per_block": (4, 3, 3, 3, 4),
    "spatio_temporal_scaling": (True, True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, True, False),
    "decoder_inject_noise": (False,) * 5,
    "downsample_type": ("conv",) * 4,
    "upsample_type": ("spatiotemporal",) * 4,  # not an option of this class
    "upsample_residual": (False,) * 4,
    "upsample_factor": (1,) * 4,
    "timestep_conditioning": False,
    "patch_size": 4,
}

# Default config of AutoencoderKLLTX2Video.
_LTX2: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "block_out_channels": (256, 512, 1024, 2048),
    "decoder_block_out_channels": (256, 512, 1024),
    "layers_per_block": (4, 6, 6, 2, 2),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "spatio_temporal_scaling": True,
    "decoder_spatio_temporal_scaling": True,
    "decoder_inject_noise": False,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "upsample_type": ("spatiotemporal",) * 3,
    "upsample_residual": True,
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": False,
    "patch_size": 4,
}


def ltx_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLLTXVideo: 0.9.0 (resnets that widen after each downsampling), 0.9.1 and 0.9.5 on."""
    full = {name: option(config, name, default) for name, default in _LTX.items()}
    widths = tuple(full["block_out_channels"])
    if full["down_block_types"][-1] == _OLD_BLOCK:
        outputs = (*widths[1:], widths[-1])
        widen = tuple(name == _OLD_BLOCK for name in full["down_block_types"])
    else:
        outputs = widths[1:]
        widen = tuple(name == _OLD_BLOCK for name in full["down_block_types"][: len(outputs)])
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full, widths[0], outputs, widen))


def ltx2_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLLTX2Video."""
    full = {name: option(config, name, default) for name, default in _LTX2.items()}
    outputs = tuple(full["block_out_channels"])
    widen = (False,) * len(outputs)
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full, full["latent_channels"], outputs, widen))


@dataclass
class _Builder(AutoencoderBuilder):
    """Resnets of LTX: norms without weights, noise and conditioning on a timestep where asked for."""

    norm: Norm = field(default=PLAIN_RMS_NORM)
    noise: bool = False
    conditioned: bool = False

    def resnet(self, outputs: int, *, kernel: int = 27) -> None:
        inputs, rows = self.channels, self.grid.rows
        super().resnet(outputs, kernel=kernel)
        if inputs != outputs:
            self.elementwise(rows, inputs, passes=3.0, parameters=2.0 * inputs)  # a norm before the shortcut
        if self.noise:
            self.elementwise(rows, outputs, passes=4.0, parameters=2.0 * inputs)
        if self.conditioned:
            self.elementwise(rows, outputs, passes=8.0, parameters=4.0 * inputs)

    def embed_timestep(self, width: int) -> None:
        """The two layers that turn the timestep into `width` scales and shifts."""
        self.linear(constant(1), _FREQUENCIES, width)
        self.linear(constant(1), width, width)


def _per_level(value: Any, levels: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    widths = tuple(config["decoder_block_out_channels"])[::-1]
    layers = tuple(config["decoder_layers_per_block"])[::-1]
    noise = _per_level(config["decoder_inject_noise"], len(layers))[::-1]
    scaling = _per_level(config["decoder_spatio_temporal_scaling"], len(widths))[::-1]
    factors = _per_level(config["upsample_factor"], len(widths))[::-1]
    residual = _per_level(config["upsample_residual"], len(widths))[::-1]
    builder = _Builder(channels=config["latent_channels"], conditioned=bool(config["timestep_conditioning"]))
    builder.convolve(widths[0], 27)
    builder.noise = noise[0]
    _resnets(builder, layers[0])
    for level, (width, factor) in enumerate(zip(widths, factors, strict=True)):
        builder.noise = noise[level + 1]
        outputs = width // factor
        inputs = (widths[level - 1] // factors[level - 1] if level else widths[0]) // factor
        if inputs != outputs:
            builder.resnet(outputs)
        if scaling[level]:
            time, space = _STRIDES[config["upsample_type"][level]]
            _upsample(builder, outputs, factor, time, space, residual=residual[level])
        _resnets(builder, layers[level + 1], embedded=inputs)
    return _decoder_end(builder, config)


def _decoder_end(builder: _Builder, config: Mapping[str, Any]) -> ComponentWork:
    width, patch = builder.channels, config["patch_size"]
    builder.activate(width)
    if builder.conditioned:
        builder.embed_timestep(2 * width)
        builder.elementwise(builder.grid.rows, width, passes=4.0, parameters=2.0 * width)
        builder.parameters += 1  # what the timestep is multiplied by
    builder.convolve(config["out_channels"] * patch**2, 27)
    builder.elementwise(builder.grid.rows, builder.channels, passes=2.0)
    return builder.finish(Grid(builder.grid.area * patch**2, builder.grid.frames, builder.grid.extra))


def _resnets(builder: _Builder, count: int, embedded: int | None = None) -> None:
    if builder.conditioned:
        builder.embed_timestep(4 * (embedded or builder.channels))
    for _ in range(count):
        builder.resnet(builder.channels)


def _upsample(builder: _Builder, outputs: int, factor: int, time: int, space: int, *, residual: bool) -> None:
    scale = time * space * space
    builder.channels = outputs * factor
    builder.convolve(outputs * factor * scale // factor, 27)  # positions are made of channels afterwards
    builder.resize(space, time)
    builder.channels = outputs
    builder.elementwise(builder.grid.rows, outputs, passes=2.0 + (4.0 + RESIDUAL if residual else 0.0))
    builder.hold((4.0 if residual else 2.0) * outputs)
    builder.layers += 1


def _encoder(config: Mapping[str, Any], first: int, outputs: tuple[int, ...], widen: tuple[bool, ...]) -> ComponentWork:
    """`widen`: blocks whose downsampling keeps the width, which a resnet changes afterwards."""
    layers = tuple(config["layers_per_block"])
    scaling = _per_level(config["spatio_temporal_scaling"], len(outputs))
    kinds = ["conv" if old else kind for old, kind in zip(widen, config["downsample_type"], strict=False)]
    strides = [_STRIDES[kind] if scaled else (1, 1) for kind, scaled in zip(kinds, scaling, strict=False)]
    time = space = 1
    for stride in strides:
        time, space = time * stride[0], space * stride[1]
    patch = config["patch_size"]
    builder = _Builder(grid=causal(space, time), channels=config["in_channels"] * patch**2)
    builder.elementwise(builder.grid.rows, builder.channels, passes=2.0)
    builder.convolve(first, 27)
    for level, width in enumerate(outputs):
        for _ in range(layers[level]):
            builder.resnet(builder.channels)
        if scaling[level]:
            _downsample(builder, kinds[level], width)
        if widen[level] and builder.channels != width:
            builder.resnet(width)
    for _ in range(layers[-1]):
        builder.resnet(builder.channels)
    builder.activate(builder.channels)
    builder.convolve(config["latent_channels"] + 1, 27)
    builder.elementwise(builder.grid.rows, 2 * config["latent_channels"], passes=2.0)  # one variance for all channels
    return builder.finish(causal(space * patch, time))


def _downsample(builder: _Builder, kind: str, outputs: int) -> None:
    time, space = _STRIDES[kind]
    before, inputs = builder.grid, builder.channels
    builder.resize(1.0 / space, 1.0 / time)
    if kind == "conv":
        builder.elementwise(before.rows, inputs, passes=2.0)
        builder.convolution(builder.grid.rows, inputs, inputs, 27)
    else:
        # The first frame is repeated, so the convolution runs before positions become channels over this many:
        whole = Grid(before.area, before.frames, before.extra + time - 1)
        builder.convolution(whole.rows, inputs, outputs // (time * space * space), 27)
        builder.elementwise(whole.rows, inputs, passes=7.0)
        builder.elementwise(builder.grid.rows, outputs, passes=2.0 + RESIDUAL)
        builder.channels = outputs
    builder.layers += 1


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {
    "AutoencoderKLLTXVideo": ltx_autoencoder,
    "AutoencoderKLLTX2Video": ltx2_autoencoder,
}
