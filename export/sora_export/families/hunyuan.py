"""The HunyuanVideo family (text to video and image to video): which modules become which graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from transformers import CLIPTextModel, LlamaModel, LlavaForConditionalGeneration, PreTrainedModel

from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Pair, RunGraph, Shapes, original_names
from sora_export.families import hunyuan_parity as parity
from sora_export.families.common import like, loader, read_pixel_input
from sora_export.families.components import (
    Clip,
    frame_encoder,
    latent_shape,
    text_encoder,
    token_inputs,
    transformer_buckets,
)
from sora_export.families.hunyuan_facts import (
    TASKS,
    image_template,
    prompt_template,
    read_facts,
    transformer_config,
    vae_config,
)
from sora_export.families.hunyuan_graphs import BucketRotary, TransformerGraph
from sora_export.families.hunyuan_text import ClipGraph, LlamaGraph, LlamaPositions, LlavaGraph, llava_config
from sora_export.families.hunyuan_vae import VaeFrameEncoderGraph, VaeTileGraph
from sora_export.families.tiling import tiled_decoder
from sora_export.onnx_from_torch import TorchGraph
from sora_export.tokenizer import pad_token_id

__all__ = ["NAME", "PIPELINES", "RENAMINGS", "components", "read_facts"]

NAME = "hunyuan"
PIPELINES = tuple(TASKS)
RENAMINGS = original_names.HUNYUAN

_CLIP_TOKENS = 77
_TILE = (16, 256, 256)
"""Frames after the first, rows and columns of the largest tile: diffusers' AutoencoderKLHunyuanVideo."""
_OVERLAP = (4, 64, 64)
"""Frames, rows and columns that two tiles share: likewise."""


def components(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
    """Describes both text encoders, the transformer and the VAE; its encoder only where pictures are given."""
    sees = "i2v" in shapes.tasks
    chat = (_llava_encoder if sees else _llama_encoder)(checkpoint, facts)
    clip = _clip_encoder(checkpoint)
    yield chat
    yield clip
    yield _transformer(checkpoint, facts, shapes, {**chat.entry["outputs"], **clip.entry["outputs"]})
    yield _vae_decoder(checkpoint, facts, shapes)
    if sees:
        yield _vae_encoder(checkpoint, shapes)


def _llama_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config, template = checkpoint.json("text_encoder/config.json"), prompt_template("t2v")
    tokens, crop = facts["max_sequence_length"], template.crop_start
    inputs = token_inputs(crop + tokens, "input_ids", "attention_mask")
    make = partial(LlamaGraph, config, LlamaPositions(config, crop + tokens), crop)
    graph = TorchGraph(make, inputs, ["encoder_hidden_states", "encoder_attention_mask"])
    return _encoder(
        checkpoint,
        "text_encoder",
        LlamaModel,
        graph,
        {"encoder_hidden_states": [1, tokens, config["hidden_size"]], "encoder_attention_mask": [1, tokens]},
        partial(parity.compare_llama, config["vocab_size"], crop + tokens, crop),
        template=template.text,
    )


def _llava_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config, template = checkpoint.json("text_encoder/config.json"), prompt_template("i2v")
    places, image = image_template(checkpoint), read_pixel_input(checkpoint, "image_processor")
    text_config = llava_config(config).text_config.to_dict()
    length = template.crop_start + facts["max_sequence_length"]
    tokens = -(-template.picture_tokens // places.interleave) + facts["max_sequence_length"] - places.header
    inputs = token_inputs(length, "input_ids", "attention_mask")
    inputs["pixel_values"] = like(1, 3, image["size"], image["size"])
    # One of the prompt's tokens is the place of the picture's.
    positions = LlamaPositions(text_config, length - 1 + template.picture_tokens)
    make = partial(LlavaGraph, config, positions, places)
    graph = TorchGraph(make, inputs, ["encoder_hidden_states", "encoder_attention_mask"])
    return _encoder(
        checkpoint,
        "text_encoder",
        LlavaForConditionalGeneration,
        graph,
        {"encoder_hidden_states": [1, tokens, text_config["hidden_size"]], "encoder_attention_mask": [1, tokens]},
        partial(parity.compare_llava, length, template.picture_tokens, places),
        template=template.text,
        image_input=image,
    )


def _clip_encoder(checkpoint: Checkpoint) -> Component:
    config = checkpoint.json("text_encoder_2/config.json")
    graph = TorchGraph(partial(ClipGraph, config), token_inputs(_CLIP_TOKENS, "input_ids"), ["pooled_projections"])
    return _encoder(
        checkpoint,
        "text_encoder_2",
        CLIPTextModel,
        graph,
        {"pooled_projections": [1, config["hidden_size"]]},
        partial(parity.compare_clip, config, _CLIP_TOKENS),
        overflow="truncate",
    )


def _encoder(
    checkpoint: Checkpoint,
    name: str,
    model_class: type[PreTrainedModel],
    graph: TorchGraph,
    outputs: Mapping[str, list[int]],
    compare: Callable[[Any, RunGraph], Mapping[str, Pair]],
    **more: Any,
) -> Component:
    """The text encoder in folder `name`; `more` is said of it in bundle.json too, or instead."""
    tokenizer = name.replace("text_encoder", "tokenizer")
    pad = checkpoint.json(f"{name}/config.json").get("pad_token_id") or 0
    more["pad_token_id"] = pad_token_id(checkpoint, tokenizer, pad)
    return text_encoder(checkpoint, name, model_class, graph, outputs, compare, **more)


def _transformer(
    checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes, texts: Mapping[str, list[int]]
) -> Component:
    config = transformer_config(checkpoint)

    def describe(task: str, clip: Clip) -> TorchGraph | None:
        latents = latent_shape(facts, clip)
        if task == "i2v" and latents[0] == 1:
            return None  # the picture is the whole clip
        return _transformer_graph(config, facts, latents, texts)

    graphs, buckets = transformer_buckets("transformer", shapes, describe)
    return Component(
        name="transformer",
        folder="transformer",
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=loader(checkpoint, HunyuanVideoTransformer3DModel, "transformer"),
        compare=partial(parity.compare_transformer, graphs),
    )


def _transformer_graph(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    latents: tuple[int, int, int],
    texts: Mapping[str, list[int]],
) -> TorchGraph:
    channels, kind = facts["latent_channels"], config["image_condition_type"]
    conditions = {name: like(*shape) for name, shape in texts.items()}
    if config["guidance_embeds"]:
        conditions["guidance"] = like(1)
    if kind == "latent_concat":
        conditions["condition"] = like(1, config["in_channels"] - channels, *latents)
    elif kind == "token_replace":
        conditions["condition"] = like(1, channels, 1, *latents[1:])
    inputs = {"hidden_states": like(1, channels, *latents), "timestep": like(1), **conditions}
    rotary = BucketRotary(config, latents, texts["encoder_attention_mask"][1])
    return TorchGraph(partial(TransformerGraph, config, rotary, list(conditions)), inputs, ["model_output"])


def _vae_decoder(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    return tiled_decoder(
        checkpoint,
        AutoencoderKLHunyuanVideo,
        vae_config(checkpoint),
        VaeTileGraph,
        tiles=(_TILE, _OVERLAP),
        facts=facts,
        shapes=shapes,
        compare=parity.compare_decoder,
    )


def _vae_encoder(checkpoint: Checkpoint, shapes: Shapes) -> Component:
    config = vae_config(checkpoint)
    return frame_encoder(
        checkpoint, AutoencoderKLHunyuanVideo, config, VaeFrameEncoderGraph, shapes, parity.compare_encoder
    )
