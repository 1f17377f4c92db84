"""Configurations of VAEs for the cost tests: the published ones, and tiny ones that reach the other branches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[Any, Any], Any]


def frames_as_batch(sample: Any) -> Any:
    return sample[0].transpose(0, 1)


def decode_by_patches(model: Any, latents: Any) -> Any:
    """Allegro's decode without the tiles that diffusers insists on."""
    latents = model.post_quant_conv(frames_as_batch(latents)).transpose(0, 1)[None]
    return model.decoder(latents)


def encode_by_patches(model: Any, clip: Any) -> Any:
    return model.quant_conv(frames_as_batch(model.encoder(clip)))


@dataclass(frozen=True)
class Case:
    """One configuration: `frames` of a clip with so many latent frames; `shapes` are latent frames, rows, columns."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    latent: int = 16
    space: int = 8
    time: int = 4
    frames: Callable[[int], int] | None = None
    shapes: tuple[tuple[int, int, int], ...] = ((1, 4, 6), (2, 3, 5), (5, 4, 4))
    decode: Run = lambda model, latents: model.decode(latents)
    encode: Run = lambda model, clip: model.encode(clip)

    def pixel_frames(self, latent_frames: int) -> int:
        return self.frames(latent_frames) if self.frames else self.time * (latent_frames - 1) + 1


def with_timestep(model: Any, latents: Any) -> Any:
    return model.decode(latents, latents.new_zeros(1))


WAN22 = {"base_dim": 160, "decoder_base_dim": 256, "z_dim": 48, "is_residual": True, "patch_size": 2} | {
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_spatial": 16,
}
LTX_091 = {
    "decoder_block_out_channels": (256, 512, 1024),
    "decoder_layers_per_block": (5, 6, 7, 8),
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False, True, True, True),
    "upsample_residual": (True,) * 3,
    "upsample_factor": (2, 2, 2),
    "timestep_conditioning": True,
}
LTX_095 = LTX_091 | {
    "block_out_channels": (128, 256, 512, 1024, 2048),
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "layers_per_block": (4, 6, 6, 2, 2),
    "spatio_temporal_scaling": (True,) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "decoder_layers_per_block": (5, 5, 5, 5),
    "decoder_inject_noise": (False,) * 4,
    "spatial_compression_ratio": 32,
    "temporal_compression_ratio": 8,
}
LTX_TINY = {
    "latent_channels": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "layers_per_block": (1, 2, 1),
    "spatio_temporal_scaling": (True, False),
    "downsample_type": ("conv",) * 2,
    "decoder_block_out_channels": (8, 16),
    "decoder_layers_per_block": (1, 2, 1),
    "decoder_spatio_temporal_scaling": (True, False),
    "decoder_inject_noise": (False, True, True),
    "upsample_residual": (False, True),
    "upsample_factor": (1, 1),
    "patch_size": 2,
}
LTX2_TINY = {
    "latent_channels": 8,
    "block_out_channels": (8, 16, 32),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 3,
    "layers_per_block": (1, 1, 1, 1),
    "spatio_temporal_scaling": True,
    "downsample_type": ("spatial", "temporal", "spatiotemporal"),
    "decoder_block_out_channels": (16, 24, 32),
    "decoder_layers_per_block": (1, 1, 2, 1),
    "upsample_type": ("spatial", "temporal", "spatiotemporal"),
    "upsample_factor": (1, 1, 2),
}
COSMOS_TINY = {
    "encoder_block_out_channels": (16, 32, 48),
    "decode_block_out_channels": (24, 32, 48),
    "attention_resolutions": (64, 128),
    "resolution": 256,
    "num_layers": 1,
    "patch_size": 2,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 4,
    "latent_channels": 4,
}
DC_TRANSFORMER = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "encoder_layers_per_block": (0, 1, 1, 1, 2, 1),
    "decoder_layers_per_block": (0, 1, 1, 1, 1, 1),
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}
SMALL_SHAPES = ((1, 2, 3), (2, 3, 5), (5, 2, 2))
LONGER = ((2, 3, 5), (5, 4, 4), (7, 2, 3))  # a single frame takes another way through Mochi's encoder
ODD = ((1, 4, 6), (3, 3, 5), (5, 4, 4))


def hunyuan_blocks(levels: int) -> dict[str, Any]:
    return {
        "down_block_types": ("HunyuanVideoDownBlock3D",) * levels,
        "up_block_types": ("HunyuanVideoUpBlock3D",) * levels,
    }


def by_image(config: dict[str, Any], latent: int) -> Case:
    return Case(
        "AutoencoderDC",
        config | {"latent_channels": latent},
        latent=latent,
        space=32,
        frames=lambda count: count,
        shapes=((1, 6, 6), (2, 4, 9), (5, 7, 5)),
        decode=lambda model, latents: model.decode(frames_as_batch(latents)),
        encode=lambda model, clip: model.encode(frames_as_batch(clip)),
    )


def allegro(config: dict[str, Any], space: int, time: int) -> Case:
    return Case(
        "AutoencoderKLAllegro",
        config,
        latent=4,
        space=space,
        frames=lambda count: time * count,
        decode=decode_by_patches,
        encode=encode_by_patches,
    )


CASES = {
    "wan2.1": Case("AutoencoderKLWan"),
    "wan2.2": Case("AutoencoderKLWan", WAN22, latent=48, space=16),
    "wan-tiny": Case(
        "AutoencoderKLWan",
        {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "num_res_blocks": 1},
        latent=4,
        space=4,
    ),
    "hunyuan": Case("AutoencoderKLHunyuanVideo"),
    "hunyuan-tiny": Case(
        "AutoencoderKLHunyuanVideo",
        {"block_out_channels": (32, 64, 64), "latent_channels": 4, "spatial_compression_ratio": 4}
        | {"layers_per_block": 1, "mid_block_add_attention": False}
        | hunyuan_blocks(3),
        latent=4,
        space=4,
    ),
    "hunyuan1.5": Case("AutoencoderKLHunyuanVideo15", latent=32, space=16),
    "hunyuan1.5-tiny": Case(
        "AutoencoderKLHunyuanVideo15",
        {"block_out_channels": (16, 32, 64), "latent_channels": 8, "spatial_compression_ratio": 4}
        | {"layers_per_block": 1, "upsample_match_channel": False, "downsample_match_channel": False},
        latent=8,
        space=4,
    ),
    "cogvideox": Case("AutoencoderKLCogVideoX", shapes=ODD),
    "cogvideox-tiny": Case(
        "AutoencoderKLCogVideoX",
        {"block_out_channels": (32, 64), "layers_per_block": 1, "latent_channels": 4, "temporal_compression_ratio": 2}
        | {"down_block_types": ("CogVideoXDownBlock3D",) * 2, "up_block_types": ("CogVideoXUpBlock3D",) * 2},
        latent=4,
        space=2,
        time=2,
        shapes=ODD,
    ),
    "ltx-0.9.0": Case("AutoencoderKLLTXVideo", latent=128, space=32, time=8, shapes=SMALL_SHAPES),
    "ltx-0.9.1": Case(
        "AutoencoderKLLTXVideo", LTX_091, latent=128, space=32, time=8, shapes=SMALL_SHAPES, decode=with_timestep
    ),
    "ltx-0.9.5": Case(
        "AutoencoderKLLTXVideo", LTX_095, latent=128, space=32, time=8, shapes=SMALL_SHAPES, decode=with_timestep
    ),
    "ltx-tiny": Case("AutoencoderKLLTXVideo", LTX_TINY, latent=8, space=4, time=2),
    "ltx2": Case("AutoencoderKLLTX2Video", latent=128, space=32, time=8, shapes=SMALL_SHAPES),
    "ltx2-tiny": Case("AutoencoderKLLTX2Video", LTX2_TINY, latent=8, space=16),
    "mochi": Case("AutoencoderKLMochi", latent=12, time=6, shapes=LONGER),
    "mochi-tiny": Case(
        "AutoencoderKLMochi",
        {"encoder_block_out_channels": (32, 64), "decoder_block_out_channels": (64, 96), "layers_per_block": (1, 2, 1)}
        | {"temporal_expansions": (3,), "spatial_expansions": (2,), "latent_channels": 5}
        | {"add_attention_block": (False, True, False)},
        latent=5,
        space=2,
        time=3,
        shapes=LONGER,
    ),
    "cosmos": Case("AutoencoderKLCosmos", time=8),
    "cosmos-tiny": Case("AutoencoderKLCosmos", COSMOS_TINY, latent=4, space=4),
    "cosmos-rearranged": Case("AutoencoderKLCosmos", COSMOS_TINY | {"patch_type": "rearrange"}, latent=4, space=4),
    "minimax": Case(
        "AutoencoderKLMiniMaxH3",
        latent=24,
        space=16,
        frames=lambda count: 17 * (count + 3) // 5,
        shapes=((7, 3, 5), (12, 4, 4)),
    ),
    "minimax-tiny": Case(
        "AutoencoderKLMiniMaxH3",
        {"block_out_channels": (32, 64), "spatial_downsample_factors": (2, 2), "temporal_downsample_factors": (2, 1)}
        | {"clip_length": 9, "token_drop": 2, "latent_channels": 4, "layers_per_block": 1, "decoder_num_layers": 2}
        | {"decoder_num_attention_heads": 2, "decoder_attention_head_dim": 16},
        latent=4,
        space=4,
        frames=lambda count: 9 * (count + 2) // 5,
        shapes=((8, 3, 5), (13, 4, 4)),
    ),
    "dc": by_image({}, 32),
    "dc-transformer": by_image(DC_TRANSFORMER, 64),
    "allegro": allegro({}, 8, 4),
    "allegro-tiny": allegro(
        {"block_out_channels": (32, 64), "layers_per_block": 1}
        | {"temporal_downsample_blocks": (False, True), "temporal_upsample_blocks": (True, False)}
        | {"down_block_types": ("AllegroDownBlock3D",) * 2, "up_block_types": ("AllegroUpBlock3D",) * 2},
        2,
        2,
    ),
}
