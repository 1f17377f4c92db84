"""What the configs of a HunyuanVideo checkpoint say: facts for bundle.json, and whether the parts fit together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from tokenizers import Tokenizer

from sora_export.checkpoint import Checkpoint
from sora_export.families.common import read_pixel_input, with_defaults
from sora_export.families.hunyuan_text import SKIPPED_LAYERS, ImageTemplate, llava_config
from sora_export.tokenizer import token_id, tokenizer_settings
from sora_runtime.errors import BundleError

TASKS = {"HunyuanVideoPipeline": "t2v", "HunyuanVideoImageToVideoPipeline": "i2v"}
"""What each pipeline makes a clip of."""

_CLASSES = {
    "text_encoder_2": "CLIPTextModel",
    "transformer": "HunyuanVideoTransformer3DModel",
    "vae": "AutoencoderKLHunyuanVideo",
}
_TEXT_ENCODERS = {"t2v": "LlamaModel", "i2v": "LlavaForConditionalGeneration"}
_INTERLEAVE = {"latent_concat": 2, "token_replace": 4}
"""Every how many of the picture's tokens the transformer reads, by `image_condition_type`."""
_NOISE_SHARE = 0.999
"""HunyuanVideoImageToVideoPipeline.prepare_latents: the rest of the first latents, in all frames, is the picture's."""
_DROPPED_FRAMES = {"latent_concat": 4, "token_replace": 0}
"""Frames that HunyuanVideoImageToVideoPipeline decodes and throws away."""


@dataclass(frozen=True)
class PromptTemplate:
    """The words around a prompt, and how many tokens the chat model reads and leaves."""

    text: str
    crop_start: int
    picture_tokens: int
    """That the vision tower puts in the place of `<image>`; 0 without a picture."""


def read_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Reads bundle.json's "facts" and "tasks"; what no config states are the defaults of diffusers' pipelines.

    Frames per second are those of Tencent's release (fps=24 in its sample_video.py).

    Raises:
        BundleError: A component is missing, is of another class, or does not fit the others.
    """
    task = TASKS[checkpoint.pipeline]
    for folder, name in {**_CLASSES, "text_encoder": _TEXT_ENCODERS[task]}.items():
        if checkpoint.class_of(folder) != name:
            raise BundleError(
                f"{folder} of {checkpoint.root} is {checkpoint.class_of(folder)}, which a {checkpoint.pipeline} here "
                f"cannot use; give a checkpoint with a {name}"
            )
    vae, transformer = vae_config(checkpoint), transformer_config(checkpoint)
    _check_transformer(checkpoint, task, vae, transformer)
    _check_texts(checkpoint, task, transformer)
    embedded = bool(transformer["guidance_embeds"])
    return {
        "tasks": [task],
        "latent_channels": vae["latent_channels"],
        "spatial_stride": vae["spatial_compression_ratio"],
        "temporal_stride": vae["temporal_compression_ratio"],
        "patch_size": patch_size(transformer),
        "fps": 24.0,
        "max_sequence_length": _default("_get_llama_prompt_embeds", "max_sequence_length"),
        "boundary_ratio": None,
        "num_train_timesteps": checkpoint.json("scheduler/scheduler_config.json").get("num_train_timesteps", 1000),
        "embedded_guidance": 1000.0 if embedded else None,
        "sigma_grid": "uniform",
        "pad_latent_frames": False,
        "image": _image(transformer) if task == "i2v" else None,
        "defaults": {
            "num_inference_steps": _default("__call__", "num_inference_steps"),
            # Without an embedding of it, the released weights are distilled for no guidance at all.
            "guidance_scale": _default("__call__", "guidance_scale") if embedded else 1.0,
            "negative_prompt": "",
        },
    }


def vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """vae/config.json, complete."""
    return with_defaults(AutoencoderKLHunyuanVideo, checkpoint.json("vae/config.json"))


def transformer_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """transformer/config.json, complete."""
    return with_defaults(HunyuanVideoTransformer3DModel, checkpoint.json("transformer/config.json"))


def patch_size(transformer: Mapping[str, Any]) -> list[int]:
    """Latent frames, rows and columns of a token."""
    return [transformer["patch_size_t"], transformer["patch_size"], transformer["patch_size"]]


def prompt_template(task: str) -> PromptTemplate:
    """The default template of the task's pipeline."""
    module = pipeline_hunyuan_video if task == "t2v" else pipeline_hunyuan_video_image2video
    template: Mapping[str, Any] = module.DEFAULT_PROMPT_TEMPLATE
    return PromptTemplate(template["template"], template["crop_start"], template.get("image_emb_len", 0))


def image_template(checkpoint: Checkpoint) -> ImageTemplate:
    """Where the picture's tokens and the assistant's header stand in a prompt.

    Raises:
        BundleError: The tokenizer does not read the template as the pipeline expects it.
    """
    template = pipeline_hunyuan_video_image2video.DEFAULT_PROMPT_TEMPLATE
    start, root = template["image_emb_start"], checkpoint.root
    image_token = llava_config(checkpoint.json("text_encoder/config.json")).image_token_id
    ids = Tokenizer.from_file(str(root / "tokenizer/tokenizer.json")).encode(template["template"]).ids
    if [index for index, token in enumerate(ids) if token == image_token] != [start]:
        raise BundleError(
            f"the tokenizer of {root} puts the pipeline's <image> ({image_token}) not at position {start}; the folders "
            "do not belong together"
        )
    end_header = token_id(checkpoint, "tokenizer", "<|end_header_id|>")
    if end_header is None:
        raise BundleError(f"the tokenizer of {root} has no <|end_header_id|>, by which the pipeline cuts its prompts")
    kind = transformer_config(checkpoint)["image_condition_type"]
    return ImageTemplate(start, template["crop_start"], end_header, _INTERLEAVE[kind])


def _default(method: str, parameter: str) -> Any:
    """What diffusers' pipeline uses where no config says it."""
    return inspect.signature(getattr(HunyuanVideoPipeline, method)).parameters[parameter].default


def _image(transformer: Mapping[str, Any]) -> dict[str, Any]:
    """How the picture goes in: as HunyuanVideoImageToVideoPipeline does it."""
    kind = transformer["image_condition_type"]
    concat = kind == "latent_concat"
    return {
        "policy": "concat" if concat else "first_frame",
        "video": "zeros_after" if concat else "first_only",
        "mask": "after" if concat else None,
        "mask_channels": 1 if concat else 0,
        "image_encoder": None,
        "noise_share": _NOISE_SHARE,
        "dropped_frames": _DROPPED_FRAMES[kind],
    }


def _check_transformer(
    checkpoint: Checkpoint, task: str, vae: Mapping[str, Any], transformer: Mapping[str, Any]
) -> None:
    root, kind, channels = checkpoint.root, transformer["image_condition_type"], vae["latent_channels"]
    if (kind is None) != (task == "t2v"):
        raise BundleError(
            f"the transformer of {root} has image_condition_type = {kind}, which {checkpoint.pipeline} cannot use; the "
            "folders do not belong together"
        )
    # Latents, latents of the picture, and a mask.
    wanted = {"in_channels": 2 * channels + 1 if kind == "latent_concat" else channels, "out_channels": channels}
    for key, count in wanted.items():
        if transformer[key] != count:
            raise BundleError(
                f"the transformer of {root} has {key} = {transformer[key]}, but {checkpoint.pipeline} with latents of "
                f"{channels} channels needs {count}; the folders do not belong together"
            )
    if sum(transformer["rope_axes_dim"]) != transformer["attention_head_dim"]:
        raise BundleError(
            f"the transformer of {root} has rope_axes_dim = {list(transformer['rope_axes_dim'])}, which do not add up "
            f"to its attention_head_dim = {transformer['attention_head_dim']}; correct its config.json"
        )
    blocks, stride = len(vae["block_out_channels"]), vae["spatial_compression_ratio"]
    if not math.log2(stride).is_integer() or math.log2(stride) > blocks or vae["temporal_compression_ratio"] != 4:
        raise BundleError(
            f"{root}/vae/config.json says a latent is {stride} pixels and {vae['temporal_compression_ratio']} frames, "
            f"but its decoder of {blocks} blocks makes powers of 2 up to {2**blocks} and 4; correct the file"
        )


def _check_texts(checkpoint: Checkpoint, task: str, transformer: Mapping[str, Any]) -> None:
    root, chat = checkpoint.root, checkpoint.json("text_encoder/config.json")
    llama = chat if task == "t2v" else llava_config(chat).text_config.to_dict()
    widths = {
        "text_embed_dim": ("text_encoder", llama.get("hidden_size")),
        "pooled_projection_dim": (
            "text_encoder_2",
            checkpoint.json("text_encoder_2/config.json").get("hidden_size"),
        ),
    }
    for key, (folder, given) in widths.items():
        if transformer[key] != given:
            raise BundleError(
                f"the transformer of {root} has {key} = {transformer[key]}, but its {folder} gives {given}; the "
                "folders do not belong together"
            )
    if llama.get("num_hidden_layers", 0) <= SKIPPED_LAYERS:
        raise BundleError(
            f"text_encoder of {root} has {llama.get('num_hidden_layers')} layers and the pipeline takes the state "
            f"before the last {SKIPPED_LAYERS}; give a deeper one"
        )
    if tokenizer_settings(checkpoint, "tokenizer").get("padding_side", "right") != "right":
        raise BundleError(
            f"the tokenizer of {root} pads on the left, but {checkpoint.pipeline} cuts off tokens of its template from "
            'there; set "padding_side": "right" in its tokenizer_config.json'
        )
    if task == "i2v":
        _check_vision(checkpoint, chat)


def _check_vision(checkpoint: Checkpoint, chat: Mapping[str, Any]) -> None:
    settings, root = llava_config(chat), checkpoint.root
    vision, expected = settings.vision_config, prompt_template("i2v").picture_tokens
    tokens = (vision.image_size // vision.patch_size) ** 2 + (settings.vision_feature_select_strategy != "default")
    if (vision.model_type, settings.text_config.model_type) != ("clip_vision_model", "llama") or not isinstance(
        settings.vision_feature_layer, int
    ):
        raise BundleError(f"text_encoder of {root} is no LLaVA of one layer of CLIP and a LLaMA, which cannot be built")
    if tokens != expected:
        raise BundleError(
            f"text_encoder of {root} makes {tokens} tokens of a picture, but {checkpoint.pipeline} expects {expected}; "
            "the folders do not belong together"
        )
    size = read_pixel_input(checkpoint, "image_processor")["size"]
    if size != vision.image_size:
        raise BundleError(
            f"image_processor of {root} makes pictures of {size} pixels, but its text_encoder takes "
            f"{vision.image_size}; the folders do not belong together"
        )
