"""What the configs of a Wan image-to-video checkpoint may say, and what is refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file
from tiny_checkpoint import save_tiny_i2v_2_1

from sora_export import build_bundle, parity
from sora_export.checkpoint import Checkpoint
from sora_export.external_data import attach_weights, read_weights
from sora_export.families import Shapes, wan
from sora_export.families.common import read_pixel_input
from sora_export.onnx_from_torch import onnx_from_torch
from sora_runtime.errors import BundleError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_tiny_i2v_2_1(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("path", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "WanPipeline"}, "takes 12 channels, but latents have 4"),
        ("model_index.json", {"image_encoder": [None, None]}, "image_encoder is None, not CLIPVisionModel"),
        ("transformer/config.json", {"in_channels": 8}, "takes 8 channels, but latents have 4, 12 with mask"),
        ("transformer/config.json", {"image_dim": 48}, "embeddings of 48, but its image encoder gives 32"),
        ("transformer/config.json", {"pos_embed_seq_len": 10}, "between a first and a last picture"),
        ("image_processor/preprocessor_config.json", {"do_normalize": False}, "only pictures resized, cut"),
        ("image_processor/preprocessor_config.json", {"rescale_factor": 0.5}, "rescale_factor = 0.5"),
        ("image_processor/preprocessor_config.json", {"resample": 5}, "resample = 5; use"),
        ("image_processor/preprocessor_config.json", {"crop_size": {"height": 28, "width": 30}}, "crops to"),
        ("image_encoder/config.json", {"image_size": 56}, "28 pixels, but its image_encoder takes 56"),
        ("sora_defaults.json", {"max_sequence_length": 77}, "takes 512 tokens; remove it"),
    ],
)
def test_configs_that_do_not_fit(checkpoint: Path, path: str, changes: dict[str, Any], message: str) -> None:
    file = checkpoint / path
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(BundleError, match=message):
        build_bundle(checkpoint, checkpoint, [(32, 48)], [9])


@pytest.mark.parametrize(
    ("changes", "crop"),
    [
        ({"do_center_crop": False, "size": {"height": 28, "width": 28}}, None),
        ({"size": 28, "crop_size": 28}, "center"),
    ],
)
def test_other_ways_of_saying_it(checkpoint: Path, changes: dict[str, Any], crop: str | None) -> None:
    file = checkpoint / "image_processor/preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    pixels = read_pixel_input(Checkpoint(checkpoint), "image_processor")
    assert (pixels["size"], pixels["crop"]) == (28, crop)


def test_weights_saved_with_the_prefix_of_older_releases(checkpoint: Path) -> None:
    """The released checkpoints name CLIP's weights `vision_model.*`, and transformers still loads them."""
    file = checkpoint / "image_encoder/model.safetensors"
    plain = load_file(file)
    save_file({f"vision_model.{name}": value for name, value in plain.items()}, file, {"format": "pt"})
    facts = wan.read_facts(Checkpoint(checkpoint))
    parts = wan.components(Checkpoint(checkpoint), facts, Shapes([(32, 48)], [9], ["i2v"]))
    part = next(part for part in parts if part.name == "image_encoder")
    exported = onnx_from_torch(part.graphs["image_encoder.onnx"])
    attach_weights(exported.model, exported.parameters, read_weights([file]), checkpoint)
    ir.save(exported.model, checkpoint / "image_encoder.onnx")
    errors = parity.measure(part, part.load_reference(), lambda name: checkpoint / name)
    assert errors["image_encoder.onnx"] < 1e-5
