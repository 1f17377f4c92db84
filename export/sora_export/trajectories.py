"""Real denoising trajectories: what each network of a bundle is given while clips are made, to calibrate with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sora_runtime.errors import InvalidRequest
from sora_runtime.runtime import Runtime

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
    """Makes a clip of every prompt at the bundle's default shape and keeps what each network was given.

    Both branches of guidance are kept, and every text once; the seed is the number of the prompt.

    Args:
        bundle: A float32 bundle for ONNX Runtime.
        prompts: What the clips show.
        num_inference_steps: Steps of each; the model's own number if None.
        progress: Called with one sentence for each prompt.

    Raises:
        InvalidRequest: A prompt does not fit the model.
        BundleError, EngineError: The bundle cannot be run.
    """
    trajectories = Trajectories()
    with Runtime.load(bundle) as runtime:
        runtime.observe(trajectories.add)
        for number, prompt in enumerate(prompts):
            progress(f"calibrating with prompt {number + 1} of {len(prompts)}")
            clip = runtime.generate(
                prompt.text, seed=number, num_inference_steps=num_inference_steps, image=prompt.image
            )
            trajectories.latents.append(clip.latents)
    return trajectories
