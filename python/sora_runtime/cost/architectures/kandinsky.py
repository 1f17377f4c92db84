"""Kandinsky 5: a short transformer over the caption, then blocks of self- and cross-attention over the video.

Read from diffusers 0.42.1, transformer_kandinsky.py. The attention is the dense one: the 10 s models run a sparse
kernel, which is the engine's to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant
from sora_runtime.cost.architectures.generic import (
    GATED_RESIDUAL,
    MODULATE,
    NORM,
    ONE,
    ROTARY,
    block_peak,
    feed_forward,
    two_layers,
)
from sora_runtime.cost.work import ComponentWork, Rows, WorkBuilder


def _attention(work: WorkBuilder, rows: Rows, keys: Rows, widths: tuple[int, int], count: int) -> None:
    """`count` attentions of (model, head) `widths` from `rows` to `keys`, with what is elementwise around them."""
    width, head_dim = widths
    work.linear(rows, width, width, count=2 * count)
    work.linear(keys, width, width, count=2 * count)
    work.attention(rows, keys, width, count=count)
    work.elementwise(rows, count * width, passes=NORM, parameters=2 * count * head_dim)
    work.elementwise(keys, count * width, passes=NORM)
    # The block works in float32 around each attention: a cast before and after.
    work.elementwise(rows, count * width, passes=NORM + MODULATE + GATED_RESIDUAL + 6.0)


def kandinsky5_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Kandinsky5Transformer3DModel."""
    width, time = config.get("model_dim", 2048), config.get("time_dim", 512)
    inner, patch = config.get("ff_dim", 5120), math.prod(config.get("patch_size", (1, 2, 2)))
    text_layers, layers = config.get("num_text_blocks", 2), config.get("num_visual_blocks", 32)
    head_dim = sum(config.get("axes_dims", (16, 24, 24)))
    channels = config.get("in_visual_dim", 4)
    text = constant(conditioning.text_tokens)
    work = WorkBuilder(layers=text_layers + layers)

    two_layers(work, ONE, width, time)
    work.linear(text, config.get("in_text_dim", 3584), width)
    work.elementwise(text, width, passes=NORM, parameters=2 * width)
    work.linear(ONE, config.get("in_text_dim2", 768), time)
    work.elementwise(ONE, time, passes=NORM, parameters=2 * time)
    # An image is given as more channels: its latents and a mask beside the noise.
    work.linear(TOKENS, patch * (2 * channels + 1 if config.get("visual_cond", False) else channels), width)

    work.linear(ONE, time, 6 * width, count=text_layers)
    _attention(work, text, text, (width, head_dim), text_layers)
    feed_forward(work, text, width, inner, count=text_layers, bias=False)
    work.linear(ONE, time, 9 * width, count=layers)
    _attention(work, TOKENS, TOKENS, (width, head_dim), layers)
    _attention(work, TOKENS, text, (width, head_dim), layers)
    feed_forward(work, TOKENS, width, inner, count=layers, bias=False)
    work.elementwise(TOKENS, 2 * layers * width, passes=ROTARY)

    work.linear(ONE, time, 2 * width)
    work.elementwise(TOKENS, width, passes=NORM + MODULATE)
    work.linear(TOKENS, width, patch * config.get("out_visual_dim", 4))
    return work.build(peak=block_peak(TOKENS, width, inner))


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "Kandinsky5Transformer3DModel": kandinsky5_transformer,
}
