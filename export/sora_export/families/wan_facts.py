"""What the configs of a Wan checkpoint say: facts for bundle.json, and whether the parts fit together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionConfig

from sora_export.checkpoint import Checkpoint
from sora_export.families.common import read_pixel_input, with_defaults
from sora_runtime.errors import BundleError

TEXT_LENGTH = 512
"""Tokens of a prompt in the Wan release; the attention of its image-to-video models counts on it."""

_CLASSES = {
    "text_encoder": "UMT5EncoderModel",
    "transformer": "WanTransformer3DModel",
    "vae": "AutoencoderKLWan",
}


def read_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads bundle.json's "facts" and "tasks"; what no config states are the defaults of the Wan release.

    Raises:
        BundleError: A component is missing, is of another class, or does not fit the others.
    """
    for folder, name in _CLASSES.items():
        if checkpoint.class_of(folder) != name:
            raise BundleError(
                f"{folder} of {checkpoint.root} is {checkpoint.class_of(folder)}, not {name}; "
                "give a Wan checkpoint as diffusers saves it"
            )
    vae = vae_config(checkpoint)
    scheduler = checkpoint.json("scheduler/scheduler_config.json")
    expand_timesteps = bool(checkpoint.index.get("expand_timesteps", False))
    tasks = _tasks(checkpoint)
    _check_strides(checkpoint, vae)
    for folder in transformer_folders(checkpoint):
        _check_transformer(checkpoint, folder, vae, tasks)
    transformer = transformer_config(checkpoint, "transformer")
    return {
        "tasks": tasks,
        "latent_channels": vae["z_dim"],
        "spatial_stride": vae["scale_factor_spatial"],
        "temporal_stride": vae["scale_factor_temporal"],
        "patch_size": list(transformer["patch_size"]),
        "fps": 24.0 if expand_timesteps else 16.0,
        "latents_mean": vae["latents_mean"],
        "latents_std": vae["latents_std"],
        "max_sequence_length": TEXT_LENGTH,
        "boundary_ratio": checkpoint.index.get("boundary_ratio"),
        "expand_timesteps": expand_timesteps,
        "num_train_timesteps": scheduler.get("num_train_timesteps", 1000),
        "embedded_guidance": None,
        "sigma_grid": None,
        "pad_latent_frames": False,
        "image": _image(checkpoint, vae, transformer) if "i2v" in tasks else None,
        "defaults": {"num_inference_steps": 50, "guidance_scale": 5.0, "negative_prompt": ""},
    }


def vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """vae/config.json, complete."""
    return with_defaults(AutoencoderKLWan, checkpoint.json("vae/config.json"))


def transformer_config(checkpoint: Checkpoint, folder: str) -> dict[str, Any]:
    """The config.json of a transformer, complete."""
    return with_defaults(WanTransformer3DModel, checkpoint.json(f"{folder}/config.json"))


def vision_config(checkpoint: Checkpoint) -> CLIPVisionConfig:
    """image_encoder/config.json, complete."""
    return CLIPVisionConfig.from_dict(checkpoint.json("image_encoder/config.json"))


def transformer_folders(checkpoint: Checkpoint) -> list[str]:
    """One transformer, or the experts for high and for low noise."""
    return [folder for folder in ("transformer", "transformer_2") if checkpoint.class_of(folder) is not None]


def _tasks(checkpoint: Checkpoint) -> list[str]:
    """Both where the first latent frame may be given (TI2V); else what the pipeline is for."""
    if checkpoint.index.get("expand_timesteps", False):
        return ["t2v", "i2v"]
    return ["i2v"] if checkpoint.pipeline == "WanImageToVideoPipeline" else ["t2v"]


def _image(checkpoint: Checkpoint, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> dict[str, Any]:
    """How the picture goes in: as WanImageToVideoPipeline.prepare_latents does it."""
    if checkpoint.index.get("expand_timesteps", False):
        first = {"policy": "first_frame", "video": "first_only", "mask": None, "mask_channels": 0}
        return {**first, "image_encoder": None}
    return {
        "policy": "concat",
        "video": "encode_zeros",
        "mask": "before",
        "mask_channels": vae["scale_factor_temporal"],
        "image_encoder": _image_encoder(checkpoint) if transformer["image_dim"] is not None else None,
    }


def _image_encoder(checkpoint: Checkpoint) -> dict[str, Any]:
    name = checkpoint.class_of("image_encoder")
    if name != "CLIPVisionModel":
        raise BundleError(
            f"the transformer of {checkpoint.root} takes image embeddings, but image_encoder is {name}, not "
            "CLIPVisionModel; download the checkpoint again"
        )
    pixels = read_pixel_input(checkpoint, "image_processor")
    size = vision_config(checkpoint).image_size
    if pixels["size"] != size:
        raise BundleError(
            f"image_processor of {checkpoint.root} makes pictures of {pixels['size']} pixels, but its image_encoder "
            f"takes {size}; the folders do not belong together"
        )
    return pixels


def _check_strides(checkpoint: Checkpoint, vae: Mapping[str, Any]) -> None:
    strides = {
        "scale_factor_spatial": 2 ** (len(vae["dim_mult"]) - 1) * (vae["patch_size"] or 1),
        "scale_factor_temporal": 2 ** sum(vae["temperal_downsample"]),
    }
    for key, stride in strides.items():
        if vae[key] != stride:
            raise BundleError(
                f"{checkpoint.root}/vae/config.json says {key} = {vae[key]}, but its layers make it {stride}; "
                "correct the file"
            )


def _check_transformer(checkpoint: Checkpoint, folder: str, vae: Mapping[str, Any], tasks: list[str]) -> None:
    transformer, root = transformer_config(checkpoint, folder), checkpoint.root
    channels, concat = vae["z_dim"], "t2v" not in tasks
    wanted = 2 * channels + vae["scale_factor_temporal"] if concat else channels
    if transformer["in_channels"] != wanted:
        added = f", {wanted} with mask and picture" if concat else ""
        raise BundleError(
            f"{folder} of {root} takes {transformer['in_channels']} channels, but latents have {channels}{added}; "
            "the folders or the pipeline named in model_index.json do not belong together"
        )
    if transformer["image_dim"] is not None and not concat:
        raise BundleError(
            f"{folder} of {root} takes image embeddings of {transformer['image_dim']}, but a "
            f"{checkpoint.pipeline} has none; correct the pipeline in model_index.json"
        )
    if transformer["pos_embed_seq_len"] is not None:
        raise BundleError(
            f"{folder} of {root} makes a clip between a first and a last picture, which cannot be built yet; "
            "give a checkpoint that takes the first"
        )
    text_dim = checkpoint.json("text_encoder/config.json").get("d_model")
    if transformer["text_dim"] != text_dim:
        raise BundleError(
            f"{folder} of {root} takes prompt_embeds of {transformer['text_dim']}, but its text encoder gives "
            f"{text_dim}; the folders do not belong together"
        )
    patch = list(transformer["patch_size"])
    if not math.prod(patch) or (not concat and "i2v" in tasks and patch[0] != 1):
        raise BundleError(f"{root}/{folder}/config.json has patch_size {patch}; correct the file")
