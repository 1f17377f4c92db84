"""The LTX-Video family (from text and from a picture, with the same weights): which modules become which graphs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel
from transformers import T5EncoderModel

from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Shapes, original_names
from sora_export.families import ltx_parity as parity
from sora_export.families.common import like, loader, with_defaults
from sora_export.families.components import (
    Clip,
    frame_encoder,
    latent_shape,
    text_encoder,
    token_inputs,
    transformer_buckets,
)
from sora_export.families.ltx_graphs import BucketRotary, TextEncoderGraph, TransformerGraph
from sora_export.families.ltx_vae import VaeFrameEncoderGraph, VaeTileGraph
from sora_export.families.tiling import tiled_decoder
from sora_export.onnx_from_torch import TorchGraph
from sora_runtime.errors import BundleError

NAME = "ltx"
PIPELINES = ("LTXPipeline", "LTXImageToVideoPipeline")
RENAMINGS = original_names.LTX
_CLASSES = {
    "text_encoder": "T5EncoderModel",
    "transformer": "LTXVideoTransformer3DModel",
    "vae": "AutoencoderKLLTXVideo",
}

_TILE = (64, 512, 512)
"""Frames after the first, rows and columns of the largest tile. diffusers, where it cuts in time, takes 16 frames:
blended over 8, 161 frames then decode 60 latent frames in place of 21; with tiles of 64 frames it is 27."""
_OVERLAP = (8, 64, 64)
"""Frames, rows and columns that two tiles share: those of diffusers."""


def read_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads bundle.json's "facts" and "tasks"; what no config states are the defaults of LTXPipeline.

    Raises:
        BundleError: A component is missing, is of another class, or does not fit the others.
    """
    for folder, name in _CLASSES.items():
        if checkpoint.class_of(folder) != name:
            raise BundleError(
                f"{folder} of {checkpoint.root} is {checkpoint.class_of(folder)}, not {name}; "
                "give an LTX-Video checkpoint"
            )
    vae, transformer = _vae_config(checkpoint), _transformer_config(checkpoint)
    _check_fit(checkpoint, vae, transformer)
    scheduler = checkpoint.json("scheduler/scheduler_config.json")
    spatial, temporal = _strides(vae)
    return {
        "tasks": ["t2v", "i2v"],
        "latent_channels": vae["latent_channels"],
        "spatial_stride": spatial,
        "temporal_stride": temporal,
        "patch_size": [1, 1, 1],
        "fps": 25.0,
        "max_sequence_length": 128,
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "boundary_ratio": None,
        "embedded_guidance": None,
        "sigma_grid": "uniform",
        "pad_latent_frames": False,
        "image": {
            "policy": "first_frame",
            "video": "first_only",
            "mask": None,
            "mask_channels": 0,
            "image_encoder": None,
        },
        "defaults": {"num_inference_steps": 50, "guidance_scale": 3.0, "negative_prompt": ""},
    }


def components(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
    """Describes the text encoder, the transformer and the VAE; its encoder only where pictures are given."""
    yield _text_encoder(checkpoint, facts)
    yield _transformer(checkpoint, facts, shapes)
    yield _vae_decoder(checkpoint, facts, shapes)
    if "i2v" in shapes.tasks:
        yield _vae_encoder(checkpoint, shapes)


def _text_encoder(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> Component:
    config = checkpoint.json("text_encoder/config.json")
    length = facts["max_sequence_length"]
    outputs = {"encoder_hidden_states": [1, length, config["d_model"]], "encoder_attention_mask": [1, length]}
    graph = TorchGraph(partial(TextEncoderGraph, config), token_inputs(length), list(outputs))
    compare = partial(parity.compare_text_encoder, config["vocab_size"], length)
    return text_encoder(checkpoint, "text_encoder", T5EncoderModel, graph, outputs, compare, overflow="truncate")


def _transformer(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    config = _transformer_config(checkpoint)

    def describe(task: str, clip: Clip) -> TorchGraph | None:
        latents = latent_shape(facts, clip)
        if task == "i2v" and latents[0] == 1:
            return None  # the picture is the whole clip
        return _transformer_graph(config, facts, latents, image=task == "i2v")

    graphs, buckets = transformer_buckets("transformer", shapes, describe)
    return Component(
        name="transformer",
        folder="transformer",
        graphs=graphs,
        entry={"buckets": buckets},
        load_reference=loader(checkpoint, LTXVideoTransformer3DModel, "transformer"),
        compare=partial(parity.compare_transformer, graphs, _rope_scale(facts)),
    )


def _transformer_graph(
    config: Mapping[str, Any], facts: Mapping[str, Any], latents: tuple[int, int, int], *, image: bool
) -> TorchGraph:
    channels, length = facts["latent_channels"], facts["max_sequence_length"]
    inputs = {
        "hidden_states": like(1, channels, *latents),
        "timestep": like(1),
        "encoder_hidden_states": like(1, length, config["caption_channels"]),
        "encoder_attention_mask": like(1, length),
    }
    if image:
        inputs["condition"] = like(1, channels, 1, *latents[1:])
    rotary = BucketRotary(config, latents, _rope_scale(facts))
    return TorchGraph(partial(TransformerGraph, config, rotary, image), inputs, ["model_output"])


def _rope_scale(facts: Mapping[str, Any]) -> tuple[float, float, float]:
    """The seconds of a latent frame and the pixels of a latent row and column: LTXPipeline's micro-conditions."""
    return facts["temporal_stride"] / facts["fps"], facts["spatial_stride"], facts["spatial_stride"]


def _vae_decoder(checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Component:
    return tiled_decoder(
        checkpoint,
        AutoencoderKLLTXVideo,
        _vae_config(checkpoint),
        VaeTileGraph,
        tiles=(_TILE, _OVERLAP),
        facts=facts,
        shapes=shapes,
        compare=parity.compare_decoder,
    )


def _vae_encoder(checkpoint: Checkpoint, shapes: Shapes) -> Component:
    config = _vae_config(checkpoint)
    return frame_encoder(
        checkpoint, AutoencoderKLLTXVideo, config, VaeFrameEncoderGraph, shapes, parity.compare_encoder
    )


def _vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return with_defaults(AutoencoderKLLTXVideo, checkpoint.json("vae/config.json"))


def _transformer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    return with_defaults(LTXVideoTransformer3DModel, checkpoint.json("transformer/config.json"))


def _strides(vae: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels and frames of a latent, as AutoencoderKLLTXVideo derives them where the config is silent."""
    doubled = 2 ** sum(vae["spatio_temporal_scaling"])
    spatial, temporal = vae["spatial_compression_ratio"], vae["temporal_compression_ratio"]
    return (
        vae["patch_size"] * doubled if spatial is None else spatial,
        vae["patch_size_t"] * doubled if temporal is None else temporal,
    )


def _check_fit(checkpoint: Checkpoint, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    root = checkpoint.root
    doubled = 2 ** sum(vae["decoder_spatio_temporal_scaling"])
    made = (vae["patch_size"] * doubled, vae["patch_size_t"] * doubled)
    if _strides(vae) != made:
        raise BundleError(
            f"{root}/vae/config.json says that a latent is {_strides(vae)[0]} pixels and {_strides(vae)[1]} frames, "
            f"but its decoder makes {made[0]} and {made[1]} of it; correct the file"
        )
    patch = (transformer["patch_size_t"], transformer["patch_size"])
    if patch != (1, 1):
        raise BundleError(
            f"{root}/transformer/config.json has patches of {patch[0]} frames and {patch[1]} rows and columns, which "
            "LTXPipeline itself cannot run; give a transformer with patch_size = 1 and patch_size_t = 1"
        )
    channels = {
        vae["latent_channels"],
        transformer["in_channels"],
        transformer["out_channels"] or vae["latent_channels"],
    }
    if len(channels) != 1:
        raise BundleError(
            f"the transformer of {root} takes {transformer['in_channels']} channels and gives "
            f"{transformer['out_channels']}, but latents have {vae['latent_channels']}; "
            "the folders do not belong together"
        )
    text = checkpoint.json("text_encoder/config.json")
    if transformer["caption_channels"] != text.get("d_model"):
        raise BundleError(
            f"the transformer of {root} takes embeddings of {transformer['caption_channels']}, but its text encoder "
            f"gives {text.get('d_model')}; the folders do not belong together"
        )
