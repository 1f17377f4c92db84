"""The shipped model with presets of a test's own, as `sora-bench frontier` would have written them."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sora_runtime.bundle import Bundle
from sora_runtime.machine import this_machine
from sora_runtime.presets import Preset


def preset(settings: Mapping[str, Any], *, seconds: float = 1.0, adherence: float | None = None, **more: Any) -> Preset:
    """A preset for the shipped size: `seconds` a clip on this machine, `evaluations` 1 if not said."""
    record: dict[str, Any] = {
        "settings": settings,
        "quality": {"prompts": 8, "adherence": adherence, "psnr_mean": more.pop("psnr_mean", 30.0)},
        "cost": {
            "machine": more.pop("machine", this_machine().name),
            "price_per_hour": 0.0816,
            "seconds_per_clip": seconds,
            "usd_per_second": 1e-5,
            "evaluations": more.pop("evaluations", 1.0),
        },
        "task": "t2v",
        "height": 64,
        "width": 64,
        "num_frames": 25,
        "created": "2026-11-28T00:00:00+00:00",
    }
    return Preset.model_validate({**record, **more})


def with_presets(presets: Mapping[str, Preset], model: str = "wan-pocket") -> Bundle:
    """A shipped bundle that has these presets, in memory."""
    bundle = Bundle.load(model)
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"presets": dict(presets)}))


def written(folder: Path, presets: Mapping[str, Any], model: str = "wan-pocket") -> Path:
    """A copy of a shipped bundle in `folder` whose bundle.json has these presets, records or anything else."""
    shutil.copytree(Bundle.load(model).root, folder)
    file = folder / "bundle.json"
    data = json.loads(file.read_bytes())
    records = {
        name: each.model_dump(mode="json") if isinstance(each, Preset) else each for name, each in presets.items()
    }
    file.write_text(json.dumps({**data, "presets": records}))
    return folder
