"""MiniMax-H3: one packed sequence of text, audio and video, with modulation by timestep and modality."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant, joint
from sora_runtime.cost.architectures.sublayers import (
    GATED_RESIDUAL_PASSES,
    MODULATION_PASSES,
    NORM_PASSES,
    RESIDUAL_PASSES,
    AttentionShape,
    attention_layer,
    feed_forward,
    timestep_network,
)
from sora_runtime.cost.work import ComponentWork, Rows, Term, WorkBuilder

DEFAULTS: Mapping[str, Any] = {
    "num_attention_heads": 56,
    "attention_head_dim": 128,
    "hidden_size": 5376,
    "num_layers": 50,
    "num_refiner_layers": 2,
    "ffn_dim": 14336,
    "in_channels": 24,
    "audio_in_channels": 32,
    "patch_size": (1, 2, 2),
    "text_dim": 5120,
    "freq_dim": 256,
    "time_embed_hidden_dim": 5376,
    "time_embed_dim": 2688,
}
MODALITIES = 3
TIMESTEPS = 2  # video and audio run down their own schedules
# Two channels of 40 latents a second at 24 frames a second; 17 n + 5 frames give 5 n + 2 latent frames, so that
# a clip of L latent frames has 3.4 L - 1.8 frames. Not rounded to a whole latent.
AUDIO_ROWS: Rows = {("latent_frames",): 2 * 40 / 24 * 3.4, (): -2 * 40 / 24 * 1.8}
ROTATION_PASSES = 12  # queries or keys: the rotated copy, two products, a sum, the untouched channels joined on
TABLE_PASSES = 2  # a row of a modulation table written out for each token


def minimax_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `MiniMaxH3Transformer3DModel` in one evaluation of a clip with its sound track.

    Args:
        config: keys of the class's config.json.
        conditioning: text tokens (they are not padded); `image_tokens` counts the rows of conditioning frames.
    """
    values = {**DEFAULTS, **config}
    width, layers = values["hidden_size"], values["num_layers"]
    inner = values["num_attention_heads"] * values["attention_head_dim"]
    patch = values["in_channels"] * math.prod(values["patch_size"])
    text, video = constant(conditioning.text_tokens), joint(TOKENS, constant(conditioning.image_tokens))
    packed = joint(text, video, AUDIO_ROWS)
    work = WorkBuilder(layers=layers + values["num_refiner_layers"])
    work.linear(video, patch, width)
    work.linear(AUDIO_ROWS, values["audio_in_channels"], width)
    work.linear(text, values["text_dim"], width)
    times, features = constant(TIMESTEPS), values["time_embed_dim"]
    timestep_network(work, times, values["time_embed_hidden_dim"], inputs=values["freq_dim"], outputs=features)
    _blocks(work, values, text, values["num_refiner_layers"], modulated=False)
    work.elementwise(text, width, passes=NORM_PASSES, parameters=width)
    _blocks(work, values, packed, layers, modulated=True)
    work.linear(times, features, 6 * MODALITIES * width, count=layers)
    work.linear(times, features, 2 * width)
    work.elementwise(packed, width, passes=NORM_PASSES + MODULATION_PASSES + 2 * TABLE_PASSES, parameters=width)
    # Both heads run over every row; the rows of a modality are chosen afterwards.
    work.linear(packed, width, patch)
    work.linear(packed, width, values["audio_in_channels"])
    # In attention: stream, norm, queries, keys, values, a rotated copy and the result. In the feed-forward: stream,
    # norm, both halves of the hidden layer, the activated one and the product.
    alive = float(max(2 * width + 6 * inner, 2 * width + 4 * values["ffn_dim"]))
    return work.build(peak=[Term("elementwise", elements=alive * count, of=of) for of, count in packed.items()])


def _blocks(work: WorkBuilder, values: Mapping[str, Any], rows: Rows, count: int, *, modulated: bool) -> None:
    width, head = values["hidden_size"], values["attention_head_dim"]
    inner = values["num_attention_heads"] * head
    attention_layer(work, rows, rows, AttentionShape(width, inner, bias=False, out_bias=False), count=count)
    feed_forward(work, rows, width, values["ffn_dim"], count=count, bias=False, gated=True)
    passes = 2 * (NORM_PASSES + RESIDUAL_PASSES)
    heads = 2 * NORM_PASSES
    if modulated:
        passes = 2 * (NORM_PASSES + MODULATION_PASSES + GATED_RESIDUAL_PASSES + 3 * TABLE_PASSES)
        heads += 2 * ROTATION_PASSES
    work.elementwise(rows, width, passes=count * passes, parameters=count * (2 * width + 2 * head))
    work.elementwise(rows, inner, passes=count * heads)


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "MiniMaxH3Transformer3DModel": minimax_transformer,
}
