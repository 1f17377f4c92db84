"""Makes small random Wan checkpoints, saved by diffusers itself, for the export tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

VAE_PLAIN: dict[str, Any] = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "scale_factor_spatial": 4,
    "latents_mean": [0.1, -0.2, 0.3, 0.0],
    "latents_std": [1.5, 0.7, 2.0, 1.0],
}
VAE_RESIDUAL: dict[str, Any] = {
    **VAE_PLAIN,
    "dim_mult": [1, 2, 4, 4],
    "temperal_downsample": [False, True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
TEXT_DIM = 32
IMAGE_DIM = 32
IMAGE_SIZE = 28
MAX_SEQUENCE_LENGTH = 16


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over a few words, with the pad, end and unknown ids of T5."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(["a red circle moves left", "a blue square falls"], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_transformer(z_dim: int = 4, **config: Any) -> WanTransformer3DModel:
    """Two layers of width 48: the head size 24 is the smallest that splits into three even parts."""
    layers = {"num_attention_heads": 2, "attention_head_dim": 24, "freq_dim": 32, "ffn_dim": 96, "num_layers": 2}
    sizes = {"patch_size": (1, 2, 2), "text_dim": TEXT_DIM, "rope_max_seq_len": 64}
    return WanTransformer3DModel(**{**layers, **sizes, "in_channels": z_dim, "out_channels": z_dim, **config})


def tiny_text_encoder() -> UMT5EncoderModel:
    """Two UMT5 layers whose relative position bias is not zero."""
    config = UMT5Config(vocab_size=64, d_model=TEXT_DIM, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
    return UMT5EncoderModel(config)


def tiny_image_encoder() -> CLIPVisionModel:
    """Three CLIP layers, of which the last is not used, on four patches and the class token."""
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=14,
        hidden_act="gelu",
    )
    return CLIPVisionModel(config)


def save_tiny_checkpoint(
    folder: Path,
    *,
    vae: dict[str, Any] = VAE_PLAIN,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "10GB",
    two_experts: bool = False,
    expand_timesteps: bool = False,
) -> Path:
    """Saves a random WanPipeline with `save_pretrained` and returns its folder."""
    torch.manual_seed(0)
    pipeline = WanPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder().to(dtype),
        vae=AutoencoderKLWan(**vae).to(dtype),
        transformer=tiny_transformer().to(dtype),
        transformer_2=tiny_transformer().to(dtype) if two_experts else None,
        boundary_ratio=0.875 if two_experts else None,
        scheduler=_scheduler(),
        expand_timesteps=expand_timesteps,
    )
    pipeline.save_pretrained(folder, max_shard_size=max_shard_size)
    return _with_defaults(folder, max_sequence_length=MAX_SEQUENCE_LENGTH, num_inference_steps=4)


def save_tiny_i2v_2_1(folder: Path) -> Path:
    """Wan 2.1 I2V: mask and picture beside the latents, CLIP's embeddings in the attention.

    Prompts have 512 tokens, because diffusers finds the image embeddings by that number.
    """
    torch.manual_seed(1)
    transformer = tiny_transformer(in_channels=12, image_dim=IMAGE_DIM, added_kv_proj_dim=48)
    _image_to_video(
        folder,
        VAE_PLAIN,
        transformer=transformer,
        image_encoder=tiny_image_encoder(),
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        ),
    )
    return _with_defaults(folder, num_inference_steps=4)


def save_tiny_i2v_a14b(folder: Path) -> Path:
    """Wan 2.2 I2V-A14B: two experts, mask and picture beside the latents, no image encoder."""
    torch.manual_seed(2)
    experts = {name: tiny_transformer(in_channels=12) for name in ("transformer", "transformer_2")}
    _image_to_video(folder, VAE_PLAIN, boundary_ratio=0.9, **experts)
    return _with_defaults(folder, max_sequence_length=MAX_SEQUENCE_LENGTH, num_inference_steps=4)


def save_tiny_ti2v(folder: Path) -> Path:
    """Wan 2.2 TI2V-5B: the VAE in patches of 2x2, a picture as the first latent frame at timestep 0."""
    return save_tiny_checkpoint(folder, vae=VAE_RESIDUAL, expand_timesteps=True)


def _image_to_video(folder: Path, vae: dict[str, Any], **parts: Any) -> None:
    pipeline = WanImageToVideoPipeline(
        tokenizer=tiny_tokenizer(),
        text_encoder=tiny_text_encoder(),
        vae=AutoencoderKLWan(**vae),
        scheduler=_scheduler(),
        **parts,
    )
    pipeline.save_pretrained(folder)


def _scheduler() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def _with_defaults(folder: Path, **values: int) -> Path:
    (folder / "sora_defaults.json").write_text(json.dumps(values))
    return folder
