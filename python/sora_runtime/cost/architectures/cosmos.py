"""Cosmos 1.0, Predict 2 and 2.5 (self and cross-attention), and Cosmos 3 (a text tower beside a video tower)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sora_runtime.cost.architectures.common import TOKENS, Conditioning, constant, joint
from sora_runtime.cost.architectures.sublayers import (
    COMPOSED_NORM_PASSES,
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
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "num_layers": 28,
    "mlp_ratio": 4.0,
    "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
    "max_size": (128, 240, 240),
    "patch_size": (1, 2, 2),
    "concat_padding_mask": True,
    "extra_pos_embed_type": "learnable",  # a card says "" for none: TOML has no null
    "use_crossattn_projection": False,
    "crossattn_proj_in_channels": 1024,
    "encoder_hidden_states_channels": 1024,
    "img_context_dim_in": None,
    "img_context_dim_out": 2048,
    # Of the pipeline, not the config: a timestep for each latent frame (Predict 2 and 2.5), spread over its tokens
    # before the modulation, which is then computed for each token.
    "timestep_per_frame": False,
}
OMNI_DEFAULTS: Mapping[str, Any] = {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "patch_latent_dim": 192,
    "action_dim": None,
    "action_gen": False,
    "num_embodiment_domains": 32,
    "sound_dim": None,
    "sound_gen": False,
    "vocab_size": 151936,
    "hidden_act": "silu",
    "qk_norm_for_text": True,
    "use_und_k_norm_for_gen": False,
}
ROTATION_PASSES = 16  # queries or keys: the rotated copy, two float32 casts, two products, a sum, a cast back
OMNI_ROTATION_PASSES = 10  # the same without the casts


def cosmos_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `CosmosTransformer3DModel` in one evaluation.

    Args:
        config: keys of the class's config.json, and `timestep_per_frame` of what the pipeline passes.
        conditioning: padded text tokens, and image context tokens where the network has projections for them.
    """
    values = {**DEFAULTS, **config}
    layers, width = values["num_layers"], values["num_attention_heads"] * values["attention_head_dim"]
    patch = math.prod(values["patch_size"])
    work = WorkBuilder(layers=layers)
    channels = values["in_channels"] + (1 if values["concat_padding_mask"] else 0)
    work.linear(TOKENS, channels * patch, width, bias=False)
    learnable = values["extra_pos_embed_type"] == "learnable"
    if learnable:
        places = sum(size // step for size, step in zip(values["max_size"], values["patch_size"], strict=True))
        work.elementwise(TOKENS, width, passes=12.0, parameters=places * width)
    times: Rows = {("latent_frames",): 1.0} if values["timestep_per_frame"] else constant(1)
    work.linear(times, width, width, bias=False)
    work.linear(times, width, 3 * width, bias=False)
    work.elementwise(times, width, passes=COMPOSED_NORM_PASSES, parameters=width)
    if values["use_crossattn_projection"]:
        text = constant(conditioning.text_tokens)
        work.linear(text, values["crossattn_proj_in_channels"], values["encoder_hidden_states_channels"])
    _blocks(work, values, conditioning, width, learnable=learnable)
    _modulation(work, values, width, vectors=2, count=1)
    work.elementwise(TOKENS, width, passes=NORM_PASSES + MODULATION_PASSES)
    work.linear(TOKENS, width, patch * values["out_channels"], bias=False)
    # In the feed-forward: stream, norm, and the hidden layer before and after the activation; attention with its
    # float32 rotation comes to about ten widths too. Then what is kept for every token through the network.
    alive = width * (max(10.0, 2 + 2 * values["mlp_ratio"]) + (1 if learnable else 0))
    alive += width * 10 if values["timestep_per_frame"] else 0
    return work.build(peak=(Term("elementwise", elements=alive, of=("tokens",)),))


def _blocks(
    work: WorkBuilder, values: Mapping[str, Any], conditioning: Conditioning, width: int, *, learnable: bool
) -> None:
    layers, head = values["num_layers"], values["attention_head_dim"]
    text = constant(conditioning.text_tokens)
    attention = AttentionShape(width, bias=False, out_bias=False)
    attention_layer(work, TOKENS, TOKENS, attention, count=layers)
    attention_layer(work, TOKENS, text, replace(attention, context=values["text_embed_dim"]), count=layers)
    if values["img_context_dim_in"]:
        image = constant(conditioning.image_tokens)
        attended = TOKENS if conditioning.image_tokens else constant(0)
        work.linear(image, values["img_context_dim_in"], values["img_context_dim_out"])
        work.linear(attended, width, width, count=layers, bias=False)
        work.linear(image, width, width, count=2 * layers, bias=False)
        work.attention(attended, image, width, count=layers)
        passes = layers * (COMPOSED_NORM_PASSES + RESIDUAL_PASSES)
        work.elementwise(attended, width, passes=passes, parameters=layers * 2 * head)
    feed_forward(work, TOKENS, width, int(width * values["mlp_ratio"]), count=layers, bias=False)
    _modulation(work, values, width, vectors=3, count=3 * layers)
    passes = 3 * (NORM_PASSES + MODULATION_PASSES + GATED_RESIDUAL_PASSES)
    copies = 4  # keys and values repeated, once, for the heads
    passes += 3 * COMPOSED_NORM_PASSES + 2 * ROTATION_PASSES + copies + (RESIDUAL_PASSES if learnable else 0)
    work.elementwise(TOKENS, width, passes=layers * passes, parameters=layers * 4 * head)
    work.elementwise(text, width, passes=layers * (COMPOSED_NORM_PASSES + copies))


def _modulation(work: WorkBuilder, values: Mapping[str, Any], width: int, *, vectors: int, count: int) -> None:
    """`count` low-rank layers that make `vectors` modulation vectors of the timestep."""
    rows = TOKENS if values["timestep_per_frame"] else constant(1)
    rank = values["adaln_lora_dim"]
    work.elementwise(rows, width, passes=2.0 * count)
    work.linear(rows, width, rank, count=count, bias=False)
    work.linear(rows, rank, vectors * width, count=count, bias=False)
    work.elementwise(rows, vectors * width, passes=4.0 * count)  # the clip's vectors added, the sum read


def omni_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `Cosmos3OmniTransformer` in one evaluation of a clip without sound or actions.

    The text tower attends causally to itself, the video tower to both. The text tower sees no timestep, yet runs
    again in every evaluation, as it does in the pipeline of diffusers; its causal attention counts as a full one.

    Args:
        config: keys of the class's config.json.
        conditioning: text tokens (they are not padded).
    """
    values = {**OMNI_DEFAULTS, **config}
    width, layers = values["hidden_size"], values["num_hidden_layers"]
    text = constant(conditioning.text_tokens)
    work = WorkBuilder(layers=layers)
    work.linear(TOKENS, values["patch_latent_dim"], width)
    timestep_network(work, TOKENS, width)
    work.elementwise(TOKENS, width, passes=6.0)  # the timestep added to, and both put into, the joint sequence
    _tower(work, values, text, text, normed=values["qk_norm_for_text"])
    _tower(work, values, TOKENS, joint(text, TOKENS), normed=True)
    if values["use_und_k_norm_for_gen"] and not values["qk_norm_for_text"]:
        work.parameters += layers * values["head_dim"]
    work.linear(TOKENS, width, values["patch_latent_dim"])
    read = work.parameters
    work.parameters += 2 * values["vocab_size"] * width  # the embedding and the language head: looked up, unused
    if values["action_gen"]:
        actions = values["action_dim"]
        work.parameters += values["num_embodiment_domains"] * (2 * actions * width + width + actions) + width
    if values["sound_gen"]:
        work.parameters += 2 * values["sound_dim"] * width + values["sound_dim"] + 2 * width
    # In the feed-forward: stream, norm, and gate, activated gate, up and product of the hidden layer.
    alive = float(2 * width + 4 * values["intermediate_size"])
    peak = [Term("elementwise", elements=alive, of=("tokens",)), Term("elementwise", elements=2.0 * width)]
    return work.build(peak=peak, read=read)


def _tower(work: WorkBuilder, values: Mapping[str, Any], rows: Rows, attended: Rows, *, normed: bool) -> None:
    """The layers of one tower, whose rows attend to `attended`, and its last norm."""
    width, layers, head = values["hidden_size"], values["num_hidden_layers"], values["head_dim"]
    inner, key_inner = values["num_attention_heads"] * head, values["num_key_value_heads"] * head
    bias = values["attention_bias"]
    work.linear(rows, width, inner, count=layers, bias=bias)
    work.linear(rows, width, key_inner, count=2 * layers, bias=bias)
    work.attention(rows, attended, inner, count=layers, key_width=key_inner)
    work.linear(rows, inner, width, count=layers, bias=bias)
    gated = values["hidden_act"] == "silu"
    feed_forward(work, rows, width, values["intermediate_size"], count=layers, bias=False, gated=gated)
    passes = layers * 2 * (COMPOSED_NORM_PASSES + RESIDUAL_PASSES) + COMPOSED_NORM_PASSES
    heads = layers * (OMNI_ROTATION_PASSES + (COMPOSED_NORM_PASSES if normed else 0))
    norms = layers * (2 * width + (2 * head if normed else 0)) + width
    work.elementwise(rows, width, passes=passes, parameters=norms)
    work.elementwise(rows, inner + key_inner, passes=heads)
    work.elementwise(attended, key_inner, passes=layers * 4.0)  # keys and values of both towers joined


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "CosmosTransformer3DModel": cosmos_transformer,
    "Cosmos3OmniTransformer": omni_transformer,
}
