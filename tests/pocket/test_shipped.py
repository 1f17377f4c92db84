"""The shipped wan-pocket: it loads in diffusers, draws what it is told, and holds no code."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from transformers import AutoTokenizer

import sora_runtime
from sora_export.pocket.captions import Scene, all_captions
from sora_export.pocket.detect import detect
from sora_export.pocket.models import MAX_SEQUENCE_LENGTH
from sora_export.pocket.render import HEIGHT, NUM_FRAMES, WIDTH

FOLDER = Path(sora_runtime.__file__).parent / "models" / "wan-pocket"
MAX_BYTES = 38_000_000


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    loaded = WanPipeline.from_pretrained(FOLDER)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_only_safetensors_and_text() -> None:
    suffixes = {path.suffix for path in FOLDER.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".onnx"}
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) <= MAX_BYTES


def test_index_names_the_wan_classes() -> None:
    index = json.loads((FOLDER / "model_index.json").read_text())
    assert index["expand_timesteps"] is True
    assert index["boundary_ratio"] is None
    assert index["vae"][1] == "AutoencoderKLWan"
    assert index["transformer"][1] == "WanTransformer3DModel"
    assert index["text_encoder"][1] == "UMT5EncoderModel"
    assert index["scheduler"][1] == "UniPCMultistepScheduler"


def test_tokenizer_encodes_any_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
    assert tokenizer.pad_token_id == 0
    unknown = tokenizer.convert_tokens_to_ids("<unk>")
    for text in ("An ORANGE  star", "Zażółć gęślą jaźń", "日本 🦊"):
        ids = tokenizer(text).input_ids
        assert ids[-1] == tokenizer.convert_tokens_to_ids("</s>")
        assert unknown not in ids
    assert max(len(tokenizer(text).input_ids) for text in set(all_captions())) <= MAX_SEQUENCE_LENGTH


@pytest.mark.parametrize("scene", [Scene("red", "circle", "left", "navy"), Scene("yellow", "star", "growing", "black")])
def test_pipeline_draws_what_it_is_told(pipeline: WanPipeline, scene: Scene) -> None:
    frames = pipeline(
        scene.prompt,
        negative_prompt="",
        height=HEIGHT,
        width=WIDTH,
        num_frames=NUM_FRAMES,
        num_inference_steps=20,
        guidance_scale=3.0,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames[0]
    seen = detect((frames * 255).round().astype("uint8"))
    assert (seen.colour, seen.shape, seen.motion, seen.background) == (
        scene.colour,
        scene.shape,
        scene.motion,
        scene.background,
    )
