"""Feeds the same seeded inputs to diffusers' own CogVideoX modules and to the graphs made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXPipeline

from sora_export.families import Pair, RunGraph
from sora_export.families.cogvideox_vae import FIRST_LATENTS, NEXT_LATENTS
from sora_export.families.common import Float, normal

_OFS = 2.0
"""As CogVideoXImageToVideoPipeline has it."""


def compare_text_encoder(vocab_size: int, length: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A prompt that fills two thirds of the sequence; the padding is attended to, as the pipeline does."""
    ids = np.random.default_rng(0).integers(1, vocab_size, (1, length))
    ids[:, max(1, 2 * length // 3) :] = 0
    got = run("text_encoder.onnx", {"input_ids": ids})["encoder_hidden_states"]
    return {"text_encoder.onnx": (got, model(torch.from_numpy(ids)).last_hidden_state.numpy())}


def compare_transformer(
    facts: Mapping[str, Any], buckets: Iterable[Mapping[str, Any]], model: Any, run: RunGraph
) -> dict[str, Pair]:
    """One evaluation of each bucket in the middle of the schedule."""
    pairs = {}
    for bucket in buckets:
        rng = np.random.default_rng(1)
        stride, patch = facts["temporal_stride"], facts["patch_size"][0]
        frames = -(-((bucket["num_frames"] - 1) // stride + 1) // patch) * patch
        size = [bucket[side] // facts["spatial_stride"] for side in ("height", "width")]
        shape = (1, facts["latent_channels"], frames, *size)
        text = (1, facts["max_sequence_length"], model.config.text_embed_dim)
        feeds = {"hidden_states": normal(rng, shape), "timestep": np.array([517], np.float32)}
        feeds["encoder_hidden_states"] = normal(rng, text)
        if bucket["task"] == "i2v":
            feeds["condition"] = normal(rng, shape)
        got = run(bucket["graph"], feeds)["model_output"]
        pairs[bucket["graph"]] = (got, evaluate(facts, bucket, model, feeds))
    return pairs


def evaluate(facts: Mapping[str, Any], bucket: Mapping[str, Any], model: Any, feeds: Mapping[str, Float]) -> Float:
    """What diffusers' transformer gives for the inputs of a graph, with the rotary table of the pipeline."""
    latents = [torch.from_numpy(feeds[name]) for name in ("hidden_states", "condition") if name in feeds]
    hidden_states = torch.cat(latents, dim=1).transpose(1, 2)
    rotary = None
    if model.config.use_rotary_positional_embeddings:
        pipeline = SimpleNamespace(vae_scale_factor_spatial=facts["spatial_stride"], transformer=model)
        rotary = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            pipeline, bucket["height"], bucket["width"], hidden_states.shape[1], torch.device("cpu")
        )
    output = model(
        hidden_states,
        torch.from_numpy(feeds["encoder_hidden_states"]),
        torch.from_numpy(feeds["timestep"]),
        ofs=None if model.config.ofs_embed_dim is None else torch.full((1,), _OFS),
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]
    result: Float = output.transpose(1, 2).numpy()
    return result


def compare_decoder(
    facts: Mapping[str, Any], buckets: Iterable[Mapping[str, Any]], vae: Any, run: RunGraph
) -> dict[str, Pair]:
    """Frames decoded in chunks against `vae.decode` of all latents at once."""
    pairs = {}
    for bucket in buckets:
        size = [bucket[side] // facts["spatial_stride"] for side in ("height", "width")]
        count = 1 if bucket["next"] is None else FIRST_LATENTS + NEXT_LATENTS
        latents = normal(np.random.default_rng(2), (1, facts["latent_channels"], count, *size))
        want = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor, return_dict=False)[0].numpy()
        if bucket["next"] is None:
            pairs[bucket["first"]] = (run(bucket["first"], {"latents": latents})["frames"], want)
            continue
        outputs = run(bucket["first"], {"latents": latents[:, :, :FIRST_LATENTS]})
        first = outputs["frames"]
        caches = {f"cache_in.{i}": outputs[f"cache_out.{i}"] for i in range(len(outputs) - 1)}
        later = run(bucket["next"], {"latents": latents[:, :, FIRST_LATENTS:], **caches})["frames"]
        pairs[bucket["first"]] = (first, want[:, :, : first.shape[2]])
        pairs[bucket["next"]] = (later, want[:, :, first.shape[2] :])
    return pairs


def compare_encoder(buckets: Iterable[Mapping[str, Any]], vae: Any, run: RunGraph) -> dict[str, Pair]:
    """The latents of one picture against the mode of `vae.encode`, scaled as the pipeline does."""
    pairs = {}
    scale = 1.0 / vae.config.scaling_factor if vae.config.invert_scale_latents else vae.config.scaling_factor
    for bucket in buckets:
        shape = (1, vae.config.in_channels, 1, bucket["height"], bucket["width"])
        frames = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
        mode = vae.encode(torch.from_numpy(frames), return_dict=False)[0].mode().numpy()
        pairs[bucket["first"]] = (run(bucket["first"], {"frames": frames})["latents"], mode * scale)
    return pairs
