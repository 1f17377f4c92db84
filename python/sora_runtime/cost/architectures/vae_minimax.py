"""The VAE of MiniMax-H3 (AutoencoderKLMiniMaxH3): a convolutional encoder and a transformer as decoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import Autoencoder, constant, joint
from sora_runtime.cost.architectures.vae_common import AutoencoderBuilder, Grid, option
from sora_runtime.cost.work import ComponentWork, Rows, Term, WorkBuilder, multiply

# Default config, used for missing keys.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 24,
    "block_out_channels": (128, 256, 256, 512, 512, 1024),
    "layers_per_block": 2,
    "spatial_downsample_factors": (2, 2, 2, 2, 1, 1),
    "temporal_downsample_factors": (1, 2, 2, 1, 1, 1),
    "decoder_num_layers": 36,
    "decoder_num_attention_heads": 32,
    "decoder_attention_head_dim": 64,
    "decoder_num_register_tokens": 4,
    "decoder_ffn_mult": 4,
    "clip_length": 17,
    "token_drop": 3,
}


def minimax_autoencoder(config: Mapping[str, Any]) -> Autoencoder:
    """AutoencoderKLMiniMaxH3 without its spatial tiles, for clips (not single frames).

    The clip is cut into pieces of `clip_length` frames that are encoded apart; the last `token_drop` latent frames are
    dropped, so n pieces make 5n - 3 latent frames by default, the only numbers for which this is exact. Each decoded
    piece overlaps the next. diffusers tiles space as well unless told not to: tiles of 256 pixels overlapping by 64
    run about twice the positions, each attending to fewer. `quant_conv` is the encoder's, `post_quant_conv` the
    decoder's.
    """
    full = {name: option(config, name, default) for name, default in _DEFAULTS.items()}
    return Autoencoder(decoder=_decoder(full), encoder=_encoder(full))


def _pieces(config: Mapping[str, Any]) -> tuple[int, float, float]:
    """Latent frames of a piece, and the number of encoded pieces: a x latent frames + b."""
    tokens = math.ceil(config["clip_length"] / math.prod(config["temporal_downsample_factors"]))
    return tokens, 1.0 / tokens, config["token_drop"] / tokens


def _encoder(config: Mapping[str, Any]) -> ComponentWork:
    _, slope, offset = _pieces(config)
    frames = config["clip_length"]
    space = math.prod(config["spatial_downsample_factors"])
    pixels = Grid(float(space**2), frames * slope, frames * offset)
    builder = AutoencoderBuilder(grid=pixels, channels=config["in_channels"])
    builder.convolve(config["block_out_channels"][0], 27)
    stages = zip(
        config["block_out_channels"],
        config["temporal_downsample_factors"],
        config["spatial_downsample_factors"],
        strict=True,
    )
    for width, slower, smaller in stages:
        for _ in range(config["layers_per_block"]):
            builder.resnet(width)
        if slower * smaller > 1:
            builder.elementwise(builder.grid.rows, width, passes=4.0)
            frames = (frames - 1) // slower + 1
            builder.grid = Grid(builder.grid.area / smaller**2, frames * slope, frames * offset)
            builder.convolution(builder.grid.rows, width, width, 27)
            builder.layers += 1
    builder.activate(builder.channels)
    builder.convolve(2 * config["latent_channels"], 27)
    builder.convolve(2 * config["latent_channels"], 1)
    # One piece at a time, and the whole clip.
    held, grid = builder.worst
    maps = Term("elementwise", elements=held * grid.area * grid.frames / slope, of=("latent_area",))
    clip = [Term("elementwise", elements=config["in_channels"] * count, of=of) for of, count in pixels.rows.items()]
    return builder.build(peak=[maps, *clip])


def _decoder(config: Mapping[str, Any]) -> ComponentWork:
    tokens, slope, offset = _pieces(config)
    drop, latent = config["token_drop"], config["latent_channels"]
    width = config["decoder_num_attention_heads"] * config["decoder_attention_head_dim"]
    registers = config["decoder_num_register_tokens"]
    space, time = math.prod(config["spatial_downsample_factors"]), math.prod(config["temporal_downsample_factors"])
    outputs = config["out_channels"] * time * space**2

    pieces: Rows = {("latent_frames",): slope, (): offset - (1.0 if drop else 0.0)}
    patches: Rows = {("latent_area",): float(tokens + -drop % tokens)}  # of one piece with its overlap
    sequence = joint(patches, constant(registers + 1))
    rows = multiply(pieces, sequence)
    builder = WorkBuilder()
    builder.convolution(multiply(pieces, patches), latent, latent, 1)
    builder.linear(multiply(pieces, patches), latent, width)
    builder.parameters += registers * width
    for _ in range(config["decoder_num_layers"]):
        _block(builder, rows, sequence, width, config["decoder_ffn_mult"] * width)
    builder.elementwise(rows, width, passes=3.0, parameters=2 * width)
    builder.linear(rows, width, outputs)
    builder.elementwise(multiply(pieces, patches), outputs, passes=6.0)  # made into pixels, blended, joined
    # One piece: residual, both halves of the widest layer and their product. And the whole clip, joined by a copy.
    widest = width * (2.0 + 3.0 * config["decoder_ffn_mult"])
    piece = [Term("elementwise", elements=widest * count, of=of) for of, count in sequence.items()]
    frames = multiply({("latent_area",): 1.0}, pieces)
    clip = [Term("elementwise", elements=2.0 * tokens * outputs * count, of=of) for of, count in frames.items()]
    return builder.build(peak=[*piece, *clip])


def _block(builder: WorkBuilder, rows: Rows, keys: Rows, width: int, hidden: int) -> None:
    builder.linear(rows, width, width, count=4)
    builder.attention(rows, keys, width)
    builder.linear(rows, width, 2 * hidden)
    builder.linear(rows, hidden, width)
    # Two norms in float32 with casts, norms and rotations of queries and keys, two scaled residuals; the gate.
    builder.elementwise(rows, width, passes=2 * 9.0 + 2 * 16.0 + 2 * 5.0, parameters=4 * width)
    builder.elementwise(rows, hidden, passes=5.0)
    builder.layers += 1


AUTOENCODERS: dict[str, Callable[[Mapping[str, Any]], Autoencoder]] = {"AutoencoderKLMiniMaxH3": minimax_autoencoder}
