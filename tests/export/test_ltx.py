"""LTX-Video: clean graphs, each equal to diffusers' module, and whole clips equal to the pipelines'."""

from __future__ import annotations

import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, DiffusionPipeline, LTXImageToVideoPipeline, LTXVideoTransformer3DModel
from PIL import Image
from tiny_ltx import MAX_SEQUENCE_LENGTH, TRANSFORMER, save_tiny_ltx
from transformers import T5EncoderModel

from function_engine import FunctionEngine
from sora_export import build_bundle
from sora_export.families import ltx
from sora_runtime.errors import BundleError
from sora_runtime.manifest import TiledBucket
from sora_runtime.runtime import Runtime
from sora_runtime.tiles import TiledDecoder

# Float32 in another order of sums: 1e-6 is seen; a wrong weight or axis gives 1e-1 or more.
TOLERANCE = 1e-5
SIZE, FRAMES = (32, 96), (17, 1)
LATENTS = (1, 16, 5, 4, 12)
ROPE = (4 / 25, 8, 8)
PROMPT = "a red circle moves left"
SEED = 5


@pytest.fixture(scope="session", params=["0.9", "0.9.5"])
def variant(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def bundle(variant: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first from LTXPipeline, the second from LTXImageToVideoPipeline and bfloat16, as it is released."""
    folder = tmp_path_factory.mktemp("ltx") / "checkpoint"
    newer = variant == "0.9.5"
    save_tiny_ltx(folder, variant, image=newer, dtype=torch.bfloat16 if newer else torch.float32)
    return build_bundle(folder, folder, [SIZE], FRAMES)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One that a test may damage."""
    return save_tiny_ltx(tmp_path / "checkpoint")


@pytest.fixture
def no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `inject_noise` draws becomes its mean."""

    def zeros(*shape: Any, generator: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*shape, **kwargs)

    monkeypatch.setattr(torch, "randn", zeros)


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


def run(bundle: Path, graph: str, **feeds: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"]).run(None, feeds)[0]


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def load(model_class: Any, bundle: Path, folder: str) -> Any:
    return model_class.from_pretrained(bundle / folder).float().eval()


def test_graphs_are_clean(bundle: Path) -> None:
    layers = TRANSFORMER["num_layers"]
    for path in bundle.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        count = Counter(node.op_type for node in graph.node)
        left_over = {"Shape", "If", "Loop", "Where", "ScatterND", "ScatterElements", "SplitToSequence", "GatherND"}
        assert not left_over & set(count), (path.name, count)
        kept = sum(int(np.prod(i.dims)) for i in graph.initializer if not i.external_data)
        # 127 distances of tokens, the angles of the axes; nothing of the size of a clip.
        assert kept < 2_000, (path.name, kept)
        if path.name.startswith("transformer"):
            assert count["Attention"] == 2 * layers
            # Two norms of a block and two of queries and keys in each attention.
            assert count["RMSNormalization"] == 6 * layers and count["LayerNormalization"] == 1
            assert count["Gemm"] == 10 * layers + 7 and count["MatMul"] == 0
            assert count["Gather"] == 0
        elif path.name.startswith("text"):
            assert count["Attention"] == 2 and count["RMSNormalization"] == 5
        else:
            assert count["Conv"] == count["Pad"] + sum("conv_shortcut" in i.name for i in graph.initializer) / 2
            assert {"RMSNormalization", "Expand"} & set(count) == {"RMSNormalization"}
            assert not {"RandomNormal", "RandomNormalLike", "Tile", "Gather"} & set(count)


def test_manifest_states_the_facts(bundle: Path) -> None:
    written = manifest(bundle)
    facts, components = written["facts"], written["components"]
    assert written["tasks"] == ["t2v", "i2v"]
    assert (facts["latent_channels"], facts["spatial_stride"], facts["temporal_stride"]) == (16, 8, 4)
    assert (facts["fps"], facts["sigma_grid"], facts["embedded_guidance"]) == (25.0, "uniform", None)
    assert facts["image"]["policy"] == "first_frame" and facts["image"]["video"] == "first_only"
    assert facts["defaults"]["guidance_scale"] == 3.0
    assert components["text_encoder"]["overflow"] == "truncate"
    buckets = [(bucket["num_frames"], bucket["task"]) for bucket in components["transformer"]["buckets"]]
    assert buckets == [(17, "t2v"), (1, "t2v"), (17, "i2v")]  # a picture is the whole of a clip of one frame
    assert components["vae_decoder"]["buckets"][0]["tile"] == {"latent": [5, 4, 12], "stride": [5, 4, 12]}
    assert all(entry["relative_l2"] < TOLERANCE for entry in written["parity"].values())
    assert set(written["parity"]) == {path.name for path in bundle.glob("*.onnx")}


def test_the_decoder_reads_the_statistics_of_latents_from_the_weights(bundle: Path) -> None:
    graph = onnx.load(next(bundle.glob("vae_decoder*")), load_external_data=False).graph
    stored = {i.name for i in graph.initializer if i.external_data}
    assert {"model.latents_mean", "model.latents_std"} <= stored


@torch.no_grad()
def test_text_encoder(bundle: Path) -> None:
    model = load(T5EncoderModel, bundle, "text_encoder")
    ids = np.array([[5, 9, 4, 1, *[0] * (MAX_SEQUENCE_LENGTH - 4)]])
    mask = (ids > 0).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask}
    session = onnxruntime.InferenceSession(str(bundle / "text_encoder.onnx"), providers=["CPUExecutionProvider"])
    embeddings, kept = session.run(["encoder_hidden_states", "encoder_attention_mask"], feeds)
    assert relative_l2(embeddings, model(torch.from_numpy(ids)).last_hidden_state.numpy()) < TOLERANCE
    assert kept.dtype == np.float32 and np.array_equal(kept, mask)


@torch.no_grad()
@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("timestep", [1000.0, 3.0])
def test_transformer(bundle: Path, task: str, timestep: float) -> None:
    model = load(LTXVideoTransformer3DModel, bundle, "transformer")
    latents, text = normal(0, *LATENTS), normal(1, 1, MAX_SEQUENCE_LENGTH, 32)
    mask = (np.arange(MAX_SEQUENCE_LENGTH)[None] < 5).astype(np.float32)
    feeds = {
        "hidden_states": latents,
        "timestep": np.array([timestep], np.float32),
        "encoder_hidden_states": text,
        "encoder_attention_mask": mask,
    }
    shown, of_tokens = latents.copy(), torch.tensor([timestep])
    if task == "i2v":
        feeds["condition"] = shown[:, :, :1] = normal(2, 1, 16, 1, 4, 12)
        of_tokens = torch.tensor([0.0] * 48 + [timestep] * 192)[None]
    want = model(
        torch.from_numpy(shown).flatten(2).transpose(1, 2),
        torch.from_numpy(text),
        of_tokens,
        torch.from_numpy(mask),
        *LATENTS[2:],
        ROPE,
        return_dict=False,
    )[0]
    got = run(bundle, f"transformer.32x96x17{'.i2v' if task == 'i2v' else ''}.onnx", **feeds)
    assert relative_l2(got, want.transpose(1, 2).reshape(LATENTS).numpy()) < TOLERANCE


def decode(vae: AutoencoderKLLTXVideo, latents: np.ndarray) -> torch.Tensor:
    """What LTXPipeline does with its latents."""
    z = LTXImageToVideoPipeline._denormalize_latents(torch.from_numpy(latents), vae.latents_mean, vae.latents_std)
    return vae.decode(z, torch.zeros(1) if vae.config.timestep_conditioning else None).sample


@torch.no_grad()
@pytest.mark.usefixtures("no_noise")
def test_decoder(bundle: Path) -> None:
    vae = load(AutoencoderKLLTXVideo, bundle, "vae")
    for frames in FRAMES:
        latents = normal(3, 1, 16, (frames - 1) // 4 + 1, 4, 12)
        got = run(bundle, f"vae_decoder.32x96x{frames}.onnx", latents=latents)
        assert got.shape == (1, 3, frames, *SIZE)
        assert relative_l2(got, decode(vae, latents).numpy()) < TOLERANCE


@torch.no_grad()
def test_encoder_gives_the_normalised_mode(bundle: Path) -> None:
    vae = load(AutoencoderKLLTXVideo, bundle, "vae")
    frame = np.tanh(normal(4, 1, 3, 1, *SIZE))
    mode = vae.encode(torch.from_numpy(frame)).latent_dist.mode()
    want = LTXImageToVideoPipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std)
    assert relative_l2(run(bundle, "vae_encoder.32x96.onnx", frames=frame), want.numpy()) < TOLERANCE


def picture() -> Image.Image:
    """Of no size that is built, so that it must be resized."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (37, 61, 3), np.uint8))


def clips(
    bundle: Path, task: str, guidance_scale: float, patch: pytest.MonkeyPatch
) -> tuple[Any, torch.Tensor, np.ndarray]:
    """A clip of the runtime, and latents and frames of the pipeline from the same noise."""
    pipeline_class = import_module("diffusers").LTXPipeline if task == "t2v" else LTXImageToVideoPipeline
    pipeline = pipeline_class.from_pretrained(bundle, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = normal(SEED, *LATENTS)
    given: dict[str, Any] = {} if task == "t2v" else {"image": picture()}
    start = {"latents": pipeline._pack_latents(torch.from_numpy(noise.copy()))}
    if task == "i2v":
        module = import_module(pipeline_class.__module__)
        # The pipeline draws from the posterior, whose mode is what a reproducible clip wants.
        patch.setattr(module, "retrieve_latents", lambda encoded, *_: encoded.latent_dist.mode())
        patch.setattr(module, "randn_tensor", lambda *_, **__: torch.from_numpy(noise.copy()))
        start = {}
    settings = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "height": SIZE[0], "width": SIZE[1]}
    seen: dict[str, torch.Tensor] = {}
    want = pipeline(
        prompt=PROMPT,
        num_frames=FRAMES[0],
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="np",
        callback_on_step_end=lambda _pipe, _i, _t, values: seen.update(values) or {},
        **settings,
        **given,
        **start,
    ).frames[0]
    with Runtime.load(bundle, num_threads=1) as runtime:
        clip = runtime.generate(PROMPT, seed=SEED, latents=noise, num_frames=FRAMES[0], **settings, **given)
    return clip, seen["latents"].transpose(1, 2).reshape(LATENTS).numpy(), want


@pytest.mark.usefixtures("no_noise")
@pytest.mark.parametrize("task", ["t2v", "i2v"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_clips_equal_diffusers(bundle: Path, task: str, guidance_scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompt, picture and start noise to frames."""
    clip, latents, want = clips(bundle, task, guidance_scale, monkeypatch)
    assert relative_l2(clip.latents, latents) < TOLERANCE
    assert clip.frames.shape == (17, *SIZE, 3) and clip.fps == 25
    # Both round the same numbers but for errors of 1e-6 on the edge between two values.
    assert np.abs(clip.frames.astype(int) - np.rint(want * 255)).max() <= 1


def test_a_long_prompt_is_cut_as_diffusers_cuts_it(bundle: Path) -> None:
    pipeline = DiffusionPipeline.from_pretrained(bundle, dtype=torch.float32)
    prompt = " ".join(["a red circle moves left"] * 5)
    want, mask = pipeline.encode_prompt(prompt, max_sequence_length=MAX_SEQUENCE_LENGTH)[:2]
    assert bool(mask.all())
    with Runtime.load(bundle, num_threads=1) as runtime:
        branches, _ = runtime.text_encoders.embed([("prompt", prompt)], None, lambda *_: None, None)
    assert relative_l2(branches[0]["encoder_hidden_states"], want.detach().numpy()) < TOLERANCE


@torch.no_grad()
def test_a_clip_in_tiles(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Built with small tiles, a clip is cut in time, rows and columns, and put together again from one graph."""
    monkeypatch.setattr(ltx, "_TILE", (24, 40, 40))
    monkeypatch.setattr(ltx, "_OVERLAP", (8, 16, 16))
    build_bundle(checkpoint, checkpoint, [(64, 48)], [33], tasks=["t2v"])
    (bucket,) = manifest(checkpoint)["components"]["vae_decoder"]["buckets"]
    assert bucket["tile"] == {"latent": [6, 5, 4], "stride": [3, 3, 2]}
    assert [path.name for path in checkpoint.glob("vae*.onnx")] == ["vae_decoder.40x32x21.onnx"] == [bucket["graph"]]
    with Runtime.load(checkpoint, num_threads=1) as runtime:
        clip = runtime.generate(PROMPT, seed=SEED, num_inference_steps=2)
    vae = load(AutoencoderKLLTXVideo, checkpoint, "vae")
    engine = FunctionEngine(lambda latents: decode(vae, latents).numpy(), (1, 16, 6, 5, 4), (1, 3, 21, 40, 32))
    tiled = TiledDecoder(engine, TiledBucket.model_validate(bucket))
    want = np.concatenate(list(tiled.rgb8_chunks(clip.latents, num_threads=1)))
    assert want.shape == (33, 64, 48, 3) and engine.runs == 2 * 2 * 2
    assert np.abs(clip.frames.astype(int) - want).max() <= 1


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"caption_channels": 48}, "takes embeddings of 48, but its text encoder gives 32"),
        ("transformer/config.json", {"in_channels": 8}, "takes 8 channels and gives 16, but latents have 16"),
        ("transformer/config.json", {"patch_size": 2}, "patches of 1 frames and 2 rows and columns, which LTXPipeline"),
        ("vae/config.json", {"spatial_compression_ratio": 32}, "is 32 pixels and 4 frames, but its decoder makes 8"),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderKLWan"]}, "is AutoencoderKLWan, not AutoencoderKLLTX"),
    ],
)
def test_parts_that_do_not_fit_are_refused(checkpoint: Path, file: str, change: dict[str, Any], message: str) -> None:
    config = json.loads((checkpoint / file).read_text())
    (checkpoint / file).write_text(json.dumps(config | change))
    with pytest.raises(BundleError, match=message):
        build_bundle(checkpoint, checkpoint, [SIZE], [17])
    assert not (checkpoint / "bundle.json").exists() and not list(checkpoint.glob("*.onnx"))
