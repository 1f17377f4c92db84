"""The vocabulary and the hold-out split of wan-pocket: stable, disjoint, complete."""

import random
import subprocess
import sys

import pytest

from sora_export.pocket import captions
from sora_export.pocket.captions import (
    BACKGROUNDS,
    COLOURS,
    MOTIONS,
    SHAPES,
    SPINNING_SHAPES,
    Scene,
    all_scenes,
    caption,
    held_out_prompts,
    held_out_scenes,
    is_held_out,
    training_scenes,
)


def test_split_is_disjoint_and_complete() -> None:
    training, held_out = set(training_scenes()), set(held_out_scenes())
    assert not training & held_out
    assert training | held_out == set(all_scenes())
    assert 0.1 < len(held_out) / len(all_scenes()) < 0.25


def test_split_never_changes() -> None:
    # the shipped weights were trained on this split: a change here would score them on training scenes
    assert (len(all_scenes()), len(training_scenes()), len(held_out_scenes())) == (2808, 2283, 525)
    assert is_held_out(Scene("white", "cross", "left", "gray"))
    assert is_held_out(Scene("red", "circle", "left", "navy"))
    assert not is_held_out(Scene("blue", "star", "growing", "black"))


def test_held_out_triples_are_held_out_on_every_background() -> None:
    by_triple: dict[tuple[str, str, str], list[bool]] = {}
    for scene in all_scenes():
        by_triple.setdefault((scene.colour, scene.shape, scene.motion), []).append(is_held_out(scene))
    fully = [flags for flags in by_triple.values() if all(flags)]
    assert 0.08 < len(fully) / len(by_triple) < 0.18


def test_every_word_is_seen_in_training() -> None:
    training = training_scenes()
    assert {scene.colour for scene in training} == set(COLOURS)
    assert {scene.background for scene in training} == set(BACKGROUNDS)
    expected = {(s, m) for s in SHAPES for m in MOTIONS if m != "spinning" or s in SPINNING_SHAPES}
    assert {(scene.shape, scene.motion) for scene in training} == expected


def test_captions_vary_and_use_the_right_article() -> None:
    scene = Scene("orange", "star", "left", "navy")
    texts = {caption(scene, random.Random(seed)) for seed in range(60)}
    assert len(texts) > 20
    assert scene.prompt == "an orange star moving left on a navy background"
    assert not any(" a orange" in f" {text}" for text in texts)


def test_held_out_prompts_are_held_out_balanced_and_repeatable() -> None:
    pairs = held_out_prompts(240)
    assert pairs == held_out_prompts(240)
    assert all(is_held_out(scene) for _, scene in pairs)
    counts = [sum(scene.motion == motion for _, scene in pairs) for motion in MOTIONS]
    assert min(counts) >= 20
    with pytest.raises(ValueError, match="exceeds the 525 held-out scenes"):
        held_out_prompts(10_000)


@pytest.mark.parametrize("module", ["captions", "detect", "shapes", "score"])
def test_scoring_modules_never_load_torch(module: str) -> None:
    # the package above may import torch; this file and its own imports may not
    folder = captions.__file__.rsplit("/", 1)[0]
    code = (
        "import sys, types; "
        "root = types.ModuleType('sora_export'); root.__path__ = []; sys.modules['sora_export'] = root; "
        f"pocket = types.ModuleType('sora_export.pocket'); pocket.__path__ = [{folder!r}]; "
        "sys.modules['sora_export.pocket'] = pocket; "
        f"import sora_export.pocket.{module}; "
        "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
