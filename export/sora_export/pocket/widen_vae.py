"""Gives a trained autoencoder more latent channels without forgetting what it knows; training then goes on.

python -m sora_export.pocket.widen_vae --out DIR --channels-before 16
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from sora_export.pocket import checkpoint
from sora_export.pocket.models import build_vae
from sora_export.pocket.optim import WeightAverage
from sora_export.pocket.train_vae import CHECKPOINT


@torch.no_grad()
def widen(narrow: AutoencoderKLWan, wide: AutoencoderKLWan) -> None:
    """Copy `narrow` into `wide`, whose reconstructions start almost equal: new channels enter with small weight."""
    before, after = narrow.z_dim, wide.z_dim
    # the encoder's outputs are means, then log variances
    moments = torch.cat([torch.arange(before), after + torch.arange(before)])
    means = torch.arange(before)
    wide.decoder.conv_in.weight[:, before:] *= 0.1
    new_mean_to_old = wide.quant_conv.weight.new_zeros(before, after - before, 1, 1, 1)
    wide.quant_conv.weight[:before, before:after] = new_mean_to_old
    wide.quant_conv.weight[:after, after:] = 0
    wide.post_quant_conv.weight[:before, before:] = new_mean_to_old
    places: dict[str, tuple[Tensor | None, Tensor | None]] = {
        "encoder.conv_out": (moments, None),
        "quant_conv": (moments, moments),
        "post_quant_conv": (means, means),
        "decoder.conv_in": (None, means),
    }
    target = dict(wide.named_parameters())
    for name, parameter in narrow.named_parameters():
        rows, columns = places.get(name.rpartition(".")[0], (None, None))
        slot = target[name]
        rows = torch.arange(slot.shape[0]) if rows is None else rows
        if columns is None or slot.ndim == 1:
            slot[rows] = parameter
        else:
            slot[rows[:, None], columns[None]] = parameter


def main(arguments: list[str] | None = None) -> None:
    """Replace the checkpoint in --out by a wider one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, help="folder that train_vae wrote")
    parser.add_argument("--channels-before", type=int, required=True)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    path = Path(options.out) / CHECKPOINT
    narrow, wide = build_vae(z_dim=options.channels_before), build_vae()
    seconds = checkpoint.load(path, {"vae": narrow}, {})
    widen(narrow, wide)
    checkpoint.save(path, {"vae": wide}, {"vae": WeightAverage(wide, 0.998)}, seconds)
    print(f"{path}: {narrow.z_dim} -> {wide.z_dim} latent channels")


if __name__ == "__main__":
    main()
