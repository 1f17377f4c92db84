"""Builds a bundle: graphs beside a diffusers checkpoint whose weights they point into."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sora_export import parity
from sora_export.adapted import Adapted, as_adapted, records
from sora_export.checkpoint import Checkpoint
from sora_export.defaults import read_defaults, with_defaults
from sora_export.external_data import attach_weights, read_weights
from sora_export.families import Component, Family, Shapes, family_of
from sora_export.few_step import with_few_step
from sora_export.graph_report import report
from sora_export.manifest import file_record, made_by, sha256_of, write_manifest
from sora_export.merge import write_merged
from sora_export.onnx_from_torch import onnx_from_torch
from sora_export.staging import Staging
from sora_export.tokenizer import write_tokenizer
from sora_runtime.errors import InvalidRequest, OutputError

Progress = Callable[[str], None]


def build_bundle(
    checkpoint: Path | str | Adapted,
    out: Path | str,
    sizes: Sequence[tuple[int, int]],
    num_frames: Sequence[int],
    *,
    tasks: Sequence[str] | None = None,
    name: str | None = None,
    check_parity: bool = True,
    progress: Progress = lambda message: None,
) -> Path:
    """Builds a bundle of a diffusers checkpoint for some static shapes.

    The weights stay where they are: with `out` elsewhere, the checkpoint's files are hard-linked
    into it. Graphs get their names, and bundle.json is written, only when all graphs agree with
    torch; a build that fails leaves `out` as it was.

    Args:
        checkpoint: A folder that diffusers' `save_pretrained` wrote, with safetensors weights; with adapters as an
            `Adapted`, whose merged weights are new files beside them.
        out: The bundle's folder; may be `checkpoint` itself.
        sizes: (height, width) in pixels; each is combined with each of `num_frames`.
        num_frames: Numbers of frames, 4k+1 for a VAE with a temporal stride of 4.
        tasks: "t2v" (from a prompt) and "i2v" (from a picture too); None: all that the checkpoint is for.
        name: The model's name in receipts; the folder's name if None.
        check_parity: Whether to compare every graph with torch on the real weights, which takes
            the memory of the largest component twice in float32.
        progress: Called with one sentence at the start of every piece of work.

    Returns:
        The path of the bundle's folder.

    Raises:
        InvalidRequest: A size or number of frames that the model cannot make, or an adapter of another model.
        BundleError: The checkpoint is incomplete, is a pickle, or is of an unknown pipeline.
        EngineError: A graph differs from torch by more than `parity.MAX_RELATIVE_L2`.
    """
    adapted, target = as_adapted(checkpoint), Path(out).absolute()
    source = adapted.source()
    family = family_of(source)
    for folder in source.weight_folders():
        read_weights(source.weight_files(folder))
    user, plans = read_defaults(source), adapted.plans(family)
    facts = family.read_facts(source)
    shapes = chosen_shapes(facts.pop("tasks"), tasks, sizes, num_frames)
    facts = with_few_step(with_defaults(facts, user, shapes), adapted.levels(user), source)
    check_shapes(facts, shapes)
    try:
        with Staging(target) as staging:
            staging.link_checkpoint(source, progress)
            merged = dict(adapted.merged) | write_merged(Checkpoint(target), plans, staging, progress)
            build = _Build(Checkpoint(target, merged), family, facts, shapes, staging, progress)
            manifest = build.run(name or source.root.name, user.get("license"), check_parity)
            manifest |= {"adapters": records(plans), "merged": merged}
            progress("writing bundle.json")
            staging.finish(lambda: write_manifest(target, manifest))
    except OSError as error:
        raise OutputError(
            f"{error.filename or target} cannot be read or written ({error.strerror or error}); "
            "check the disk and its permissions"
        ) from error
    return target


def chosen_shapes(
    known: Sequence[str], wanted: Sequence[str] | None, sizes: Sequence[tuple[int, int]], num_frames: Sequence[int]
) -> Shapes:
    """The shapes and tasks to build, each once.

    Raises:
        InvalidRequest: There are none, or a task is not among `known`.
    """
    for task in wanted or ():
        if task not in known:
            raise InvalidRequest(f"task {task!r} is not what this checkpoint is for; use {' or '.join(known)}")
    if not sizes or not num_frames:
        raise InvalidRequest("there is nothing to build; give a size and a number of frames")
    tasks = [task for task in known if not wanted or task in wanted]
    return Shapes(list(dict.fromkeys(sizes)), list(dict.fromkeys(num_frames)), tasks)


def check_shapes(facts: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuses shapes that do not divide into latents and patches.

    Raises:
        InvalidRequest: Names the value and the nearest valid ones.
    """
    patch_frames, *patch_size = facts["patch_size"]
    for size in shapes.sizes:
        for key, value, patch in zip(("height", "width"), size, patch_size, strict=True):
            step = facts["spatial_stride"] * patch
            if value <= 0 or value % step:
                low = max(value // step, 1) * step
                near = f"{low} or {low + step}" if value > step else f"{step}"
                raise InvalidRequest(
                    f"{key} = {value} is not a multiple of {step} (stride "
                    f"{facts['spatial_stride']} x patch {patch}); use {near}"
                )
    if facts.get("pad_latent_frames"):
        patch_frames = 1
    stride = facts["temporal_stride"] * patch_frames
    for frames in shapes.num_frames:
        first = 1 + facts["temporal_stride"] * (patch_frames - 1)
        if frames < first or (frames - first) % stride:
            low = first + max((frames - first) // stride, 0) * stride
            near = f"{low} or {low + stride}" if frames > first else f"{first}"
            raise InvalidRequest(f"num_frames = {frames} is not {stride}k+{first}; use {near}")


@dataclass
class _Build:
    """One run of the builder: what it reads, what it has written so far."""

    checkpoint: Checkpoint
    family: Family
    facts: dict[str, Any]
    shapes: Shapes
    staging: Staging
    progress: Progress

    def run(self, name: str, license_name: str | None, check_parity: bool) -> dict[str, Any]:
        """Writes every graph under a temporary name and returns what bundle.json is to say."""
        entries: dict[str, Any] = {}
        reports: dict[str, Any] = {}
        errors: dict[str, Any] = {}
        for component in self._components:
            for file in component.graphs:
                reports[file] = self._export(component, file)
            errors |= self._parity(component, check_parity)
            entries[component.name] = dict(component.entry)
            if component.tokenizer_folder is not None:
                file = f"{component.tokenizer_folder}.json"
                write_tokenizer(self.checkpoint, component.tokenizer_folder, self.staging.new_file(file))
                entries[component.name]["tokenizer"] = file
            if component.fingerprinted:
                entries[component.name]["fingerprint"] = self._fingerprint(component)
        files = {relative: file_record(path) for relative, path in self._files()}
        return {
            "schema_version": 2,
            "name": name,
            "family": self.family.NAME,
            "tasks": self.shapes.tasks,
            "engine": "onnxruntime",
            "precision": "fp32",
            "license": license_name,
            "facts": self.facts,
            "scheduler": "scheduler/scheduler_config.json",
            "components": entries,
            "files": files,
            "parity": errors,
            "reports": reports,
            "made_by": made_by(),
        }

    @cached_property
    def _components(self) -> list[Component]:
        return list(self.family.components(self.checkpoint, self.facts, self.shapes))

    def _export(self, component: Component, file: str) -> dict[str, Any]:
        self.progress(f"exporting {file}")
        exported = onnx_from_torch(component.graphs[file])
        weights = read_weights(self.checkpoint.weight_files(component.folder))
        attach_weights(exported.model, exported.parameters, weights, self.checkpoint.root)
        ir.save(exported.model, self.staging.new_file(file))
        return report(exported.model)

    def _parity(self, component: Component, check: bool) -> dict[str, Any]:
        if not check:
            reason = "the build was asked not to compare with torch"
            return {file: {"relative_l2": None, "reason": reason} for file in component.graphs}
        self.progress(f"comparing {component.name} with torch")
        errors = parity.measure(component, component.load_reference(), self.staging.path_of)
        return {file: {"relative_l2": error, "against": parity.against()} for file, error in errors.items()}

    def _fingerprint(self, component: Component) -> str:
        """sha256 over config, weights and graph: anything that can change what the part returns."""
        weights = self.checkpoint.weight_files(component.folder)
        graphs = [self.staging.path_of(file) for file in component.graphs]
        config = self.checkpoint.root / component.folder / "config.json"
        parts = [sha256_of(path) for path in (config, *weights, *graphs)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Every file the bundle relies on: its name in bundle.json and where it lies now."""
        root = self.checkpoint.root
        fixed = [root / "model_index.json", root / "scheduler/scheduler_config.json"]
        for component in self._components:
            fixed.append(root / component.folder / "config.json")
            fixed += self.checkpoint.weight_files(component.folder)
        for path in dict.fromkeys(fixed):
            yield path.relative_to(root).as_posix(), path
        yield from self.staging.new_files()
