"""How a clip is cut into the tiles of a VAE decoder that keeps no memory; `sora_runtime.tiles` puts them together."""

from __future__ import annotations

import math
from collections.abc import Sequence

DROPPED = (1, 0, 0)
"""Latents, by axis, of which a tile after the first gives nothing: the first of a tile makes one frame only."""


def tile_record(clip: Sequence[int], largest: Sequence[int], overlap: Sequence[int]) -> dict[str, list[int]]:
    """bundle.json's "tile" for a clip: as few tiles as `largest` allows, no larger than they must be.

    An axis that fits into one tile gets one. 704 pixels in tiles of at most 512 that share 64 are two of
    384, not one of 512 and one of 256: every tile has the shape of the one graph, and no pixel more than
    the overlap is decoded twice.

    Args:
        clip: Latent frames, rows and columns.
        largest: The most of each in a tile.
        overlap: How many of each neighbouring tiles blend at least; less than `largest`, in time by two.

    Returns:
        "latent", the shape of a tile, and "stride", the largest distance of two origins.
    """
    latent, stride = [], []
    for length, most, blended, dropped in zip(clip, largest, overlap, DROPPED, strict=True):
        shared = blended + dropped
        assert 0 <= shared < most
        count = 1 if length <= most else math.ceil((length - shared) / (most - shared))
        size = math.ceil((length + (count - 1) * shared) / count)
        latent.append(size)
        stride.append(size if count == 1 else size - shared)
    return {"latent": latent, "stride": stride}
