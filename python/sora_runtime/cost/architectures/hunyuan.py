"""HunyuanVideo and HunyuanVideo 1.5: joint attention with a token refiner for the caption.

Read from diffusers 0.42.1, transformer_hunyuan_video.py and transformer_hunyuan_video15.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant, joint
from sora_runtime.cost.architectures.generic import (
    ACTIVATION,
    CONCATENATE,
    GATED_RESIDUAL,
    MODULATE,
    NORM,
    ONE,
    RMS_NORM,
    ROTARY,
    elements,
    feed_forward,
    two_layers,
)
from sora_runtime.cost.work import ComponentWork, Rows, WorkBuilder


def _attention_layers(work: WorkBuilder, rows: Rows, width: int, head_dim: int, count: int) -> None:
    """Projections, query norms and what is elementwise around an attention, for one stream of `count` blocks."""
    work.linear(rows, width, width, count=4 * count)
    work.elementwise(rows, 2 * count * width, passes=RMS_NORM + ROTARY, parameters=2 * count * head_dim)
    work.elementwise(rows, count * width, passes=NORM + MODULATE + GATED_RESIDUAL + 4 * CONCATENATE)


def _refiner(work: WorkBuilder, text: Rows, inputs: int, width: int, layers: int) -> None:
    """The caption's own transformer: its timestep and pooled embedding, its projection, `layers` blocks."""
    two_layers(work, ONE, 256, width)
    two_layers(work, ONE, inputs, width)
    work.linear(text, inputs, width)
    work.linear(text, width, width, count=4 * layers)
    work.attention(text, text, width, count=layers)
    feed_forward(work, text, width, 4 * width, count=layers)
    work.linear(ONE, width, 2 * width, count=layers)
    work.elementwise(text, layers * width, passes=NORM + GATED_RESIDUAL, parameters=4 * layers * width)


def _double_blocks(work: WorkBuilder, text: Rows, config: Mapping[str, Any], count: int, timesteps: int) -> None:
    """Blocks with weights of their own for the caption; `timesteps` that the video is modulated by."""
    head_dim = config.get("attention_head_dim", 128)
    width = config["width"]
    work.linear(constant(timesteps), width, 6 * width, count=count)
    work.linear(ONE, width, 6 * width, count=count)
    for rows in (TOKENS, text):
        _attention_layers(work, rows, width, head_dim, count)
        feed_forward(work, rows, width, int(width * config.get("mlp_ratio", 4.0)), count=count)
    sequence = joint(TOKENS, text)
    work.attention(sequence, sequence, width, count=count)


def _single_blocks(work: WorkBuilder, text: Rows, config: Mapping[str, Any], count: int, timesteps: int) -> None:
    """Blocks in which attention and feed-forward run side by side over both streams."""
    width = config["width"]
    inner = int(width * config.get("mlp_ratio", 4.0))
    sequence = joint(TOKENS, text)
    work.linear(constant(timesteps), width, 3 * width, count=count)
    work.linear(sequence, width, width, count=3 * count)
    work.linear(sequence, width, inner, count=count)
    work.linear(sequence, width + inner, width, count=count)
    work.attention(sequence, sequence, width, count=count)
    work.elementwise(
        sequence,
        2 * count * width,
        passes=RMS_NORM + ROTARY,
        parameters=2 * count * config.get("attention_head_dim", 128),
    )
    work.elementwise(sequence, count * width, passes=NORM + MODULATE + GATED_RESIDUAL + 5 * CONCATENATE)
    work.elementwise(sequence, count * inner, passes=ACTIVATION + CONCATENATE)


def _patches(work: WorkBuilder, config: Mapping[str, Any], channels: tuple[int, int], patch: int) -> None:
    """The patch embedding, the last norm and the output projection; (in, out) `channels`."""
    width = config["width"]
    work.convolution(TOKENS, channels[0], width, patch)
    work.linear(ONE, width, 2 * width)
    work.elementwise(TOKENS, width, passes=NORM + MODULATE)
    work.linear(TOKENS, width, patch * channels[1])


def _with_width(config: Mapping[str, Any], heads: int) -> dict[str, Any]:
    width = config.get("num_attention_heads", heads) * config.get("attention_head_dim", 128)
    return {**config, "width": width}


def hunyuan_video_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """HunyuanVideoTransformer3DModel; tokens of an image stand in the caption's sequence."""
    config = _with_width(config, 24)
    width = config["width"]
    double, single = config.get("num_layers", 20), config.get("num_single_layers", 40)
    patch = config.get("patch_size_t", 1) * config.get("patch_size", 2) ** 2
    channels = config.get("in_channels", 16)
    text = constant(conditioning.text_tokens + conditioning.image_tokens)
    # The first frame's tokens have a timestep of their own where it replaces noise by the image.
    timesteps = 2 if config.get("image_condition_type") == "token_replace" else 1
    refiner_layers = config.get("num_refiner_layers", 2)
    work = WorkBuilder(layers=double + single + refiner_layers)

    _patches(work, config, (channels, config.get("out_channels", 16) or channels), patch)
    _refiner(work, text, config.get("text_embed_dim", 4096), width, refiner_layers)
    two_layers(work, constant(timesteps), 256, width)
    two_layers(work, ONE, config.get("pooled_projection_dim", 768), width)
    if config.get("guidance_embeds", True):
        two_layers(work, ONE, 256, width)
    _double_blocks(work, text, config, double, timesteps)
    _single_blocks(work, text, config, single, timesteps)
    # A single block holds the residual, its normed copy, the feed-forward's hidden layer, queries, keys, values and
    # the copies that the rotary embedding and the concatenation make of three of them.
    return work.build(peak=elements(joint(TOKENS, text), 8 * width + int(width * config.get("mlp_ratio", 4.0))))


def hunyuan_video_15_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """HunyuanVideo15Transformer3DModel.

    `text_tokens` of the conditioning are the language model's, `image_tokens` the vision encoder's (they run, masked,
    without an image too); `text_tokens_2` of the configuration, not a key of the class, are ByT5's, 256 by default.
    """
    config = _with_width(config, 16)
    width, layers = config["width"], config.get("num_layers", 54)
    patch = config.get("patch_size_t", 1) * config.get("patch_size", 1) ** 2
    channels = config.get("in_channels", 65)
    refiner_layers = config.get("num_refiner_layers", 2)
    words, glyphs, image = (
        constant(conditioning.text_tokens),
        constant(config.get("text_tokens_2", 256)),
        constant(conditioning.image_tokens),
    )
    work = WorkBuilder(layers=layers + refiner_layers)

    _patches(work, config, (channels, config.get("out_channels", 32) or channels), patch)
    _refiner(work, words, config.get("text_embed_dim", 3584), width, refiner_layers)
    glyph_width = config.get("text_embed_2_dim", 1472)
    two_layers(work, glyphs, glyph_width, 2048)
    work.linear(glyphs, 2048, width)
    work.elementwise(glyphs, glyph_width, passes=NORM, parameters=2 * glyph_width)
    image_width = config.get("image_embed_dim", 1152)
    two_layers(work, image, image_width, width, hidden=image_width)
    work.elementwise(image, image_width, passes=NORM, parameters=2 * image_width)
    work.elementwise(image, width, passes=NORM, parameters=2 * width)
    two_layers(work, ONE, 256, width)
    if config.get("use_meanflow", False):
        two_layers(work, ONE, 256, width)
    context = joint(words, glyphs, image)
    work.elementwise(context, width, passes=4.0, parameters=3 * width)  # the kind of each token, then their order
    _double_blocks(work, context, config, layers, 1)
    # The residual, its normed copy, queries, keys, values, their joined copies, two by the rotary embedding, output.
    return work.build(peak=elements(joint(TOKENS, context), 11 * width))


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "HunyuanVideoTransformer3DModel": hunyuan_video_transformer,
    "HunyuanVideo15Transformer3DModel": hunyuan_video_15_transformer,
}
