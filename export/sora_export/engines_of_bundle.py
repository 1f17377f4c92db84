"""Builds the engines of all graphs of a bundle and records them in bundle.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sora_export.convert_bundle import graphs_of
from sora_export.engine_from_onnx import EngineOptions, cached_engine
from sora_export.manifest import write_manifest
from sora_runtime.bundle import Bundle
from sora_runtime.engines.store import PLAN, EnginePlan, EngineStore

Progress = Callable[[str], None]


def build_engines(folder: Path, options: EngineOptions, store: EngineStore, progress: Progress) -> list[dict[str, Any]]:
    """Builds what the store does not have yet: for each graph and each compute capability an engine of its own.

    One engine can serve several devices, but then has the kernels of the least of them: an FP8 block for Ada and
    Blackwell together has 35 layers instead of 17.

    bundle.json gets a list "engines": for each its graph, target, name in the store, sha256, size, build time and the
    report on its fusions. A bundle that is moved takes its engines along by copying the store.

    Args:
        folder: The bundle.
        options: For which library and devices, and where the weights go.
        store: Where the engines are kept.
        progress: Called with one sentence for each engine.

    Returns:
        The list.

    Raises:
        BundleError: The bundle is damaged.
        EngineError: The library is not installed or refuses a graph.
        OutputError: An engine or bundle.json cannot be written.
    """
    bundle = Bundle.load(folder)
    manifest = json.loads((folder / "bundle.json").read_bytes())
    graphs = list(graphs_of(manifest["components"]))
    targets: list[tuple[str, ...]] = [(target,) for target in options.compute_capabilities] or [()]
    records: list[dict[str, Any]] = []
    for target in targets:
        for component, graph in graphs:
            # A VAE's attention has one head, for which there is no fused kernel; it is a small part of the VAE's work.
            own = replace(options, compute_capabilities=target, unfused_attention=component.startswith("vae"))
            done, total = len(records) + 1, len(graphs) * len(targets)
            progress(f"building engine {done} of {total}: {graph} for {', '.join(target) or 'this GPU'}")
            with cached_engine(store, bundle.path(graph), bundle.fingerprint(graph), own) as plan:
                records.append({"component": component, "graph": graph, **_record(plan)})
    write_manifest(folder, {**manifest, "engines": records})
    return records


def _record(plan: EnginePlan) -> dict[str, Any]:
    manifest = plan.manifest
    return {
        "library": manifest.key.library,
        "version": manifest.key.version,
        "compute_capabilities": list(manifest.key.compute_capabilities),
        "digest": manifest.key.digest,
        "sha256": manifest.files[PLAN].sha256,
        "size": manifest.files[PLAN].size,
        "build_seconds": manifest.build_seconds,
        "report": manifest.report,
    }
