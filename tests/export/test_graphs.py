"""Every graph against diffusers' own modules, run here and not taken from bundle.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

# Float32 in another order of sums: 1e-6 is seen; a wrong weight or axis gives 1e-1 or more.
TOLERANCE = 1e-5


def session(bundle: Path, graph: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"])


def component(bundle: Path, name: str) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())["components"][name]


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_chunks(bundle: Path, name: str, take: str, chunks: list[np.ndarray]) -> np.ndarray:
    bucket = component(bundle, name)["buckets"][0]
    sessions = {part: session(bundle, bucket[part]) for part in ("first", "next") if bucket[part]}
    caches: dict[str, np.ndarray] = {}
    results = []
    for index, chunk in enumerate(chunks):
        result, *out = sessions["next" if index else "first"].run(None, {take: chunk, **caches})
        results.append(result)
        caches = {f"cache_in.{i}": cache for i, cache in enumerate(out)}
    return np.concatenate(results, axis=2)


@pytest.fixture
def vae(bundle: Path) -> AutoencoderKLWan:
    return AutoencoderKLWan.from_pretrained(bundle / "vae", torch_dtype=torch.float32).eval()


def statistics(vae: AutoencoderKLWan) -> tuple[np.ndarray, np.ndarray]:
    shape = (1, -1, 1, 1, 1)
    mean = np.array(vae.config.latents_mean, np.float32).reshape(shape)
    return mean, np.array(vae.config.latents_std, np.float32).reshape(shape)


@torch.no_grad()
def test_chunked_decoding_equals_decoding_at_once(bundle: Path, vae: AutoencoderKLWan) -> None:
    stride, z_dim = vae.config.scale_factor_spatial, vae.config.z_dim
    bucket = component(bundle, "vae_decoder")["buckets"][0]
    latents = normal(0, 1, z_dim, 5, bucket["height"] // stride, bucket["width"] // stride)
    mean, std = statistics(vae)
    want = vae.decode(torch.from_numpy(latents * std + mean)).sample.numpy()
    assert (np.abs(want) < 1).mean() > 0.9  # else the clamp below would hide an error
    chunks = [latents[:, :, i : i + 1] for i in range(5)]
    got = np.clip(run_chunks(bundle, "vae_decoder", "latents", chunks), -1, 1)
    assert got.shape == (1, 3, 17, bucket["height"], bucket["width"])
    for start, end in ((0, 1), (1, 5), (5, 9), (9, 17)):
        assert relative_l2(got[:, :, start:end], want[:, :, start:end]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("name", ["i2v_a14b_bundle", "residual_bundle"])
def test_chunked_encoding_equals_encoding_at_once(name: str, request: pytest.FixtureRequest) -> None:
    bundle: Path = request.getfixturevalue(name)
    vae = AutoencoderKLWan.from_pretrained(bundle / "vae", torch_dtype=torch.float32).eval()
    bucket = component(bundle, "vae_encoder")["buckets"][0]
    latent_frames = 5 if bucket["next"] else 1
    shape = (1, 3, 4 * latent_frames - 3, bucket["height"], bucket["width"])
    frames = np.tanh(normal(1, *shape))
    mean, std = statistics(vae)
    want = (vae.encode(torch.from_numpy(frames)).latent_dist.mode().numpy() - mean) / std
    chunks = [frames[:, :, :1], *(frames[:, :, i : i + 4] for i in range(1, shape[2], 4))]
    got = run_chunks(bundle, "vae_encoder", "frames", chunks)
    for i in range(latent_frames):
        assert relative_l2(got[:, :, i], want[:, :, i]) < TOLERANCE


def test_history_matters(plain_bundle: Path) -> None:
    """The comparison above would not notice caches that are ignored if they had no effect."""
    latents = normal(0, 1, 4, 1, 8, 12)
    other = normal(5, 1, 4, 1, 8, 12)
    after_one = run_chunks(plain_bundle, "vae_decoder", "latents", [latents, latents])[:, :, 1:]
    after_other = run_chunks(plain_bundle, "vae_decoder", "latents", [other, latents])[:, :, 1:]
    assert relative_l2(after_one, after_other) > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
@pytest.mark.parametrize("timestep", [999.0, 3.5])
def test_transformer(bundle: Path, name: str, timestep: float) -> None:
    if not (bundle / name).is_dir():
        assert name == "transformer_2"
        return
    model = WanTransformer3DModel.from_pretrained(bundle / name, torch_dtype=torch.float32).eval()
    engine = session(bundle, component(bundle, name)["buckets"][0]["graph"])
    shapes = {i.name: i.shape for i in engine.get_inputs()}
    assert list(shapes) == ["hidden_states", "timestep", "encoder_hidden_states"]
    feeds = {key: normal(3, *shape) for key, shape in shapes.items()}
    feeds["timestep"] = np.array([timestep], np.float32)
    want = model(*(torch.from_numpy(value) for value in feeds.values())).sample.numpy()
    (got,) = engine.run(["model_output"], feeds)
    assert relative_l2(got, want) < TOLERANCE
    # Wan 2.2 TI2V gives every token its own timestep: the same result when all are equal.
    tokens = want.shape[2] * want.shape[3] * want.shape[4] // 4
    expanded = torch.full((1, tokens), timestep)
    expanded_feeds = [torch.from_numpy(feeds[key]) for key in feeds]
    expanded_feeds[1] = expanded
    assert relative_l2(got, model(*expanded_feeds).sample.numpy()) < TOLERANCE


@torch.no_grad()
def test_text_encoder_is_zero_where_masked(bundle: Path) -> None:
    model = UMT5EncoderModel.from_pretrained(bundle / "text_encoder", dtype=torch.float32).eval()
    engine = session(bundle, "text_encoder.onnx")
    for length in (1, 5, 16):
        ids = np.zeros((1, 16), np.int64)
        ids[0, :length] = np.random.default_rng(length).integers(1, 64, length)
        mask = (np.arange(16)[None] < length).astype(np.int64)
        (got,) = engine.run(["encoder_hidden_states"], {"input_ids": ids, "attention_mask": mask})
        want = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
        assert relative_l2(got[:, :length], want[:, :length]) < TOLERANCE
        assert not got[:, length:].any()
