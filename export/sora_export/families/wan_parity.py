"""Feeds the same seeded inputs to diffusers' own Wan modules and to the graphs made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from sora_export.families import Pair, RunGraph
from sora_export.families.common import Float, normal, statistics
from sora_export.onnx_from_torch import TorchGraph

_LATENT_FRAMES = 3
"""One first chunk and two later ones: the second later one is the first to see full caches."""


def compare_text_encoder(vocab_size: int, length: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A prompt that fills two thirds of the sequence.

    torch's result is cut and padded with zeros, as WanPipeline does.
    """
    ids = np.random.default_rng(0).integers(1, vocab_size, (1, length))
    mask = (np.arange(length)[None] < max(1, 2 * length // 3)).astype(np.int64)
    ids = ids * mask
    got = run("text_encoder.onnx", {"input_ids": ids, "attention_mask": mask})["encoder_hidden_states"]
    hidden = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    return {"text_encoder.onnx": (got, np.where(mask[..., None] > 0, hidden, 0.0))}


def compare_image_encoder(size: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """Noise as a picture; torch's result is the state WanImageToVideoPipeline.encode_image takes."""
    pixels = normal(np.random.default_rng(4), (1, 3, size, size))
    got = run("image_encoder.onnx", {"pixel_values": pixels})["image_embeds"]
    want = model(torch.from_numpy(pixels), output_hidden_states=True).hidden_states[-2].numpy()
    return {"image_encoder.onnx": (got, want)}


def compare_transformer(
    graphs: Mapping[str, TorchGraph], facts: Mapping[str, Any], model: torch.nn.Module, run: RunGraph
) -> dict[str, Pair]:
    """One evaluation of each bucket in the middle of the schedule.

    Where the first frame is given, what the model says of it is never used, nor compared.
    """
    pairs = {}
    for file, graph in graphs.items():
        rng = np.random.default_rng(1)
        feeds = {name: normal(rng, tuple(like.shape)) for name, like in graph.inputs.items()}
        feeds["timestep"] = np.array([517.25], np.float32)
        got, want = run(file, feeds)["model_output"], evaluate(facts, model, feeds).numpy()
        known = 1 if "condition" in feeds and facts["image"]["policy"] == "first_frame" else 0
        pairs[file] = (got[:, :, known:], want[:, :, known:])
    return pairs


def evaluate(facts: Mapping[str, Any], model: torch.nn.Module, feeds: Mapping[str, Float]) -> torch.Tensor:
    """Diffusers' transformer on the inputs of a graph, put together as its pipelines do it."""
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    latents, timestep = given["hidden_states"], given["timestep"]
    if "condition" in given and facts["image"]["policy"] == "concat":
        latents = torch.cat((latents, given["condition"]), dim=1)
    elif "condition" in given:
        # One timestep for each token, which here is a patch of 1 x p x q cells.
        mask = torch.ones_like(latents[:1, :1])
        mask[:, :, 0] = 0
        latents = (1 - mask) * given["condition"] + mask * latents
        _, rows, columns = facts["patch_size"]
        timestep = (mask[0, 0, :, ::rows, ::columns] * timestep).flatten()[None]
    output: torch.Tensor = model(
        latents, timestep, given["encoder_hidden_states"], given.get("image_embeds"), return_dict=False
    )[0]
    return output


def compare_decoder(
    facts: Mapping[str, Any],
    buckets: Iterable[Mapping[str, Any]],
    vae: Any,
    run: RunGraph,
) -> dict[str, Pair]:
    """Frames decoded in chunks against `vae.decode` of all latents at once, both clamped."""
    pairs = {}
    for bucket in buckets:
        size = [bucket[side] // facts["spatial_stride"] for side in ("height", "width")]
        shape = (1, facts["latent_channels"], _LATENT_FRAMES, *size)
        latents = normal(np.random.default_rng(2), shape)
        chunks = [latents[:, :, i : i + 1] for i in range(_LATENT_FRAMES)]
        got = np.clip(_run_chunks(run, bucket, "latents", "frames", chunks), -1, 1)
        mean, std = statistics(facts["latents_mean"], facts["latents_std"])
        want = vae.decode(torch.from_numpy(latents) * std + mean, return_dict=False)[0].numpy()
        pairs[bucket["first"]] = (got[:, :, :1], want[:, :, :1])
        pairs[bucket["next"]] = (got[:, :, 1:], want[:, :, 1:])
    return pairs


def compare_encoder(
    facts: Mapping[str, Any],
    buckets: Iterable[Mapping[str, Any]],
    vae: Any,
    run: RunGraph,
) -> dict[str, Pair]:
    """Latents encoded in chunks against the mode of `vae.encode` of all frames at once."""
    pairs = {}
    for bucket in buckets:
        stride = facts["temporal_stride"]
        later_chunks = 0 if bucket["next"] is None else _LATENT_FRAMES - 1
        shape = (1, 3, 1 + stride * later_chunks, bucket["height"], bucket["width"])
        frames = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
        later = [frames[:, :, i : i + stride] for i in range(1, shape[2], stride)]
        got = _run_chunks(run, bucket, "frames", "latents", [frames[:, :, :1], *later])
        mean, std = statistics(facts["latents_mean"], facts["latents_std"])
        mode = vae.encode(torch.from_numpy(frames), return_dict=False)[0].mode()
        want = ((mode - mean) / std).numpy()
        pairs[bucket["first"]] = (got[:, :, :1], want[:, :, :1])
        if bucket["next"] is not None:
            pairs[bucket["next"]] = (got[:, :, 1:], want[:, :, 1:])
    return pairs


def _run_chunks(run: RunGraph, bucket: Mapping[str, Any], take: str, give: str, chunks: list[Float]) -> Float:
    """Runs the first graph, then the next graph on its own caches; joins what they give in time."""
    results: list[Float] = []
    caches: dict[str, Float] = {}
    for index, chunk in enumerate(chunks):
        outputs = run(bucket["first" if index == 0 else "next"], {take: chunk, **caches})
        results.append(outputs[give])
        count = len(outputs) - 1
        caches = {f"cache_in.{i}": outputs[f"cache_out.{i}"] for i in range(count)}
    return np.concatenate(results, axis=2)
