"""Distillation: the teacher's steps are accurate, the student learns them, a run ends in a folder diffusers loads."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from torch import Tensor

from sora_export.pocket import checkpoint, distill, export_student
from sora_export.pocket.attention import use_plain_attention
from sora_export.pocket.models import LATENT_CHANNELS, TEXT_DIM, build_transformer
from sora_export.pocket.optim import Optimiser, WeightAverage
from sora_export.pocket.score import model_folder
from sora_export.pocket.teacher import Networks, Teacher, load_networks, velocity
from sora_export.pocket.transitions import TransitionBank, collect
from sora_runtime.sampling import read_scheduler_config

SIGMAS = (1.0, 0.9, 0.75, 0.5, 0.0)


class GrowingTransformer:
    """The velocity `x` plus the mean of the embeddings: trajectories are exponentials in the noise level."""

    config = SimpleNamespace(patch_size=(1, 2, 2))

    def __init__(self) -> None:
        self.timesteps: list[Tensor] = []

    def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor, return_dict: bool) -> tuple[Tensor]:
        self.timesteps.append(timestep)
        return (x + embeds.mean((1, 2))[:, None, None, None, None],)


def embed(prompts: list[str]) -> Tensor:
    """The number that a prompt holds; none is 0."""
    return torch.tensor([float(prompt or 0) for prompt in prompts])[:, None, None].expand(-1, 4, TEXT_DIM)


def growing_teacher(substeps: int = 1) -> Teacher:
    networks: Any = SimpleNamespace(transformer=GrowingTransformer(), encoder=embed)
    return Teacher(networks, 3.0, substeps)


def test_guidance_is_that_of_classifier_free_guidance() -> None:
    teacher, x = growing_teacher(), torch.randn(2, 3, 1, 4, 4)
    guided = teacher.velocity(x, 0.5, teacher.embed(["1", "2"]), False)
    torch.testing.assert_close(guided, x + 3.0 * torch.tensor([1.0, 2.0])[:, None, None, None, None])


@pytest.mark.parametrize("substeps", [1, 2, 4])
def test_the_teachers_steps_are_of_third_order(substeps: int) -> None:
    """On x' = x a method of order 3 with three stages multiplies by the Taylor polynomial of degree 3.

    Outputs of the network are taken in float32, hence the tolerance.
    """
    start, teacher = torch.ones(1, 1, 1, 2, 2, dtype=torch.float64), growing_teacher(substeps)
    moved = start - teacher.average_velocity(start, (1.0, 0.0), teacher.embed([""]).double(), False)
    z = -1 / substeps
    torch.testing.assert_close(moved, (1 + z + z**2 / 2 + z**3 / 6) ** substeps * start, atol=1e-6, rtol=0)


def test_a_given_first_frame_has_its_own_timestep_and_does_not_move() -> None:
    transformer: Any = GrowingTransformer()
    output = velocity(transformer, torch.ones(2, 3, 2, 4, 4), torch.tensor([0.5, 0.25]), embed(["", ""]), True)
    assert not output[:, :, 0].any() and output[:, :, 1].all()
    (timestep,) = transformer.timesteps
    assert timestep.tolist() == [[0.0] * 4 + [500.0] * 4, [0.0] * 4 + [250.0] * 4]


@pytest.mark.parametrize("own", [False, True])
def test_transitions_follow_the_teacher_or_the_student(own: bool) -> None:
    bank, teacher, noise = TransitionBank(False), growing_teacher(), torch.randn(2, 3, 1, 4, 4)
    student = (lambda x, sigma, embeds, first_frame: torch.zeros_like(x)) if own else None
    collect(bank, teacher, student, SIGMAS, (noise, ["", ""]))
    states, targets, levels, prompts = bank.batch(range(8))
    assert levels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3] and prompts == [""] * 8
    # a student that stays where it is is taught there; the teacher's own states shrink with the noise level
    expected = noise if own else noise * math.exp(-0.5)
    # float16 keeps 11 bits
    torch.testing.assert_close(states[6:], expected, atol=3e-3, rtol=2e-3)
    torch.testing.assert_close(states[6:] - 0.5 * targets[6:], expected * math.exp(-0.5), atol=3e-3, rtol=5e-3)


def test_a_bank_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    bank, again = TransitionBank(False), TransitionBank(False)
    collect(bank, growing_teacher(), None, SIGMAS, (torch.randn(2, 3, 1, 4, 4), ["1", "2"]))
    again.load(tmp_path / "bank.safetensors")
    assert len(again) == 0
    bank.save(tmp_path / "bank.safetensors")
    again.load(tmp_path / "bank.safetensors")
    for one, other in zip(bank.batch(range(8)), again.batch(range(8)), strict=True):
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other


@pytest.mark.parametrize("first_frame", [False, True])
def test_the_student_learns_its_transitions(first_frame: bool) -> None:
    torch.manual_seed(0)
    transformer = build_transformer(heads=2, num_layers=1)
    use_plain_attention(transformer)
    student = distill.Student(transformer, WeightAverage(transformer, 0.9), SIGMAS)
    networks: Any = SimpleNamespace(transformer=transformer, encoder=embed)
    bank = TransitionBank(first_frame)
    for level in range(4):
        states = torch.randn(2, LATENT_CHANNELS, 3, 4, 4)
        bank.add(states, 0.5 * states + level, level, ["1", "2"])
    optimiser = Optimiser([transformer], 2e-3, plain=("patch_embedding", "proj_out"))
    losses = []
    for _ in range(40):
        loss = student.loss(bank, range(8), networks)
        loss.backward()
        optimiser.step(0.0, 1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_weighs_steps_by_their_length() -> None:
    class Still(GrowingTransformer):
        def __call__(self, x: Tensor, timestep: Tensor, embeds: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (torch.zeros_like(x),)

    student: Any = distill.Student(Still(), SimpleNamespace(), SIGMAS)  # type: ignore[arg-type]
    networks: Any = SimpleNamespace(encoder=embed)
    bank = TransitionBank(False)
    for level in range(4):
        bank.add(torch.zeros(1, 3, 1, 4, 4), torch.ones(1, 3, 1, 4, 4), level, [""])
    each = [float(student.loss(bank, [level], networks)) for level in range(4)]
    assert each == pytest.approx([0.4, 0.6, 1.0, 2.0])


def test_the_grid_is_the_teachers_shift_without_a_wasted_step() -> None:
    levels = distill.noise_levels(export_student.student_scheduler(), 4)
    assert levels == pytest.approx(SIGMAS, abs=0.002)
    config = dict(export_student.student_scheduler().config) | {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    ours = read_scheduler_config(config).schedule.build(4)
    assert ours.sigmas == pytest.approx(levels, abs=1e-7)
    theirs = FlowMatchEulerDiscreteScheduler.from_config(config)
    theirs.set_timesteps(4)
    assert ours.timesteps == pytest.approx(theirs.timesteps.numpy(), abs=1e-4)


def test_a_run_resumes_and_ends_in_a_checkpoint_of_diffusers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command of the model card, for one round of four seconds or less and then one more."""
    run = ["--out", str(tmp_path), "--trajectories", "1", "--batch", "2", "--eval-prompts", "1", "--threads", "2"]
    distill.main([*run, "--minutes", "0.06", "--print-every", "1", "--collect-share", "0.1"])
    weights = {"student": build_transformer()}
    first = checkpoint.load(tmp_path / distill.CHECKPOINT, weights, {})  # type: ignore[arg-type]
    distill.main([*run, "--minutes", "0.02", "--resume"])
    assert checkpoint.load(tmp_path / distill.CHECKPOINT, weights, {}) > first > 0  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "step 1 " in said
    assert said.count("held out (1 prompts") == 2
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".safetensors"}
    assert "_name_or_path" not in (tmp_path / "checkpoint/transformer/config.json").read_text()
    pipeline = WanPipeline.from_pretrained(tmp_path / "checkpoint")
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    teacher = load_networks(model_folder("wan-pocket")).transformer
    moved = [
        float((ours - theirs).detach().abs().max())
        for ours, theirs in zip(pipeline.transformer.parameters(), teacher.parameters(), strict=True)
    ]
    assert 0 < max(moved) < 0.1  # it starts as the teacher and has learnt a step or two


def test_networks_are_frozen() -> None:
    networks: Networks = load_networks(model_folder("wan-pocket"))
    modules = (networks.transformer, networks.encoder, networks.vae)
    assert not any(parameter.requires_grad for module in modules for parameter in module.parameters())
    assert not any(module.training for module in modules)
