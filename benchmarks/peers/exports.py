"""What is exported of a model as everybody exports it: each module of diffusers whole, with example inputs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.jobs import Job
from benchmarks.peers.models import CLIPS, TRANSFORMERS
from benchmarks.peers.pipeline import defaults_of, load_pipeline
from benchmarks.peers.torch_peers import torch_module


@dataclass(frozen=True)
class Export:
    """A module in evaluation mode with example inputs."""

    name: str
    module: torch.nn.Module
    inputs: tuple[torch.Tensor, ...]

    def file(self, job: Job, suffix: str) -> Path:
        """Where its graph lies."""
        return job.file(f"{self.name}{suffix}")


class _Text(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return self.model(input_ids, attention_mask).last_hidden_state


class _Transformer(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, embeds: torch.Tensor) -> Any:
        return self.model(hidden_states, timestep, embeds, return_dict=False)[0]


class _Decoder(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: torch.Tensor) -> Any:
        return self.model.decode(latents, return_dict=False)[0]


def exports(job: Job) -> list[Export]:
    """What a job's model consists of."""
    if job.model in TRANSFORMERS:
        model = TRANSFORMERS[job.model]
        inputs = tuple(torch.from_numpy(array) for array in model.inputs().values())
        return [Export("transformer", torch_module(model, job).eval(), inputs)]
    assert job.model == CLIPS, job.model
    pipeline, defaults = load_pipeline(job.checkpoint), defaults_of(job.checkpoint)
    vae, config = pipeline.vae.config, pipeline.transformer.config
    frames = (defaults["num_frames"] - 1) // vae.scale_factor_temporal + 1
    rows, columns = (defaults[side] // vae.scale_factor_spatial for side in ("height", "width"))
    latents = torch.randn(1, vae.z_dim, frames, rows, columns)
    tokens = frames * rows * columns // (config.patch_size[1] * config.patch_size[2])
    ids = torch.ones(1, defaults["max_sequence_length"], dtype=torch.int64)
    embeds = torch.randn(1, defaults["max_sequence_length"], config.text_dim)
    return [
        Export("text_encoder", _Text(pipeline.text_encoder).eval(), (ids, torch.ones_like(ids))),
        Export(
            "transformer", _Transformer(pipeline.transformer).eval(), (latents, torch.full((1, tokens), 5e2), embeds)
        ),
        Export("vae_decoder", _Decoder(pipeline.vae).eval(), (latents,)),
    ]
