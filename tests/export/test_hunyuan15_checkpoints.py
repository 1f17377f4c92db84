"""HunyuanVideo 1.5 checkpoints: what is refused and how, and the tokenizer that is made for the glyph encoder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_hunyuan15 import save_tiny_hunyuan15
from tokenizers import Tokenizer
from transformers import ByT5Tokenizer

from sora_export.checkpoint import Checkpoint
from sora_export.families import hunyuan15
from sora_export.families.hunyuan15_text import chat_template
from sora_export.tokenizer import byt5_tokenizer
from sora_runtime.errors import BundleError


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-to-video checkpoint that is not built."""
    return save_tiny_hunyuan15(tmp_path_factory.mktemp("plain") / "checkpoint", task="i2v")


def test_byt5_tokenizer_equals_transformers(tmp_path: Path) -> None:
    slow = ByT5Tokenizer()
    byt5_tokenizer(slow).save(str(tmp_path / "tokenizer.json"))
    fast = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = np.random.default_rng(0)
    points = rng.choice(np.r_[1:0xD800, 0xE000:0x110000], (100, 20))
    texts = ["", " a ", "a\x00\x7f\x80", "e\u0301", "x </s> y", "a <extra_id_3> b", "tab\tnew\nline\u2028"]
    texts += ["".join(map(chr, row)) for row in points]
    for text in texts:
        assert fast.encode(text).ids == slow(text).input_ids, text
    fast.enable_truncation(8)
    assert fast.encode("hello world").ids == slow("hello world", truncation=True, max_length=8).input_ids


def edit(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def replace_component(folder: Path, name: str, class_name: str) -> None:
    edit(folder, "model_index.json", **{name: ["diffusers", class_name]})


REFUSALS: dict[str, tuple[Callable[[Path], None], str]] = {
    "rescale": (lambda f: edit(f, "guider/guider_config.json", guidance_rescale=0.5), "guidance_rescale = 0.5"),
    "original": (
        lambda f: edit(f, "guider/guider_config.json", use_original_formulation=True),
        "use_original_formulation = True",
    ),
    "interval": (lambda f: edit(f, "guider/guider_config.json", stop=0.8), "stop = 0.8"),
    "guider": (lambda f: replace_component(f, "guider", "AdaptiveProjectedGuidance"), "AdaptiveProjectedGuidance"),
    "text": (lambda f: edit(f, "transformer/config.json", text_embed_dim=80), "text_embed_dim = 80"),
    "glyphs": (lambda f: edit(f, "transformer/config.json", text_embed_2_dim=80), "text_embed_2_dim = 80"),
    "channels": (lambda f: edit(f, "transformer/config.json", in_channels=8), "in_channels = 8"),
    "meanflow": (lambda f: edit(f, "transformer/config.json", use_meanflow=True), "use_meanflow"),
    "sliding": (lambda f: edit(f, "text_encoder/config.json", use_sliding_window=True), "use_sliding_window"),
    "picture": (
        lambda f: edit(f, "feature_extractor/preprocessor_config.json", size={"height": 32, "width": 32}),
        "takes 48x48",
    ),
}


@pytest.mark.parametrize("what", list(REFUSALS))
def test_what_cannot_be_built_is_refused_by_name(checkpoint: Path, tmp_path: Path, what: str) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    assert hunyuan15.read_facts(Checkpoint(folder))["tasks"] == ["i2v"]
    spoil, words = REFUSALS[what]
    spoil(folder)
    with pytest.raises(BundleError, match=words):
        hunyuan15.read_facts(Checkpoint(folder))


def test_guidance_that_is_switched_off_is_a_scale_of_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    edit(folder, "guider/guider_config.json", enabled=False)
    assert hunyuan15.read_facts(Checkpoint(folder))["defaults"]["guidance_scale"] == 1.0


@pytest.mark.parametrize(
    ("template", "settings", "words"),
    [
        ("{{ messages[1]['content'] | trim }}", {}, "alters the prompt"),
        ("no prompt", {}, "cannot be used"),
        ("{{ messages[1]['content'] }}", {"padding_side": "left"}, "pads on the left"),
    ],
)
def test_a_chat_template_that_cannot_be_text_around_a_prompt_is_refused(
    checkpoint: Path, tmp_path: Path, template: str, settings: dict[str, str], words: str
) -> None:
    folder = Path(shutil.copytree(checkpoint / "tokenizer", tmp_path / "tokenizer"))
    (folder / "chat_template.jinja").write_text(template)
    edit(folder, "tokenizer_config.json", **settings)
    with pytest.raises(BundleError, match=words):
        chat_template(folder, "be brief")
