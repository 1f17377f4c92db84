"""Feeds the same seeded inputs to diffusers' and transformers' own HunyuanVideo modules and to the graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sora_export.families import Pair, RunGraph
from sora_export.families.common import Float, normal
from sora_export.families.hunyuan_text import SKIPPED_LAYERS, ImageTemplate
from sora_export.onnx_from_torch import TorchGraph

_LAYER = -(SKIPPED_LAYERS + 1)


def compare_llama(vocab_size: int, length: int, crop: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A prompt that fills half of what the template leaves; torch's states of padding, which are no use, are zeroed."""
    mask = (np.arange(length)[None] < crop + max(1, (length - crop) // 2)).astype(np.int64)
    ids = np.random.default_rng(0).integers(1, vocab_size, (1, length)) * mask
    outputs = run("text_encoder.onnx", {"input_ids": ids, "attention_mask": mask})
    states = model(
        input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), output_hidden_states=True
    ).hidden_states[_LAYER]
    return {"text_encoder.onnx": _with_mask(outputs, states[:, crop:].numpy(), mask[:, crop:])}


def compare_llava(
    length: int, picture_tokens: int, template: ImageTemplate, model: Any, run: RunGraph
) -> dict[str, Pair]:
    """A prompt of random words with the headers of a template and noise as a picture.

    The cutting is that of HunyuanVideoImageToVideoPipeline._get_llama_prompt_embeds.
    """
    config, header, rng = model.config, template.header, np.random.default_rng(0)
    pad = config.pad_token_id if config.pad_token_id is not None else 0
    words = np.setdiff1d(np.arange(config.text_config.vocab_size), [pad, config.image_token_id, template.end_header_id])
    ids = rng.choice(words, (1, length))
    assistant = (template.crop_start + length) // 2
    ids[0, template.image_start] = config.image_token_id
    ids[0, [template.image_start - 2, template.crop_start - 2, assistant - 1]] = template.end_header_id
    mask = (np.arange(length)[None] < assistant + 1).astype(np.int64)
    ids = np.where(mask == 1, ids, pad)
    size = config.vision_config.image_size
    pixels = normal(rng, (1, 3, size, size))
    outputs = run("text_encoder.onnx", {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})
    image, more = template.image_start, picture_tokens - 1
    placeholders = np.full((1, picture_tokens), config.image_token_id)
    states = model(
        input_ids=torch.from_numpy(np.concatenate([ids[:, :image], placeholders, ids[:, image + 1 :]], axis=1)),
        attention_mask=torch.from_numpy(np.concatenate([np.ones((1, more), np.int64), mask], axis=1)),
        pixel_values=torch.from_numpy(pixels),
        output_hidden_states=True,
    ).hidden_states[_LAYER]
    seen = states[:, image : image + picture_tokens : template.interleave]
    read = states[:, template.crop_start + more : assistant - header + more], states[:, assistant + more :]
    kept = mask[:, template.crop_start : assistant - header], mask[:, assistant:]
    valid = np.concatenate([np.ones((1, seen.shape[1]), np.int64), *kept], axis=1)
    return {"text_encoder.onnx": _with_mask(outputs, torch.cat((seen, *read), dim=1).numpy(), valid)}


def compare_clip(config: Mapping[str, Any], length: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """Prompts of several lengths, each ended by the end token, which also pads it."""
    eos = config.get("eos_token_id", 2)
    end = config["vocab_size"] - 1 if eos == 2 else eos
    words = np.setdiff1d(np.arange(config["vocab_size"]), [end])
    rng, got, want = np.random.default_rng(0), [], []
    for count in (1, length // 4, length // 2, length - 1):
        ids = np.full((1, length), end, np.int64)
        ids[0, :count] = rng.choice(words, count)
        got.append(run("text_encoder_2.onnx", {"input_ids": ids})["pooled_projections"])
        want.append(model(torch.from_numpy(ids)).pooler_output.numpy())
    return {"text_encoder_2.onnx": (np.concatenate(got), np.concatenate(want))}


def compare_transformer(graphs: Mapping[str, TorchGraph], model: Any, run: RunGraph) -> dict[str, Pair]:
    """One evaluation of each bucket in the middle of the schedule; the states of padded text are noise."""
    pairs = {}
    for file, graph in graphs.items():
        rng = np.random.default_rng(1)
        feeds = {name: normal(rng, tuple(tensor.shape)) for name, tensor in graph.inputs.items()}
        feeds["timestep"] = np.array([517.25], np.float32)
        if "guidance" in feeds:
            feeds["guidance"] = np.array([6000.0], np.float32)
        length = feeds["encoder_attention_mask"].shape[1]
        feeds["encoder_attention_mask"] = (np.arange(length)[None] < max(1, length // 2)).astype(np.float32)
        got, want = run(file, feeds)["model_output"], evaluate(model, feeds).numpy()
        # What the model says of a frame that is given is never used.
        known = int(model.config.image_condition_type == "token_replace")
        pairs[file] = (got[:, :, known:], want[:, :, known:])
    return pairs


def evaluate(model: Any, feeds: Mapping[str, Float]) -> Tensor:
    """Diffusers' transformer on the inputs of a graph, put together as its pipelines do it."""
    given = {name: torch.from_numpy(array) for name, array in feeds.items()}
    latents, condition = given.pop("hidden_states"), given.pop("condition", None)
    if model.config.image_condition_type == "latent_concat":
        assert condition is not None
        latents = torch.cat((latents, condition), dim=1)
    elif condition is not None:
        latents = torch.cat((condition, latents[:, :, 1:]), dim=2)
    output: Tensor = model(latents, **given, return_dict=False)[0]
    return output


def compare_decoder(graphs: Mapping[str, TorchGraph], vae: Any, run: RunGraph) -> dict[str, Pair]:
    """Each tile against `vae.decode` of the same latents in one piece."""
    vae.use_framewise_decoding = False
    pairs = {}
    for file, graph in graphs.items():
        latents = normal(np.random.default_rng(2), tuple(graph.inputs["latents"].shape))
        want = vae.decode(torch.from_numpy(latents) / vae.config.scaling_factor, return_dict=False)[0]
        pairs[file] = (run(file, {"latents": latents})["frames"], want.numpy())
    return pairs


def compare_encoder(graphs: Mapping[str, TorchGraph], vae: Any, run: RunGraph) -> dict[str, Pair]:
    """A first frame against the mode of `vae.encode`."""
    pairs = {}
    for file, graph in graphs.items():
        shape = tuple(graph.inputs["frames"].shape)
        frames = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
        mode = vae.encode(torch.from_numpy(frames), return_dict=False)[0].mode() * vae.config.scaling_factor
        pairs[file] = (run(file, {"frames": frames})["latents"], mode.numpy())
    return pairs


def _with_mask(outputs: Mapping[str, NDArray[Any]], states: Float, mask: NDArray[np.int64]) -> Pair:
    """States, zero at padding, and the mask as one column more: both outputs as one pair."""
    valid = mask[..., None].astype(np.float32)
    got = [outputs["encoder_hidden_states"], outputs["encoder_attention_mask"][..., None]]
    return np.concatenate(got, axis=-1), np.concatenate([states * valid, valid], axis=-1)
