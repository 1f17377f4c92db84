"""Both trainings in miniature: the loss falls, a run resumes where it stopped, and nothing is pickled."""

import argparse
import random
from pathlib import Path

import pytest
import torch

from sora_export.pocket import checkpoint, train_transformer, train_vae, widen_vae
from sora_export.pocket.attention import use_plain_attention
from sora_export.pocket.captions import training_scenes
from sora_export.pocket.flow import flow_loss, sample
from sora_export.pocket.models import (
    LATENT_CHANNELS,
    TEXT_DIM,
    build_text_encoder,
    build_transformer,
    build_vae,
)
from sora_export.pocket.optim import Optimiser, WeightAverage, orthogonalise
from sora_export.pocket.render import render
from sora_export.pocket.text import PromptEncoder
from sora_export.pocket.tokenizer import train_tokenizer


def test_orthogonalise_gives_singular_values_near_one() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(24, 60)))
    # the quintic of Muon trades exactness for speed: it settles between 0.7 and 1.2
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_vae_training_reduces_the_loss() -> None:
    torch.manual_seed(0)
    vae = build_vae(8, 8)
    optimiser = Optimiser([vae], 2e-3, plain=("conv_in", "conv_out"))
    scenes = random.Random(0).sample(training_scenes(), 4)
    clips = render(scenes, torch.Generator().manual_seed(0), num_frames=5, size=32)
    losses = []
    for _ in range(25):
        loss = train_vae.train_step(vae, clips, amp=False)
        loss.backward()
        optimiser.step(0.0, 1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("first_frame", [False, True])
def test_transformer_training_reduces_the_loss(first_frame: bool) -> None:
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    transformer = build_transformer(heads=2, num_layers=1)
    use_plain_attention(transformer)
    encoder = PromptEncoder(tokenizer, build_text_encoder(tokenizer.get_vocab_size(), num_layers=1))
    optimiser = Optimiser([transformer, encoder], 2e-3, plain=("shared", "proj_out"))
    latents = torch.randn(4, LATENT_CHANNELS, 1, 1, 1).expand(4, LATENT_CHANNELS, 3, 4, 4)
    losses = []
    for _ in range(40):
        loss = flow_loss(
            transformer,
            latents,
            encoder(["a red ball", "a star", "", "two words"]),
            3.0,
            first_frame,
        )
        loss.backward()
        optimiser.step(0.0, 1.0)
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


@torch.no_grad()
def test_plain_attention_equals_diffusers() -> None:
    torch.manual_seed(0)
    transformer = build_transformer(heads=2, num_layers=2).eval()
    inputs = (
        torch.randn(2, LATENT_CHANNELS, 3, 4, 4),
        torch.tensor([300.0, 900.0]),
        torch.randn(2, 8, TEXT_DIM),
    )
    expected = transformer(*inputs, return_dict=False)[0]
    use_plain_attention(transformer)
    # float32 sums in another order
    torch.testing.assert_close(transformer(*inputs, return_dict=False)[0], expected, atol=2e-5, rtol=1e-4)


def test_euler_is_exact_for_straight_paths() -> None:
    noise, target = torch.randn(2, 3, 1, 2, 2), torch.randn(2, 3, 1, 2, 2)
    result = sample(lambda x, timestep: noise - target, noise, 7, shift=3.0)
    torch.testing.assert_close(result, target, atol=1e-5, rtol=1e-5)


def test_checkpoint_returns_weights_averages_and_time(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vae = build_vae(4, 8)
    average = WeightAverage(vae, 0.5)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.add_(1.0)
    average.update()
    checkpoint.save(tmp_path / "vae.safetensors", {"vae": vae}, {"vae": average}, 12.5)
    again, again_average = build_vae(4, 8), WeightAverage(build_vae(4, 8), 0.5)
    assert checkpoint.load(tmp_path / "vae.safetensors", {"vae": again}, {"vae": again_average}) == 12.5
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    assert again_average.updates == 1
    assert all(torch.equal(average.average[name], again_average.average[name]) for name in average.average)


def test_runs_resume_and_leave_no_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vae = [
        "--out",
        str(tmp_path),
        "--minutes",
        "0.02",
        "--batch",
        "1",
        "--size",
        "32",
        "--device",
        "cpu",
    ]
    vae += ["--float32", "--eval-scenes", "1", "--print-every", "1"]
    train_vae.main(vae)
    first = checkpoint.load(tmp_path / train_vae.CHECKPOINT, {"vae": build_vae()}, {})
    train_vae.main([*vae, "--resume"])
    second = checkpoint.load(tmp_path / train_vae.CHECKPOINT, {"vae": build_vae()}, {})
    assert second > first > 0
    run = [
        "--vae",
        str(tmp_path),
        "--out",
        str(tmp_path),
        "--minutes",
        "0.02",
        "--bank",
        "4",
        "--batch",
        "2",
    ]
    run += [
        "--heads",
        "2",
        "--layers",
        "1",
        "--eval-prompts",
        "1",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--float32",
    ]
    train_transformer.main([*run, "--statistics-clips", "2"])
    train_transformer.main([*run, "--statistics-clips", "2", "--resume"])
    assert capsys.readouterr().out.count("held out (1 prompts") == 2
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_prompts_are_zero_beyond_their_tokens() -> None:
    tokenizer = train_tokenizer()
    encoder = PromptEncoder(tokenizer, build_text_encoder(tokenizer.get_vocab_size(), num_layers=1))
    with torch.no_grad():
        alone = encoder(["a red circle"])
        together = encoder(["a red circle", "a video of a cyan plus sign contracting against a gray backdrop"])
    count = len(tokenizer.encode("a red circle").ids)
    assert not alone[0, count:].any()
    # padding in a batch must not leak into a shorter prompt
    torch.testing.assert_close(alone[0], together[0], atol=1e-5, rtol=1e-5)
    assert isinstance(train_transformer._parse(["--vae", "a", "--out", "b", "--minutes", "1"]), argparse.Namespace)


def test_the_recipe_narrow_then_wide_runs_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first three commands of the model card, for two seconds each."""
    common = ["--out", str(tmp_path), "--minutes", "0.03", "--eval-scenes", "2", "--device", "cpu"]
    train_vae.main([*common, "--channels", "16"])
    widen_vae.main(["--out", str(tmp_path), "--channels-before", "16"])
    train_vae.main([*common, "--resume"])
    said = capsys.readouterr().out
    assert "16 -> 24 latent channels" in said
    assert said.count("held out:") == 2
