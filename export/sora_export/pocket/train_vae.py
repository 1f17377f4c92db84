"""Trains the video autoencoder of wan-pocket from scratch on rendered clips, for a given number of minutes.

python -m sora_export.pocket.train_vae --out DIR --minutes 20 [--resume] [--device cpu|cuda]
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from sora_export.pocket import checkpoint, vae_forward
from sora_export.pocket.captions import Scene, held_out_scenes, training_scenes
from sora_export.pocket.detect import detect
from sora_export.pocket.models import LATENT_CHANNELS, POSTERIOR_STD, build_vae
from sora_export.pocket.optim import Optimiser, WeightAverage
from sora_export.pocket.pace import ThreadPace
from sora_export.pocket.render import Clips, render, to_uint8

CHECKPOINT = "vae.safetensors"
ATTRIBUTES = ("colour", "shape", "motion", "background")
SHAPE_WEIGHT = 3.0  # the shape covers a tenth of the picture and holds most of what the caption says


def reconstruction_loss(output: Tensor, clips: Clips) -> Tensor:
    """L1 + L2 weighted towards the shape, plus the error of the colours averaged over shape and ground.

    The averaged term sees a colour that is a little off everywhere, which per-pixel terms forgive and
    which made colours collapse onto two axes in earlier trials.
    """
    error = output - clips.frames
    weight = 1 + SHAPE_WEIGHT * torch.nn.functional.max_pool3d(clips.mask, (1, 5, 5), 1, (0, 2, 2))
    weight = weight / weight.mean()
    pixels = (weight * (error.abs() + 2 * error.square())).mean()
    colours = torch.zeros(())
    for region in (clips.mask, 1 - clips.mask):
        mean = (error * region).sum((3, 4)) / (region.sum((3, 4)) + 1e-3)
        colours = colours + mean.abs().mean()
    return pixels + 0.3 * colours


def train_step(vae: AutoencoderKLWan, clips: Clips, amp: bool) -> Tensor:
    """The loss of one batch: encode, disturb the mean with noise, decode."""
    device = clips.frames.device.type
    with torch.autocast(device, torch.bfloat16, enabled=amp):
        mean = vae_forward.encode(vae, clips.frames)[:, : vae.z_dim].float()
        noisy = mean + POSTERIOR_STD * torch.randn_like(mean)
        output = vae_forward.decode(vae, noisy).float()
    # without a price on size the encoder would drown the noise instead of using its channels well
    return reconstruction_loss(output, clips) + 1e-3 * mean.square().mean()


@torch.no_grad()
def reconstruct(vae: AutoencoderKLWan, clips: Clips) -> Tensor:
    """Frames after encoding and decoding in float32, clamped to [-1, 1]."""
    mean = vae_forward.encode(vae, clips.frames)[:, : vae.z_dim]
    return vae_forward.decode(vae, mean).clamp(-1, 1)


def evaluate(vae: AutoencoderKLWan, scenes: list[Scene], device: str, size: int) -> dict[str, float]:
    """PSNR over the whole clip and over its worst frame, and the share of scenes the detectors still read right."""
    generator = torch.Generator().manual_seed(1)
    hits = dict.fromkeys(ATTRIBUTES, 0)
    squared = []
    for start in range(0, len(scenes), 8):
        batch = scenes[start : start + 8]
        clips = to_device(render(batch, generator, size=size), device)
        output = reconstruct(vae, clips)
        squared.append((output - clips.frames).square().mean((1, 3, 4)).cpu())
        for scene, frames in zip(batch, to_uint8(output).cpu().numpy(), strict=True):
            seen = detect(frames)
            for name in ATTRIBUTES:
                hits[name] += getattr(seen, name) == getattr(scene, name)
    error = torch.cat(squared)
    scores = {"psnr": psnr(error.mean()), "psnr_worst_frame": psnr(error.mean(0).max())}
    return scores | {name: hits[name] / len(scenes) for name in ATTRIBUTES}


def psnr(mean_squared_error: Tensor) -> float:
    """Decibels for values that span 2."""
    return float(10 * torch.log10(4 / mean_squared_error))


def to_device(clips: Clips, device: str) -> Clips:
    """The same clips on `device`."""
    return Clips(clips.frames.to(device), clips.mask.to(device))


def main(arguments: list[str] | None = None) -> None:
    """Train for --minutes, saving every two minutes and at the end; print progress and detector scores."""
    options = _parse(arguments)
    torch.manual_seed(options.seed)
    vae = build_vae(z_dim=options.channels).to(options.device)
    average = WeightAverage(vae, 0.998)
    path = Path(options.out) / CHECKPOINT
    before = checkpoint.load(path, {"vae": vae}, {"vae": average}) if options.resume else 0.0
    if options.decoder_only:
        # the latents that the transformer knows are those of the averaged encoder
        average.swap()
        average = WeightAverage(vae, average.decay)
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    optimiser = Optimiser([vae], options.lr, plain=("conv_in", "conv_out"))
    rng = random.Random(options.seed + int(before))
    generator = torch.Generator().manual_seed(options.seed + int(before))
    scenes = training_scenes()
    budget, start, saved, step = 60 * options.minutes, time.monotonic(), time.monotonic(), 0
    total, running = budget + before, 0.0
    pace = ThreadPace(options.threads)
    while (elapsed := time.monotonic() - start) < budget:
        # every other batch is of short clips: cheap steps teach colours and edges, long ones the caches
        frames = 25 if step % 2 else (1, 5, 9, 5)[step // 2 % 4]
        count = max(1, options.batch * 25 // frames // (1 if frames == 25 else 2))
        batch = [rng.choice(scenes) for _ in range(min(count, 4 * options.batch))]
        clips = to_device(render(batch, generator, num_frames=frames, size=options.size), options.device)
        loss = train_step(vae, clips, not options.float32)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step((before + elapsed) / total, min(1.0, (step + 1) / 50))
        average.update()
        pace.tick()
        running += float(loss.detach())
        step += 1
        if step % options.print_every == 0:
            print(
                f"{before + elapsed:6.0f} s  step {step}  loss {running / options.print_every:.4f}"
                f"  threads {torch.get_num_threads()}",
                flush=True,
            )
            running = 0.0
        if time.monotonic() - saved > 120:
            checkpoint.save(path, {"vae": vae}, {"vae": average}, before + elapsed)
            _report(vae, average, options, 24)
            saved = time.monotonic()
    checkpoint.save(path, {"vae": vae}, {"vae": average}, before + budget)
    _report(vae, average, options, options.eval_scenes)


def _report(vae: AutoencoderKLWan, average: WeightAverage, options: argparse.Namespace, count: int) -> None:
    average.swap()
    scenes = random.Random(0).sample(held_out_scenes(), count)
    scores = evaluate(vae, scenes, options.device, options.size)
    average.swap()
    print(
        "held out: " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()),
        flush=True,
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder of checkpoints")
    parser.add_argument("--minutes", type=float, required=True, help="training time of this run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint in --out")
    parser.add_argument("--decoder-only", action="store_true", help="leave the latents as they are")
    parser.add_argument("--channels", type=int, default=LATENT_CHANNELS, help="of the latents; see widen_vae")
    parser.add_argument("--batch", type=int, default=4, help="clips of 25 frames in a step")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="most threads to use; all cores unless told")
    parser.add_argument("--print-every", type=int, default=50)
    parser.add_argument("--eval-scenes", type=int, default=200)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 autocast")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
