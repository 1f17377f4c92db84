"""Tiled decoding against diffusers' own on tiny VAEs, and against what is known of every tile in closed form."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, AutoencoderKLLTXVideo

from function_engine import FunctionEngine
from sora_runtime.engines.engine import Array
from sora_runtime.errors import BundleError, EngineError
from sora_runtime.manifest import TiledBucket
from sora_runtime.tiles import TiledDecoder

SPATIAL, TEMPORAL = 8, 4


def bucket(clip: tuple[int, int, int], latent: tuple[int, int, int], stride: tuple[int, int, int]) -> TiledBucket:
    """Of a clip of so many latent frames, rows and columns."""
    size = {"num_frames": (clip[0] - 1) * TEMPORAL + 1, "height": clip[1] * SPATIAL, "width": clip[2] * SPATIAL}
    return TiledBucket.model_validate({**size, "graph": "vae.onnx", "tile": {"latent": latent, "stride": stride}})


def frames_of(t: int, h: int, w: int) -> tuple[int, ...]:
    return (1, 3, (t - 1) * TEMPORAL + 1, h * SPATIAL, w * SPATIAL)


def decoder(
    function: Callable[[Array], Array],
    clip: tuple[int, int, int],
    latent: tuple[int, int, int],
    stride: tuple[int, int, int],
    *,
    channels: int = 4,
    dtype: str = "float32",
) -> tuple[TiledDecoder, FunctionEngine]:
    engine = FunctionEngine(function, (1, channels, *latent), frames_of(*latent), dtype=dtype)
    return TiledDecoder(engine, bucket(clip, latent, stride)), engine


def decode(tiled: TiledDecoder, latents: np.ndarray) -> np.ndarray:
    return np.concatenate([chunk.copy() for chunk in tiled.chunks(latents)], axis=1)[None]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    """8 pixels and 4 frames a latent, as the released one; a quarter of a tile is 16 pixels."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()
    vae.enable_tiling(48, 48, 16, 32, 32, 12)
    return vae


def ltx_vae() -> AutoencoderKLLTXVideo:
    torch.manual_seed(0)
    vae = AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        down_block_types=("LTXVideoDownBlock3D",) * 3,
        spatio_temporal_scaling=(True, True, False),
        decoder_spatio_temporal_scaling=(True, True, False),
        decoder_inject_noise=(False,) * 4,
        downsample_type=("conv",) * 3,
        upsample_residual=(False,) * 3,
        upsample_factor=(1,) * 3,
        patch_size=2,
    ).eval()
    vae.enable_tiling(48, 48, 16, 32, 32, 12)
    return vae


def torch_function(vae: Any) -> Callable[[Array], Array]:
    """The decoder of a VAE without its tiling."""
    post = getattr(vae, "post_quant_conv", torch.nn.Identity())
    return lambda latents: vae.decoder(post(torch.from_numpy(latents))).numpy()


@pytest.fixture(params=[hunyuan_vae, ltx_vae])
def vae(request: pytest.FixtureRequest) -> Any:
    with torch.no_grad():
        yield request.param()


def test_rows_and_columns_equal_diffusers(vae: Any) -> None:
    """Tiles of 6x6 that share 2, on 14x10: diffusers' own, but for the last 2 of each axis.

    diffusers decodes those once more, as tiles of 2 beside the last whole ones, and blends them in.
    """
    latents = normal(1, 1, 4, 3, 14, 10)
    want = vae.decode(torch.from_numpy(latents)).sample.numpy()
    tiled, engine = decoder(torch_function(vae), (3, 14, 10), (3, 6, 6), (3, 4, 4))
    got = decode(tiled, latents)
    assert got.shape == want.shape and engine.runs == 3 * 2
    np.testing.assert_allclose(got[..., : 12 * 8, : 8 * 8], want[..., : 12 * 8, : 8 * 8], atol=1e-5)
    assert np.abs(got - want)[..., 12 * 8 :, :].max() > 1e-2  # so the region above is not the whole


def as_hunyuan(vae: Any) -> Any:
    """HunyuanVideo's way to cut time, on either VAE: it drops the frame that a later tile decodes too early."""
    vae.post_quant_conv = getattr(vae, "post_quant_conv", torch.nn.Identity())
    if isinstance(vae, AutoencoderKLLTXVideo):
        tiles = vae.tiled_decode
        vae.tiled_decode = lambda z, return_dict: tiles(z, None, return_dict=return_dict)
    return lambda latents: AutoencoderKLHunyuanVideo._temporal_tiled_decode(vae, latents).sample.numpy()


@pytest.mark.parametrize(("rows", "columns"), [(6, 5), (14, 10)])
def test_time_equals_diffusers(vae: Any, rows: int, columns: int) -> None:
    """Tiles of 5 latent frames, 3 apart, on 11 of them; with one tile of rows and columns, and with several.

    All but the last 4 frames, of which diffusers decodes a shorter tile more.
    """
    latents = normal(2, 1, 4, 11, rows, columns)
    want = as_hunyuan(vae)(torch.from_numpy(latents))
    size = (min(rows, 6), min(columns, 6))
    tiled, engine = decoder(torch_function(vae), (11, rows, columns), (5, *size), (3, 4, 4))
    got = decode(tiled, latents)
    assert got.shape == want.shape == frames_of(11, rows, columns)[:2] + got.shape[2:]
    assert engine.runs == 3 * (1 if rows == 6 else 6)
    inner = (slice(0, 37), slice(0, 48 if rows == 6 else 96), slice(0, 40 if columns == 5 else 64))
    np.testing.assert_allclose(got[(..., *inner)], want[(..., *inner)], atol=1e-5)


def test_the_last_frame_dropped_would_be_late(vae: Any) -> None:
    """Of what diffusers does with LTX in time: nearer to the clip decoded at once is what drops the first."""
    latents = normal(3, 1, 4, 11, 6, 5)
    whole = torch_function(vae)(latents)
    tiled, _ = decoder(torch_function(vae), (11, 6, 5), (5, 6, 5), (3, 6, 5))
    got = decode(tiled, latents)
    diffusers = vae._temporal_tiled_decode(torch.from_numpy(latents), *([None] if hasattr(vae, "latents_std") else []))
    ours, theirs = (np.abs(result - whole)[:, :, 17:33].mean() for result in (got, diffusers.sample.numpy()))
    if isinstance(vae, AutoencoderKLLTXVideo):
        assert ours < 0.8 * theirs
    else:
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize("clip", [(3, 4, 5), (1, 4, 5)])
def test_one_tile_is_the_decoder_itself(vae: Any, clip: tuple[int, int, int]) -> None:
    latents = normal(4, 1, 4, *clip)
    tiled, engine = decoder(torch_function(vae), clip, clip, clip)
    assert np.array_equal(decode(tiled, latents), torch_function(vae)(latents)) and engine.runs == 1


def stretched(latents: np.ndarray) -> np.ndarray:
    """A decoder that looks at no neighbour: tiles of it agree wherever they overlap."""
    frames = np.repeat(latents, TEMPORAL, axis=2)[:, :, TEMPORAL - 1 :]
    return frames.repeat(SPATIAL, axis=3).repeat(SPATIAL, axis=4)[:, :3]


@pytest.mark.parametrize("length", range(5, 20))
def test_tiles_that_agree_leave_no_trace(length: int) -> None:
    """Whatever the length: no gap, no frame twice or late."""
    latents = normal(length, 1, 4, length, length + 1, 7)
    tiled, _ = decoder(stretched, (length, length + 1, 7), (5, 6, 4), (3, 4, 4))
    chunks = [chunk.copy() for chunk in tiled.chunks(latents)]
    np.testing.assert_allclose(np.concatenate(chunks, axis=1)[None], stretched(latents), atol=1e-6)
    assert all(chunk.shape[1] for chunk in chunks)


def test_a_seam_rises_by_equal_steps() -> None:
    """Each tile is as bright as its number: the weights of the later one are 0, 1/16 ... 15/16."""
    numbers = iter(range(100))
    tiled, _ = decoder(
        lambda latents: np.full(frames_of(*latents.shape[2:]), next(numbers)), (1, 6, 10), (1, 6, 6), (1, 6, 4)
    )
    ramp = np.concatenate([np.zeros(32), np.arange(16) / 16, np.ones(32)])
    np.testing.assert_allclose(decode(tiled, normal(0, 1, 4, 1, 6, 10))[0, 0, 0], np.tile(ramp, (48, 1)), atol=1e-6)
    tiled, _ = decoder(
        lambda latents: np.full(frames_of(*latents.shape[2:]), next(numbers) % 2), (7, 1, 1), (4, 1, 1), (3, 1, 1)
    )
    # Four latent frames are 13 frames; the second tile's first is dropped and the others follow without a blend.
    assert decode(tiled, normal(0, 1, 4, 7, 1, 1))[0, 0, :, 0, 0].tolist() == [0.0] * 13 + [1.0] * 12


def test_frames_come_as_soon_as_they_are_done() -> None:
    tiled, engine = decoder(stretched, (11, 6, 6), (5, 6, 6), (3, 6, 6))
    seen = [(chunk.shape[1], engine.runs) for chunk in tiled.chunks(normal(0, 1, 4, 11, 6, 6))]
    # 17 frames a tile, of which 4 wait for the next.
    assert seen == [(13, 1), (12, 2), (16, 3)]
    assert tiled.seconds > 0


def test_memory_does_not_grow_with_the_clip() -> None:
    peaks = []
    for length in (11, 41):
        tiled, _ = decoder(stretched, (length, 14, 14), (5, 6, 6), (3, 4, 4))
        latents = normal(0, 1, 4, length, 14, 14)
        tracemalloc.start()
        for _chunk in tiled.rgb8_chunks(latents, num_threads=1):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_rgb8_and_a_half_precision_engine() -> None:
    latents = np.clip(normal(5, 1, 4, 8, 10, 6), -1.5, 1.5)
    tiled, _ = decoder(stretched, (8, 10, 6), (5, 6, 6), (3, 4, 6), dtype="float16")
    frames = np.concatenate(list(tiled.rgb8_chunks(latents, num_threads=1)))
    want = np.rint((np.clip(stretched(latents)[0].transpose(1, 2, 3, 0), -1, 1) + 1) * 127.5)
    assert frames.dtype == np.uint8 and frames.shape == (29, 80, 48, 3)
    assert np.abs(frames.astype(int) - want).max() <= 1  # float16 keeps 11 bits of a number below 1


def test_a_decoder_decodes_again_and_closes() -> None:
    tiled, engine = decoder(stretched, (8, 10, 6), (5, 6, 6), (3, 4, 6))
    latents = normal(6, 1, 4, 8, 10, 6)
    assert np.array_equal(decode(tiled, latents), decode(tiled, latents))
    tiled.close()
    assert engine.closed


@pytest.mark.parametrize(
    ("clip", "latent", "stride"),
    [
        ((4, 6, 6), (5, 6, 6), (3, 6, 6)),  # a tile longer than the clip
        ((8, 6, 6), (5, 6, 6), (5, 6, 6)),  # the frame that is dropped would be missing
        ((5, 14, 6), (5, 6, 6), (5, 7, 6)),  # a row between two tiles
        ((2, 6, 6), (1, 6, 6), (1, 6, 6)),  # of one latent a tile makes one frame
    ],
)
def test_tiles_that_leave_gaps_are_refused(
    clip: tuple[int, int, int], latent: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    with pytest.raises(BundleError, match="leaves gaps or passes the end; rebuild the bundle"):
        decoder(stretched, clip, latent, stride)


def test_an_engine_of_other_tiles_is_refused() -> None:
    engine = FunctionEngine(stretched, (1, 4, 5, 6, 6), frames_of(5, 6, 6))
    with pytest.raises(BundleError, match=r"bundle.json cuts latents into \[5, 6, 4\]; rebuild"):
        TiledDecoder(engine, bucket((5, 6, 8), (5, 6, 4), (5, 6, 4)))
    engine = FunctionEngine(stretched, (1, 4, 5, 6, 6), (1, 3, 20, 48, 48))
    with pytest.raises(BundleError, match=r"makes \[1, 3, 20, 48, 48\] of \[1, 4, 5, 6, 6\]"):
        TiledDecoder(engine, bucket((5, 6, 6), (5, 6, 6), (5, 6, 6)))


def test_latents_of_another_clip_are_refused() -> None:
    tiled, _ = decoder(stretched, (8, 10, 6), (5, 6, 6), (3, 4, 6))
    with pytest.raises(EngineError, match=r"latents are \[1, 4, 9, 10, 6\] and the decoder takes \[1, 4, 8, 10, 6\]"):
        next(tiled.chunks(normal(0, 1, 4, 9, 10, 6)))
