"""The HunyuanVideo 1.5 family (text to video and image to video): which modules become which graphs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo15, HunyuanVideo15Pipeline, HunyuanVideo15Transformer3DModel
from transformers import Qwen2_5_VLTextModel, SiglipVisionModel, T5EncoderModel

from sora_export.adapter_modules import Renaming
from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Shapes
from sora_export.families import hunyuan15_parity as parity
from sora_export.families.common import like, load_transformers, loader, with_defaults
from sora_export.families.components import Clip, latent_shape, text_encoder, token_inputs, transformer_buckets
from sora_export.families.hunyuan15_checks import TASKS, check_checkpoint, read_guidance_scale, read_image_facts
from sora_export.families.hunyuan15_graphs import TransformerGraph
from sora_export.families.hunyuan15_text import (
    ChatEncoderGraph,
    ChatPositions,
    GlyphEncoderGraph,
    ImageEncoderGraph,
    chat_template,
)
from sora_export.families.hunyuan15_vae import VaeDecoderChunk, VaeEncoderFrame, cache_shapes
from sora_export.families.hunyuan_graphs import BucketRotary
from sora_export.onnx_from_torch import TorchGraph

NAME = "hunyuan15"
PIPELINES = tuple(TASKS)
RENAMINGS: tuple[Renaming, ...] = ()
"""Its adapters come in diffusers' names."""


def _pipeline_default(method: str, parameter: str) -> Any:
    """What diffusers' pipeline uses where no config says it."""
    return inspect.signature(getattr(HunyuanVideo15Pipeline, method)).parameters[parameter].default


_CHAT = partial(_pipeline_default, "_get_mllm_prompt_embeds")
_GLYPH_TOKENS: int = _pipeline_default("_get_byt5_prompt_embeds", "tokenizer_max_length")


def read_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads bundle.json's "facts"; what no config states are the defaults of diffusers' pipeline.

    Raises:
        BundleError: A component is missing, is of another class, or does not fit the others; or the guider is
            no plain classifier-free guidance.
    """
    task = TASKS[checkpoint.pipeline]
    vae, transformer = _vae_config(checkpoint), _transformer_config(checkpoint)
    check_checkpoint(checkpoint, task, vae, transformer)
    scheduler = checkpoint.json("scheduler/scheduler_config.json")
    return {
        "tasks": [task],
        "latent_channels": vae["latent_channels"],
        "spatial_stride": vae["spatial_compression_ratio"],
        "temporal_stride": vae["temporal_compression_ratio"],
        "patch_size": [transformer["patch_size_t"], transformer["patch_size"], transformer["patch_size"]],
        "fps": 24.0,
        "max_sequence_length": _CHAT("tokenizer_max_length"),
        "boundary_ratio": None,
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "embedded_guidance": None,
        "sigma_grid": "uniform",
        "pad_latent_frames": False,
        "image": read_image_facts(checkpoint) if task == "i2v" else None,
        "defaults": {
            "num_inference_steps": 50,
            "guidance_scale": read_guidance_scale(checkpoint),
            "negative_prompt": "",
        },
    }


def components(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
    """Describes the text encoders, the transformer, the VAE's decoder and, for image to video, both encoders."""
    yield _text_encoder(checkpoint, facts)
    yield _glyph_encoder(checkpoint)
    if "i2v" in shapes.tasks:
        yield _image_encoder(checkpoint)
    yield _transformer(checkpoint, facts, shapes)
    yield _vae_decoder(checkpoint, facts, shapes)
    if "i2v" in shapes.tasks:
        yield _vae_encoder(checkpoint, shapes)


def _text_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config = checkpoint.json("text_encoder/config.json")
    length, crop, skip = facts["max_sequence_length"], _CHAT("crop_start"), _CHAT("num_hidden_layers_to_skip")
    template, pad = chat_template(checkpoint.root / "tokenizer", _CHAT("system_message"))
    outputs = {"encoder_hidden_states": [1, length, config["hidden_size"]], "encoder_attention_mask": [1, length]}
    make = partial(ChatEncoderGraph, config, ChatPositions(config, crop + length), crop, skip)
    return text_encoder(
        checkpoint,
        "text_encoder",
        Qwen2_5_VLTextModel,
        TorchGraph(make, token_inputs(crop + length), list(outputs)),
        outputs,
        partial(parity.compare_text_encoder, config["vocab_size"], crop + length, crop, skip),
        pad_token_id=pad,
        overflow="truncate",
        template=template,
        empty=" ",
    )


def _glyph_encoder(checkpoint: Checkpoint) -> Component:
    config = checkpoint.json("text_encoder_2/config.json")
    length = _GLYPH_TOKENS
    outputs = {"encoder_hidden_states_2": [1, length, config["d_model"]], "encoder_attention_mask_2": [1, length]}
    return text_encoder(
        checkpoint,
        "text_encoder_2",
        T5EncoderModel,
        TorchGraph(partial(GlyphEncoderGraph, config), token_inputs(length), list(outputs)),
        outputs,
        partial(parity.compare_glyph_encoder, config["vocab_size"], length),
        overflow="truncate",
        prompt="quoted",
    )


def _image_encoder(checkpoint: Checkpoint) -> Component:
    config = checkpoint.json("image_encoder/config.json")
    size = config.get("image_size", 224)
    graph = TorchGraph(partial(ImageEncoderGraph, config), {"pixel_values": like(1, 3, size, size)}, ["image_embeds"])
    return Component(
        name="image_encoder",
        folder="image_encoder",
        graphs={"image_encoder.onnx": graph},
        entry={"graph": "image_encoder.onnx"},
        load_reference=partial(load_transformers, SiglipVisionModel, checkpoint.root / "image_encoder"),
        compare=partial(parity.compare_image_encoder, size),
        fingerprinted=True,
    )


def _transformer(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _transformer_config(checkpoint)
    image_tokens = None
    if "i2v" in shapes.tasks:
        vision = checkpoint.json("image_encoder/config.json")
        image_tokens = (vision.get("image_size", 224) // vision.get("patch_size", 16)) ** 2

    def describe(task: str, clip: Clip) -> TorchGraph:
        return _transformer_graph(config, facts, latent_shape(facts, clip), image_tokens if task == "i2v" else None)

    graphs, buckets = transformer_buckets("transformer", shapes, describe)
    return Component(
        name="transformer",
        folder="transformer",
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=loader(checkpoint, HunyuanVideo15Transformer3DModel, "transformer"),
        compare=partial(parity.compare_transformer, config, graphs),
    )


def _transformer_graph(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    latent_shape: tuple[int, int, int],
    image_tokens: int | None,
) -> TorchGraph:
    length = facts["max_sequence_length"]
    inputs = {
        "hidden_states": like(1, facts["latent_channels"], *latent_shape),
        "timestep": like(1),
        "encoder_hidden_states": like(1, length, config["text_embed_dim"]),
        "encoder_attention_mask": like(1, length),
        "encoder_hidden_states_2": like(1, _GLYPH_TOKENS, config["text_embed_2_dim"]),
        "encoder_attention_mask_2": like(1, _GLYPH_TOKENS),
    }
    if image_tokens is not None:
        inputs["condition"] = like(1, facts["latent_channels"] + 1, *latent_shape)
        inputs["image_embeds"] = like(1, image_tokens, config["image_embed_dim"])
    make = partial(TransformerGraph, config, BucketRotary(config, latent_shape), list(inputs)[2:])
    return TorchGraph(make, inputs, ["model_output"])


def _vae_decoder(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _vae_config(checkpoint)
    graphs: dict[str, TorchGraph] = {}
    buckets: list[dict[str, Any]] = []
    for height, width in shapes.sizes:
        for num_frames in shapes.num_frames:
            frames, *size = latent_shape(facts, (num_frames, height, width))
            caches = cache_shapes(config, frames, (size[0], size[1]))
            name = f"vae_decoder.{height}x{width}x{num_frames}"
            latents = like(1, config["latent_channels"], 1, *size)
            make = partial(VaeDecoderChunk, config, frames)
            outputs = ["frames", *(f"cache_out.{i}" for i in range(len(caches)))]
            files: dict[str, str | None] = {"first": f"{name}.first.onnx", "next": None}
            graphs[f"{name}.first.onnx"] = TorchGraph(make, {"latents": latents}, outputs)
            if caches:
                files["next"] = f"{name}.next.onnx"
                past = {f"cache_in.{i}": like(*shape) for i, shape in enumerate(caches)}
                graphs[f"{name}.next.onnx"] = TorchGraph(make, {"latents": latents, **past}, outputs)
            buckets.append({"height": height, "width": width, "num_frames": num_frames, **files})
    return Component(
        name="vae_decoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLHunyuanVideo15, "vae"),
        compare=partial(parity.compare_decoder, facts, buckets),
    )


def _vae_encoder(checkpoint: Checkpoint, shapes: Shapes) -> Component:
    config = _vae_config(checkpoint)
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        file = f"vae_encoder.{height}x{width}.first.onnx"
        inputs = {"frames": like(1, config["in_channels"], 1, height, width)}
        graphs[file] = TorchGraph(partial(VaeEncoderFrame, config), inputs, ["latents"])
        buckets.append({"height": height, "width": width, "num_frames": None, "first": file, "next": None})
    return Component(
        name="vae_encoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLHunyuanVideo15, "vae"),
        compare=partial(parity.compare_encoder, buckets),
    )


def _vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return with_defaults(AutoencoderKLHunyuanVideo15, checkpoint.json("vae/config.json"))


def _transformer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return with_defaults(HunyuanVideo15Transformer3DModel, checkpoint.json("transformer/config.json"))
