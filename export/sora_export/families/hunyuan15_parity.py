"""Feeds the same seeded inputs to diffusers' own HunyuanVideo 1.5 modules and to the graphs made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sora_export.families import Pair, RunGraph
from sora_export.families.common import Float, normal
from sora_export.onnx_from_torch import TorchGraph

_LATENT_FRAMES = 3
"""One first chunk and two later ones: the second later one is the first to see what a later one left. Not more, as
diffusers' mask of the decoder's attention grows with the square of the clip."""


def compare_text_encoder(
    vocab_size: int, length: int, crop: int, skip: int, model: torch.nn.Module, run: RunGraph
) -> dict[str, Pair]:
    """A prompt that ends a third before the end; padding, which no one reads, counts as zero."""
    ids, mask = _tokens(0, vocab_size, length, crop + max(1, 2 * (length - crop) // 3))
    got = run("text_encoder.onnx", {"input_ids": ids, "attention_mask": mask})
    states = model(torch.from_numpy(ids), torch.from_numpy(mask), output_hidden_states=True).hidden_states
    want, kept = states[-(skip + 1)][:, crop:].numpy(), mask[:, crop:]
    return {"text_encoder.onnx": _joined(got, "", want * kept[..., None], kept)}


def compare_glyph_encoder(vocab_size: int, length: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A text that fills two thirds; padding counts as zero."""
    ids, mask = _tokens(1, vocab_size, length, max(1, 2 * length // 3))
    got = run("text_encoder_2.onnx", {"input_ids": ids, "attention_mask": mask})
    want = model(torch.from_numpy(ids), torch.from_numpy(mask).float()).last_hidden_state.numpy()
    return {"text_encoder_2.onnx": _joined(got, "_2", want * mask[..., None], mask)}


def _tokens(seed: int, vocab_size: int, length: int, filled: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    mask = (np.arange(length)[None] < filled).astype(np.int64)
    return np.random.default_rng(seed).integers(1, vocab_size, (1, length)) * mask, mask


def _joined(got: Mapping[str, Float], suffix: str, states: Float, mask: NDArray[np.int64]) -> Pair:
    """States and mask as one array each, so that an error in either shows."""
    parts = got[f"encoder_hidden_states{suffix}"], got[f"encoder_attention_mask{suffix}"]
    want = states, mask.astype(np.float32)
    return np.concatenate([p.ravel() for p in parts]), np.concatenate([p.ravel() for p in want])


def compare_image_encoder(size: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A picture of noise."""
    pixels = normal(np.random.default_rng(2), (1, 3, size, size))
    got = run("image_encoder.onnx", {"pixel_values": pixels})["image_embeds"]
    return {"image_encoder.onnx": (got, model(torch.from_numpy(pixels)).last_hidden_state.numpy())}


def compare_transformer(
    config: Mapping[str, Any], graphs: Mapping[str, TorchGraph], model: torch.nn.Module, run: RunGraph
) -> dict[str, Pair]:
    """Two evaluations of each bucket in the middle of the schedule: with quoted text, and without any."""
    pairs = {}
    for file, graph in graphs.items():
        results = []
        for glyphs in (7, 0):
            feeds = transformer_feeds(graph, glyphs)
            results.append((run(file, feeds)["model_output"], evaluate(config, model, feeds)))
        pairs[file] = (np.stack([got for got, _ in results]), np.stack([want for _, want in results]))
    return pairs


def transformer_feeds(graph: TorchGraph, glyphs: int) -> dict[str, Float]:
    """Seeded inputs of a transformer graph: text that fills two thirds and that many tokens of quoted text.

    What stands behind the text is noise too: it must not matter.
    """
    rng = np.random.default_rng(3)
    feeds = {name: normal(rng, tuple(like.shape)) for name, like in graph.inputs.items()}
    feeds["timestep"] = np.array([517.25], np.float32)
    length = feeds["encoder_attention_mask"].shape[1]
    filled = {"encoder_attention_mask": max(1, 2 * length // 3), "encoder_attention_mask_2": glyphs}
    for name, count in filled.items():
        feeds[name] = (np.arange(feeds[name].shape[1])[None] < count).astype(np.float32)
    return feeds


def evaluate(config: Mapping[str, Any], model: torch.nn.Module, feeds: Mapping[str, Float]) -> Float:
    """The model's output as a pipeline gets it: without a picture condition, mask and image embeddings are zero."""
    given = {name: torch.from_numpy(feed) for name, feed in feeds.items()}
    latents = given.pop("hidden_states")
    rest = config["in_channels"] - latents.shape[1]
    condition = given.pop("condition", torch.zeros(1, rest, *latents.shape[2:]))
    given.setdefault("image_embeds", torch.zeros(1, 5, config["image_embed_dim"]))
    inputs = torch.cat((latents, condition), dim=1)
    output: Float = model(inputs, return_dict=False, **given)[0].numpy()
    return output


def compare_decoder(
    facts: Mapping[str, Any], buckets: Iterable[Mapping[str, Any]], vae: Any, run: RunGraph
) -> dict[str, Pair]:
    """Frames decoded in chunks against `vae.decode` of all latents at once."""
    pairs: dict[str, Pair] = {}
    for bucket in buckets:
        size = [bucket[side] // facts["spatial_stride"] for side in ("height", "width")]
        frames = min(_LATENT_FRAMES, (bucket["num_frames"] - 1) // facts["temporal_stride"] + 1)
        latents = normal(np.random.default_rng(4), (1, facts["latent_channels"], frames, *size))
        got = decode_in_chunks(run, bucket, latents)
        want = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor, return_dict=False)[0].numpy()
        pairs[bucket["first"]] = (got[:, :, :1], want[:, :, :1])
        if bucket["next"] is not None:
            pairs[bucket["next"]] = (got[:, :, 1:], want[:, :, 1:])
    return pairs


def decode_in_chunks(run: RunGraph, bucket: Mapping[str, Any], latents: Float) -> Float:
    """Runs the first graph, then the next graph on its own caches; joins the frames in time."""
    results: list[Float] = []
    caches: dict[str, Float] = {}
    for index in range(latents.shape[2]):
        file = bucket["first" if index == 0 else "next"]
        outputs = dict(run(file, {"latents": latents[:, :, index : index + 1], **caches}))
        results.append(outputs.pop("frames"))
        caches = {name.replace("_out", "_in"): cache for name, cache in outputs.items()}
    return np.concatenate(results, axis=2)


def compare_encoder(buckets: Iterable[Mapping[str, Any]], vae: Any, run: RunGraph) -> dict[str, Pair]:
    """A picture against the mode of `vae.encode`, scaled."""
    pairs = {}
    for bucket in buckets:
        shape = (1, 3, 1, bucket["height"], bucket["width"])
        frames = np.random.default_rng(5).uniform(-1, 1, shape).astype(np.float32)
        got = run(bucket["first"], {"frames": frames})["latents"]
        mode = vae.encode(torch.from_numpy(frames), return_dict=False)[0].mode()
        pairs[bucket["first"]] = (got, (mode * vae.config.scaling_factor).numpy())
    return pairs
