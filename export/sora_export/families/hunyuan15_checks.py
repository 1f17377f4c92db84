"""Reads HunyuanVideo 1.5 configs and refuses those that do not fit, or that ask for what no graph here does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL.Image import Resampling

from sora_export.checkpoint import Checkpoint
from sora_runtime.errors import BundleError

TASKS = {"HunyuanVideo15Pipeline": "t2v", "HunyuanVideo15ImageToVideoPipeline": "i2v"}
"""What each pipeline makes a clip of."""

_CLASSES = {
    "text_encoder": "Qwen2_5_VLTextModel",
    "text_encoder_2": "T5EncoderModel",
    "transformer": "HunyuanVideo15Transformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo15",
    "guider": "ClassifierFreeGuidance",
}
_PLAIN_GUIDANCE = {"guidance_rescale": 0.0, "use_original_formulation": False, "start": 0.0, "stop": 1.0}


def check_checkpoint(checkpoint: Checkpoint, task: str, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    """Compares the configs with one another.

    Raises:
        BundleError: A part is missing, is of another class, or does not fit the others.
    """
    classes = dict(_CLASSES, image_encoder="SiglipVisionModel") if task == "i2v" else _CLASSES
    for folder, name in classes.items():
        if checkpoint.class_of(folder) != name:
            raise BundleError(
                f"{folder} of {checkpoint.root} is {checkpoint.class_of(folder)}, which a {checkpoint.pipeline} here "
                f"cannot use; give a checkpoint with a {name}"
            )
    _check_widths(checkpoint, task, transformer)
    _check_channels(checkpoint, vae, transformer)
    if task == "i2v" and transformer["use_meanflow"]:
        raise BundleError(
            f"the transformer of {checkpoint.root} has use_meanflow, which asks for the next timestep at every step; "
            "give a checkpoint without it"
        )
    if checkpoint.json("text_encoder/config.json").get("use_sliding_window"):
        raise BundleError(f"text_encoder of {checkpoint.root} has use_sliding_window, which cannot be built yet")


def _check_widths(checkpoint: Checkpoint, task: str, transformer: Mapping[str, Any]) -> None:
    widths = [
        ("text_embed_dim", "text_encoder", "hidden_size"),
        ("text_embed_2_dim", "text_encoder_2", "d_model"),
        *([("image_embed_dim", "image_encoder", "hidden_size")] if task == "i2v" else []),
    ]
    for key, folder, name in widths:
        given = checkpoint.json(f"{folder}/config.json").get(name)
        if transformer[key] != given:
            raise BundleError(
                f"the transformer of {checkpoint.root} has {key} = {transformer[key]}, but its {folder} gives {given}; "
                "the folders do not belong together"
            )


def _check_channels(checkpoint: Checkpoint, vae: Mapping[str, Any], transformer: Mapping[str, Any]) -> None:
    channels = vae["latent_channels"]
    # Latents, latents of the picture, and a mask.
    for key, count in {"in_channels": 2 * channels + 1, "out_channels": channels}.items():
        if transformer[key] != count:
            raise BundleError(
                f"the transformer of {checkpoint.root} has {key} = {transformer[key]}, but {checkpoint.pipeline} with "
                f"latents of {channels} channels needs {count}; the folders do not belong together"
            )
    halvings = len(vae["block_out_channels"]) - 1
    if vae["spatial_compression_ratio"] > 2**halvings:
        raise BundleError(
            f"{checkpoint.root}/vae/config.json says spatial_compression_ratio = {vae['spatial_compression_ratio']}, "
            f"but its layers make it {2**halvings} at most; correct the file"
        )


def read_guidance_scale(checkpoint: Checkpoint) -> float:
    """The scale of the checkpoint's guider; 1 where it is switched off.

    Raises:
        BundleError: The guider does more than classifier-free guidance with one scale at every step.
    """
    config = checkpoint.json("guider/guider_config.json")
    for key, plain in _PLAIN_GUIDANCE.items():
        if config.get(key, plain) != plain:
            raise BundleError(
                f"guider of {checkpoint.root} has {key} = {config[key]}; only plain classifier-free guidance can be "
                f"built, so set it to {plain}"
            )
    return float(config.get("guidance_scale", 7.5)) if config.get("enabled", True) else 1.0


def read_image_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the transformer takes its picture, for bundle.json's "facts".

    Raises:
        BundleError: The image processor makes pictures of another size than the image encoder takes.
    """
    processor = checkpoint.json("feature_extractor/preprocessor_config.json")
    size = processor.get("size", {"height": 224, "width": 224})
    expected = checkpoint.json("image_encoder/config.json").get("image_size", 224)
    if size != {"height": expected, "width": expected}:
        raise BundleError(
            f"feature_extractor of {checkpoint.root} makes pictures of {size}, but its image encoder takes {expected}x"
            f"{expected}; the folders do not belong together"
        )
    return {
        "policy": "concat",
        "video": "zeros_after",
        "mask": "after",
        "mask_channels": 1,
        "fit": "crop",
        "image_encoder": {
            "size": expected,
            "mean": list(processor.get("image_mean", (0.5, 0.5, 0.5))),
            "std": list(processor.get("image_std", (0.5, 0.5, 0.5))),
            "resample": Resampling(processor.get("resample", Resampling.BICUBIC)).name.lower(),
            "crop": None,
        },
    }
