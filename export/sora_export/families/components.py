"""Components that several families describe alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn
from transformers import PreTrainedModel

from sora_export.checkpoint import Checkpoint
from sora_export.families import Component, Pair, RunGraph, Shapes
from sora_export.families.common import like, load_transformers, loader
from sora_export.onnx_from_torch import TorchGraph

Clip = tuple[int, int, int]
"""Frames, height and width in pixels."""


def latent_shape(facts: Mapping[str, Any], clip: Clip) -> tuple[int, int, int]:
    """Latent frames, rows and columns of a clip."""
    frames, height, width = clip
    stride = facts["spatial_stride"]
    return (frames - 1) // facts["temporal_stride"] + 1, height // stride, width // stride


def token_inputs(length: int, *names: str) -> dict[str, Tensor]:
    """Inputs int64 [1, length] of a text encoder; without names its tokens and their mask."""
    return {name: like(1, length, dtype=torch.int64) for name in names or ("input_ids", "attention_mask")}


def text_encoder(
    checkpoint: Checkpoint,
    name: str,
    model_class: type[PreTrainedModel],
    graph: TorchGraph,
    outputs: Mapping[str, list[int]],
    compare: Callable[[Any, RunGraph], Mapping[str, Pair]],
    **more: Any,
) -> Component:
    """The text encoder in folder `name`; `more` is said of it in bundle.json too, or instead."""
    entry = {
        "graph": f"{name}.onnx",
        "max_sequence_length": graph.inputs["input_ids"].shape[1],
        "pad_token_id": checkpoint.json(f"{name}/config.json").get("pad_token_id", 0),
        "padding_side": "right",
        "overflow": "refuse",
        "clean": False,
        "template": "{}",
        "prompt": "whole",
        "inputs": list(graph.inputs),
        "outputs": outputs,
    }
    return Component(
        name=name,
        folder=name,
        graphs={f"{name}.onnx": graph},
        entry={**entry, **more},
        load_reference=partial(load_transformers, model_class, checkpoint.root / name),
        compare=compare,
        fingerprinted=True,
        tokenizer_folder=name.replace("text_encoder", "tokenizer"),
    )


def transformer_buckets(
    name: str, shapes: Shapes, describe: Callable[[str, Clip], TorchGraph | None]
) -> tuple[dict[str, TorchGraph], list[dict[str, Any]]]:
    """The graphs of a transformer by file, one for each task and clip, and their buckets in bundle.json.

    Args:
        name: What the names of its files begin with.
        shapes: The clips and tasks.
        describe: Gives the graph of a task and clip; None where there is nothing to make.
    """
    graphs, buckets = {}, []
    for task in shapes.tasks:
        for height, width in shapes.sizes:
            for num_frames in shapes.num_frames:
                graph = describe(task, (num_frames, height, width))
                if graph is None:
                    continue
                file = f"{name}.{height}x{width}x{num_frames}{'' if task == 't2v' else f'.{task}'}.onnx"
                graphs[file] = graph
                bucket = {"height": height, "width": width, "num_frames": num_frames, "task": task, "graph": file}
                buckets.append(bucket)
    return graphs, buckets


def frame_encoder(
    checkpoint: Checkpoint,
    model_class: type[ModelMixin],
    config: Mapping[str, Any],
    make: Callable[[Mapping[str, Any]], nn.Module],
    shapes: Shapes,
    compare: Callable[[Mapping[str, TorchGraph], Any, RunGraph], Mapping[str, Pair]],
) -> Component:
    """The encoder of a VAE for one frame; `compare` is `Component.compare` but for the graphs, which it gets first."""
    graphs, buckets = {}, []
    for height, width in shapes.sizes:
        file = f"vae_encoder.{height}x{width}.onnx"
        inputs = {"frames": like(1, config["in_channels"], 1, height, width)}
        graphs[file] = TorchGraph(partial(make, config), inputs, ["latents"])
        buckets.append({"height": height, "width": width, "num_frames": None, "first": file, "next": None})
    return Component(
        name="vae_encoder",
        folder="vae",
        graphs=graphs,
        entry={"kind": "chunked", "buckets": buckets},
        load_reference=loader(checkpoint, model_class, "vae"),
        compare=partial(compare, graphs),
    )
