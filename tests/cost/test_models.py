"""The catalogue of models, a user's own card, and checkpoints read by their configurations alone."""

import json
from pathlib import Path

import pytest

from sora_runtime.cost import models
from sora_runtime.cost.clips import Shape, clip_of
from sora_runtime.cost.rows import published
from sora_runtime.errors import InvalidRequest

POCKET = Path(models.__file__).parents[1] / "models/wan-pocket"
# In the latencies, and without an architecture that anybody published.
UNKNOWN = {"Cosmos3", "LingBot-Video-30B-A3B", "FramePack (HunyuanVideo 13B)", "Wan2.2 VAE decoder (A14B pipeline)"}


@pytest.mark.parametrize("name", models.model_names())
def test_every_card_makes_a_clip_at_its_own_defaults(name: str) -> None:
    model = models.load_model(name)
    defaults = model.defaults
    shape = Shape(defaults.width, defaults.height, defaults.frames, defaults.steps, defaults.guided)
    geometry, clip = clip_of(model, shape)
    assert geometry.num_frames == defaults.frames
    assert clip.transformer.flops["linear"] > 1e12
    assert clip.transformer.flops["attention"] > 1e11
    assert model.released
    assert model.source
    assert model.date


def test_the_catalogue_is_large_and_knows_the_latencies_models() -> None:
    assert len(models.model_names()) >= 25
    for title in {row["model"] for row in published()} - UNKNOWN:
        assert models.load_model(title).name


def test_wan_14b_by_hand() -> None:
    """L [2 N (6 d^2 + 2 d f) + 4 N^2 d + 4 N T d + 4 T d^2], N = 21 x 45 x 80 tokens: 6.52 PFLOP a forward."""
    model = models.load_model("Wan-AI/Wan2.1-T2V-14B-Diffusers")
    geometry, clip = clip_of(model, Shape(1280, 720, 81, 50, guided=True))
    n, d, f, t = 75_600, 5120, 13824, 512
    by_hand = 40 * (2 * n * (6 * d * d + 2 * d * f) + 4 * n * n * d + 4 * n * t * d + 4 * t * d * d)
    forward = sum(clip.transformer.flops[name] for name in ("linear", "attention", "convolution"))
    assert geometry.tokens == n
    assert by_hand == pytest.approx(6.52e15, rel=1e-3)
    assert forward == pytest.approx(by_hand, rel=1e-3)  # the rest: embeddings, modulation, the last projection
    assert clip.steps * clip.passes * forward == pytest.approx(652e15, rel=2e-3)


def test_a_wrong_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InvalidRequest, match=r"model = 'wan2.1-14b' is neither .*wan2\.1-t2v-14b"):
        models.load_model("wan2.1-14b")


def test_a_users_own_card(tmp_path: Path) -> None:
    source = Path(models.__file__).parent / "catalogue/models/wan2.1-t2v-1.3b.toml"
    card = tmp_path / "mine.toml"
    card.write_text(source.read_text().replace('name = "wan2.1-t2v-1.3b"', 'name = "mine"'))
    mine, theirs = models.load_model(str(card)), models.load_model("wan2.1-t2v-1.3b")
    assert mine.name == "mine"
    assert mine.transformer == theirs.transformer


def test_a_broken_card_is_one_sentence(tmp_path: Path) -> None:
    card = tmp_path / "mine.toml"
    card.write_text('name = "mine"\n')
    with pytest.raises(InvalidRequest, match="has no usable field 'geometry'"):
        models.load_model(str(card))
    card.write_text("not = = toml")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        models.load_model(str(card))


def test_a_bundle_is_read_by_its_configurations() -> None:
    model = models.load_model(str(POCKET))
    weights = POCKET / "transformer/diffusion_pytorch_model.safetensors"
    with weights.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    held = sum(_count(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    assert model.transformer.parameters == pytest.approx(held, rel=1e-3)
    assert model.geometry(64, 64, 25).tokens == 112
    assert model.defaults.steps == 20
    assert model.encoders[0].work.parameters == pytest.approx(408_320, rel=0.3)


def test_a_bundles_work_is_its_graphs_work() -> None:
    """`bundle.json` counts the graph's own operators; the configuration's count must agree with it."""
    bundle = json.loads((POCKET / "bundle.json").read_text())
    report = bundle["reports"]["transformer.64x64x25.onnx"]
    _, clip = clip_of(models.load_model(str(POCKET)), Shape(64, 64, 25, 20, guided=True))
    counted = sum(clip.transformer.flops[name] for name in ("linear", "attention", "convolution"))
    assert counted == pytest.approx(report["flops"], rel=0.02)


def test_a_folder_without_a_known_class(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    config = tmp_path / "transformer/config.json"
    config.write_text('{"_class_name": "SomethingElse"}')
    with pytest.raises(InvalidRequest, match="the class 'SomethingElse' has no model"):
        models.load_model(str(tmp_path))
    config.write_text("{")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        models.load_model(str(tmp_path))


def test_latencies_hold_facts_and_their_sources() -> None:
    for row in published():
        assert row["source_url"].startswith("http"), row["id"]
        assert row["date"], row["id"]
        assert "quote" not in row


def _count(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
