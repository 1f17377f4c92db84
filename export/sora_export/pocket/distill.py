"""Distils wan-pocket into a student of a few steps without guidance, for a given number of minutes.

python -m sora_export.pocket.distill --teacher wan-pocket --out DIR --minutes 40 [--resume]

The student starts as the teacher. Trajectories of the teacher, under guidance and integrated accurately, are cut at the
noise levels of the student's steps; the student learns the straight step from each cut to the next (progressive
distillation, arXiv:2202.00512, with guidance as in arXiv:2210.03142). Trajectories and training take turns, and from
the second half on most trajectories are moved by the student itself, so that it learns to go on from its own states.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanTransformer3DModel
from torch import Tensor

from sora_export.pocket import checkpoint, export_student, vae_forward
from sora_export.pocket.attention import use_plain_attention
from sora_export.pocket.captions import Scene, caption, held_out_prompts, training_scenes
from sora_export.pocket.latents import denormalise, encode_scenes, normalise
from sora_export.pocket.optim import Optimiser, WeightAverage
from sora_export.pocket.pace import ThreadPace
from sora_export.pocket.render import HEIGHT, NUM_FRAMES, to_uint8
from sora_export.pocket.score import Frames, Generate, model_folder, score
from sora_export.pocket.teacher import Networks, Teacher, load_networks, velocity
from sora_export.pocket.train_transformer import FIRST_FRAME_SHARE, Clock
from sora_export.pocket.transitions import TransitionBank, collect

CHECKPOINT = "student.safetensors"
AVERAGE_DECAY = 0.99
PART = 8  # of a batch at a time: its activations stay in a processor's cache
TEACHER_SHARE = 0.25  # of the trajectories once the student moves most of them


def noise_levels(scheduler: FlowMatchEulerDiscreteScheduler, num_inference_steps: int) -> list[float]:
    """The levels that diffusers' sampler visits with the student's scheduler, from 1 to 0."""
    scheduler.set_timesteps(num_inference_steps)
    return [float(sigma) for sigma in scheduler.sigmas]


def draw_noise(vae: AutoencoderKLWan, count: int, generator: torch.Generator) -> Tensor:
    """Standard normal latents [B, C, T, h, w] of whole clips."""
    frames = (NUM_FRAMES - 1) // vae.config.scale_factor_temporal + 1
    side = HEIGHT // vae.config.scale_factor_spatial
    return torch.randn((count, vae.config.z_dim, frames, side, side), generator=generator)


class Starts:
    """Draws what trajectories start from: noise, and captions of scenes that training may show."""

    def __init__(self, networks: Networks, seed: int) -> None:
        self.networks = networks
        self.rng = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.scenes = training_scenes()

    def draw(self, count: int, first_frame: bool) -> tuple[Tensor, list[str]]:
        """Noise [B, C, T, h, w], under `first_frame` with the clean first frame of a rendered clip, and prompts."""
        scenes = self.rng.sample(self.scenes, count)
        vae = self.networks.vae
        noise = draw_noise(vae, count, self.generator)
        if first_frame:
            clips = normalise(vae, encode_scenes(vae, scenes, self.generator, amp=False))
            noise[:, :, 0] = clips[:, :, 0]
        return noise, [caption(scene, self.rng) for scene in scenes]


@dataclass
class Student:
    """The transformer in training, its average, and the noise levels of its steps."""

    transformer: WanTransformer3DModel
    average: WeightAverage
    sigmas: Sequence[float]

    def loss(self, bank: TransitionBank, indices: Sequence[int], networks: Networks) -> Tensor:
        """The mean squared error of the velocity over a batch of transitions, weighted by the length of their steps.

        The weights have mean 1 over the levels; a given first frame bears no loss.
        """
        states, targets, levels, prompts = bank.batch(indices)
        sigmas = torch.tensor(self.sigmas)
        with torch.no_grad():
            embeds = networks.encoder(prompts)
        output = velocity(self.transformer, states, sigmas[levels], embeds, bank.first_frame)
        error = (output - targets).square()
        weight = (sigmas[levels] - sigmas[levels + 1]) * (len(sigmas) - 1)
        kept = error[:, :, 1:] if bank.first_frame else error
        return (weight * kept.mean((1, 2, 3, 4))).mean()

    def velocity(self, x: Tensor, sigma: float, embeds: Tensor, first_frame: bool) -> Tensor:
        """What the present weights say, in one evaluation."""
        with torch.no_grad():
            return velocity(self.transformer, x, sigma, embeds, first_frame)

    def sample(self, noise: Tensor, embeds: Tensor) -> Tensor:
        """Latents [B, C, T, h, w] by Euler's method, one evaluation for each noise level."""
        x = noise
        for sigma, following in zip(self.sigmas[:-1], self.sigmas[1:], strict=True):
            x = x + (following - sigma) * self.velocity(x, sigma, embeds, False)
        return x


def clip_maker(student: Student, networks: Networks) -> Generate:
    """Clips of the student's present weights, one at a time, for `sora_export.pocket.score`."""

    @torch.no_grad()
    def generate(prompt: str, scene: Scene, seed: int) -> Frames:
        noise = draw_noise(networks.vae, 1, torch.Generator().manual_seed(seed))
        latents = student.sample(noise, networks.encoder([prompt]))
        frames = vae_forward.decode(networks.vae, denormalise(networks.vae, latents))
        return np.asarray(to_uint8(frames)[0].numpy())

    return generate


class Distillation:
    """One run: the teacher, the student, the banks that grow beside it, and where all of it is kept."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.out = Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.folder = model_folder(options.teacher)
        self.networks = load_networks(self.folder)
        self.teacher = Teacher(self.networks, options.guidance_scale, options.substeps)
        transformer = WanTransformer3DModel.from_pretrained(self.folder / "transformer")
        use_plain_attention(transformer)
        self.scheduler = export_student.student_scheduler()
        sigmas = noise_levels(self.scheduler, options.steps)
        self.student = Student(transformer, WeightAverage(transformer, AVERAGE_DECAY), sigmas)
        self.banks = {first_frame: TransitionBank(first_frame) for first_frame in (False, True)}
        before = self._load() if options.resume else 0.0
        self.rng = random.Random(options.seed + int(before))
        self.starts = Starts(self.networks, options.seed + int(before))
        schedule = 60 * (options.schedule_minutes or options.minutes)
        self.clock = Clock(60 * options.minutes, before, schedule)
        plain = ("patch_embedding", "proj_out")
        self.optimiser = Optimiser([transformer], options.lr, plain=plain)
        self.step, self.running, self.collecting = 0, 0.0, 0.0

    def run(self) -> None:
        """Collect and train in turn until the time is over, saving and scoring at intervals and at the end."""
        pace = ThreadPace(self.options.threads)
        while not self.clock.over:
            elapsed = self.clock.trained - self.clock.before
            if not len(self.banks[False]) or self.collecting < self.options.collect_share * elapsed:
                self.collecting += self._collect()
            else:
                self._train()
                pace.tick()
            if self.clock.due(self.options.save_seconds):
                self._finish(min(32, self.options.eval_prompts))
        self._finish(self.options.eval_prompts)

    def _collect(self) -> float:
        """A batch of trajectories; returns the seconds it took."""
        start = time.monotonic()
        bank = self.banks[bool(self.banks[False].prompts) and self.rng.random() < FIRST_FRAME_SHARE]
        own = self.clock.progress > 0.5 and self.rng.random() > TEACHER_SHARE
        drawn = self.starts.draw(self.options.trajectories, bank.first_frame)
        collect(bank, self.teacher, self.student.velocity if own else None, self.student.sigmas, drawn)
        return time.monotonic() - start

    def _train(self) -> None:
        """One update on transitions of one bank."""
        given = bool(self.banks[True].prompts) and self.rng.random() < FIRST_FRAME_SHARE
        bank = self.banks[given]
        indices = [self.rng.randrange(len(bank)) for _ in range(self.options.batch)]
        for start in range(0, len(indices), PART):
            part = indices[start : start + PART]
            loss = self.student.loss(bank, part, self.networks) * len(part) / len(indices)
            loss.backward()  # type: ignore[no-untyped-call]
            self.running += float(loss.detach())
        self.optimiser.step(self.clock.progress, min(1.0, (self.step + 1) / 20))
        self.student.average.update()
        self.step += 1
        if self.step % self.options.print_every == 0:
            mean, known = self.running / self.options.print_every, sum(map(len, self.banks.values()))
            print(f"{self.clock.trained:6.0f} s  step {self.step}  loss {mean:.4f}  transitions {known}", flush=True)
            self.running = 0.0

    def _finish(self, count: int) -> None:
        """Save everything a resumed run needs, write the student as a checkpoint of diffusers, and score it."""
        modules, averages = {"student": self.student.transformer}, {"student": self.student.average}
        checkpoint.save(self.out / CHECKPOINT, modules, averages, self.clock.trained)
        for first_frame, bank in self.banks.items():
            bank.save(self._bank_path(first_frame))
        self.student.average.swap()
        export_student.export(self.student.transformer, self.folder, self.out / "checkpoint", self.options.steps)
        result = score(held_out_prompts(count), clip_maker(self.student, self.networks), seed=0)
        self.student.average.swap()
        text = "  ".join(f"{name} {entry['accuracy']:.3f}" for name, entry in result["accuracy"].items())
        print(f"held out ({count} prompts, {result['seconds_per_clip']:.2f} s each): {text}", flush=True)

    def _load(self) -> float:
        for first_frame, bank in self.banks.items():
            bank.load(self._bank_path(first_frame))
        modules, averages = {"student": self.student.transformer}, {"student": self.student.average}
        return checkpoint.load(self.out / CHECKPOINT, modules, averages)

    def _bank_path(self, first_frame: bool) -> Path:
        return self.out / f"transitions_{'image' if first_frame else 'text'}.safetensors"


def main(arguments: list[str] | None = None) -> None:
    """Distil for --minutes."""
    options = _parse(arguments)
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads or 1)
    Distillation(options).run()


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="wan-pocket", help="name of an embedded model, or a folder")
    parser.add_argument("--out", required=True, help="folder of the run; the student is written to OUT/checkpoint")
    parser.add_argument("--minutes", type=float, required=True, help="training time of this run")
    parser.add_argument("--schedule-minutes", type=float, help="length of the cosine decay over all runs")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--steps", type=int, default=4, help="steps of the student")
    parser.add_argument("--guidance-scale", type=float, default=3.0, help="of the teacher")
    parser.add_argument(
        "--substeps", type=int, default=1, help="Runge-Kutta steps of the teacher in one of the student"
    )
    parser.add_argument("--collect-share", type=float, default=0.4, help="of the time, spent on the teacher")
    parser.add_argument("--trajectories", type=int, default=16, help="trajectories collected at a time")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="most threads to use; all cores unless told")
    parser.add_argument("--print-every", type=int, default=10)
    parser.add_argument("--save-seconds", type=float, default=600.0)
    parser.add_argument("--eval-prompts", type=int, default=240)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
