"""Makes small random LTX-Video checkpoints, saved by diffusers itself, for the export tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoResnetBlock3d
from tiny_checkpoint import tiny_tokenizer
from transformers import T5Config, T5EncoderModel

TEXT_DIM = 32
MAX_SEQUENCE_LENGTH = 12
LATENT_CHANNELS = 16

# A stride of 8 in space and 4 in time; the decoder looks ahead, the encoder does not.
VAE_0_9: dict[str, Any] = {
    "latent_channels": LATENT_CHANNELS,
    "block_out_channels": (8, 16, 24),
    "decoder_block_out_channels": (8, 16, 24),
    "layers_per_block": (1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "down_block_types": ("LTXVideoDownBlock3D",) * 3,
    "spatio_temporal_scaling": (True, True, False),
    "decoder_spatio_temporal_scaling": (True, True, False),
    "decoder_inject_noise": (False,) * 4,
    "downsample_type": ("conv",) * 3,
    "upsample_residual": (False,) * 3,
    "upsample_factor": (1,) * 3,
    "patch_size": 2,
}
# 0.9.1 told the decoder a timestep and added noise, 0.9.5 changed the blocks of the encoder.
VAE_0_9_5: dict[str, Any] = {
    **VAE_0_9,
    "block_out_channels": (8, 16, 32, 32),
    "decoder_block_out_channels": (8, 16),
    "decoder_layers_per_block": (1, 1, 1),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 3,
    "downsample_type": ("spatial", "temporal", "spatiotemporal"),
    "spatio_temporal_scaling": (True, True, True),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (True, True, False),
    "upsample_residual": (True, True),
    "upsample_factor": (2, 2),
    "timestep_conditioning": True,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 4,
}
VARIANTS = {"0.9": VAE_0_9, "0.9.5": VAE_0_9_5}
# A width of 32 leaves two channels of the three axes of the rotary embedding over.
TRANSFORMER: dict[str, Any] = {
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "caption_channels": TEXT_DIM,
    "num_layers": 2,
}


def tiny_vae(variant: str) -> AutoencoderKLLTXVideo:
    """A VAE whose statistics and noise are not those of an untrained one."""
    vae = AutoencoderKLLTXVideo(**VARIANTS[variant])
    vae.latents_mean.copy_(torch.randn(LATENT_CHANNELS) * 0.3)
    vae.latents_std.copy_(torch.rand(LATENT_CHANNELS) + 0.5)
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, LTXVideoResnetBlock3d) and module.per_channel_scale1 is not None:
                module.per_channel_scale1.normal_()
                module.per_channel_scale2.normal_()
    return vae


def save_tiny_ltx(
    folder: Path, variant: str = "0.9", *, image: bool = False, dtype: torch.dtype = torch.float32
) -> Path:
    """Saves a random pipeline with `save_pretrained` and returns its folder."""
    torch.manual_seed(0)
    text = T5Config(
        vocab_size=64,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=48,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    pipeline_class = LTXImageToVideoPipeline if image else LTXPipeline
    pipeline = pipeline_class(
        tokenizer=tiny_tokenizer(),
        text_encoder=T5EncoderModel(text).to(dtype),
        vae=tiny_vae(variant).to(dtype),
        transformer=LTXVideoTransformer3DModel(**TRANSFORMER).to(dtype),
        # The released settings but for the lengths, which a tiny clip would not reach.
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            base_shift=0.95,
            max_shift=2.05,
            base_image_seq_len=64,
            max_image_seq_len=256,
            shift_terminal=0.1,
        ),
    )
    pipeline.save_pretrained(folder)
    defaults = {"max_sequence_length": MAX_SEQUENCE_LENGTH, "num_inference_steps": 4}
    (folder / "sora_defaults.json").write_text(json.dumps(defaults))
    return folder
