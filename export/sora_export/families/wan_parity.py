"""Feeds the same seeded inputs to diffusers' own Wan modules and to the graphs made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import ModelMixin
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import UMT5EncoderModel
from transformers.utils import logging

from sora_export.families import Pair, RunGraph
from sora_export.onnx_from_torch import TorchGraph

Float = NDArray[np.float32]
_LATENT_FRAMES = 3
"""One first chunk and two later ones: the second later one is the first to see full caches."""


def load_text_encoder(root: Path) -> torch.nn.Module:
    """UMT5EncoderModel in float32."""
    bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = UMT5EncoderModel.from_pretrained(root / "text_encoder", dtype=torch.float32, use_safetensors=True)
    finally:
        if bar:
            logging.enable_progress_bar()
    return cast(torch.nn.Module, model.eval())


def load_diffusers(model_class: type[ModelMixin], folder: Path, files: Iterable[Path]) -> torch.nn.Module:
    """A diffusers model in float32.

    Its own `from_pretrained` would need accelerate to keep some modules in float32; here all are.
    """
    model = model_class.from_config(model_class.load_config(folder))
    state = {key: value.float() for file in files for key, value in load_file(file).items()}
    model.load_state_dict(state, assign=True)
    return cast(torch.nn.Module, model.eval())


def compare_text_encoder(vocab_size: int, length: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A prompt that fills two thirds of the sequence.

    torch's result is cut and padded with zeros, as WanPipeline does.
    """
    ids = np.random.default_rng(0).integers(1, vocab_size, (1, length))
    mask = (np.arange(length)[None] < max(1, 2 * length // 3)).astype(np.int64)
    ids = ids * mask
    got = run("text_encoder.onnx", {"input_ids": ids, "attention_mask": mask})["prompt_embeds"]
    hidden = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    return {"text_encoder.onnx": (got, np.where(mask[..., None] > 0, hidden, 0.0))}


def compare_transformer(graphs: Mapping[str, TorchGraph], model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """One evaluation of each bucket in the middle of the schedule."""
    pairs = {}
    for file, graph in graphs.items():
        rng = np.random.default_rng(1)
        feeds = {name: _normal(rng, tuple(like.shape)) for name, like in graph.inputs.items()}
        feeds["timestep"] = np.array([517.25], np.float32)
        want = model(*(torch.from_numpy(feeds[name]) for name in feeds), return_dict=False)[0]
        pairs[file] = (run(file, feeds)["model_output"], want.numpy())
    return pairs


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
        latents = _normal(np.random.default_rng(2), shape)
        chunks = [latents[:, :, i : i + 1] for i in range(_LATENT_FRAMES)]
        got = np.clip(_run_chunks(run, bucket, "latents", "frames", chunks), -1, 1)
        mean, std = _statistics(facts)
        want = vae.decode(torch.from_numpy(latents * std + mean), return_dict=False)[0].numpy()
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
        shape = (1, 3, 1 + stride * (_LATENT_FRAMES - 1), bucket["height"], bucket["width"])
        frames = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
        later = [frames[:, :, i : i + stride] for i in range(1, shape[2], stride)]
        got = _run_chunks(run, bucket, "frames", "latents", [frames[:, :, :1], *later])
        mean, std = _statistics(facts)
        mode = vae.encode(torch.from_numpy(frames), return_dict=False)[0].mode().numpy()
        want = (mode - mean) / std
        pairs[bucket["first"]] = (got[:, :, :1], want[:, :, :1])
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


def _statistics(facts: Mapping[str, Any]) -> tuple[Float, Float]:
    shape = (1, facts["latent_channels"], 1, 1, 1)
    mean = np.asarray(facts["latents_mean"], np.float32).reshape(shape)
    return mean, np.asarray(facts["latents_std"], np.float32).reshape(shape)


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Float:
    return rng.standard_normal(shape).astype(np.float32)
