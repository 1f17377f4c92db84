"""The one-pass autoencoder against diffusers' chunk-by-chunk one, and widening of its latents."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from sora_export.pocket import vae_forward
from sora_export.pocket.models import build_vae
from sora_export.pocket.widen_vae import widen


def _random_vae(patch_size: int | None) -> AutoencoderKLWan:
    torch.manual_seed(0)
    channels = 3 * (patch_size or 1) ** 2
    return AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=channels,
        out_channels=channels,
        patch_size=patch_size,
    ).eval()


@pytest.mark.parametrize("patch_size", [None, 2])
@pytest.mark.parametrize("frames", [1, 5, 13])
@torch.no_grad()
def test_one_pass_equals_chunked(patch_size: int | None, frames: int) -> None:
    vae = _random_vae(patch_size)
    clip = torch.rand(2, 3, frames, 32, 48) * 2 - 1
    expected = vae.encode(clip).latent_dist.parameters
    # float32 sums in another order; values are of the order of 1
    torch.testing.assert_close(vae_forward.encode(vae, clip), expected, atol=1e-5, rtol=1e-5)
    latents = torch.randn_like(expected[:, :4])
    frames_out = vae_forward.decode(vae, latents).clamp(-1, 1)
    torch.testing.assert_close(frames_out, vae.decode(latents).sample, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_widening_keeps_the_first_channels() -> None:
    torch.manual_seed(0)
    narrow, wide = build_vae(4, 8, z_dim=4).eval(), build_vae(4, 8, z_dim=6).eval()
    widen(narrow, wide)
    clip = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    before, after = vae_forward.encode(narrow, clip), vae_forward.encode(wide, clip)
    torch.testing.assert_close(after[:, :4], before[:, :4], atol=1e-5, rtol=1e-5)
    latents = torch.zeros(1, 6, 2, 4, 4)
    latents[:, :4] = before[:, :4]
    silent = wide.post_quant_conv.bias.clone()
    wide.post_quant_conv.bias[4:] = 0
    wide.post_quant_conv.weight[4:] = 0
    torch.testing.assert_close(
        vae_forward.decode(wide, latents),
        vae_forward.decode(narrow, latents[:, :4]),
        atol=1e-5,
        rtol=1e-5,
    )
    assert silent.shape == (6,)
