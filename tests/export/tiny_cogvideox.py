"""Makes small random CogVideoX checkpoints, saved by diffusers itself, for the export tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
)
from tiny_checkpoint import tiny_tokenizer
from transformers import T5Config, T5EncoderModel

TEXT_DIM = 32
MAX_SEQUENCE_LENGTH = 16
LATENT_CHANNELS = 4

# Two downsamplings in space and two in time, as CogVideoX has three and two: a stride of 4 in each.
VAE: dict[str, Any] = {
    "block_out_channels": [8, 8, 16],
    "down_block_types": ["CogVideoXDownBlock3D"] * 3,
    "up_block_types": ["CogVideoXUpBlock3D"] * 3,
    "latent_channels": LATENT_CHANNELS,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "temporal_compression_ratio": 4,
    "scaling_factor": 0.7,
}
# The smallest head size whose quarter and three eighths are even. Trained on 40x56 pixels and 17 frames.
TRANSFORMER: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "time_embed_dim": 32,
    "text_embed_dim": TEXT_DIM,
    "num_layers": 2,
    "sample_height": 10,
    "sample_width": 14,
    "sample_frames": 17,
    "max_text_seq_length": MAX_SEQUENCE_LENGTH,
}
_ROTARY = {"use_rotary_positional_embeddings": True}
_IMAGE = {"in_channels": 2 * LATENT_CHANNELS}
VARIANTS: dict[str, dict[str, Any]] = {
    "2b": {},
    "5b": _ROTARY,
    "5b_i2v": {**_ROTARY, **_IMAGE, "use_learned_positional_embeddings": True},
    "1_5": {**_ROTARY, "patch_size_t": 2, "patch_bias": False},
    "1_5_i2v": {**_ROTARY, **_IMAGE, "patch_size_t": 2, "patch_bias": False, "ofs_embed_dim": 32},
}
"""What the released configurations change; the scheduler and the scale of latents are changed below."""


def tiny_cogvideox_transformer(variant: str) -> CogVideoXTransformer3DModel:
    """Two layers of width 32; nothing that a random model has as zeros or ones is left so."""
    model = CogVideoXTransformer3DModel(**{**TRANSFORMER, **VARIANTS[variant]})
    _roughen(model)
    if VARIANTS[variant].get("use_learned_positional_embeddings"):
        positions = model.patch_embed.pos_embedding
        model.patch_embed.pos_embedding = torch.randn(positions.shape) * 0.5
    return model


def _roughen(model: torch.nn.Module) -> None:
    """Gives norms and biases values that matter, so that a parameter in the wrong place shows."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.2)


def save_tiny_cogvideox(folder: Path, variant: str, *, dtype: torch.dtype = torch.float32) -> Path:
    """Saves a random pipeline of one of `VARIANTS` with `save_pretrained` and returns its folder."""
    torch.manual_seed(0)
    image_to_video = variant.endswith("i2v")
    vae = AutoencoderKLCogVideoX(**VAE, invert_scale_latents=image_to_video)
    _roughen(vae)
    config = T5Config(
        vocab_size=64,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    schedule = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
        "snr_shift_scale": 3.0 if variant == "2b" else 1.0,
    }
    scheduler = CogVideoXDDIMScheduler if variant in ("2b", "5b") else CogVideoXDPMScheduler
    pipeline_class = CogVideoXImageToVideoPipeline if image_to_video else CogVideoXPipeline
    pipeline = pipeline_class(
        tokenizer=tiny_tokenizer(),
        text_encoder=T5EncoderModel(config).to(dtype),
        vae=vae.to(dtype),
        transformer=tiny_cogvideox_transformer(variant).to(dtype),
        scheduler=scheduler(**schedule),
    )
    pipeline.save_pretrained(folder)
    (folder / "sora_defaults.json").write_text(json.dumps({"num_inference_steps": 4}))
    return folder
