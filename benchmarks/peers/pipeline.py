"""diffusers' WanPipeline over its own modules, or over networks that another library runs."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.peers.jobs import Ask, Drawn, FirstFrame

Network = Callable[..., NDArray[np.float32]]
"""Arrays in, in the order of the module's arguments; the first output back."""
PARTS = ("text_encoder", "transformer", "vae_decoder")


def load_pipeline(checkpoint: str) -> Any:
    """The pipeline with diffusers' modules, float32."""
    from diffusers import WanPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ftfy or accelerate are absent
        pipeline = WanPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.defaults = defaults_of(checkpoint)
    return pipeline


def pipeline_around(checkpoint: str, networks: Mapping[str, Network]) -> Any:
    """The pipeline with its own tokenizer, scheduler and loop around others' networks; no weight is loaded."""
    from diffusers import UniPCMultistepScheduler, WanPipeline
    from transformers import PreTrainedTokenizerFast

    root = Path(checkpoint)
    index = json.loads((root / "model_index.json").read_bytes())
    pipeline = WanPipeline(
        tokenizer=PreTrainedTokenizerFast.from_pretrained(root / "tokenizer"),
        text_encoder=_TextEncoder(root / "text_encoder", networks["text_encoder"]),
        transformer=_Transformer(root / "transformer", networks["transformer"]),
        vae=_Vae(root / "vae", networks["vae_decoder"]),
        scheduler=UniPCMultistepScheduler.from_pretrained(root / "scheduler"),
        expand_timesteps=index["expand_timesteps"],
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.defaults = defaults_of(checkpoint)
    return pipeline


def defaults_of(checkpoint: str) -> dict[str, Any]:
    """The model's size, length and negative prompt."""
    defaults: dict[str, Any] = json.loads((Path(checkpoint) / "sora_defaults.json").read_bytes())
    return defaults


def draw(pipeline: Any, ask: Ask, first_frame: FirstFrame) -> Drawn:
    """A clip, its frames converted to rgb8 as this runtime's are."""
    defaults = pipeline.defaults
    last: dict[str, torch.Tensor] = {}

    def keep(_pipeline: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        last["latents"] = values["latents"]
        return {}

    video = pipeline(
        ask.prompt,
        negative_prompt=defaults["negative_prompt"],
        height=defaults["height"],
        width=defaults["width"],
        num_frames=defaults["num_frames"],
        num_inference_steps=ask.steps,
        guidance_scale=ask.guidance,
        max_sequence_length=defaults["max_sequence_length"],
        generator=torch.Generator().manual_seed(ask.seed),
        output_type="np",
        callback_on_step_end=keep,
    ).frames[0]
    frames = np.rint(np.asarray(video) * 255).astype(np.uint8)
    first_frame()
    return Drawn(frames, last["latents"].numpy(), ask.steps * (2 if ask.guidance > 1 else 1))


class _Stand(torch.nn.Module):
    """What stands in the place of a module: its configuration, and a network that is not torch's."""

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, folder: Path, network: Network) -> None:
        super().__init__()
        self.config = SimpleNamespace(**json.loads((folder / "config.json").read_bytes()))
        self._network = network

    def _evaluate(self, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self._network(*(np.ascontiguousarray(tensor.numpy()) for tensor in tensors)))


class _TextEncoder(_Stand):
    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self._evaluate(input_ids, attention_mask))


class _Transformer(_Stand):
    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        **_: Any,
    ) -> tuple[torch.Tensor]:
        return (self._evaluate(hidden_states, timestep.to(torch.float32), encoder_hidden_states),)

    def cache_context(self, *_: Any, **__: Any) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class _Vae(_Stand):
    def decode(self, latents: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (self._evaluate(latents),)
