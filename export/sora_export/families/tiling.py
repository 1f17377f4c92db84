"""How a clip is cut into the tiles of a VAE decoder that keeps no memory; `sora_runtime.tiles` puts them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from diffusers import ModelMixin
from torch import nn

from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Pair, RunGraph, Shapes
from sora_export.families.common import like, loader
from sora_export.families.components import latent_shape
from sora_export.onnx_from_torch import TorchGraph

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


def tiled_decoder(
    checkpoint: Checkpoint,
    model_class: type[ModelMixin],
    config: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], nn.Module],
    *,
    tiles: tuple[Sequence[int], Sequence[int]],
    facts: Mapping[str, Any],
    shapes: Shapes,
    compare: Callable[[Mapping[str, TorchGraph], Any, RunGraph], Mapping[str, Pair]],
) -> Component:
    """The decoder of a VAE that decodes each tile by itself; clips that are cut alike share a graph.

    Args:
        checkpoint: Has the VAE in folder "vae".
        model_class: Of diffusers.
        config: The VAE's.
        make: Makes the module that decodes a tile.
        tiles: Frames after the first, rows and columns of the largest tile, and those that two tiles share.
        facts: bundle.json's.
        shapes: The clips.
        compare: `Component.compare` but for the graphs, which it gets first.
    """
    temporal, spatial = facts["temporal_stride"], facts["spatial_stride"]
    largest, overlap = ((cut[0] // temporal, cut[1] // spatial, cut[2] // spatial) for cut in tiles)
    largest = (1 + largest[0], *largest[1:])
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        for num_frames in shapes.num_frames:
            tile = tile_record(latent_shape(facts, (num_frames, height, width)), largest, overlap)
            t, h, w = tile["latent"]
            file = f"vae_decoder.{h * spatial}x{w * spatial}x{1 + (t - 1) * temporal}.onnx"
            inputs = {"latents": like(1, config["latent_channels"], t, h, w)}
            graphs[file] = TorchGraph(partial(make, config), inputs, ["frames"])
            bucket = {"height": height, "width": width, "num_frames": num_frames, "graph": file, "tile": tile}
            buckets.append(bucket)
    return Component(
        name="vae_decoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "tiled", "buckets": buckets},
        load_reference=loader(checkpoint, model_class, "vae"),
        compare=partial(compare, graphs),
    )
