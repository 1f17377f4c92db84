"""HunyuanVideo: clean graphs, each equal to diffusers' module, and whole clips equal to the pipelines'."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tiny_hunyuan import (
    LATENT_CHANNELS,
    MAX_SEQUENCE_LENGTH,
    POOLED_DIM,
    PROMPTS,
    TEXT_DIM,
    TRANSFORMER,
    save_tiny_hunyuan,
    tiny_clip_tokenizer,
)

from function_engine import FunctionEngine
from sora_export import build_bundle
from sora_export.checkpoint import Checkpoint
from sora_export.families import Shapes, hunyuan
from sora_export.tokenizer import pad_token_id, write_tokenizer
from sora_runtime.errors import BundleError, InvalidRequest
from sora_runtime.manifest import TextEncoderRecord, TiledBucket
from sora_runtime.pixels import read_picture
from sora_runtime.runtime import Runtime
from sora_runtime.text import PromptTokenizer
from sora_runtime.tiles import TiledDecoder

# Float32 in another order of sums: 1e-6 is seen; a wrong weight or axis gives 1e-1 or more.
TOLERANCE = 1e-5
SIZE, FRAMES = (32, 48), 9
LATENTS = (1, LATENT_CHANNELS, 3, 4, 6)
SEED = 5
KINDS = ["t2v", "token_replace", "latent_concat"]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the bundle of each kind once; one of them from bfloat16, as it is released."""
    made: dict[str, Path] = {}

    def bundle(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind) / "checkpoint"
            dtype = torch.bfloat16 if kind == "token_replace" else torch.float32
            save_tiny_hunyuan(folder, None if kind == "t2v" else kind, dtype=dtype)
            made[kind] = build_bundle(folder, folder, [SIZE], [FRAMES])
        return made[kind]

    return bundle


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def bundle(bundles: Any, kind: str) -> Path:
    path: Path = bundles(kind)
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """One that a test may damage."""
    return save_tiny_hunyuan(tmp_path / "checkpoint")


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


def run(bundle: Path, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def load(model_class: Any, bundle: Path, folder: str) -> Any:
    return model_class.from_pretrained(bundle / folder).float().eval()


def load_pipeline(bundle: Path, kind: str) -> Any:
    pipeline_class = HunyuanVideoPipeline if kind == "t2v" else HunyuanVideoImageToVideoPipeline
    pipeline = pipeline_class.from_pretrained(bundle, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def transformer_file(kind: str) -> str:
    return f"transformer.32x48x9{'' if kind == 't2v' else '.i2v'}.onnx"


def test_graphs_are_clean(bundle: Path, kind: str) -> None:
    doubles, singles, refiners = (TRANSFORMER[f"num_{part}layers"] for part in ("", "single_", "refiner_"))
    left_over = {"Shape", "If", "Loop", "Where", "ScatterND", "ScatterElements", "SplitToSequence", "GatherND", "Tile"}
    for path in bundle.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        count = Counter(node.op_type for node in graph.node)
        assert not left_over & set(count), (path.name, count)
        kept = {i.name: int(np.prod(i.dims)) for i in graph.initializer if not i.external_data}
        # The angles of LLaMA's positions, which the picture's tokens make many; tables of up to 1,024 are folded.
        assert max(kept.values()) < (8_000 if path.name.startswith("text") else 1_025), (path.name, kept)
        if path.name.startswith("transformer"):
            assert count["Attention"] == doubles + singles + refiners
            assert count["RMSNormalization"] == 4 * doubles + 2 * singles
            # One mask for the refiner, one for all blocks.
            assert count["Expand"] <= 4 and count["Gather"] == count["MatMul"] == count["Softmax"] == 0
        elif path.name == "text_encoder.onnx":
            # Two layers of four: the others, and the last norm, do nothing for the state that is taken. Two of CLIP.
            assert count["Attention"] == (2 if kind == "t2v" else 4) and count["RMSNormalization"] == 4
        elif path.name == "text_encoder_2.onnx":
            assert count["Attention"] == 2 and count["LayerNormalization"] == 5
        else:
            # A frame's attention to those before it: products and a softmax for each frame.
            frames = 3 if "decoder" in path.name else 1
            assert count["Softmax"] == frames and count["Attention"] == 0


def test_manifest_states_the_facts(bundle: Path, kind: str) -> None:
    written = manifest(bundle)
    facts, components = written["facts"], written["components"]
    assert written["tasks"] == ["t2v" if kind == "t2v" else "i2v"]
    assert (facts["latent_channels"], facts["spatial_stride"], facts["temporal_stride"]) == (4, 8, 4)
    assert facts["patch_size"] == [1, 2, 2] and facts["sigma_grid"] == "uniform" and facts["fps"] == 24.0
    distilled = kind == "latent_concat"
    assert facts["embedded_guidance"] == (None if distilled else 1000.0)
    assert facts["defaults"]["guidance_scale"] == (1.0 if distilled else 6.0)
    chat, clip = components["text_encoder"], components["text_encoder_2"]
    assert (chat["tokenizer"], clip["tokenizer"]) == ("tokenizer.json", "tokenizer_2.json")
    assert (chat["overflow"], clip["overflow"]) == ("refuse", "truncate")
    assert chat["max_sequence_length"] == MAX_SEQUENCE_LENGTH + (95 if kind == "t2v" else 103)
    assert chat["template"].startswith("<|start_header_id|>system") and clip["template"] == "{}"
    # 576 tokens of the picture, of which every second or fourth is read, and no header of the assistant.
    tokens = MAX_SEQUENCE_LENGTH + {"t2v": 0, "latent_concat": 288 - 4, "token_replace": 144 - 4}[kind]
    assert chat["outputs"]["encoder_hidden_states"] == [1, tokens, TEXT_DIM]
    assert clip["outputs"] == {"pooled_projections": [1, POOLED_DIM]} and clip["max_sequence_length"] == 77
    assert ("image_input" in chat) == ("vae_encoder" in components) == (facts["image"] is not None) == (kind != "t2v")
    assert components["vae_decoder"]["buckets"][0]["tile"] == {"latent": [3, 4, 6], "stride": [3, 4, 6]}
    assert all(entry["relative_l2"] < TOLERANCE for entry in written["parity"].values())
    assert set(written["parity"]) == {path.name for path in bundle.glob("*.onnx")}


def feeds_of(bundle: Path, graph: str, timestep: float) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(bundle / graph), providers=["CPUExecutionProvider"])
    feeds = {i.name: normal(seed, *i.shape) for seed, i in enumerate(session.get_inputs())}
    feeds["timestep"] = np.array([timestep], np.float32)
    if "guidance" in feeds:
        feeds["guidance"] = np.array([4500.0], np.float32)
    length = feeds["encoder_attention_mask"].shape[1]
    feeds["encoder_attention_mask"] = (np.arange(length)[None] < 7).astype(np.float32)
    return feeds


@torch.no_grad()
@pytest.mark.parametrize("timestep", [1000.0, 3.0])
def test_transformer(bundle: Path, kind: str, timestep: float) -> None:
    model = load(HunyuanVideoTransformer3DModel, bundle, "transformer")
    feeds = feeds_of(bundle, transformer_file(kind), timestep)
    got = run(bundle, transformer_file(kind), feeds)["model_output"]
    assert got.shape == LATENTS
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    latents, condition = given.pop("hidden_states"), given.pop("condition", None)
    assert (condition is None) == (kind == "t2v") and ("guidance" in given) == (kind != "latent_concat")
    if kind == "token_replace":
        latents[:, :, :1] = condition
    elif kind == "latent_concat":
        latents = torch.cat([latents, condition], dim=1)
    assert relative_l2(got, model(latents, **given).sample.numpy()) < TOLERANCE


def test_what_stands_at_padding_does_not_matter(bundle: Path, kind: str) -> None:
    feeds = feeds_of(bundle, transformer_file(kind), 500.0)
    got = run(bundle, transformer_file(kind), feeds)["model_output"]
    other = {**feeds, "encoder_hidden_states": feeds["encoder_hidden_states"].copy()}
    other["encoder_hidden_states"][:, 7:] = 9.0
    assert np.array_equal(got, run(bundle, transformer_file(kind), other)["model_output"])
    other["encoder_hidden_states"][:, 6] = 9.0
    assert relative_l2(run(bundle, transformer_file(kind), other)["model_output"], got) > 1e-3


def picture() -> Any:
    """Of no size that is built, so that it must be resized."""
    from PIL import Image

    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (37, 61, 3), np.uint8))


@torch.no_grad()
def test_text_encoders(bundle: Path, kind: str) -> None:
    pipeline = load_pipeline(bundle, kind)
    given: dict[str, Any] = {}
    if kind != "t2v":
        given = {"image": picture(), "image_embed_interleave": 2 if kind == "latent_concat" else 4}
    with Runtime.load(bundle, num_threads=1) as runtime:
        image = None if kind == "t2v" else read_picture(picture())
        for prompt, words in ((PROMPTS[0], 5), (PROMPTS[1], 6), ("", 0)):
            want = pipeline.encode_prompt(prompt=prompt, max_sequence_length=MAX_SEQUENCE_LENGTH, **given)
            embeds, pooled, mask = (tensor.numpy() for tensor in want)
            (got,), _ = runtime.text_encoders.embed([("prompt", prompt)], image, lambda *_: None, None)
            # The words begin where the crop ends; behind them the end of the turn, or a line under the answer's header.
            read = {"t2v": 0, "latent_concat": 288, "token_replace": 144}[kind] + words + 1
            assert mask.sum() == read and np.array_equal(got["encoder_attention_mask"], mask.astype(np.float32))
            assert relative_l2(got["encoder_hidden_states"], embeds * mask[..., None]) < TOLERANCE
            assert relative_l2(got["pooled_projections"], pooled) < TOLERANCE


def test_long_prompts(bundles: Any) -> None:
    """CLIP's words are cut as diffusers cuts them, end token kept; the chat model's are refused."""
    bundle = bundles("t2v")
    with Runtime.load(bundle, num_threads=1) as runtime:
        long = "red " * 100
        record = runtime.bundle.manifest.components.text_encoder_2
        assert record is not None
        ids = PromptTokenizer(bundle / record.tokenizer, record)(long)
        want = load_pipeline(bundle, "t2v").tokenizer_2(long, padding="max_length", max_length=77, truncation=True)
        assert ids is not None and ids.input_ids[0].tolist() == want.input_ids
        with pytest.raises(InvalidRequest, match=r"the prompt has \d+ tokens .* takes"):
            runtime.generate(long, seed=1)


def test_clips_vocabulary_becomes_a_tokenizer(checkpoint: Path) -> None:
    """Older checkpoints have no tokenizer.json for CLIP."""
    tokenizer = tiny_clip_tokenizer()
    folder = checkpoint / "tokenizer_2"
    (folder / "tokenizer.json").unlink()
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in merges)]))
    target = checkpoint / "tokenizer_2.json"
    write_tokenizer(Checkpoint(checkpoint), "tokenizer_2", target)
    assert pad_token_id(Checkpoint(checkpoint), "tokenizer_2", 0) == tokenizer.pad_token_id
    encoder = TextEncoderRecord(
        graph="text_encoder_2.onnx",
        fingerprint="",
        tokenizer=target.name,
        max_sequence_length=77,
        pad_token_id=tokenizer.pad_token_id,
        overflow="truncate",
        inputs=["input_ids"],
        outputs={"pooled_projections": (1, POOLED_DIM)},
    )
    ids = PromptTokenizer(target, encoder)("A Red, circle")
    want = tokenizer("A Red, circle", padding="max_length", max_length=77, truncation=True)
    assert ids is not None and ids.input_ids[0].tolist() == want.input_ids


@torch.no_grad()
def test_decoder(bundle: Path) -> None:
    vae = load(AutoencoderKLHunyuanVideo, bundle, "vae")
    latents = normal(3, *LATENTS)
    got = run(bundle, "vae_decoder.32x48x9.onnx", {"latents": latents})["frames"]
    assert got.shape == (1, 3, FRAMES, *SIZE)
    assert (
        relative_l2(got, vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor).sample.numpy()) < TOLERANCE
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", ["latent_concat"], indirect=True)
def test_encoder_gives_the_scaled_mode(bundle: Path) -> None:
    vae = load(AutoencoderKLHunyuanVideo, bundle, "vae")
    frame = np.tanh(normal(4, 1, 3, 1, *SIZE))
    mode = vae.encode(torch.from_numpy(frame)).latent_dist.mode() * vae.config.scaling_factor
    assert relative_l2(run(bundle, "vae_encoder.32x48.onnx", {"frames": frame})["latents"], mode.numpy()) < TOLERANCE


@torch.no_grad()
def test_a_clip_in_tiles(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long clip is cut in time; built with small tiles, in rows and columns too, from one graph."""
    monkeypatch.setattr(hunyuan, "_TILE", (16, 40, 40))
    monkeypatch.setattr(hunyuan, "_OVERLAP", (4, 16, 16))
    build_bundle(checkpoint, checkpoint, [(64, 48)], [33])
    (bucket,) = manifest(checkpoint)["components"]["vae_decoder"]["buckets"]
    assert bucket["tile"] == {"latent": [5, 5, 4], "stride": [3, 3, 2]}
    assert [path.name for path in checkpoint.glob("vae*.onnx")] == ["vae_decoder.40x32x17.onnx"] == [bucket["graph"]]
    with Runtime.load(checkpoint, num_threads=1) as runtime:
        clip = runtime.generate(PROMPTS[0], seed=SEED, num_inference_steps=2)
    vae = load(AutoencoderKLHunyuanVideo, checkpoint, "vae")
    vae.use_framewise_decoding = False

    def decode(latents: np.ndarray) -> np.ndarray:
        frames: np.ndarray = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor).sample.numpy()
        return frames

    engine = FunctionEngine(decode, (1, LATENT_CHANNELS, 5, 5, 4), (1, 3, 17, 40, 32))
    tiled = TiledDecoder(engine, TiledBucket.model_validate(bucket))
    want = np.concatenate(list(tiled.rgb8_chunks(clip.latents, num_threads=1)))
    assert want.shape == (33, 64, 48, 3) and engine.runs == 3 * 2 * 2
    assert np.abs(clip.frames.astype(int) - want).max() <= 1


def clips(bundle: Path, kind: str, guidance_scale: float) -> tuple[Any, torch.Tensor, np.ndarray]:
    """A clip of the runtime, and latents and frames of the pipeline from the same noise."""
    pipeline = load_pipeline(bundle, kind)
    noise = normal(SEED, *LATENTS)
    given: dict[str, Any] = {} if kind == "t2v" else {"image": picture()}
    settings = {"num_inference_steps": 4, "guidance_scale": guidance_scale, "height": SIZE[0], "width": SIZE[1]}
    seen: dict[str, torch.Tensor] = {}
    want = pipeline(
        prompt=PROMPTS[0],
        num_frames=FRAMES,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        latents=torch.from_numpy(noise.copy()),
        output_type="np",
        callback_on_step_end=lambda _pipe, _i, _t, values: seen.update(values) or {},
        **settings,
        **given,
    ).frames[0]
    with Runtime.load(bundle, num_threads=1) as runtime:
        clip = runtime.generate(PROMPTS[0], seed=SEED, latents=noise, num_frames=FRAMES, **settings, **given)
    return clip, seen["latents"].numpy(), want


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_clips_equal_diffusers(bundles: Any, guidance_scale: float) -> None:
    """Prompt and start noise to frames."""
    clip, latents, want = clips(bundles("t2v"), "t2v", guidance_scale)
    # Four steps of two float32 implementations: 1e-6 is seen; the project promises 1e-3.
    assert relative_l2(clip.latents, latents) < 1e-4
    assert clip.frames.shape == (FRAMES, *SIZE, 3) and clip.fps == 24
    # Both round the same numbers but for errors of 1e-6 on the edge between two values.
    assert np.abs(clip.frames.astype(int) - np.rint(want * 255)).max() <= 1


@pytest.mark.parametrize("kind", ["token_replace", "latent_concat"])
def test_clips_from_a_picture_equal_diffusers(bundles: Any, kind: str) -> None:
    """Prompt, picture and start noise to frames; a little of the picture is in the start."""
    clip, latents, want = clips(bundles(kind), kind, 6.0 if kind == "token_replace" else 1.0)
    assert relative_l2(clip.latents, latents) < 1e-4
    # With channels beside the latents the pipeline throws the first four frames away.
    shown = FRAMES - (4 if kind == "latent_concat" else 0)
    assert clip.frames.shape == (shown, *SIZE, 3) and clip.receipt.video_seconds == shown / 24
    assert np.abs(clip.frames.astype(int) - np.rint(want * 255)).max() <= 1


def test_a_picture_alone_is_no_clip(bundles: Any) -> None:
    checkpoint = Checkpoint(bundles("token_replace"))
    parts = hunyuan.components(checkpoint, hunyuan.read_facts(checkpoint), Shapes([SIZE], [1, FRAMES], ["i2v"]))
    (transformer,) = (part for part in parts if part.name == "transformer")
    assert [bucket["num_frames"] for bucket in transformer.entry["buckets"]] == [FRAMES]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"text_embed_dim": 48}, "has text_embed_dim = 48, but its text_encoder gives 32"),
        ("transformer/config.json", {"pooled_projection_dim": 8}, f"= 8, but its text_encoder_2 gives {POOLED_DIM}"),
        (
            "transformer/config.json",
            {"in_channels": 9},
            "has in_channels = 9, but HunyuanVideoPipeline with",
        ),
        ("transformer/config.json", {"image_condition_type": "token_replace"}, "which HunyuanVideoPipeline cannot use"),
        ("transformer/config.json", {"rope_axes_dim": [8, 8, 16]}, "do not add up to its attention_head_dim = 24"),
        ("vae/config.json", {"spatial_compression_ratio": 16}, "a latent is 16 pixels and 4 frames, but its decoder"),
        ("text_encoder/config.json", {"num_hidden_layers": 2}, "has 2 layers and the pipeline takes the state before"),
        ("tokenizer/tokenizer_config.json", {"padding_side": "left"}, "pads on the left"),
    ],
)
def test_parts_that_do_not_fit_are_refused(checkpoint: Path, file: str, change: dict[str, Any], message: str) -> None:
    config = json.loads((checkpoint / file).read_text())
    (checkpoint / file).write_text(json.dumps(config | change))
    with pytest.raises(BundleError, match=message):
        build_bundle(checkpoint, checkpoint, [SIZE], [FRAMES])
    assert not (checkpoint / "bundle.json").exists() and not list(checkpoint.glob("*.onnx"))


def test_another_text_encoder_is_refused(checkpoint: Path) -> None:
    index = json.loads((checkpoint / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "UMT5EncoderModel"]
    (checkpoint / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match=r"text_encoder of .* is UMT5EncoderModel, which a HunyuanVideoPipeline"):
        build_bundle(checkpoint, checkpoint, [SIZE], [FRAMES])
