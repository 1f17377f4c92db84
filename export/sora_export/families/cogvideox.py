"""The CogVideoX family (2B, 5B and 1.5, text to video and image to video): which modules become which graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from transformers import T5EncoderModel

from sora_export.adapter_modules import Renaming
from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Shapes
from sora_export.families import cogvideox_parity as parity
from sora_export.families.cogvideox_graphs import BucketPositions, BucketRotary, TransformerGraph, grid_of
from sora_export.families.cogvideox_vae import (
    FIRST_LATENTS,
    NEXT_LATENTS,
    VaeDecoderChunk,
    VaeEncoderFrame,
    cache_shapes,
    latents_like,
)
from sora_export.families.common import T5Graph, like, loader, with_defaults
from sora_export.families.components import Clip, text_encoder, token_inputs, transformer_buckets
from sora_export.onnx_from_torch import TorchGraph
from sora_runtime.errors import BundleError, InvalidRequest

NAME = "cogvideox"
_TASKS = {"CogVideoXPipeline": "t2v", "CogVideoXImageToVideoPipeline": "i2v"}
PIPELINES = tuple(_TASKS)
RENAMINGS: tuple[Renaming, ...] = ()
"""Its adapters come in diffusers' names."""
_CLASSES = {
    "text_encoder": "T5EncoderModel",
    "transformer": "CogVideoXTransformer3DModel",
    "vae": "AutoencoderKLCogVideoX",
}


def read_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads bundle.json's "facts"; what no config states are the defaults of the CogVideoX releases.

    Raises:
        BundleError: A component is missing, is of another class, or does not fit the others.
    """
    for folder, name in _CLASSES.items():
        if checkpoint.class_of(folder) != name:
            raise BundleError(
                f"{folder} of {checkpoint.root} is {checkpoint.class_of(folder)}, not {name}; "
                "give a CogVideoX checkpoint"
            )
    vae, transformer = _vae_config(checkpoint), _transformer_config(checkpoint)
    task = _TASKS[checkpoint.pipeline]
    _check_fit(checkpoint, task, vae, transformer)
    scheduler = checkpoint.json("scheduler/scheduler_config.json")
    patch_frames = transformer["patch_size_t"]
    image = {"policy": "concat", "video": "zeros_after", "mask": None, "mask_channels": 0, "image_encoder": None}
    return {
        "tasks": [task],
        "latent_channels": vae["latent_channels"],
        "spatial_stride": 2 ** (len(vae["block_out_channels"]) - 1),
        "temporal_stride": int(vae["temporal_compression_ratio"]),
        "patch_size": [patch_frames or 1, transformer["patch_size"], transformer["patch_size"]],
        "fps": 8.0 if patch_frames is None else 16.0,
        "max_sequence_length": transformer["max_text_seq_length"],
        "boundary_ratio": None,
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "embedded_guidance": None,
        "sigma_grid": None,
        "pad_latent_frames": patch_frames is not None,
        "image": image if task == "i2v" else None,
        "defaults": {"num_inference_steps": 50, "guidance_scale": 6.0, "negative_prompt": ""},
    }


def components(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
    """Describes the text encoder, the transformer, the VAE's decoder and, for image to video, its encoder.

    Raises:
        InvalidRequest: A shape that this checkpoint has no positions for or its VAE cannot decode.
    """
    _check_frames(shapes, facts)
    yield _text_encoder(checkpoint, facts)
    yield _transformer(checkpoint, facts, shapes)
    yield _vae_decoder(checkpoint, facts, shapes)
    if "i2v" in shapes.tasks:
        yield _vae_encoder(checkpoint, shapes)


def _check_frames(shapes: Shapes, facts: Mapping[str, Any]) -> None:
    """The VAE turns an even number n of latents into 4n frames, not 4(n-1)+1."""
    step = facts["temporal_stride"] * NEXT_LATENTS
    for num_frames in shapes.num_frames:
        if (num_frames - 1) % step:
            low = (num_frames - 1) // step * step + 1
            raise InvalidRequest(
                f"num_frames = {num_frames} is not {step}k+1, which is what CogVideoX's VAE decodes; "
                f"use {low} or {low + step}"
            )


def _text_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config = checkpoint.json("text_encoder/config.json")
    length = facts["max_sequence_length"]
    make = partial(T5Graph, T5EncoderModel, config)
    outputs = {"encoder_hidden_states": [1, length, config["d_model"]]}
    graph = TorchGraph(make, token_inputs(length, "input_ids"), list(outputs))
    compare = partial(parity.compare_text_encoder, config["vocab_size"], length)
    return text_encoder(checkpoint, "text_encoder", T5EncoderModel, graph, outputs, compare)


def _transformer(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _transformer_config(checkpoint)

    def describe(task: str, clip: Clip) -> TorchGraph:
        return _transformer_graph(config, facts, clip, task)

    graphs, buckets = transformer_buckets("transformer", shapes, describe)
    return Component(
        name="transformer",
        folder="transformer",
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=loader(checkpoint, CogVideoXTransformer3DModel, "transformer"),
        compare=partial(parity.compare_transformer, facts, buckets),
    )


def _transformer_graph(
    config: Mapping[str, Any], facts: Mapping[str, Any], clip: tuple[int, int, int], task: str
) -> TorchGraph:
    latent_shape = latent_shape_of(facts, clip)
    _check_positions(config, facts, clip, latent_shape)
    grid, length = grid_of(config, latent_shape), facts["max_sequence_length"]
    turns, learns = config["use_rotary_positional_embeddings"], config["use_learned_positional_embeddings"]
    trained = (latent_shape[0] - 1) * config["temporal_compression_ratio"] + 1 == config["sample_frames"]
    # As diffusers does: for another length than the learned one the positions are sinusoidal.
    learned = learns and trained
    rotary = BucketRotary(config, grid, length) if turns else None
    positions = BucketPositions(config, grid) if (learns or not turns) and not learned else None
    latents = like(1, facts["latent_channels"], *latent_shape)
    inputs = {
        "hidden_states": latents,
        "timestep": like(1),
        "encoder_hidden_states": like(1, length, config["text_embed_dim"]),
    }
    if task == "i2v":
        inputs["condition"] = latents
    make = partial(TransformerGraph, config, grid, rotary, positions, learned)
    return TorchGraph(make, inputs, ["model_output"])


def latent_shape_of(facts: Mapping[str, Any], clip: tuple[int, int, int]) -> tuple[int, int, int]:
    """Latent frames, filled up to whole patches, rows and columns of a clip (num_frames, height, width)."""
    num_frames, height, width = clip
    frames = (num_frames - 1) // facts["temporal_stride"] + 1
    stride, patch = facts["spatial_stride"], facts["patch_size"][0]
    return frames + -frames % patch, height // stride, width // stride


def _vae_decoder(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _vae_config(checkpoint)
    graphs: dict[str, TorchGraph] = {}
    buckets: list[dict[str, Any]] = []
    for height, width in shapes.sizes:
        name = f"vae_decoder.{height}x{width}"
        size = height // facts["spatial_stride"], width // facts["spatial_stride"]
        if 1 in shapes.num_frames:
            graphs[f"{name}x1.onnx"] = _decoder_graph(config, latents_like(config, 1, size), None)
            buckets.append({"height": height, "width": width, "num_frames": 1, "first": f"{name}x1.onnx", "next": None})
        if any(num_frames > 1 for num_frames in shapes.num_frames):
            files = {part: f"{name}.{part}.onnx" for part in ("first", "next")}
            first, later = (latents_like(config, count, size) for count in (FIRST_LATENTS, NEXT_LATENTS))
            caches = cache_shapes(config, first)
            graphs[files["first"]] = _decoder_graph(config, first, caches)
            graphs[files["next"]] = _decoder_graph(config, later, caches, given=True)
            buckets.append({"height": height, "width": width, "num_frames": None, **files})
    return Component(
        name="vae_decoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLCogVideoX, "vae"),
        compare=partial(parity.compare_decoder, facts, buckets),
    )


def _decoder_graph(
    config: Mapping[str, Any], latents: torch.Tensor, caches: list[tuple[int, ...]] | None, given: bool = False
) -> TorchGraph:
    """A chunk that leaves those caches (None: it is the whole clip) and, if `given`, begins with them."""
    inputs = {"latents": latents}
    if given:
        inputs |= {f"cache_in.{i}": like(*shape) for i, shape in enumerate(caches or [])}
    outputs = ["frames", *(f"cache_out.{i}" for i in range(len(caches or [])))]
    return TorchGraph(partial(VaeDecoderChunk, config, whole=caches is None), inputs, outputs)


def _vae_encoder(checkpoint: Checkpoint, shapes: Shapes) -> Component:
    config = _vae_config(checkpoint)
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        file = f"vae_encoder.{height}x{width}.first.onnx"
        graphs[file] = TorchGraph(
            partial(VaeEncoderFrame, config), {"frames": like(1, config["in_channels"], 1, height, width)}, ["latents"]
        )
        buckets.append({"height": height, "width": width, "first": file, "next": None})
    return Component(
        name="vae_encoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, AutoencoderKLCogVideoX, "vae"),
        compare=partial(parity.compare_encoder, buckets),
    )


def _vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return with_defaults(AutoencoderKLCogVideoX, checkpoint.json("vae/config.json"))


def _transformer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return with_defaults(CogVideoXTransformer3DModel, checkpoint.json("transformer/config.json"))


def _check_fit(checkpoint: Checkpoint, task: str, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    root, channels = checkpoint.root, vae["latent_channels"]
    wanted = {"in_channels": channels * (2 if task == "i2v" else 1), "out_channels": channels}
    for key, count in wanted.items():
        if transformer[key] != count:
            raise BundleError(
                f"the transformer of {root} has {key} = {transformer[key]}, but {checkpoint.pipeline} with latents of "
                f"{channels} channels needs {count}; the folders do not belong together"
            )
    text_dim = checkpoint.json("text_encoder/config.json").get("d_model")
    if transformer["text_embed_dim"] != text_dim:
        raise BundleError(
            f"the transformer of {root} takes text of {transformer['text_embed_dim']} channels, but its text encoder "
            f"gives {text_dim}; the folders do not belong together"
        )
    if vae["use_quant_conv"] or vae["use_post_quant_conv"]:
        raise BundleError(f"{root}/vae/config.json asks for a (post_)quant_conv, which no CogVideoX release has")
    adds = not transformer["use_rotary_positional_embeddings"] or transformer["use_learned_positional_embeddings"]
    if transformer["patch_size_t"] is not None and adds:
        raise BundleError(
            f"{root}/transformer/config.json has both a patch_size_t and positions that are added; "
            "CogVideoX 1.5 only turns queries and keys, so correct the file"
        )


def _check_positions(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    clip: tuple[int, int, int],
    latent_shape: tuple[int, int, int],
) -> None:
    """Refuses what diffusers refuses: learned positions are of one size, those of 1.5 have a largest one."""
    stride = facts["spatial_stride"]
    sample = config["sample_height"], config["sample_width"]
    known = f"{sample[0] * stride}x{sample[1] * stride}"
    if config["use_learned_positional_embeddings"] and latent_shape[1:] != sample:
        raise InvalidRequest(
            f"{clip[1]}x{clip[2]} cannot be built, as the transformer learned its positions for {known} alone; use that"
        )
    length = facts["max_sequence_length"]
    if config["use_learned_positional_embeddings"] and length != config["max_text_seq_length"]:
        raise InvalidRequest(
            f"max_sequence_length = {length}, but the transformer learned its positions for prompts of "
            f"{config['max_text_seq_length']} tokens; remove it from sora_defaults.json"
        )
    larger = any(size > most for size, most in zip(latent_shape[1:], sample, strict=True))
    if config["patch_size_t"] is not None and larger:
        raise InvalidRequest(
            f"{clip[1]}x{clip[2]} cannot be built, as the transformer has positions for up to {known}; "
            "use a smaller size"
        )
