"""SANA-Video: linear self-attention, cross-attention to text, and a convolutional gated feed-forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant
from sora_runtime.cost.architectures.sublayers import (
    COMPOSED_NORM_PASSES,
    GATED_RESIDUAL_PASSES,
    MODULATION_PASSES,
    NORM_PASSES,
    RESIDUAL_PASSES,
    AttentionShape,
    attention_layer,
    caption_projection,
    timestep_modulation,
    timestep_network,
)
from sora_runtime.cost.work import ComponentWork, Term, WorkBuilder

DEFAULTS: Mapping[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 20,
    "attention_head_dim": 112,
    "num_layers": 20,
    "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112,
    "cross_attention_dim": 2240,
    "caption_channels": 2304,
    "mlp_ratio": 2.5,
    "attention_bias": False,
    "patch_size": (1, 2, 2),
    "norm_elementwise_affine": False,
    "guidance_embeds": False,
    "qk_norm": "rms_norm_across_heads",
}
ROTATION_PASSES = 12  # queries or keys: even and odd halves by cosine and sine, written back interleaved


def sana_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `SanaVideoTransformer3DModel` in one evaluation.

    Args:
        config: keys of the class's config.json.
        conditioning: padded text tokens.
    """
    values = {**DEFAULTS, **config}
    layers, width = values["num_layers"], values["num_attention_heads"] * values["attention_head_dim"]
    text, patch = constant(conditioning.text_tokens), math.prod(values["patch_size"])
    work = WorkBuilder(layers=layers)
    work.convolution(TOKENS, values["in_channels"], width, patch)
    timestep_modulation(work, width, 6)
    if values["guidance_embeds"]:
        timestep_network(work, constant(1), width)
    caption_projection(work, text, values["caption_channels"], width)
    work.elementwise(text, width, passes=COMPOSED_NORM_PASSES, parameters=width)
    _linear_attention(work, values, width)
    inner = values["num_cross_attention_heads"] * values["cross_attention_head_dim"]
    attention = AttentionShape(width, inner, values["cross_attention_dim"])
    attention_layer(work, TOKENS, text, attention, count=layers)
    normed = values["qk_norm"] is not None
    work.elementwise(TOKENS, inner, passes=layers * (COMPOSED_NORM_PASSES if normed else 0))
    hidden = int(values["mlp_ratio"] * width)
    _feed_forward(work, layers, width, hidden)
    passes = 2 * (NORM_PASSES + MODULATION_PASSES + GATED_RESIDUAL_PASSES) + RESIDUAL_PASSES
    vectors = 6 * width + (2 * width + 2 * inner if normed else 0)
    vectors += 2 * width if values["norm_elementwise_affine"] else 0
    work.elementwise(TOKENS, width, passes=layers * passes, parameters=layers * vectors)
    work.elementwise(TOKENS, width, passes=NORM_PASSES + MODULATION_PASSES, parameters=2 * width)
    work.linear(TOKENS, width, (values["out_channels"] or values["in_channels"]) * patch)
    # In attention: stream, norm, queries, keys, values, and the float32 copies and rotations of the latter three.
    # In the feed-forward: stream, norm, and the doubled hidden layer before and after its convolution.
    alive = float(max(13 * width, 2 * width + 4 * hidden))
    return work.build(peak=(Term("elementwise", elements=alive, of=("tokens",)),))


def _linear_attention(work: WorkBuilder, values: Mapping[str, Any], width: int) -> None:
    """Keys and values meet first, in one head-sized square a head, so that the cost is linear in the tokens."""
    layers, bias = values["num_layers"], values["attention_bias"]
    work.linear(TOKENS, width, width, count=3 * layers, bias=bias)
    # Two products by that square and one by the sum of the keys: as attention to a head's channels and half of one.
    work.attention(TOKENS, constant(values["attention_head_dim"] + 0.5), width, count=layers)
    work.linear(TOKENS, width, width, count=layers)
    norms = 2 * COMPOSED_NORM_PASSES if values["qk_norm"] is not None else 0
    rectifiers, casts, sums, scale = 4, 12, 3, 4
    work.elementwise(TOKENS, width, passes=layers * (norms + rectifiers + casts + sums + scale + 2 * ROTATION_PASSES))


def _feed_forward(work: WorkBuilder, layers: int, width: int, hidden: int) -> None:
    """Pointwise up, 3x3 depthwise, gate, pointwise down, then a convolution over three frames."""
    work.convolution(TOKENS, width, 2 * hidden, 1, count=layers)
    work.elementwise(TOKENS, hidden, passes=4.0 * layers)
    work.convolution(TOKENS, 1, 2 * hidden, 9, count=layers)
    work.elementwise(TOKENS, hidden, passes=(2.0 + 5.0) * layers)  # what the depthwise one reads; the gate
    work.convolution(TOKENS, hidden, width, 1, count=layers, bias=False)
    work.convolution(TOKENS, width, width, 3, count=layers, bias=False)
    work.elementwise(TOKENS, width, passes=(RESIDUAL_PASSES + 4.0) * layers)  # the sum; two changes of layout


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "SanaVideoTransformer3DModel": sana_transformer,
}
