"""Trains the text encoder and the transformer of wan-pocket together, for a given number of minutes.

python -m sora_export.pocket.train_transformer --vae DIR --out DIR --minutes 40 [--resume] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor

from sora_export.pocket import checkpoint, train_vae, vae_forward
from sora_export.pocket.attention import use_plain_attention
from sora_export.pocket.captions import (
    Scene,
    caption,
    held_out_prompts,
    held_out_scenes,
    training_scenes,
)
from sora_export.pocket.detect import detect
from sora_export.pocket.flow import flow_loss, sample
from sora_export.pocket.latents import LatentBank, build_bank, denormalise, measure_statistics
from sora_export.pocket.models import (
    LATENT_CHANNELS,
    build_text_encoder,
    build_transformer,
    build_vae,
)
from sora_export.pocket.optim import Optimiser, WeightAverage
from sora_export.pocket.pace import ThreadPace
from sora_export.pocket.render import to_uint8
from sora_export.pocket.text import PromptEncoder
from sora_export.pocket.tokenizer import load_or_train_tokenizer

CHECKPOINT = "transformer.safetensors"
CAPTION_DROPOUT = 0.1
FIRST_FRAME_SHARE = 0.1


def load_vae(folder: Path, device: str = "cpu", clips: int = 256) -> AutoencoderKLWan:
    """The averaged autoencoder that `train_vae` left in `folder`, frozen, with its latent statistics measured."""
    vae = build_vae()
    checkpoint.load(folder / train_vae.CHECKPOINT, {"vae": vae}, {})
    vae = vae.to(device).eval().requires_grad_(False)
    measure_statistics(vae, random.Random(0).sample(training_scenes(), clips))
    return vae


def build_models(options: argparse.Namespace) -> tuple[WanTransformer3DModel, PromptEncoder]:
    """Untrained transformer, whose output starts at zero, and prompt encoder."""
    tokenizer = load_or_train_tokenizer(Path(options.out))
    transformer = build_transformer(heads=options.heads, num_layers=options.layers)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    encoder = PromptEncoder(tokenizer, build_text_encoder(tokenizer.get_vocab_size()))
    return transformer.to(options.device), encoder.to(options.device)


def draw_batch(bank: LatentBank, count: int, rng: random.Random) -> tuple[Tensor, list[str]]:
    """Random latents of the bank with fresh captions, some of them empty so that guidance has its other branch."""
    indices = [rng.randrange(len(bank.scenes)) for _ in range(count)]
    prompts = ["" if rng.random() < CAPTION_DROPOUT else caption(bank.scenes[i], rng) for i in indices]
    return bank.latents[indices].float(), prompts


@torch.no_grad()
def generate(
    networks: tuple[WanTransformer3DModel, PromptEncoder, AutoencoderKLWan],
    prompts: Sequence[str],
    options: argparse.Namespace,
) -> Tensor:
    """Clips for `prompts`, uint8 [B, T, H, W, 3], by Euler steps with guidance; for looking at progress."""
    transformer, encoder, vae = networks
    device = torch.device(options.device)
    embeds = torch.cat([encoder(prompts), encoder([""]).expand(len(prompts), -1, -1)])

    def velocity(x: Tensor, timestep: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=not options.float32):
            both = transformer(x.repeat(2, 1, 1, 1, 1), timestep.repeat(2), embeds, return_dict=False)[0].float()
        guided, free = both.chunk(2)
        result: Tensor = free + options.guidance_scale * (guided - free)
        return result

    noise = torch.randn(
        (len(prompts), LATENT_CHANNELS, 7, options.size // 8, options.size // 8),
        generator=torch.Generator().manual_seed(0),
    ).to(device)
    latents = sample(velocity, noise, options.steps, options.flow_shift)
    frames = [vae_forward.decode(vae, z[None]) for z in denormalise(vae, latents)]
    return to_uint8(torch.cat(frames)).cpu()


def score(
    networks: tuple[WanTransformer3DModel, PromptEncoder, AutoencoderKLWan],
    pairs: Sequence[tuple[str, Scene]],
    options: argparse.Namespace,
) -> dict[str, float]:
    """The share of generated clips in which the detectors read each attribute as the prompt says."""
    hits = dict.fromkeys(train_vae.ATTRIBUTES, 0)
    for start in range(0, len(pairs), 32):
        chunk = pairs[start : start + 32]
        clips = generate(networks, [prompt for prompt, _ in chunk], options).numpy()
        for (_, scene), frames in zip(chunk, clips, strict=True):
            seen = detect(frames)
            for name in hits:
                hits[name] += getattr(seen, name) == getattr(scene, name)
    return {name: count / len(pairs) for name, count in hits.items()}


def main(arguments: list[str] | None = None) -> None:
    """Train for --minutes, saving and scoring at intervals and at the end."""
    options = _parse(arguments)
    torch.manual_seed(options.seed)
    vae = load_vae(Path(options.vae), options.device, options.statistics_clips)
    transformer, encoder = build_models(options)
    use_plain_attention(transformer)
    modules = {"transformer": transformer, "text_encoder": encoder.text_encoder}
    averages = {name: WeightAverage(module, 0.998) for name, module in modules.items()}
    path = Path(options.out) / CHECKPOINT
    before = checkpoint.load(path, modules, averages) if options.resume else 0.0
    seed = options.seed + 1 + int(before)
    torch.manual_seed(seed)
    start = time.monotonic()
    bank = build_bank(vae, training_scenes(), options.bank, seed, options.size)
    print(f"encoded {options.bank} clips in {time.monotonic() - start:.0f} s", flush=True)
    networks = (transformer, encoder, vae)
    clock = Clock(60 * options.minutes, before, 60 * (options.schedule_minutes or options.minutes))
    optimiser = Optimiser(modules.values(), options.lr, plain=("shared", "relative", "patch_embedding", "proj_out"))
    rng, pace, step, running = random.Random(seed), ThreadPace(options.threads), 0, 0.0
    while not clock.over:
        latents, prompts = draw_batch(bank, options.batch, rng)
        latents = latents.to(options.device)
        first_frame = rng.random() < FIRST_FRAME_SHARE
        with torch.autocast(options.device, torch.bfloat16, enabled=not options.float32):
            loss = flow_loss(transformer, latents, encoder(prompts), options.train_shift, first_frame)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step(clock.progress, min(1.0, (step + 1) / 100))
        for average in averages.values():
            average.update()
        pace.tick()
        running, step = running + float(loss.detach()), step + 1
        if step % options.print_every == 0:
            threads = torch.get_num_threads()
            mean = running / options.print_every
            print(
                f"{clock.trained:6.0f} s  step {step}  loss {mean:.4f}  threads {threads}",
                flush=True,
            )
            running = 0.0
        if clock.due(options.save_seconds):
            checkpoint.save(path, modules, averages, clock.trained)
            _report(networks, averages, options, 32)
    checkpoint.save(path, modules, averages, clock.trained)
    _report(networks, averages, options, options.eval_prompts)


class Clock:
    """Training time of this run and of those before it."""

    def __init__(self, budget: float, before: float, schedule: float) -> None:
        self.start = self.mark = time.monotonic()
        self.budget, self.before, self.schedule = budget, before, schedule

    @property
    def over(self) -> bool:
        """Whether this run's time is up."""
        return time.monotonic() - self.start > self.budget

    @property
    def trained(self) -> float:
        """Seconds of this run and of those before it."""
        return self.before + time.monotonic() - self.start

    @property
    def progress(self) -> float:
        """The share of the whole schedule that is done."""
        return self.trained / max(self.schedule, self.before + self.budget)

    def due(self, seconds: float) -> bool:
        """True once every so many seconds."""
        if time.monotonic() - self.mark < seconds:
            return False
        self.mark = time.monotonic()
        return True


def _report(
    networks: tuple[WanTransformer3DModel, PromptEncoder, AutoencoderKLWan],
    averages: dict[str, WeightAverage],
    options: argparse.Namespace,
    count: int,
) -> None:
    for average in averages.values():
        average.swap()
    count = min(count, len(held_out_scenes()))
    start = time.monotonic()
    scores = score(networks, held_out_prompts(count), options)
    for average in averages.values():
        average.swap()
    text = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
    print(f"held out ({count} prompts, {time.monotonic() - start:.0f} s): {text}", flush=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", required=True, help="folder that train_vae wrote")
    parser.add_argument("--out", required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, required=True, help="training time of this run")
    parser.add_argument("--schedule-minutes", type=float, help="length of the cosine decay over all runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--bank", type=int, default=8000, help="encoded clips to train on; fresh ones each run")
    parser.add_argument("--statistics-clips", type=int, default=256, help="clips for the mean and std of latents")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--train-shift", type=float, default=3.0)
    parser.add_argument("--flow-shift", type=float, default=3.0, help="shift of the sampler that scores progress")
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="most threads to use; all cores unless told")
    parser.add_argument("--print-every", type=int, default=100)
    parser.add_argument("--save-seconds", type=float, default=240.0)
    parser.add_argument("--eval-prompts", type=int, default=240)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
