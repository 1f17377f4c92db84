"""CogVideoX checkpoints that are refused and why, and how small a graph stays at the size of a real clip."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_cogvideox import save_tiny_cogvideox

from sora_export import build_bundle
from sora_export.checkpoint import Checkpoint
from sora_export.families import Shapes, cogvideox
from sora_export.onnx_from_torch import onnx_from_torch
from sora_runtime.errors import BundleError, InvalidRequest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[[str], Path]:
    """Saves a checkpoint that a test may damage."""
    return lambda variant: save_tiny_cogvideox(tmp_path / variant, variant)


@pytest.mark.parametrize("name", ["2b", "5b", "1_5"])
def test_positions_of_a_long_clip_are_small(checkpoint: Callable[[str], Path], name: str) -> None:
    """A graph holds the positions of each axis, not of each token; shapes alone, no weights."""
    folder = Checkpoint(checkpoint(name))
    config = json.loads((folder.root / "transformer/config.json").read_text())
    (folder.root / "transformer/config.json").write_text(json.dumps(config | {"sample_height": 96, "sample_width": 96}))
    size, num_frames = (384, 320), 41
    shapes = Shapes([size], [num_frames])
    (component,) = (
        c for c in cogvideox.components(folder, cogvideox.read_facts(folder), shapes) if c.name == "transformer"
    )
    (graph,) = component.graphs.values()
    exported = onnx_from_torch(graph)
    kept = [
        math.prod(value.shape.numpy())
        for name, value in exported.model.graph.initializers.items()
        if name not in exported.parameters
    ]
    tokens = 11 * (384 // 8) * (320 // 8)
    # 2B keeps (11 + 48 + 40) x 32 numbers, less than one for each token; a rotary table has 8 pairs a token.
    assert sum(kept) < tokens / 2


@pytest.mark.parametrize(
    ("name", "size", "num_frames", "message"),
    [
        ("2b", (32, 48), 13, "num_frames = 13 is not 8k+1"),
        ("5b_i2v", (32, 48), 17, "learned its positions for 40x56 alone"),
        ("1_5", (40, 64), 17, "has positions for up to 40x56"),
    ],
)
def test_what_diffusers_cannot_make_is_refused(
    checkpoint: Callable[[str], Path], name: str, size: tuple[int, int], num_frames: int, message: str
) -> None:
    folder = checkpoint(name)
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        build_bundle(folder, folder, [size], [num_frames])
    assert not (folder / "bundle.json").exists() and not list(folder.glob("*.onnx"))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"in_channels": 8}, "in_channels = 8, but CogVideoXPipeline with latents of 4"),
        ("transformer/config.json", {"text_embed_dim": 48}, "takes text of 48 channels, but its text encoder gives 32"),
        ("transformer/config.json", {"patch_size_t": 2}, "both a patch_size_t and positions that are added"),
        ("vae/config.json", {"use_quant_conv": True}, "which no CogVideoX release has"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    checkpoint: Callable[[str], Path], file: str, change: dict[str, Any], message: str
) -> None:
    folder = checkpoint("2b")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | change))
    with pytest.raises(BundleError, match=message):
        build_bundle(folder, folder, [(32, 48)], [17])


def test_learned_positions_fix_the_length_of_prompts(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("5b_i2v")
    (folder / "sora_defaults.json").write_text(json.dumps({"max_sequence_length": 24}))
    with pytest.raises(InvalidRequest, match="learned its positions for prompts of 16 tokens"):
        build_bundle(folder, folder, [(40, 56)], [17])


def test_a_missing_part_is_refused(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("2b")
    index = json.loads((folder / "model_index.json").read_text())
    del index["vae"]
    (folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(folder / "vae")
    with pytest.raises(BundleError, match=r"vae of .* is None, not AutoencoderKLCogVideoX"):
        build_bundle(folder, folder, [(32, 48)], [17])
