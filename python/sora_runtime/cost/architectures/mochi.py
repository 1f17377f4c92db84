"""Mochi 1 and Allegro.

Mochi's joint attention is asymmetric: the caption's stream is narrower than the video's and the last block drops it.
Read from diffusers 0.42.1, transformer_mochi.py and transformer_allegro.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant, joint
from sora_runtime.cost.architectures.generic import (
    CONCATENATE,
    GATED_RESIDUAL,
    MODULATE,
    NORM,
    ONE,
    RESIDUAL,
    RMS_NORM,
    ROTARY,
    block_peak,
    feed_forward,
    two_layers,
)
from sora_runtime.cost.work import ComponentWork, Rows, WorkBuilder


def _mochi_embeddings(work: WorkBuilder, config: Mapping[str, Any], text_tokens: int, width: int) -> None:
    patch, channels = config.get("patch_size", 2) ** 2, config.get("in_channels", 12)
    text_width = config.get("text_embed_dim", 4096)
    work.convolution(TOKENS, channels, width, patch)
    two_layers(work, ONE, config.get("time_embed_dim", 256), width)
    # The caption is pooled by an attention of its mean token to itself and all others.
    pooled = constant(text_tokens + 1)
    work.linear(pooled, text_width, 2 * text_width)
    work.linear(ONE, text_width, text_width)
    work.attention(ONE, pooled, text_width)
    work.linear(ONE, text_width, width)
    work.linear(constant(text_tokens), text_width, config.get("pooled_projection_dim", 1536))
    # Learned frequencies of the rotary embedding, a matrix product with each token's three coordinates.
    work.linear(TOKENS, 3, width // 2, bias=False)
    work.linear(ONE, width, 2 * width)
    work.elementwise(TOKENS, width, passes=NORM + MODULATE)
    work.linear(TOKENS, width, patch * (config.get("out_channels") or channels))


def _mochi_stream(
    work: WorkBuilder, rows: Rows, widths: tuple[int, int], head_dim: int, counts: tuple[int, int]
) -> None:
    """One stream of (stream, attention) `widths`: `counts` blocks in all, and those that also write the stream."""
    own, width = widths
    layers, written = counts
    work.linear(ONE, width, 4 * own, count=written)
    work.linear(rows, own, width, count=3 * layers, bias=False)
    work.linear(rows, width, own, count=written)
    # Four norms in a block with a gate by tanh, instead of two with a shift.
    work.elementwise(rows, 2 * layers * width, passes=RMS_NORM, parameters=2 * layers * head_dim)
    work.elementwise(rows, written * own, passes=2 * RMS_NORM + 2 * MODULATE + 4 * CONCATENATE)
    feed_forward(work, rows, own, (4 * own * 2) // 3, count=written, gated=True, bias=False)


def mochi_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """MochiTransformer3DModel."""
    head_dim, layers = config.get("attention_head_dim", 128), config.get("num_layers", 48)
    width = config.get("num_attention_heads", 24) * head_dim
    narrow = config.get("pooled_projection_dim", 1536)
    text = constant(conditioning.text_tokens)
    sequence = joint(TOKENS, text)
    work = WorkBuilder(layers=layers)
    _mochi_embeddings(work, config, conditioning.text_tokens, width)
    _mochi_stream(work, TOKENS, (width, width), head_dim, (layers, layers))
    _mochi_stream(work, text, (narrow, width), head_dim, (layers, layers - 1))
    work.linear(ONE, width, narrow)  # the last block only scales the caption
    work.attention(sequence, sequence, width, count=layers)
    work.elementwise(TOKENS, 2 * layers * width, passes=ROTARY)
    return work.build(peak=block_peak(sequence, width, 4 * width, joined=True))


def allegro_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """AllegroTransformer3DModel: self-attention, cross-attention, one modulation for all blocks."""
    width = config.get("num_attention_heads", 24) * config.get("attention_head_dim", 96)
    layers, bias = config.get("num_layers", 32), config.get("attention_bias", True)
    patch, cross = config.get("patch_size", 2) ** 2, config.get("cross_attention_dim", 2304)
    text = constant(conditioning.text_tokens)
    work = WorkBuilder(layers=layers)
    work.convolution(TOKENS, config.get("in_channels", 4), width, patch)
    two_layers(work, ONE, 256, width)
    work.linear(ONE, width, 6 * width)
    two_layers(work, text, config.get("caption_channels", 4096), width)
    work.linear(TOKENS, width, width, count=3 * layers, bias=bias)
    work.linear(TOKENS, width, width, count=layers)
    work.attention(TOKENS, TOKENS, width, count=layers)
    work.linear(TOKENS, width, width, count=layers, bias=bias)
    work.linear(text, cross, width, count=2 * layers, bias=bias)
    work.linear(TOKENS, width, width, count=layers)
    work.attention(TOKENS, text, width, count=layers)
    feed_forward(work, TOKENS, width, 4 * width, count=layers)
    affine = 6 * width if config.get("norm_elementwise_affine", False) else 0
    tables = 6 * width * layers + 2 * width
    work.elementwise(TOKENS, 2 * layers * width, passes=ROTARY, parameters=layers * affine + tables)
    work.elementwise(TOKENS, layers * width, passes=NORM + MODULATE + GATED_RESIDUAL + RESIDUAL)
    work.elementwise(TOKENS, width, passes=NORM + MODULATE)
    work.linear(TOKENS, width, patch * config.get("out_channels", 4))
    return work.build(peak=block_peak(TOKENS, width, 4 * width))


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "MochiTransformer3DModel": mochi_transformer,
    "AllegroTransformer3DModel": allegro_transformer,
}
