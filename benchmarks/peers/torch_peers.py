"""diffusers' own pipeline and modules in torch, eager or compiled by torch.compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.jobs import Ask, Drawn, FirstFrame, Job, Refused
from benchmarks.peers.models import CLIPS, TRANSFORMERS, Transformer


class TorchPeer:
    """diffusers.

    Args:
        compiled: torch.compile of the transformer, whole, as diffusers' guides have it; otherwise eager. The VAE is
            eager in both: its feature caches change their number and shape from chunk to chunk.
        bf16: weights and activations, but for what diffusers keeps in float32; transformers alone.
    """

    def __init__(self, compiled: bool = False, bf16: bool = False) -> None:
        self._compiled, self._bf16 = compiled, bf16
        self._pipeline: Any = None
        self._call: Any = None
        self._inputs: list[Any] = []

    def prepare(self, job: Job) -> None:
        """Compiled: fills torch's cache of kernels on disk, as a server's first start does."""
        if self._bf16:
            insist_on_bf16()
        if not self._compiled:
            return
        self.load(job)
        if job.model == CLIPS:
            self.run(Ask("a red circle", 0, 2, 3.0), lambda: None)
        else:
            self.forward()

    def load(self, job: Job) -> None:
        """From the checkpoint."""
        import torch

        torch.set_num_threads(job.threads)
        if job.model == CLIPS:
            from benchmarks.peers.pipeline import load_pipeline

            self._pipeline = load_pipeline(job.checkpoint)
            if self._compiled:
                self._pipeline.transformer = torch.compile(self._pipeline.transformer)
            return
        model = TRANSFORMERS[job.model]
        dtype = torch.bfloat16 if self._bf16 else torch.float32
        module = torch_module(model, job, dtype)
        self._inputs = [
            torch.from_numpy(array) if name == "timestep" else torch.from_numpy(array).to(dtype)
            for name, array in model.inputs().items()
        ]
        self._call = torch.compile(module) if self._compiled else module

    def run(self, ask: Ask, first_frame: FirstFrame) -> Drawn:
        """A clip by WanPipeline."""
        from benchmarks.peers.pipeline import draw

        return draw(self._pipeline, ask, first_frame)

    def forward(self) -> NDArray[np.float32]:
        """An evaluation without gradients."""
        import torch

        with torch.inference_mode():
            output: NDArray[np.float32] = self._call(*self._inputs).float().numpy()
        return output


def insist_on_bf16() -> None:
    """Raises `Refused` where bfloat16 products are emulated, many times slower than float32's."""
    if not {"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()):
        raise Refused("this processor has no instructions for products of bfloat16")


def torch_module(model: Transformer, job: Job, dtype: Any = None) -> Any:
    """The transformer of a checkpoint, called with the arrays of `Transformer.inputs` in their order.

    Args:
        model: which.
        job: where its checkpoint lies.
        dtype: of weights, but for those that diffusers keeps in float32; None is float32.
    """
    import torch

    loaded = model.diffusers_class().from_pretrained(job.checkpoint, torch_dtype=dtype or torch.float32).eval()
    frames, height, width = model.latents

    class Wan(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = loaded

        def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
            return self.model(hidden_states, timestep, encoder_hidden_states, return_dict=False)[0]

    class Ltx(Wan):
        """As LTXPipeline calls it: latents as a list of tokens, which here are made on the way in and out."""

        def forward(  # type: ignore[override]
            self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any, encoder_attention_mask: Any
        ) -> Any:
            output = self.model(
                hidden_states=hidden_states.flatten(2).transpose(1, 2),
                encoder_hidden_states=encoder_hidden_states,
                timestep=timestep,
                encoder_attention_mask=encoder_attention_mask,
                num_frames=frames,
                height=height,
                width=width,
                rope_interpolation_scale=model.rope_scale,
                return_dict=False,
            )[0]
            return output.transpose(1, 2).reshape(hidden_states.shape)

    return (Wan if model.family == "wan" else Ltx)()
