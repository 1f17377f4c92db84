"""The three networks of wan-pocket, as diffusers and transformers classes with small configurations."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5Config, UMT5EncoderModel

LATENT_CHANNELS = 24
SPATIAL_STRIDE = 8
TEMPORAL_STRIDE = 4
TEXT_DIM = 128
MAX_SEQUENCE_LENGTH = 48
PAD_TOKEN_ID = 0

# spread of the posterior: what the decoder is trained to forgive, as a fraction of a typical latent's own
POSTERIOR_STD = 0.1


def build_vae(base_dim: int = 16, decoder_base_dim: int = 24, z_dim: int = LATENT_CHANNELS) -> AutoencoderKLWan:
    """A Wan VAE of 8 x 8 x 4 compression that works on 2 x 2 pixel patches.

    The convolutions on full pixels would be most of the work and the least of the quality, hence the patches.
    """
    vae = AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=z_dim,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=SPATIAL_STRIDE,
        scale_factor_temporal=TEMPORAL_STRIDE,
        latents_mean=[0.0] * z_dim,
        latents_std=[1.0] * z_dim,
    )
    _start_as_thumbnail(vae)
    return vae


@torch.no_grad()
def _start_as_thumbnail(vae: AutoencoderKLWan) -> None:
    """Start near a linear map that passes colours through: residual branches small, resampling an average.

    With the default start the colours collapse early and take most of the training to come back.
    """
    for name, parameter in vae.named_parameters():
        if name.endswith("conv2.weight") or name.endswith("proj.weight"):
            parameter.mul_(0.1)
    for part in (vae.encoder, vae.decoder):
        for module in part.modules():
            if hasattr(module, "time_conv"):
                _start_time_conv(module.time_conv)
    # the second half of the encoder's output is the log variance: a constant
    vae.quant_conv.weight[vae.z_dim :].zero_()
    vae.quant_conv.bias[vae.z_dim :] = 2 * torch.log(torch.tensor(POSTERIOR_STD))


def _start_time_conv(conv: torch.nn.Conv3d) -> None:
    out_channels, in_channels = conv.weight.shape[:2]
    conv.weight.mul_(0.3)
    centre = conv.weight[:, :, 1 if out_channels == in_channels else 2, 0, 0]
    for i in range(out_channels):
        centre[i, i % in_channels] += 0.7


def build_transformer(
    heads: int = 6, head_dim: int = 32, num_layers: int = 6, text_dim: int = TEXT_DIM
) -> WanTransformer3DModel:
    """The denoiser: patches of 1 x 2 x 2 latents, which is what WanPipeline's expanded timesteps assume."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=text_dim,
        freq_dim=256,
        ffn_dim=4 * heads * head_dim,
        num_layers=num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )


def build_text_encoder(vocab_size: int, d_model: int = TEXT_DIM, num_layers: int = 2) -> UMT5EncoderModel:
    """A small UMT5 encoder, trained together with the transformer."""
    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        d_kv=32,
        d_ff=2 * d_model,
        num_layers=num_layers,
        num_heads=d_model // 32,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=PAD_TOKEN_ID,
        eos_token_id=1,
        decoder_start_token_id=0,
        is_encoder_decoder=True,
        tie_word_embeddings=False,
    )
    return UMT5EncoderModel(config)
