"""The models of the table: wan-pocket, and transformers of real widths with random weights."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLIPS = "wan-pocket"
# https://huggingface.co/Wan-AI/Wan2.1-T2V-1.3B-Diffusers: transformer/config.json
WAN: dict[str, Any] = {
    "patch_size": [1, 2, 2], "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16,
    "out_channels": 16, "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "eps": 1e-6, "rope_max_seq_len": 1024,
}  # fmt: skip
# https://huggingface.co/Lightricks/LTX-Video: transformer/config.json
LTX: dict[str, Any] = {
    "in_channels": 128, "out_channels": 128, "patch_size": 1, "patch_size_t": 1, "num_attention_heads": 32,
    "attention_head_dim": 64, "cross_attention_dim": 2048, "caption_channels": 4096, "qk_norm": "rms_norm_across_heads",
    "norm_eps": 1e-6,
}  # fmt: skip
TINY_WAN = WAN | {"num_attention_heads": 2, "attention_head_dim": 24, "ffn_dim": 96, "text_dim": 32}
TINY_LTX = LTX | {
    "in_channels": 16, "out_channels": 16, "num_attention_heads": 2, "attention_head_dim": 24,
    "cross_attention_dim": 48, "caption_channels": 32,
}  # fmt: skip


@dataclass(frozen=True)
class Transformer:
    """A transformer by itself and the shape that it is evaluated at.

    Attributes:
        family: `wan` or `ltx`, the export's.
        config: of diffusers' class.
        latents: frames, rows and columns.
        text_tokens: of the prompt.
        rope_scale: LTX's, of frames, rows and columns in seconds and pixels.
    """

    family: str
    config: dict[str, Any]
    latents: tuple[int, int, int]
    text_tokens: int
    rope_scale: tuple[float, float, float] = field(default=(8 / 25, 32.0, 32.0))

    @property
    def tokens(self) -> int:
        """Of the video."""
        patch = self.config["patch_size"]
        return prod(self.latents) // (prod(patch) if isinstance(patch, list) else patch)

    def inputs(self) -> dict[str, NDArray[np.float32]]:
        """Latents and text like a sampler's in the middle of a trajectory; the same at every call."""
        rng = np.random.default_rng(0)
        text = self.config["text_dim" if self.family == "wan" else "caption_channels"]
        arrays = {
            "hidden_states": rng.standard_normal((1, self.config["in_channels"], *self.latents), np.float32),
            "timestep": np.array([500.0], np.float32),
            "encoder_hidden_states": rng.standard_normal((1, self.text_tokens, text), np.float32),
        }
        if self.family == "ltx":
            arrays["encoder_attention_mask"] = np.ones((1, self.text_tokens), np.float32)
        return arrays

    def empty(self) -> Any:
        """The module of diffusers without storage."""
        import torch

        with torch.device("meta"):
            return self.diffusers_class().from_config(self.config)

    def diffusers_class(self) -> Any:
        """The class of diffusers."""
        import diffusers

        name = {"wan": "WanTransformer3DModel", "ltx": "LTXVideoTransformer3DModel"}[self.family]
        return getattr(diffusers, name)


# 17 frames of 512x512 of Wan, 33 of LTX: 1280 tokens each.
TRANSFORMERS = {
    "wan-1.3b-2": Transformer("wan", WAN | {"num_layers": 2}, (5, 32, 32), 512),
    "wan-1.3b-30": Transformer("wan", WAN | {"num_layers": 30}, (5, 32, 32), 512),
    "ltx-2b-4": Transformer("ltx", LTX | {"num_layers": 4}, (5, 16, 16), 128),
    "wan-tiny": Transformer("wan", TINY_WAN | {"num_layers": 2}, (2, 8, 8), 16),
    "ltx-tiny": Transformer("ltx", TINY_LTX | {"num_layers": 2}, (2, 4, 4), 16),
}
MODELS = (CLIPS, "wan-1.3b-2", "ltx-2b-4", "wan-1.3b-30")
"""What is measured unless told."""


def make_checkpoint(model: Transformer, folder: Path) -> int:
    """Writes config.json and random weights, tensor by tensor; returns the number of parameters.

    Products keep the scale of what they are given (normal, variance 1 / inputs), norms begin as diffusers' do, so that
    activations neither die nor explode over 30 layers.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module = model.empty()
    config = {"_class_name": type(module).__name__, **model.config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", shapes)
    return sum(prod(shape) for shape in shapes.values())


def write_safetensors(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """float32 tensors of these shapes, one in memory at a time (https://github.com/huggingface/safetensors#format)."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, offset + 4 * prod(shape)]}
        offset += 4 * prod(shape)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for values in _random(shapes):
            values.tofile(file)


def _random(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    for name, shape in shapes.items():
        if len(shape) == 1 and name.endswith("weight"):
            yield np.ones(shape, np.float32)
        else:
            scale = prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.02
            yield rng.standard_normal(shape, np.float32) * np.float32(scale)
