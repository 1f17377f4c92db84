"""What a chunked VAE decoder's graphs are given while a clip is decoded, to calibrate them with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.calibration import session_of

Feeds = dict[str, NDArray[Any]]


def decoder_feeds(first: Path, following: Path | None, latents: NDArray[np.float32]) -> Iterator[tuple[Path, Feeds]]:
    """Decodes latents [1, channels, frames, h, w] chunk by chunk; yields the graph and its inputs of each chunk.

    Args:
        first: The float32 graph of the first chunk.
        following: Of every later one; None where the first chunk is the whole clip.
        latents: As a sampler leaves them.

    Raises:
        EngineError: ONNX Runtime cannot load a graph.
    """
    sessions = {graph: session_of(ir.load(graph), graph.parent) for graph in (first, following) if graph is not None}
    start, graph, caches = 0, first, Feeds()
    while start < latents.shape[2]:
        session = sessions[graph]
        taken = next(entry.shape[2] for entry in session.get_inputs() if entry.name == "latents")
        feeds = {"latents": np.ascontiguousarray(latents[:, :, start : start + taken]), **caches}
        yield graph, feeds
        start += taken
        if following is None or start >= latents.shape[2]:
            return
        names = [entry.name for entry in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds), strict=True))
        caches = {name.replace("cache_out.", "cache_in."): array for name, array in outputs.items() if name != "frames"}
        graph = following
