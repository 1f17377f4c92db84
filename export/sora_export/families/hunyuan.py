"""The HunyuanVideo family (text to video and image to video): which modules become which graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModel
from torch import Tensor
from transformers import CLIPTextModel, LlamaModel, LlavaForConditionalGeneration, PreTrainedModel

from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Pair, RunGraph, Shapes
from sora_export.families import hunyuan_parity as parity
from sora_export.families.common import like, load_transformers, loader, read_pixel_input
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
from sora_export.families.tiling import tile_record
from sora_export.onnx_from_torch import TorchGraph
from sora_export.tokenizer import pad_token_id

__all__ = ["NAME", "PIPELINES", "components", "read_facts"]

NAME = "hunyuan"
PIPELINES = tuple(TASKS)

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
    inputs = _token_inputs(crop + tokens, "input_ids", "attention_mask")
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
    inputs = _token_inputs(length, "input_ids", "attention_mask")
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
    graph = TorchGraph(partial(ClipGraph, config), _token_inputs(_CLIP_TOKENS, "input_ids"), ["pooled_projections"])
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
    entry = {
        "graph": f"{name}.onnx",
        "max_sequence_length": graph.inputs["input_ids"].shape[1],
        "pad_token_id": pad_token_id(checkpoint, tokenizer, pad),
        "padding_side": "right",
        "overflow": "refuse",
        "clean": False,
        "template": "{}",
        "prompt": "whole",
        "inputs": list(graph.inputs),
        "outputs": outputs,
    }
    return Component(
        name=name,
        folder=name,
        graphs={f"{name}.onnx": graph},
        entry={**entry, **more},
        load_reference=partial(load_transformers, model_class, checkpoint.root / name),
        compare=compare,
        fingerprinted=True,
        tokenizer_folder=tokenizer,
    )


def _transformer(
    checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes, texts: Mapping[str, list[int]]
) -> Component:
    config = transformer_config(checkpoint)
    graphs, buckets = {}, []
    for task in shapes.tasks:
        for height, width in shapes.sizes:
            for num_frames in shapes.num_frames:
                latents = _latent_shape(facts, (num_frames, height, width))
                if task == "i2v" and latents[0] == 1:
                    continue  # the picture is the whole clip
                file = f"transformer.{height}x{width}x{num_frames}{'' if task == 't2v' else '.i2v'}.onnx"
                graphs[file] = _transformer_graph(config, facts, latents, texts)
                bucket = {"height": height, "width": width, "num_frames": num_frames, "task": task, "graph": file}
                buckets.append(bucket)
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
    config = vae_config(checkpoint)
    temporal, spatial = facts["temporal_stride"], facts["spatial_stride"]
    largest = (1 + _TILE[0] // temporal, _TILE[1] // spatial, _TILE[2] // spatial)
    overlap = (_OVERLAP[0] // temporal, _OVERLAP[1] // spatial, _OVERLAP[2] // spatial)
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        for num_frames in shapes.num_frames:
            tile = tile_record(_latent_shape(facts, (num_frames, height, width)), largest, overlap)
            t, h, w = tile["latent"]
            # Clips that are cut alike share a graph.
            file = f"vae_decoder.{h * spatial}x{w * spatial}x{1 + (t - 1) * temporal}.onnx"
            inputs = {"latents": like(1, config["latent_channels"], t, h, w)}
            graphs[file] = TorchGraph(partial(VaeTileGraph, config), inputs, ["frames"])
            bucket = {"height": height, "width": width, "num_frames": num_frames, "graph": file, "tile": tile}
            buckets.append(bucket)
    return Component(
        name="vae_decoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "tiled", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLHunyuanVideo, "vae"),
        compare=partial(parity.compare_decoder, graphs),
    )


def _vae_encoder(checkpoint: Checkpoint, shapes: Shapes) -> Component:
    config = vae_config(checkpoint)
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        file = f"vae_encoder.{height}x{width}.onnx"
        inputs = {"frames": like(1, config["in_channels"], 1, height, width)}
        graphs[file] = TorchGraph(partial(VaeFrameEncoderGraph, config), inputs, ["latents"])
        buckets.append({"height": height, "width": width, "num_frames": None, "first": file, "next": None})
    return Component(
        name="vae_encoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLHunyuanVideo, "vae"),
        compare=partial(parity.compare_encoder, graphs),
    )


def _token_inputs(length: int, *names: str) -> dict[str, Tensor]:
    return {name: like(1, length, dtype=torch.int64) for name in names}


def _latent_shape(facts: Mapping[str, Any], clip: tuple[int, int, int]) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip of (frames, height, width)."""
    frames, height, width = clip
    stride = facts["spatial_stride"]
    return (frames - 1) // facts["temporal_stride"] + 1, height // stride, width // stride
