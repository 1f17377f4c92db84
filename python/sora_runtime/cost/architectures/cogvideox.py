"""CogVideoX, CogVideoX 1.5 and ConsisID: caption and video share weights and stand in one sequence.

Read from diffusers 0.42.1, cogvideox_transformer_3d.py and consisid_transformer_3d.py.
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
    RESIDUAL,
    ROTARY,
    block_peak,
    feed_forward,
)
from sora_runtime.cost.work import ComponentWork, Rows, WorkBuilder


def _embeddings(work: WorkBuilder, config: Mapping[str, Any], text: Rows, width: int) -> None:
    patch, frames = config.get("patch_size", 2) ** 2, config.get("patch_size_t")
    channels = config.get("in_channels", 16)
    if frames is None:
        work.convolution(TOKENS, channels, width, patch, bias=config.get("patch_bias", True))
    else:
        work.linear(TOKENS, channels * patch * frames, width)
    work.linear(text, config.get("text_embed_dim", 4096), width)
    time = config.get("time_embed_dim", 512)
    work.linear(ONE, width, time)
    work.linear(ONE, time, time)
    offset = config.get("ofs_embed_dim") or 0
    if offset:
        work.linear(ONE, offset, offset, count=2)
    affine = 2 * width if config.get("norm_elementwise_affine", True) else 0
    work.elementwise(TOKENS, width, passes=2 * NORM + MODULATE, parameters=2 * affine)
    work.linear(ONE, time, 2 * width)
    work.linear(TOKENS, width, patch * (frames or 1) * (config.get("out_channels", 16) or channels))


def _blocks(work: WorkBuilder, config: Mapping[str, Any], text: Rows, width: int) -> None:
    layers, head_dim = config.get("num_layers", 30), config.get("attention_head_dim", 64)
    sequence = joint(TOKENS, text)
    affine = 2 * width if config.get("norm_elementwise_affine", True) else 0
    work.linear(ONE, config.get("time_embed_dim", 512), 6 * width, count=2 * layers)
    work.linear(sequence, width, width, count=3 * layers, bias=config.get("attention_bias", True))
    work.linear(sequence, width, width, count=layers)
    work.attention(sequence, sequence, width, count=layers)
    rotary = ROTARY if config.get("use_rotary_positional_embeddings", False) else 0.0
    work.elementwise(
        sequence, 2 * layers * width, passes=NORM + rotary, parameters=layers * (4 * head_dim + 2 * affine)
    )
    work.elementwise(sequence, layers * width, passes=NORM + MODULATE + GATED_RESIDUAL + 2 * CONCATENATE)
    feed_forward(work, sequence, width, 4 * width, count=layers)


def cogvideox_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """CogVideoXTransformer3DModel; 1.5 is the one with `patch_size_t`."""
    width = config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64)
    text = constant(conditioning.text_tokens)
    work = WorkBuilder(layers=config.get("num_layers", 30))
    _embeddings(work, config, text, width)
    _blocks(work, config, text, width)
    return work.build(peak=block_peak(joint(TOKENS, text), width, 4 * width, joined=True))


def _perceiver(work: WorkBuilder, widths: tuple[int, int, int], queries: Rows, context: Rows, count: int) -> None:
    """`count` attentions of `queries` [width] to `context` [context width] through `inner` channels."""
    width, context_width, inner = widths
    work.linear(queries, width, inner, count=count, bias=False)
    work.linear(context, context_width, 2 * inner, count=count, bias=False)
    work.linear(queries, inner, width, count=count, bias=False)
    work.attention(queries, context, inner, count=count)
    work.elementwise(queries, count * width, passes=NORM + RESIDUAL, parameters=2 * count * (width + context_width))


def _face_extractor(work: WorkBuilder, config: Mapping[str, Any]) -> None:
    """LocalFacialExtractor: a resampler that reads a face encoder's features at several scales.

    `face_tokens`, not a key of the class, is the length of those features: 577 of EVA-CLIP at 336 pixels.
    """
    width, depth = config.get("LFE_vit_dim", 1024), config.get("LFE_depth", 10)
    identity, queries = config.get("LFE_num_id_token", 5), config.get("LFE_num_querie", 32)
    scales, face = config.get("LFE_num_scale", 5), constant(config.get("face_tokens", 577))
    inner = config.get("LFE_num_heads", 16) * config.get("LFE_dim_head", 64)
    latents = constant(queries + identity)
    for rows, inputs, outputs, count in (
        (ONE, config.get("LFE_id_dim", 1280), width * identity, 1),
        (face, width, width, scales),
    ):
        work.linear(rows, inputs, width, count=count)
        work.linear(rows, width, width, count=count)
        work.linear(rows, width, outputs, count=count)
        work.elementwise(rows, 2 * count * width, passes=NORM + ACTIVATION, parameters=4 * count * width)
    _perceiver(work, (width, width, inner), latents, joint(constant(identity), face, latents), depth)
    hidden = width * config.get("LFE_ff_mult", 4)
    work.linear(latents, width, hidden, count=depth, bias=False)
    work.linear(latents, hidden, width, count=depth, bias=False)
    work.elementwise(latents, depth * (hidden + width), passes=NORM, parameters=2 * depth * width)
    work.linear(constant(queries), width, config.get("LFE_output_dim", 2048), bias=False)
    work.parameters += queries * width


def consisid_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """ConsisIDTransformer3DModel: CogVideoX with attention to a face after every second block."""
    width = config.get("num_attention_heads", 30) * config.get("attention_head_dim", 64)
    text = constant(conditioning.text_tokens)
    layers = config.get("num_layers", 30)
    work = WorkBuilder(layers=layers)
    _embeddings(work, config, text, width)
    _blocks(work, config, text, width)
    if config.get("is_train_face", False):
        _face_extractor(work, config)
        inner = config.get("cross_attn_num_heads", 16) * config.get("cross_attn_dim_head", 128)
        face = constant(config.get("LFE_num_querie", 32))
        count = layers // config.get("cross_attn_interval", 2)
        _perceiver(work, (width, int(width / 3 * 2), inner), TOKENS, face, count)
    return work.build(peak=block_peak(joint(TOKENS, text), width, 4 * width, joined=True))


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "CogVideoXTransformer3DModel": cogvideox_transformer,
    "ConsisIDTransformer3DModel": consisid_transformer,
}
