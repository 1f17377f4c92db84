"""The shipped wan-pocket-4step: four evaluations a clip by default, diffusers' latents, and what the prompt says."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanPipeline

from prompts import PROMPT
from sora_export.pocket.captions import held_out_prompts
from sora_export.pocket.models import MAX_SEQUENCE_LENGTH
from sora_export.pocket.render import HEIGHT, NUM_FRAMES, WIDTH
from sora_export.pocket.score import ATTRIBUTES, is_pocket, model_folder, score
from sora_runtime import Runtime
from sora_runtime.verify import sha256_of

TEACHER, FOLDER = model_folder("wan-pocket"), model_folder("wan-pocket-4step")


@pytest.fixture(scope="module")
def student() -> Iterator[Runtime]:
    with Runtime.load("wan-pocket-4step", num_threads=2) as runtime:
        yield runtime


def weights(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in folder.rglob("*.safetensors")}


def test_only_the_transformer_is_its_own() -> None:
    suffixes = {path.suffix for path in FOLDER.rglob("*") if path.is_file()}
    assert suffixes <= {".safetensors", ".json", ".md", ".onnx"}
    ours, theirs = weights(FOLDER), weights(TEACHER)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] != theirs[name]} == {"transformer/diffusion_pytorch_model.safetensors"}
    assert sha256_of(FOLDER / "tokenizer.json") == sha256_of(TEACHER / "tokenizer.json")


@pytest.mark.parametrize("folder", [TEACHER, FOLDER], ids=lambda folder: folder.name)
def test_no_configuration_names_the_machine_it_was_made_on(folder: Path) -> None:
    files = [path for path in folder.rglob("*.json") if "tokenizer" not in path.name]
    assert len(files) > 4
    for path in files:
        assert "_name_or_path" not in path.read_text(), path


def test_a_clip_takes_four_evaluations_by_default(student: Runtime) -> None:
    clip = student.generate(PROMPT)
    assert (clip.receipt.evaluations.made, clip.receipt.evaluations.skipped) == (4, 0)
    assert clip.frames.shape == (NUM_FRAMES, HEIGHT, WIDTH, 3)


def test_latents_equal_diffusers_at_both_defaults(student: Runtime) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = WanPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    defaults = student.bundle.manifest.facts.defaults
    noise = np.random.default_rng(5).standard_normal(student.generate(PROMPT).latents.shape, np.float32)
    theirs = pipeline(
        PROMPT,
        latents=torch.from_numpy(noise.copy()),
        height=HEIGHT,
        width=WIDTH,
        num_frames=NUM_FRAMES,
        num_inference_steps=defaults.num_inference_steps,
        guidance_scale=defaults.guidance_scale,
        max_sequence_length=MAX_SEQUENCE_LENGTH,
        output_type="latent",
    ).frames.numpy()
    ours = student.generate(PROMPT, latents=noise).latents
    # both round every operation to float32, in another order: the bound of tests/test_parity.py
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) <= 1e-3


def test_it_draws_what_it_is_told(student: Runtime) -> None:
    """At most 2 of 24 wrong in shape, which the teacher itself gets wrong most often, and in motion; else none."""
    result = score(held_out_prompts(24), lambda prompt, _scene, seed: student.generate(prompt, seed=seed).frames, 0)
    accuracy = {name: result["accuracy"][name]["accuracy"] for name in ATTRIBUTES}
    assert min(accuracy.values()) >= 22 / 24, result["failures"]
    assert accuracy["colour"] == accuracy["background"] == 1


def test_what_is_made_of_it_is_scored(student: Runtime) -> None:
    """`sora-bench check` counts on the held-out prompts only for models that know them."""
    assert is_pocket(student.bundle.manifest.model_dump())
    assert not is_pocket({"files": {"transformer/diffusion_pytorch_model.safetensors": {"sha256": "0" * 64}}})


def test_a_given_picture_begins_the_clip(student: Runtime) -> None:
    picture = np.full((HEIGHT, WIDTH, 3), (18, 24, 85), np.uint8)
    picture[20:44, 20:44] = (230, 40, 40)
    clip = student.generate("a red square standing still on a navy background", image=picture)
    error = np.abs(clip.frames[0].astype(int) - picture).mean()
    # the autoencoder reads about 31 dB on clips, 7 levels; a frame of another scene is some 40 levels off
    assert error < 10
    assert np.abs(clip.frames[-1].astype(int) - picture).mean() < 15
