"""Converts a float32 bundle to another precision: new small graphs over the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.calibration import CalibrationResult, calibrate
from sora_export.checkpoint import Checkpoint
from sora_export.decoder_feeds import decoder_feeds
from sora_export.graph_report import report
from sora_export.manifest import file_record, write_manifest
from sora_export.precision import EngineName, Part, Precision, choose
from sora_export.quantize_onnx import to_precision
from sora_export.sensitivity import keep_sensitive
from sora_export.staging import Staging
from sora_export.trajectories import Prompt, record_trajectories
from sora_runtime.errors import InvalidRequest, OutputError

Progress = Callable[[str], None]
Statistics = CalibrationResult
_SENSITIVITY_FEEDS = 4
"""Evaluations, spread over a trajectory, that layers' losses are measured on."""

PARTS: Mapping[str, Part] = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder",
    "image_encoder": "image_encoder",
    "transformer": "transformer",
    "transformer_2": "transformer",
    "vae_decoder": "vae_decoder",
    "vae_encoder": "vae_encoder",
}


def graphs_of(components: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(component, graph file) of every graph that bundle.json's "components" name."""
    for name, entry in components.items():
        if entry is None:
            continue
        for bucket in entry.get("buckets", [entry]):
            for key in ("graph", "first", "next"):
                if bucket.get(key) is not None:
                    yield name, bucket[key]


def calibrate_bundle(
    bundle: Path,
    prompts: Sequence[Prompt],
    num_inference_steps: int | None,
    progress: Progress,
    sensitive_to: Precision | None = None,
) -> dict[str, Statistics]:
    """The ranges of activations in every component that the prompts' clips evaluate.

    All buckets of a component share its weights' names, so that what was measured at one shape serves all.

    Args:
        bundle: A float32 bundle.
        prompts: What the clips show.
        num_inference_steps: Of each clip; the model's own number if None.
        progress: Called with one sentence for each piece of work.
        sensitive_to: Which precision for TensorRT to find the layers of a transformer that lose most in, which
            then stay in high precision; None keeps none.

    Raises:
        InvalidRequest: A prompt does not fit the model.
        BundleError, EngineError: The bundle cannot be run.
    """
    recorded = record_trajectories(bundle, prompts, num_inference_steps=num_inference_steps, progress=progress)
    manifest = json.loads((bundle / "bundle.json").read_bytes())
    statistics: dict[str, Statistics] = {}
    decoder = _decoder(manifest) if sensitive_to is None else None  # TensorRT's convolutions stay in half precision
    for graph in (decoder["first"], decoder.get("next")) if decoder is not None else ():
        if graph is not None:
            progress(f"measuring the activations of {graph}")
            found = calibrate(bundle / graph, _decoded(bundle, decoder, graph, recorded.latents))
            known = statistics.get("vae_decoder")
            statistics["vae_decoder"] = found if known is None else known.merged(found)
    for component, graph in graphs_of(manifest["components"]):
        feeds = recorded.feeds.get(graph)
        if feeds is None:
            continue
        progress(f"measuring the activations of {graph}")
        found = calibrate(bundle / graph, feeds)
        if sensitive_to is not None and PARTS[component] == "transformer":
            progress(f"looking for the layers of {graph} that lose most in {sensitive_to}")
            some = feeds[:: max(len(feeds) // _SENSITIVITY_FEEDS, 1)]
            found = keep_sensitive(bundle / graph, some, found, sensitive_to, "transformer")
        statistics[component] = statistics[component].merged(found) if component in statistics else found
    return statistics


def _decoded(
    bundle: Path, decoder: Mapping[str, Any] | None, graph: str, clips: Sequence[NDArray[np.float32]]
) -> Iterator[Mapping[str, NDArray[Any]]]:
    """What a decoder's graph is given, one chunk after the other: its caches at 480p are gigabytes, never kept."""
    assert decoder is not None
    following = bundle / decoder["next"] if decoder.get("next") else None
    for latents in clips:
        for path, inputs in decoder_feeds(bundle / decoder["first"], following, latents):
            if path.name == graph:
                yield inputs


def _decoder(manifest: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The bucket of a chunked decoder at the default shape, which trajectories have."""
    decoder, defaults = manifest["components"]["vae_decoder"], manifest["facts"]["defaults"]
    for bucket in decoder["buckets"] if decoder["kind"] == "chunked" else ():
        same = all(bucket[side] == defaults[side] for side in ("height", "width"))
        if same and bucket.get("num_frames") in (None, defaults["num_frames"]):
            return dict(bucket)
    return None


def convert_bundle(
    source: Path,
    out: Path,
    precision: Precision,
    engine: EngineName,
    statistics: Mapping[str, Statistics],
    progress: Progress,
) -> Path:
    """Writes a bundle whose graphs are those of `source` in another precision.

    The checkpoint's files are linked, not copied; only what `to_precision` quantises for ONNX Runtime is new data.

    Args:
        source: A float32 bundle.
        out: The new bundle's folder; may hold the same checkpoint already.
        precision: Of the matrix products; see `sora_export.precision.choose`.
        engine: What is to run the graphs.
        statistics: Of `calibrate_bundle`, by component.
        progress: Called with one sentence for each graph.

    Returns:
        The path of the bundle's folder.

    Raises:
        InvalidRequest: The engine does not have that precision, or statistics are missing.
        OutputError: Something cannot be written; `out` is as it was.
    """
    manifest = json.loads((source / "bundle.json").read_bytes())
    try:
        with Staging(out) as staging:
            staging.link_checkpoint(Checkpoint(source, manifest.get("merged", {})), progress)
            return _Conversion(source, out, precision, engine, statistics, staging, progress).run(manifest)
    except OSError as error:
        raise OutputError(
            f"{error.filename or out} cannot be read or written ({error.strerror or error}); "
            "check the disk and its permissions"
        ) from error


class _Conversion:
    """One run: the graphs written so far and the files they need."""

    def __init__(
        self,
        source: Path,
        out: Path,
        precision: Precision,
        engine: EngineName,
        statistics: Mapping[str, Statistics],
        staging: Staging,
        progress: Progress,
    ) -> None:
        self.source, self.out = source, out
        self.precision, self.engine = precision, engine
        self.statistics, self.staging, self.progress = statistics, staging, progress

    def run(self, manifest: dict[str, Any]) -> Path:
        files = {name: record for name, record in manifest["files"].items() if not name.endswith(".onnx")}
        for name in files:
            if "/" not in name and name != "model_index.json":  # tokenizers: written by the build, not linked
                target = self.staging.new_file(name)
                target.write_bytes((self.source / name).read_bytes())
        reports = {}
        for component, graph in graphs_of(manifest["components"]):
            path, reports[graph] = self._convert(component, graph, self._precision_of(component))
            files[graph] = file_record(path)
            for data in set(files[graph]["data"]) - set(files):
                files[data] = file_record(self.out / data)
        changed = {
            "precision": str(self.precision),
            "engine": self.engine,
            "files": files,
            "reports": reports,
            "parity": self._parity(manifest),
            "step_reuse": [],  # what was calibrated holds for the precision that it was measured in
        }
        self.progress("writing bundle.json")
        self.staging.finish(lambda: write_manifest(self.out, {**manifest, **changed}))
        return self.out

    def _precision_of(self, component: str) -> Precision:
        """What was asked for, or bfloat16 where no prompt evaluated the component: its scales are not known."""
        part = PARTS[component]
        linears = choose(self.precision, engine=self.engine, part=part).linears
        if self.engine == "onnxruntime" or not linears.quantised or component in self.statistics:
            return self.precision
        if not self.statistics:
            raise InvalidRequest(
                f"precision {self.precision} for {self.engine} takes its scales from real clips; "
                "give prompts with --calibration"
            )
        self.progress(f"no prompt evaluated {component}, which stays in bf16")
        return Precision.BF16

    def _convert(self, component: str, graph: str, precision: Precision) -> tuple[Path, dict[str, Any]]:
        self.progress(f"converting {graph} to {precision}")
        model = ir.load(self.source / graph)
        data_file = f"{precision}/{component}.safetensors"
        self.staging.will_create(data_file)
        to_precision(
            model,
            precision,
            engine=self.engine,
            part=PARTS[component],
            calibration=self.statistics.get(component),
            root=self.out,
            data_file=data_file,
        )
        for file in (self.out / precision).glob(f"{component}.*.safetensors"):
            self.staging.will_create(f"{precision}/{file.name}")  # of a later bucket's own weights
        path = self.staging.new_file(graph)
        ir.save(model, path)
        return path, {"precision": str(self._achieved(component, precision)), **report(model)}

    def _achieved(self, component: str, precision: Precision) -> Precision:
        """The format of most of a component's arithmetic, which may be higher than what was asked for."""
        choice = choose(precision, engine=self.engine, part=PARTS[component])
        if not component.startswith("vae"):
            return choice.linears
        calibrated = component in self.statistics or not choice.convolutions.quantised
        return choice.convolutions if calibrated else Precision.FP32

    def _parity(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        reason = f"measured for fp32 only; `sora-bench check` compares {self.precision}"
        return {name: {"relative_l2": None, "reason": reason} for name in manifest["parity"]}
