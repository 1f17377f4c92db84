"""Compares a finished bundle with what it was made from: part by part, clip by clip, and against its error budget."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sora_export.adapted import Adapted
from sora_export.bundle_from_checkpoint import build_bundle
from sora_export.check_parts import PartError, part_errors, shapes_of
from sora_export.checkpoint import Checkpoint
from sora_export.emulation import emulated
from sora_export.manifest import file_record, write_manifest
from sora_export.parity import against
from sora_export.pocket.score import is_pocket
from sora_export.precision import Precision
from sora_export.staging import Staging, is_abandoned
from sora_runtime.bundle import Bundle
from sora_runtime.errors import OutputError
from sora_runtime.runtime import Runtime

Progress = Callable[[str], None]

FP32_BUDGET = 1e-4
"""Relative L2 of a float32 graph: two float32 engines differ by 1e-6 to 1e-5 (sums in another order)."""
HALF_BUDGET = 2.0
"""Times torch's own error in that dtype: another order of sums may round as badly, but not much worse."""
PSNR_BUDGET = 30.0
"""dB of a quantised model's frames against float32 from the same noise: no difference that a viewer would call one."""
ADHERENCE_BUDGET = 0.02
"""Loss of accuracy per attribute of a pocket model's held-out prompts."""

PROMPTS = (
    "a red circle moving left on a navy background",
    "a green triangle spinning on a white background",
    "a yellow square growing on a black background",
    "a sailing ship in a storm at night",
)


@dataclass(frozen=True)
class Measure:
    """One number with what it may be; None where nothing bounds it."""

    value: float
    budget: float | None
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the budget is kept; a value that is no number never keeps one."""
        if self.budget is None:
            return True
        return self.value >= self.budget if self.at_least else self.value <= self.budget

    def record(self) -> dict[str, Any]:
        """For bundle.json, where infinity is null: identical frames."""
        finite = self.value if np.isfinite(self.value) else None
        return {"value": finite, "budget": self.budget, "holds": self.holds}


@dataclass(frozen=True)
class CheckResult:
    """What was measured; also written to bundle.json under "check"."""

    precision: str
    parts: Mapping[str, Measure]
    """Relative L2 of each graph against torch in float32."""
    frames: Mapping[str, Mapping[str, Measure]]
    """PSNR in dB and SSIM of each prompt's clip against float32 from the same noise; empty for a float32 bundle."""
    adherence: Mapping[str, Measure]
    """Of a pocket model: accuracy of each attribute less float32's; empty for every other model."""

    def broken(self) -> list[str]:
        """The measures over their budgets, in words."""
        words = [f"{name}: {_said(m)}" for name, m in self.parts.items() if not m.holds]
        for prompt, measures in self.frames.items():
            words += [f"{name} of '{prompt}': {_said(m)}" for name, m in measures.items() if not m.holds]
        return words + [f"adherence of {name}: {_said(m)}" for name, m in self.adherence.items() if not m.holds]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "against": against(),
            "parts": {name: measure.record() for name, measure in self.parts.items()},
            "frames": {
                prompt: {name: measure.record() for name, measure in measures.items()}
                for prompt, measures in self.frames.items()
            },
            "adherence": {name: measure.record() for name, measure in self.adherence.items()},
        }


def _said(measure: Measure) -> str:
    return f"{measure.value:.3g} against {measure.budget:.3g}"


def check_bundle(
    folder: Path,
    *,
    prompts: Sequence[str] = PROMPTS,
    num_inference_steps: int | None = None,
    adherence_prompts: int = 240,
    record: bool = True,
    progress: Progress = lambda message: None,
) -> CheckResult:
    """Measures a bundle and writes what it finds into its bundle.json.

    Every graph runs on the CPU: one for TensorRT in float32 arithmetic with every value rounded as the engine rounds
    it (`sora_export.emulation`). Float32 bundles of the same shapes are the reference of whole clips.

    Args:
        folder: The bundle.
        prompts: For whole clips; those of image-to-video begin with a drawn picture.
        num_inference_steps: Of a clip; the model's own number if None.
        adherence_prompts: Held-out prompts of a pocket model's score; 0: none.
        record: Whether to write; a bundle that ships in the package is nobody's to change.
        progress: Called with one sentence for each piece of work.

    Raises:
        BundleError: The bundle is damaged.
        EngineError: A graph cannot be run.
        OutputError: bundle.json cannot be written.
    """
    manifest = json.loads((Bundle.load(folder, verify="always").root / "bundle.json").read_bytes())
    precision = manifest["precision"]
    with _workplace(folder) as temporary:
        subject = folder if manifest.get("engine", "onnxruntime") == "onnxruntime" else temporary / "emulated"
        if subject is not folder:
            emulate_bundle(folder, subject)
        parts = {part.graph: _measured(part) for part in part_errors(folder, progress)}
        frames: dict[str, dict[str, Measure]] = {}
        adherence: dict[str, Measure] = {}
        if precision != "fp32":
            reference = _float32(folder, temporary / "float32", manifest, progress)
            frames = _frames(reference, subject, prompts, num_inference_steps, Precision(precision).quantised, progress)
            if adherence_prompts and is_pocket(manifest):
                adherence = _adherence(reference, subject, adherence_prompts, progress)
    result = CheckResult(precision, parts, frames, adherence)
    if record:
        parity = {name: {"relative_l2": measure.value, "against": against()} for name, measure in parts.items()}
        write_manifest(folder, {**manifest, "parity": parity, "check": result.record()})
    return result


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder beside the bundle, so that its weights can be linked; those of checks that were killed go first."""
    parent, name = folder.absolute().parent, f"{folder.name}.check"
    for left in parent.glob(f".*.{name}"):
        if is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    path = parent / f".{os.getpid()}.{name}"
    try:
        path.mkdir()
    except OSError as error:
        raise OutputError(f"cannot write beside {folder} ({error.strerror}); check a copy of the bundle") from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _measured(part: PartError) -> Measure:
    budget = FP32_BUDGET if part.precision is Precision.FP32 else None
    return Measure(part.error, budget if part.torch_error is None else HALF_BUDGET * part.torch_error)


def emulate_bundle(folder: Path, out: Path) -> None:
    """A bundle for ONNX Runtime whose graphs round as the engines of `folder` do."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    with Staging(out) as staging:
        staging.link_checkpoint(Checkpoint(folder, manifest.get("merged", {})), lambda message: None)
        files = {}
        for name, record in manifest["files"].items():
            files[name] = record
            if name.endswith(".onnx"):
                ir.save(emulated(ir.load(folder / name)), staging.new_file(name))
                files[name] = file_record(staging.path_of(name))
            elif not (out / name).exists():
                staging.new_file(name).write_bytes((folder / name).read_bytes())
        changed = {"engine": "onnxruntime", "files": files}
        staging.finish(lambda: write_manifest(out, {**manifest, **changed}))


def _float32(folder: Path, out: Path, manifest: Mapping[str, Any], progress: Progress) -> Path:
    shapes = shapes_of(manifest)
    same = Adapted(folder, merged=manifest.get("merged", {}), few_step=manifest["facts"].get("few_step"))
    return build_bundle(
        same, out, shapes.sizes, shapes.num_frames, tasks=shapes.tasks, check_parity=False, progress=progress
    )


def _picture(height: int, width: int) -> NDArray[np.uint8]:
    """A bright disc on a slope of colour."""
    rows, columns = np.mgrid[:height, :width]
    disc = (rows - height / 2) ** 2 + (columns - width / 3) ** 2 < (min(height, width) / 4) ** 2
    slope = np.stack([rows * 200 / height, columns * 200 / width, np.full(rows.shape, 90.0)], axis=-1)
    return np.where(disc[..., None], 230, slope).astype(np.uint8)


def _frames(
    reference: Path,
    subject: Path,
    prompts: Sequence[str],
    num_inference_steps: int | None,
    quantised: bool,
    progress: Progress,
) -> dict[str, dict[str, Measure]]:
    from skimage.metrics import structural_similarity

    measures = {}
    with Runtime.load(reference) as exact, Runtime.load(subject) as rounded:
        facts = exact.bundle.manifest
        defaults = facts.facts.defaults
        image = None if "t2v" in facts.tasks else _picture(defaults.height, defaults.width)
        for seed, prompt in enumerate(prompts):
            progress(f"making a clip of '{prompt}' in both precisions")
            want, got = (
                runtime.generate(prompt, seed=seed, num_inference_steps=num_inference_steps, image=image).frames
                for runtime in (exact, rounded)
            )
            window = min(7, *want.shape[1:3])
            similarity = [
                structural_similarity(a, b, channel_axis=-1, win_size=window - (window + 1) % 2)
                for a, b in zip(want, got, strict=True)
            ]
            measures[prompt] = {
                "psnr": Measure(psnr(want, got), PSNR_BUDGET if quantised else None, at_least=True),
                "ssim": Measure(float(np.mean(similarity)), None),
            }
    return measures


def psnr(want: NDArray[np.uint8], got: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio over all frames and channels, in dB; infinity for equal clips."""
    error = float(np.mean((want.astype(np.float64) - got) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def _adherence(reference: Path, subject: Path, count: int, progress: Progress) -> dict[str, Measure]:
    from sora_export.pocket.captions import held_out_prompts
    from sora_export.pocket.score import ATTRIBUTES, score

    pairs, accuracy = held_out_prompts(count), []
    for folder in (reference, subject):
        progress(f"scoring {count} held-out prompts of {Bundle.load(folder).manifest.precision}")
        with Runtime.load(folder) as runtime:
            result = score(pairs, lambda prompt, _scene, seed: runtime.generate(prompt, seed=seed).frames, 0)
            accuracy.append(result["accuracy"])
    exact, rounded = accuracy
    return {
        name: Measure(rounded[name]["accuracy"] - exact[name]["accuracy"], -ADHERENCE_BUDGET, at_least=True)
        for name in ATTRIBUTES
    }
