"""What a few-step student learns from: states at its own noise levels, and where the teacher takes each from there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sora_export.pocket.teacher import Teacher

# velocity of a batch: (latents [B, C, T, h, w], noise level, embeddings [B, L, D], first frame given)
Velocity = Callable[[Tensor, float, Tensor, bool], Tensor]


@dataclass
class TransitionBank:
    """Transitions in float16, newest last: transition i starts at states[i] with the noise level number levels[i].

    `targets` are the teacher's average velocities over the student's step; the first frame of every state is clean
    if `first_frame`.
    """

    first_frame: bool
    states: list[Tensor] = field(default_factory=list)
    targets: list[Tensor] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def add(self, states: Tensor, targets: Tensor, level: int, prompts: Sequence[str]) -> None:
        """Keep a batch of transitions [B, C, T, h, w] from one level."""
        self.states += states.half().unbind()
        self.targets += targets.half().unbind()
        self.levels += [level] * len(states)
        self.prompts += prompts

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """States and targets, float32 [B, C, T, h, w], levels [B] and prompts of some transitions."""
        states = torch.stack([self.states[i] for i in indices]).float()
        targets = torch.stack([self.targets[i] for i in indices]).float()
        return states, targets, torch.tensor([self.levels[i] for i in indices]), [self.prompts[i] for i in indices]

    def save(self, path: Path) -> None:
        """Write the bank as safetensors, in one atomic step; the prompts are lines of text in it."""
        if not self.prompts:
            return
        text = torch.frombuffer(bytearray("\n".join(self.prompts).encode()), dtype=torch.uint8)
        tensors = {"states": torch.stack(self.states), "targets": torch.stack(self.targets), "prompts": text}
        partial = path.with_suffix(".partial")
        save_file({**tensors, "levels": torch.tensor(self.levels)}, partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Add what `save` wrote, if there is such a file."""
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            self.states += file.get_tensor("states").unbind()
            self.targets += file.get_tensor("targets").unbind()
            self.levels += file.get_tensor("levels").tolist()
            self.prompts += bytes(file.get_tensor("prompts").tolist()).decode().split("\n")


@torch.no_grad()
def collect(
    bank: TransitionBank,
    teacher: Teacher,
    student: Velocity | None,
    sigmas: Sequence[float],
    start: tuple[Tensor, Sequence[str]],
) -> None:
    """Follow one trajectory for each prompt over `sigmas` and keep its transitions.

    Args:
        bank: What to add to; says whether the first frame is given.
        teacher: Gives the targets, from whatever state the trajectory is in.
        student: Moves the trajectory on, so that the student is taught in the states it will itself reach (DAgger,
            arXiv:1011.0686); None: the teacher does.
        sigmas: The noise levels of the student's steps, descending from 1 to 0.
        start: Noise [B, C, T, h, w], with a clean first frame where one is given, and prompts.
    """
    x, prompts = start
    embeds = teacher.embed(prompts)
    for level, (sigma, following) in enumerate(zip(sigmas[:-1], sigmas[1:], strict=True)):
        target = teacher.average_velocity(x, (sigma, following), embeds, bank.first_frame)
        bank.add(x, target, level, prompts)
        moved = target if student is None else student(x, sigma, embeds[: len(x)], bank.first_frame)
        x = x + (following - sigma) * moved
