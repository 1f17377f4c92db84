"""LTX-Video and LTX-2: self-attention and cross-attention to text; LTX-2 runs an audio stream beside the video."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
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
    feed_forward,
    timestep_modulation,
)
from sora_runtime.cost.work import ComponentWork, Rows, Term, WorkBuilder

DEFAULTS: Mapping[str, Any] = {
    "in_channels": 128,
    "out_channels": 128,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
    "num_layers": 28,
    "caption_channels": 4096,
    "attention_bias": True,
    "attention_out_bias": True,
    "norm_elementwise_affine": False,
}
DEFAULTS_2: Mapping[str, Any] = {
    **DEFAULTS,
    "attention_head_dim": 128,
    "cross_attention_dim": 4096,
    "gated_attn": False,
    "cross_attn_mod": False,
    "audio_in_channels": 128,
    "audio_out_channels": 128,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_cross_attention_dim": 2048,
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "audio_gated_attn": False,
    "audio_cross_attn_mod": False,
    "num_layers": 48,
    "caption_channels": 3840,
    "vae_scale_factors": (8, 32, 32),
    "use_prompt_embeddings": True,
    "ff_bias": True,
    "audio_ff_bias": True,
    "use_prompt_adaln_single": True,
    "use_keyframes_abs_pos_embedding": False,
    "frame_rate": 24,  # of the pipeline: with the frames it gives the length of the audio
}
ROTATION_PASSES = 16  # queries or keys: the rotated copy, two float32 casts, two products, a sum, a cast back


def ltx_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `LTXVideoTransformer3DModel` in one evaluation of a clip that has one timestep.

    Args:
        config: keys of the class's config.json.
        conditioning: padded text tokens.
    """
    values = {**DEFAULTS, **config}
    layers, width = values["num_layers"], values["num_attention_heads"] * values["attention_head_dim"]
    text = constant(conditioning.text_tokens)
    work = WorkBuilder(layers=layers)
    work.linear(TOKENS, values["in_channels"], width)
    timestep_modulation(work, width, 6)
    caption_projection(work, text, values["caption_channels"], width)
    bias, out_bias = values["attention_bias"], values["attention_out_bias"]
    attention = AttentionShape(width, bias=bias, out_bias=out_bias)
    attention_layer(work, TOKENS, TOKENS, attention, count=layers)
    attention_layer(work, TOKENS, text, replace(attention, context=values["cross_attention_dim"]), count=layers)
    feed_forward(work, TOKENS, width, 4 * width, count=layers)
    passes = 2 * (COMPOSED_NORM_PASSES + MODULATION_PASSES + GATED_RESIDUAL_PASSES) + RESIDUAL_PASSES
    passes += 3 * NORM_PASSES + 2 * ROTATION_PASSES
    affine = 2 * width if values["norm_elementwise_affine"] else 0
    # Norms of queries and keys of two attentions, the table of six vectors.
    work.elementwise(TOKENS, width, passes=layers * passes, parameters=layers * (10 * width + affine))
    work.elementwise(text, width, passes=layers * NORM_PASSES)
    _output(work, TOKENS, width, values["out_channels"] or values["in_channels"])
    return work.build(peak=(Term("elementwise", elements=_alive(width), of=("tokens",)),))


def _output(work: WorkBuilder, rows: Rows, width: int, channels: int) -> None:
    work.elementwise(rows, width, passes=NORM_PASSES + MODULATION_PASSES, parameters=2 * width)
    work.linear(rows, width, channels)


def _alive(width: int) -> float:
    # In the feed-forward: the residual stream, its norm, and the hidden layer (four widths) before and after the
    # activation; attention with its float32 rotation comes to about the same.
    return 10.0 * width


def audio_rows(values: Mapping[str, Any]) -> Rows:
    """Audio latents of an LTX-2 clip: their rate by the clip's seconds, without the rounding to a whole one."""
    stride = values["vae_scale_factors"][0]
    rate = values["audio_sampling_rate"] / values["audio_hop_length"] / values["audio_scale_factor"]
    per_frame = rate / values["frame_rate"]
    return {("latent_frames",): per_frame * stride, (): per_frame * (1 - stride)}


def ltx2_transformer(config: Mapping[str, Any], conditioning: Conditioning) -> ComponentWork:
    """Work of `LTX2VideoTransformer3DModel`: a video and an audio stream, which attend to text and to each other.

    Args:
        config: keys of the class's config.json, and `frame_rate` of the pipeline's call.
        conditioning: padded text tokens.
    """
    values = {**DEFAULTS_2, **config}
    work = WorkBuilder(layers=values["num_layers"])
    audio = audio_rows(values)
    width, audio_width = (
        _stream(work, values, TOKENS, conditioning, ""),
        _stream(work, values, audio, conditioning, "audio_"),
    )
    _between_streams(work, values, audio, width, audio_width)
    if values["use_keyframes_abs_pos_embedding"]:
        work.parameters += width
    peak = [Term("elementwise", elements=_alive(width), of=("tokens",))]
    # The smaller stream waits while the larger one is at its worst, except for what both attend with.
    peak += [Term("elementwise", elements=3.0 * audio_width * count, of=of) for of, count in audio.items()]
    return work.build(peak=peak)


def _stream(work: WorkBuilder, values: Mapping[str, Any], rows: Rows, conditioning: Conditioning, prefix: str) -> int:
    """One modality's own layers; returns its width."""
    width = values[prefix + "num_attention_heads"] * values[prefix + "attention_head_dim"]
    layers, text = values["num_layers"], constant(conditioning.text_tokens)
    modulated = values[prefix + "cross_attn_mod"]
    any_modulated = values["cross_attn_mod"] or values["audio_cross_attn_mod"]
    work.linear(rows, values[prefix + "in_channels"], width)
    if values["use_prompt_embeddings"]:
        caption_projection(work, text, values["caption_channels"], width)
    timestep_modulation(work, width, 9 if modulated else 6)
    timestep_modulation(work, width, 4)  # scales and shifts of the attention between the streams
    timestep_modulation(work, width, 1)  # its gate
    if any_modulated and values["use_prompt_adaln_single"]:
        timestep_modulation(work, width, 2)
    shape = AttentionShape(width, bias=values["attention_bias"], out_bias=values["attention_out_bias"])
    _attention(work, values, rows, rows, prefix, shape)
    _attention(work, values, rows, text, prefix, replace(shape, context=values[prefix + "cross_attention_dim"]))
    feed_forward(work, rows, width, 4 * width, count=layers, bias=values[prefix + "ff_bias"])
    passes = 2 * (COMPOSED_NORM_PASSES + MODULATION_PASSES + GATED_RESIDUAL_PASSES)
    passes += COMPOSED_NORM_PASSES + RESIDUAL_PASSES + 3 * NORM_PASSES + 2 * ROTATION_PASSES
    text_passes = NORM_PASSES
    if modulated:
        passes += MODULATION_PASSES + 2
    if any_modulated:
        text_passes += MODULATION_PASSES
    vectors = (9 if modulated else 6) + (2 if any_modulated else 0) + 5
    vectors += 3 if values["norm_elementwise_affine"] else 0
    work.elementwise(rows, width, passes=layers * passes, parameters=layers * vectors * width)
    work.elementwise(text, width, passes=layers * text_passes)
    _output(work, rows, width, values[prefix + "out_channels"] or values[prefix + "in_channels"])
    return int(width)


def _between_streams(work: WorkBuilder, values: Mapping[str, Any], audio: Rows, width: int, audio_width: int) -> None:
    """Video attends to audio and audio to video, both with the audio stream's heads."""
    shape = AttentionShape(
        width, audio_width, audio_width, bias=values["attention_bias"], out_bias=values["attention_out_bias"]
    )
    _attention(work, values, TOKENS, audio, "", shape)
    _attention(work, values, audio, TOKENS, "audio_", replace(shape, width=audio_width, context=width))
    layers = values["num_layers"]
    affine = 1 if values["norm_elementwise_affine"] else 0
    own = COMPOSED_NORM_PASSES + 2 * MODULATION_PASSES + GATED_RESIDUAL_PASSES
    heads = 2 * (NORM_PASSES + ROTATION_PASSES)  # each stream has the queries of one and the keys of the other
    for rows, size in ((TOKENS, width), (audio, audio_width)):
        work.elementwise(rows, size, passes=layers * own, parameters=layers * affine * size)
        work.elementwise(rows, audio_width, passes=layers * heads)


def _attention(
    work: WorkBuilder, values: Mapping[str, Any], queries: Rows, keys: Rows, prefix: str, shape: AttentionShape
) -> None:
    """One attention of every block; `prefix` names the stream of its queries."""
    layers, inner = values["num_layers"], shape.inner or shape.width
    attention_layer(work, queries, keys, shape, count=layers)
    work.parameters += layers * 2 * inner  # norms of queries and keys
    if values[prefix + "gated_attn"]:
        heads = values["audio_num_attention_heads" if shape.inner else prefix + "num_attention_heads"]
        work.linear(queries, shape.width, heads, count=layers)
        work.elementwise(queries, inner, passes=layers * 2.0)


TRANSFORMERS: dict[str, Callable[[Mapping[str, Any], Conditioning], ComponentWork]] = {
    "LTXVideoTransformer3DModel": ltx_transformer,
    "LTX2VideoTransformer3DModel": ltx2_transformer,
}
