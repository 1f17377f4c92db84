"""Wan and the networks of its shape (SkyReels-V2, FastWan): self-attention, cross-attention to text, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant
from sora_runtime.cost.architectures.sublayers import (
    GATED_RESIDUAL_PASSES,
    MODULATION_PASSES,
    NORM_PASSES,
    RESIDUAL_PASSES,
    AttentionShape,
    attention_layer,
    caption_projection,
    feed_forward,
    timestep_network,
)
from sora_runtime.cost.work import ComponentWork, Term, WorkBuilder

DEFAULTS: Mapping[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
    # Of the pipeline's config, not the network's: a timestep for each token (Wan 2.2 TI2V), so that the modulation
    # is computed for each too.
    "expand_timesteps": False,
}
SKYREELS_DEFAULTS: Mapping[str, Any] = {
    **DEFAULTS,
    "num_attention_heads": 16,
    "ffn_dim": 8192,
    "num_layers": 32,
    "inject_sample_info": False,
}
FLOAT32 = 2  # elements are counted in the engine's two bytes
ROTATION_PASSES = 18  # queries or keys: halves by float32 cosine and sine into float32, written back interleaved


def wan_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `WanTransformer3DModel` in one evaluation.

    Args:
        config: keys of the class's config.json, and `expand_timesteps` of the pipeline's.
        conditioning: padded text tokens, and the image encoder's tokens where the network has projections for them.
    """
    values = {**DEFAULTS, **config}
    work = WorkBuilder(layers=values["num_layers"])
    _embedders(work, values, conditioning)
    _blocks(work, values, conditioning)
    return work.build(peak=_peak(values))


def skyreels_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `SkyReelsV2Transformer3DModel`: Wan's network, optionally told the frame rate."""
    values = {**SKYREELS_DEFAULTS, **config}
    work = WorkBuilder(layers=values["num_layers"])
    _embedders(work, values, conditioning)
    if values["inject_sample_info"]:
        width = _width(values)
        work.parameters += 2 * width
        timestep_network(work, constant(1), width, inputs=width, outputs=6 * width)
    _blocks(work, values, conditioning)
    return work.build(peak=_peak(values))


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "WanTransformer3DModel": wan_transformer,
    "SkyReelsV2Transformer3DModel": skyreels_transformer,
}


def _width(values: Mapping[str, Any]) -> int:
    return int(values["num_attention_heads"]) * int(values["attention_head_dim"])


def _embedders(work: WorkBuilder, values: Mapping[str, Any], conditioning: Conditioning) -> None:
    width, patch = _width(values), math.prod(values["patch_size"])
    work.convolution(TOKENS, values["in_channels"], width, patch)
    times = TOKENS if values["expand_timesteps"] else constant(1)
    timestep_network(work, times, width, inputs=values["freq_dim"])
    work.elementwise(times, width, passes=2.0)
    work.linear(times, width, 6 * width)
    caption_projection(work, constant(conditioning.text_tokens), values["text_dim"], width)
    image = values["image_dim"]
    if image is not None:
        rows = constant(conditioning.image_tokens)
        work.elementwise(rows, image, passes=NORM_PASSES, parameters=2 * image)
        timestep_network(work, rows, image, inputs=image, outputs=width)
        work.elementwise(rows, width, passes=NORM_PASSES, parameters=2 * width)
        work.parameters += image * (values["pos_embed_seq_len"] or 0)
    # The output: a norm, its two vectors and the projection back to patches.
    work.elementwise(TOKENS, width, passes=(NORM_PASSES + MODULATION_PASSES) * FLOAT32 + 6, parameters=2 * width)
    work.linear(TOKENS, width, (values["out_channels"] or values["in_channels"]) * patch)


def _blocks(work: WorkBuilder, values: Mapping[str, Any], conditioning: Conditioning) -> None:
    width, layers = _width(values), values["num_layers"]
    text = constant(conditioning.text_tokens)
    attention_layer(work, TOKENS, TOKENS, AttentionShape(width), count=layers)
    attention_layer(work, TOKENS, text, AttentionShape(width), count=layers)
    if values["added_kv_proj_dim"] is not None:
        image = constant(conditioning.image_tokens)
        work.linear(image, values["added_kv_proj_dim"], width, count=2 * layers)
        work.attention(TOKENS, image, width, count=layers)
        work.elementwise(image, width, passes=layers * NORM_PASSES, parameters=layers * width)
        work.elementwise(TOKENS, width, passes=layers * RESIDUAL_PASSES)
    feed_forward(work, TOKENS, width, values["ffn_dim"], count=layers)
    # Norms, modulation and gated residuals run in float32: twice the bytes of a bf16 pass, and casts on both sides.
    casts = 2 * (1 + FLOAT32)
    modulated = 2 * ((NORM_PASSES + MODULATION_PASSES) * FLOAT32 + casts)
    residuals = 2 * (GATED_RESIDUAL_PASSES * FLOAT32 + casts) + RESIDUAL_PASSES
    crossed = NORM_PASSES * FLOAT32 + casts
    heads = 3 * NORM_PASSES + 2 * ROTATION_PASSES
    passes = modulated + residuals + crossed + heads
    if values["expand_timesteps"]:
        passes += 30  # six vectors a token: cast, added to the block's table, read
    affine = 2 * width if values["cross_attn_norm"] else 0
    vectors = 4 * width + 6 * width + affine  # four norms of queries and keys, the block's table, the cross norm
    work.elementwise(TOKENS, width, passes=layers * passes, parameters=layers * vectors)
    work.elementwise(text, width, passes=layers * NORM_PASSES)


def _peak(values: Mapping[str, Any]) -> tuple[Term, ...]:
    # In attention: the residual stream, its norm, queries, keys, values, both halves of a rotation and its result.
    # In the feed-forward: the stream, its norm, and the hidden layer before and after the activation.
    width = _width(values)
    alive = float(max(8 * width, 2 * width + 2 * values["ffn_dim"]))
    if values["expand_timesteps"]:
        alive += 18 * width  # six vectors a token, of the clip and of the block (float32)
    return (Term("elementwise", elements=alive, of=("tokens",)),)
