"""Feeds the same seeded inputs to diffusers' own LTX-Video modules and to the graphs made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_ltx import LTXVideoResnetBlock3d
from torch import Tensor

from sora_export.families import Pair, RunGraph
from sora_export.families.common import normal
from sora_export.families.ltx_vae import DECODE_TIMESTEP
from sora_export.onnx_from_torch import TorchGraph


def compare_text_encoder(vocab_size: int, length: int, model: torch.nn.Module, run: RunGraph) -> dict[str, Pair]:
    """A prompt that fills two thirds of the sequence; T5 sees the padding, as in LTXPipeline.

    The mask is the second output: it is compared as one row more.
    """
    mask = (np.arange(length)[None] < max(1, 2 * length // 3)).astype(np.int64)
    ids = np.random.default_rng(0).integers(1, vocab_size, (1, length)) * mask
    outputs = run("text_encoder.onnx", {"input_ids": ids, "attention_mask": mask})
    got = [outputs["encoder_hidden_states"], outputs["encoder_attention_mask"][..., None]]
    want = [model(torch.from_numpy(ids)).last_hidden_state.numpy(), mask[..., None].astype(np.float32)]
    return {"text_encoder.onnx": (np.concatenate(got, axis=-1), np.concatenate(want, axis=-1))}


def compare_transformer(
    graphs: Mapping[str, TorchGraph],
    rope_scale: tuple[float, float, float],
    model: torch.nn.Module,
    run: RunGraph,
) -> dict[str, Pair]:
    """One evaluation of each bucket in the middle of the schedule.

    With a picture, its latent stands in the first frame and that frame's tokens have the timestep zero,
    as LTXImageToVideoPipeline has it; without, all tokens share one.
    """
    pairs = {}
    for file, graph in graphs.items():
        rng = np.random.default_rng(1)
        feeds = {name: normal(rng, tuple(tensor.shape)) for name, tensor in graph.inputs.items()}
        feeds["timestep"] = np.array([517.25], np.float32)
        length = feeds["encoder_attention_mask"].shape[1]
        feeds["encoder_attention_mask"] = (np.arange(length)[None] < max(1, length // 3)).astype(np.float32)
        given = {name: torch.from_numpy(feed) for name, feed in feeds.items()}
        latents, timestep = given["hidden_states"], given["timestep"]
        _, _, frames, rows, columns = latents.shape
        if "condition" in given:
            latents = torch.cat([given["condition"], latents[:, :, 1:]], dim=2)
            later = torch.arange(frames).repeat_interleave(rows * columns) > 0
            timestep = timestep * later[None]
        want = model(
            latents.flatten(2).transpose(1, 2),
            given["encoder_hidden_states"],
            timestep,
            given["encoder_attention_mask"],
            num_frames=frames,
            height=rows,
            width=columns,
            rope_interpolation_scale=rope_scale,
            return_dict=False,
        )[0]
        unpacked = want.transpose(1, 2).reshape(latents.shape)
        pairs[file] = (run(file, feeds)["model_output"], unpacked.numpy())
    return pairs


def compare_decoder(graphs: Mapping[str, TorchGraph], vae: Any, run: RunGraph) -> dict[str, Pair]:
    """Each tile against `vae.decode`, whose `inject_noise` is silenced: its mean is zero."""
    for module in vae.modules():
        if isinstance(module, LTXVideoResnetBlock3d):
            for scale in (module.per_channel_scale1, module.per_channel_scale2):
                if scale is not None:
                    scale.zero_()
    timestep = torch.tensor([DECODE_TIMESTEP]) if vae.config.timestep_conditioning else None
    mean, std = _statistics(vae)
    pairs = {}
    for file, graph in graphs.items():
        latents = normal(np.random.default_rng(2), tuple(graph.inputs["latents"].shape))
        want = vae.decode(torch.from_numpy(latents) * std + mean, timestep, return_dict=False)[0]
        pairs[file] = (run(file, {"latents": latents})["frames"], want.numpy())
    return pairs


def compare_encoder(graphs: Mapping[str, TorchGraph], vae: Any, run: RunGraph) -> dict[str, Pair]:
    """A first frame against the mode of `vae.encode`."""
    mean, std = _statistics(vae)
    pairs = {}
    for file, graph in graphs.items():
        shape = tuple(graph.inputs["frames"].shape)
        frames = np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)
        mode = vae.encode(torch.from_numpy(frames), return_dict=False)[0].mode()
        pairs[file] = (run(file, {"frames": frames})["latents"], ((mode - mean) / std).numpy())
    return pairs


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the VAE's latents, [1,C,1,1,1]."""
    view = (1, -1, 1, 1, 1)
    return vae.latents_mean.view(view), (vae.latents_std / vae.config.scaling_factor).view(view)
