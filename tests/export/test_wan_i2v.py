"""Wan from a picture: 2.1 with CLIP, 2.2 with two experts, 2.2 TI2V; whole clips against diffusers' pipelines."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image
from tiny_checkpoint import IMAGE_SIZE

from sora_export.checkpoint import Checkpoint
from sora_export.families import Shapes, wan
from sora_runtime import Runtime
from sora_runtime.errors import InvalidRequest
from sora_runtime.geometry import Geometry, Strides
from sora_runtime.pixels import read_picture

# Two float32 engines over four steps: 1e-6 is seen, a picture out of place gives 1e-1 or more.
TOLERANCE = 1e-4
PROMPT, NEGATIVE = "a red circle moves left", "a blue square"
STEPS = {"num_inference_steps": 4, "guidance_scale": 3.0}
# Shape arithmetic, indices for every element, control flow: what an engine cannot fuse or refuses.
UNWANTED = {"Shape", "ScatterND", "GatherND", "ScatterElements", "If", "Loop", "SplitToSequence", "Where", "Range"}

IMAGE_BUNDLES = ["i2v_2_1_bundle", "i2v_a14b_bundle", "residual_bundle"]


@pytest.fixture(params=IMAGE_BUNDLES)
def image_bundle(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(request.param)
    return path


@pytest.fixture
def runtime(image_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Runtime]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with Runtime.load(image_bundle, num_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Coarse noise of another size and aspect than the clip."""
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((112, 60), Image.Resampling.BICUBIC)


def manifest(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "bundle.json").read_text())


def operators(bundle: Path, graph: str) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(bundle / graph, load_external_data=False).graph.node)


def relative_l2(got: np.ndarray, want: np.ndarray) -> float:
    assert got.shape == want.shape
    return float(np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want))


def noise(runtime: Runtime) -> np.ndarray:
    facts, defaults = runtime.bundle.manifest.facts, runtime.bundle.manifest.facts.defaults
    frames = (defaults.num_frames - 1) // facts.temporal_stride + 1
    size = (defaults.height // facts.spatial_stride, defaults.width // facts.spatial_stride)
    return np.random.default_rng(5).standard_normal((1, facts.latent_channels, frames, *size), np.float32)


def pipeline_of(kind: type, bundle: Path) -> Any:
    pipeline = kind.from_pretrained(bundle, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def diffusers_clip(pipeline: Any, runtime: Runtime, latents: np.ndarray, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """Latents and rgb8 frames of diffusers from its own text embeddings."""
    defaults = runtime.bundle.manifest.facts.defaults
    length = runtime.bundle.manifest.components.text_encoder.max_sequence_length
    size = {"height": defaults.height, "width": defaults.width, "num_frames": defaults.num_frames}
    results = [
        pipeline(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            latents=torch.from_numpy(latents.copy()),
            max_sequence_length=length,
            output_type=kind,
            **size,
            **STEPS,
            **more,
        ).frames
        for kind in ("latent", "np")
    ]
    return results[0].numpy(), np.rint(results[1][0] * 255).astype(np.uint8)


def test_a_clip_from_a_picture_equals_diffusers(runtime: Runtime, image_bundle: Path, picture: Image.Image) -> None:
    pipeline, latents = pipeline_of(WanImageToVideoPipeline, image_bundle), noise(runtime)
    want, frames = diffusers_clip(pipeline, runtime, latents, image=picture)
    clip = runtime.generate(PROMPT, negative_prompt=NEGATIVE, image=picture, latents=latents, **STEPS)
    assert relative_l2(clip.latents, want) < TOLERANCE
    assert np.abs(clip.frames.astype(int) - frames).max() <= 1
    if pipeline.config.boundary_ratio is not None:
        high = [bool(t >= 900) for t in pipeline.scheduler.timesteps]
        assert pipeline.config.boundary_ratio == 0.9 and any(high) and not all(high)


def test_a_clip_from_a_prompt_equals_diffusers(
    residual_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Runtime.load(residual_bundle, num_threads=1) as runtime:
        latents = noise(runtime)
        want, frames = diffusers_clip(pipeline_of(WanPipeline, residual_bundle), runtime, latents)
        clip = runtime.generate(PROMPT, negative_prompt=NEGATIVE, latents=latents, **STEPS)
    assert relative_l2(clip.latents, want) < TOLERANCE
    assert np.abs(clip.frames.astype(int) - frames).max() <= 1


def test_the_picture_matters(runtime: Runtime, picture: Image.Image) -> None:
    """Comparisons with diffusers would not notice a picture that both leave out."""
    latents = noise(runtime)
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    clips = [runtime.generate(PROMPT, image=image, latents=latents, **STEPS) for image in (picture, mirrored)]
    assert relative_l2(clips[0].latents[:, :, 1:], clips[1].latents[:, :, 1:]) > 1e-3


def test_the_condition_is_that_of_prepare_latents(runtime: Runtime, image_bundle: Path, picture: Image.Image) -> None:
    latents, defaults = noise(runtime), runtime.bundle.manifest.facts.defaults
    runtime.generate(PROMPT, image=picture, latents=latents, **STEPS)
    (stages,) = runtime._stages.values()
    conditioner = stages.conditioner
    assert conditioner is not None
    pipeline = pipeline_of(WanImageToVideoPipeline, image_bundle)
    size = {"height": defaults.height, "width": defaults.width}
    pixels = pipeline.video_processor.preprocess(picture, **size).to(torch.float32)
    with torch.no_grad():
        _, want, *_ = pipeline.prepare_latents(
            pixels, 1, latents.shape[1], num_frames=defaults.num_frames, dtype=torch.float32, device="cpu", **size
        )
    facts = runtime.bundle.manifest.facts
    strides = Strides(facts.latent_channels, facts.spatial_stride, facts.temporal_stride, facts.patch_size)
    geometry = Geometry.of(strides, num_frames=defaults.num_frames, **size)
    given = conditioner(read_picture(picture), geometry)
    assert relative_l2(given["condition"], want.numpy()) < 1e-5
    if facts.image is not None and facts.image.image_encoder is not None:
        with torch.no_grad():
            embeds = pipeline.encode_image(picture, "cpu").numpy()
        assert relative_l2(given["image_embeds"], embeds) < 1e-5
    else:
        assert set(given) == {"condition"}


def test_the_first_frame_of_ti2v_is_the_picture(residual_bundle: Path) -> None:
    """At any timestep the graph looks at `condition` alone there, and at timestep 0."""
    graph = onnxruntime.InferenceSession(str(residual_bundle / "transformer.64x96x9.i2v.onnx"))
    rng = np.random.default_rng(0)
    feeds = {i.name: rng.standard_normal(i.shape).astype(np.float32) for i in graph.get_inputs()}
    feeds["timestep"] = np.array([700.0], np.float32)
    assert list(feeds) == ["hidden_states", "timestep", "encoder_hidden_states", "condition"]
    (before,) = graph.run(None, feeds)
    feeds["hidden_states"][:, :, 0] += 1.0
    (after,) = graph.run(None, feeds)
    assert np.array_equal(before, after)
    feeds["condition"] += 1.0
    assert relative_l2(graph.run(None, feeds)[0], before) > 1e-3


@pytest.mark.parametrize(
    ("fixture", "graphs"),
    [
        ("i2v_2_1_bundle", {"transformer.32x48x9.i2v.onnx": 6, "image_encoder.onnx": 2}),
        ("i2v_a14b_bundle", {"transformer.32x48x9.i2v.onnx": 4, "transformer_2.32x48x9.i2v.onnx": 4}),
        ("residual_bundle", {"transformer.64x96x9.i2v.onnx": 4, "transformer.64x96x9.onnx": 4}),
    ],
)
def test_graphs_are_clean(fixture: str, graphs: dict[str, int], request: pytest.FixtureRequest) -> None:
    """One Attention for each attention of two layers; 2.1 attends to the picture in a third."""
    bundle = request.getfixturevalue(fixture)
    for file, attentions in graphs.items():
        found = operators(bundle, file)
        assert found["Attention"] == attentions, file
        assert found["MatMul"] == found["Softmax"] == 0, file
    for path in bundle.glob("*.onnx"):
        assert not UNWANTED & set(operators(bundle, path.name)), path.name


def test_no_two_attentions_share_a_query(i2v_2_1_bundle: Path) -> None:
    """TensorRT-RTX 1.7.1 crashes, and the process with it, on two bfloat16 attentions on one query."""
    nodes = onnx.load(i2v_2_1_bundle / "transformer.32x48x9.i2v.onnx", load_external_data=False).graph.node
    viewed = {node.output[0]: node.input[0] for node in nodes if node.op_type in ("Reshape", "Transpose")}
    queries = [node.input[0] for node in nodes if node.op_type == "Attention"]
    while any(query in viewed for query in queries):
        queries = [viewed.get(query, query) for query in queries]
    assert len(set(queries)) == len(queries) == 6


def test_text_encoder_of_full_length_is_clean(i2v_2_1_bundle: Path) -> None:
    """512 tokens: no logarithm of distances, which engines round differently, and no table of all of them."""
    found = operators(i2v_2_1_bundle, "text_encoder.onnx")
    assert found["Attention"] == 2 and not found.keys() & {"Log", "Less", "Min", "Abs"}
    assert (i2v_2_1_bundle / "text_encoder.onnx").stat().st_size < 100_000


def test_manifests(i2v_2_1_bundle: Path, i2v_a14b_bundle: Path, residual_bundle: Path) -> None:
    concat = {"policy": "concat", "video": "encode_zeros", "mask": "before", "mask_channels": 4}
    first = manifest(i2v_2_1_bundle)
    assert first["tasks"] == ["i2v"] and first["facts"]["fps"] == 16.0
    pixels = first["facts"]["image"].pop("image_encoder")
    assert first["facts"]["image"] == concat
    assert (pixels["size"], pixels["resample"], pixels["crop"]) == (IMAGE_SIZE, "bicubic", "center")
    assert pixels["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert set(first["components"]["image_encoder"]) == {"graph", "fingerprint"}
    assert first["components"]["text_encoder"]["outputs"] == {"encoder_hidden_states": [1, 512, 32]}
    experts = manifest(i2v_a14b_bundle)
    assert experts["facts"]["image"] == {**concat, "image_encoder": None}
    assert experts["facts"]["boundary_ratio"] == 0.9 and "image_encoder" not in experts["components"]
    assert experts["components"]["vae_encoder"]["buckets"][0]["next"] == "vae_encoder.32x48.next.onnx"
    both = manifest(residual_bundle)
    assert both["tasks"] == ["t2v", "i2v"] and both["facts"]["fps"] == 24.0
    assert (both["facts"]["image"]["policy"], both["facts"]["image"]["video"]) == ("first_frame", "first_only")
    assert [bucket["task"] for bucket in both["components"]["transformer"]["buckets"]] == ["t2v", "i2v"]
    assert both["components"]["vae_encoder"]["buckets"][0]["next"] is None
    for bundle in (first, experts, both):
        assert all(entry["relative_l2"] < 1e-5 for entry in bundle["parity"].values())


def test_a_bundle_for_prompts_alone_has_no_encoder_of_pictures(residual_bundle: Path) -> None:
    checkpoint = Checkpoint(residual_bundle)
    facts = wan.read_facts(checkpoint)
    names = [part.name for part in wan.components(checkpoint, facts, Shapes([(64, 96)], [9], ["t2v"]))]
    assert names == ["text_encoder", "transformer", "vae_decoder"]


def test_a_clip_of_one_frame_is_no_clip_from_a_picture(residual_bundle: Path) -> None:
    checkpoint = Checkpoint(residual_bundle)
    facts = wan.read_facts(checkpoint)
    parts = wan.components(checkpoint, facts, Shapes([(64, 96)], [1, 9], ["t2v", "i2v"]))
    (transformer,) = (part for part in parts if part.name == "transformer")
    clips = [(bucket["task"], bucket["num_frames"]) for bucket in transformer.entry["buckets"]]
    assert clips == [("t2v", 1), ("t2v", 9), ("i2v", 9)]
    with pytest.raises(InvalidRequest, match="num_frames = 1 leaves nothing"):
        list(wan.components(checkpoint, facts, Shapes([(64, 96)], [1], ["i2v"])))


def test_a_picture_is_needed_where_the_model_wants_one(
    i2v_a14b_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with Runtime.load(i2v_a14b_bundle, num_threads=1) as runtime, pytest.raises(InvalidRequest, match="pass image"):
        runtime.generate(PROMPT)
