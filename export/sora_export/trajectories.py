"""Real denoising trajectories: what each network of a bundle is given while clips are made, to calibrate with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime import _core
from sora_runtime.bundle import Bundle
from sora_runtime.denoise import Embeddings
from sora_runtime.encoders import TextEncoders
from sora_runtime.errors import InvalidRequest
from sora_runtime.machine import available_cores
from sora_runtime.programs import Programs
from sora_runtime.request import ResolvedRequest, resolve
from sora_runtime.stages import Stages
from sora_runtime.text import DEFAULT_CACHE_BYTES, TextUse

Feeds = dict[str, NDArray[Any]]
"""The inputs of one evaluation, by name."""


@dataclass(frozen=True)
class Prompt:
    """A line of a prompts file: a prompt and, behind a tab, the picture an image-to-video clip begins with."""

    text: str
    image: Path | None = None


@dataclass
class Trajectories:
    """What the networks were given: for each graph file, every evaluation of every clip in order."""

    feeds: dict[str, list[Feeds]] = field(default_factory=dict)
    latents: list[NDArray[np.float32]] = field(default_factory=list)
    """What each clip was denoised to, as the decoder takes it."""

    def add(self, graph: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Keeps copies of the inputs of one evaluation."""
        kept = self.feeds.setdefault(graph, [])
        kept.append({name: array.copy() for name, array in inputs.items()})


def read_prompts(file: Path) -> list[Prompt]:
    """The prompts of a file, one a line; empty lines and lines that begin with # are none.

    Raises:
        InvalidRequest: The file cannot be read or holds no prompt.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise InvalidRequest(f"prompts file {file} cannot be read ({reason}); give one prompt a line") from error
    prompts = []
    for line in lines:
        text, _, image = line.partition("\t")
        if text.strip() and not text.startswith("#"):
            prompts.append(Prompt(text.strip(), file.parent / image.strip() if image.strip() else None))
    if not prompts:
        raise InvalidRequest(f"prompts file {file} holds no prompt; give one a line")
    return prompts


def record_trajectories(
    bundle: Path,
    prompts: Sequence[Prompt],
    *,
    num_inference_steps: int | None = None,
    progress: Callable[[str], None] = lambda message: None,
) -> Trajectories:
    """Makes latents of every prompt at the bundle's default shape and keeps what each network was given.

    Both branches of guidance are kept, and the texts of both; the seed is the number of the prompt. Nothing
    is decoded.

    Args:
        bundle: A float32 bundle for ONNX Runtime.
        prompts: What the clips show.
        num_inference_steps: Steps of each; the model's own number if None.
        progress: Called with one sentence for each prompt.

    Raises:
        InvalidRequest: A prompt does not fit the model.
        BundleError, EngineError: The bundle cannot be run.
    """
    loaded, trajectories, threads = Bundle.load(bundle), Trajectories(), available_cores()
    recorder = _Recorder(loaded, Programs(loaded), trajectories, threads)
    for number, prompt in enumerate(prompts):
        progress(f"calibrating with prompt {number + 1} of {len(prompts)}")
        fields: dict[str, Any] = {"seed": number, "num_inference_steps": num_inference_steps, "image": prompt.image}
        recorder.record(resolve(prompt.text, fields, loaded.manifest))
    return trajectories


@dataclass
class _Recorder:
    bundle: Bundle
    programs: Programs
    trajectories: Trajectories
    num_threads: int

    def record(self, request: ResolvedRequest) -> None:
        program = self.programs(request)
        embeddings = self._embed(request, guided=bool(np.any(program.rows["guidance_scale"] != 1.0)))
        stages = Stages.load(self.bundle, request.bucket, request.geometry, num_threads=self.num_threads)
        try:
            shared = {} if stages.conditioner is None or request.image is None else dict(
                stages.conditioner(request.image, request.geometry)
            )  # fmt: skip
            scale = self.bundle.manifest.facts.embedded_guidance
            if scale is not None:
                shared["guidance"] = np.array([request.guidance_scale * scale], np.float32)
            self._see(request)
            graphs = stages.graphs[: stages.transformers]
            stages.denoiser.observe = lambda engine, inputs: self.trajectories.add(graphs[engine], inputs)
            noise = _core.NoiseGenerator(request.seed, num_threads=self.num_threads)
            result = stages.denoiser.run(
                program,
                Embeddings(embeddings.conditional, embeddings.unconditional, shared),
                noise.normal(stages.denoiser.latent_shape),
                noise=noise,
                on_step=None,
                cancel=None,
            )
            self.trajectories.latents.append(result.latents[:, :, request.geometry.padding :])
        finally:
            stages.close()

    def _see(self, request: ResolvedRequest) -> None:
        """What the vision encoder is given."""
        encoder, facts = self.bundle.manifest.components.image_encoder, self.bundle.manifest.facts.image
        if encoder is not None and request.image is not None and facts is not None and facts.image_encoder is not None:
            geometry, picture = request.geometry, request.image
            if facts.fit == "crop":
                picture = picture.covering(geometry.height, geometry.width)
            pixels = picture.pixel_values(facts.image_encoder)
            self.trajectories.add(encoder.graph, {"pixel_values": pixels})

    def _embed(self, request: ResolvedRequest, *, guided: bool) -> Embeddings:
        cache = _core.EmbeddingCache(DEFAULT_CACHE_BYTES)
        encoders = TextEncoders(self.bundle, num_threads=self.num_threads, cache=cache, store=None)
        texts = [("prompt", request.prompt)] + ([("negative_prompt", request.negative_prompt)] if guided else [])
        for name, text in texts:
            for encoder in encoders.encoders.values():
                ids = encoder.tokenize(text, name, TextUse())
                if ids is not None:
                    inputs: Feeds = {"input_ids": ids.input_ids, "attention_mask": ids.attention_mask}
                    seen = encoder.record.image_input
                    if seen is not None and request.image is not None:
                        inputs["pixel_values"] = request.image.pixel_values(seen)
                    used = {key: inputs[key] for key in encoder.record.inputs if key in inputs}
                    self.trajectories.add(encoder.record.graph, used)
        branches, _ = encoders.embed(texts, request.image, lambda stage, done, total: None, None)
        encoders.close()
        return Embeddings(branches[0], branches[1] if guided else None)
