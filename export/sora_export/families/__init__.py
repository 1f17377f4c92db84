"""What a model family tells the builder, and which family a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray

from sora_export.adapter_modules import Renaming
from sora_export.checkpoint import Checkpoint
from sora_export.onnx_from_torch import TorchGraph
from sora_runtime.errors import BundleError

Arrays = Mapping[str, NDArray[Any]]
RunGraph = Callable[[str, Arrays], Arrays]
"""Runs the graph file of that name on named arrays and returns its named outputs."""
Pair = tuple[NDArray[np.float32], NDArray[np.float32]]
"""What the graph gave and what torch gave."""


@dataclass(frozen=True)
class Shapes:
    """The static shapes to build: every size is combined with every number of frames."""

    sizes: Sequence[tuple[int, int]]
    """(height, width) in pixels."""
    num_frames: Sequence[int]
    tasks: Sequence[str] = ("t2v",)
    """"t2v" and "i2v"; a subset of what the checkpoint supports."""


@dataclass(frozen=True)
class Component:
    """A part of a model: the graphs it becomes and how to prove them right.

    `compare(reference, run)` feeds seeded inputs to the untouched torch module and, through `run`,
    to the graphs; it returns one pair of results for each graph file.
    """

    name: str
    """Its key in bundle.json."""
    folder: str
    """The folder of the checkpoint that holds its weights."""
    graphs: Mapping[str, TorchGraph]
    """File name to graph, one or several a shape bucket."""
    entry: Mapping[str, Any]
    """Its value in bundle.json."""
    load_reference: Callable[[], torch.nn.Module]
    """Loads the weights into torch, in float32."""
    compare: Callable[[torch.nn.Module, RunGraph], Mapping[str, Pair]]
    fingerprinted: bool = False
    """Whether its outputs are cached across runs, so that bundle.json must identify it."""
    tokenizer_folder: str | None = None
    """The folder of the checkpoint with its tokenizer; the builder writes one file from it and names
    that file in the entry as "tokenizer"."""


class Family(Protocol):
    """A model family. Implementations are modules of this package that define these names."""

    NAME: str
    PIPELINES: Sequence[str]
    RENAMINGS: Sequence[Renaming]
    """What the original code of the models calls their transformer's modules, which adapters may be named by."""

    def read_facts(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Reads bundle.json's "facts", but for the defaults, from the configs."""
        ...

    def components(self, checkpoint: Checkpoint, facts: Mapping[str, Any], shapes: Shapes) -> Iterator[Component]:
        """Describes every part; nothing is loaded or exported yet."""
        ...


_FAMILIES = ("wan", "ltx", "cogvideox", "hunyuan", "hunyuan15")


def family_of(checkpoint: Checkpoint) -> Family:
    """The family whose pipelines include the one named in model_index.json.

    Raises:
        BundleError: No family builds this pipeline.
    """
    families = _families()
    for family in families:
        if checkpoint.pipeline in family.PIPELINES:
            return family
    known = ", ".join(name for family in families for name in family.PIPELINES)
    raise BundleError(f"{checkpoint.root} is a {checkpoint.pipeline}, which cannot be built yet; give one of: {known}")


def _families() -> list[Family]:
    """The modules of `_FAMILIES` that this installation has, in that order."""
    here = [name for name in _FAMILIES if find_spec(f"{__name__}.{name}") is not None]
    return [cast(Family, import_module(f"{__name__}.{name}")) for name in here]
