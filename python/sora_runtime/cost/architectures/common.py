"""What every architecture file shares: its inputs, its result, and sequences of rows."""

from __future__ import annotations

from dataclasses import dataclass

from sora_runtime.cost.work import ComponentWork, Rows

TOKENS: Rows = {("tokens",): 1.0}  # the video tokens of one evaluation


@dataclass(frozen=True)
class Conditioning:
    """Lengths of what the transformer attends to beside the video."""

    text_tokens: int
    image_tokens: int = 0


@dataclass(frozen=True)
class Autoencoder:
    """Both halves of a VAE; each evaluation is one whole clip."""

    decoder: ComponentWork
    encoder: ComponentWork


def constant(rows: float) -> Rows:
    """Rows whose number the clip's shape does not change."""
    return {(): float(rows)}


def joint(*sequences: Rows) -> Rows:
    """One sequence made of several."""
    rows: Rows = {}
    for sequence in sequences:
        for of, count in sequence.items():
            rows[of] = rows.get(of, 0.0) + count
    return rows
