"""Makes small random HunyuanVideo checkpoints, saved by diffusers itself, for the export tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

MAX_SEQUENCE_LENGTH = 24
LATENT_CHANNELS = 4
IMAGE_SIZE = 48
"""Makes 576 patches of two pixels: as many as the pipeline counts on."""
TEXT_DIM, POOLED_DIM = 32, 32
PROMPTS = ["a red circle moves left", "a blue square falls, slowly"]

VAE: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 3,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
# Two heads of 24 channels, split 8/8/8 among frames, rows and columns.
TRANSFORMER: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "num_layers": 2,
    "num_single_layers": 2,
    "num_refiner_layers": 2,
    "text_embed_dim": TEXT_DIM,
    "pooled_projection_dim": POOLED_DIM,
    "rope_axes_dim": (8, 8, 8),
}
_KINDS: dict[str | None, dict[str, Any]] = {
    None: {},
    "token_replace": {},
    # As released: distilled without an embedding of the guidance.
    "latent_concat": {"in_channels": 2 * LATENT_CHANNELS + 1, "guidance_embeds": False},
}
# Fewer key and value heads than query heads, as LLaMA 3 has.
_LLAMA: dict[str, Any] = {
    "hidden_size": TEXT_DIM,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"},
    # Beside the usual 0.02 the layers of so narrow a model would add next to nothing to the embeddings.
    "initializer_range": 0.1,
}


def tiny_chat_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer of the pipelines' templates: special tokens, words, signs, ends of lines.

    One word is two tokens, which makes the templates as long as LLaMA's tokenizer: the prompt begins where the
    pipelines think it does.
    """
    special = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<image>",
        "<pad>",
        "<unk>",
    ]
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+|asp(?=ects)|\w+|[^\w\s]"), "removed", invert=True)
    templates = [
        module.DEFAULT_PROMPT_TEMPLATE["template"]
        for module in (pipeline_hunyuan_video, pipeline_hunyuan_video_image2video)
    ]
    tokenizer.train_from_iterator([*templates, *PROMPTS], trainers.WordLevelTrainer(special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin_of_text|>", pad_token="<pad>", padding_side="right"
    )


def tiny_clip_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer over single letters and some of their pairs; the end token pads, and has the highest number."""
    letters = "abcdefghijklmnopqrstuvwxyz,."
    merges = [("r", "e"), ("re", "d</w>"), ("l", "e")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocab, merges=merges)


def tiny_transformer(kind: str | None) -> HunyuanVideoTransformer3DModel:
    """One whose biases and norms are not those of an untrained model."""
    model = HunyuanVideoTransformer3DModel(**{**TRANSFORMER, **_KINDS[kind]}, image_condition_type=kind)
    return _unlike_new(model)


def _unlike_new(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def tiny_chat_model(kind: str | None, tokenizer: PreTrainedTokenizerFast) -> nn.Module:
    """LLaMA, with eyes where a picture is shown."""
    llama = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, bos_token_id=0, **_LLAMA)
    if kind is None:
        return _unlike_new(LlamaModel(llama))
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=2,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=llama, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    config.pad_token_id = tokenizer.pad_token_id
    return _unlike_new(LlavaForConditionalGeneration(config))


def save_tiny_hunyuan(folder: Path, kind: str | None = None, *, dtype: torch.dtype = torch.float32) -> Path:
    """Saves a random pipeline with `save_pretrained` and returns its folder.

    Args:
        folder: Where.
        kind: The transformer's `image_condition_type`; None for text to video.
        dtype: Of all weights.
    """
    torch.manual_seed(0)
    tokenizer, tokenizer_2 = tiny_chat_tokenizer(), tiny_clip_tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer_2),
        hidden_size=POOLED_DIM,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        eos_token_id=2 if kind is None else tokenizer_2.eos_token_id,  # 2 is what released configs say
    )
    parts = {
        "text_encoder": tiny_chat_model(kind, tokenizer).to(dtype),
        "tokenizer": tokenizer,
        "text_encoder_2": _unlike_new(CLIPTextModel(clip)).to(dtype),
        "tokenizer_2": tokenizer_2,
        "transformer": tiny_transformer(kind).to(dtype),
        "vae": _unlike_new(AutoencoderKLHunyuanVideo(**VAE)).to(dtype),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=7.0),
    }
    if kind is None:
        HunyuanVideoPipeline(**parts).save_pretrained(folder)
    else:
        size = {"shortest_edge": IMAGE_SIZE}, {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        processor = CLIPImageProcessorPil(size=size[0], crop_size=size[1])
        HunyuanVideoImageToVideoPipeline(**parts, image_processor=processor).save_pretrained(folder)
    defaults = {"max_sequence_length": MAX_SEQUENCE_LENGTH, "num_inference_steps": 3}
    (folder / "sora_defaults.json").write_text(json.dumps(defaults))
    return folder
