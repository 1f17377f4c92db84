"""Writes a distilled student as a diffusers folder: its own transformer and scheduler, the teacher's other parts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

# Noise levels 1, 0.9, 0.75, 0.5 of four steps: as 1, 3/4, 1/2, 1/4 shifted by 3, the teacher's own shift. The grid of
# Euler's scheduler runs down to the last trained timestep instead, where a step would be wasted; stretched to end on
# 0.5 and shifted by 2 it takes the same levels within 0.002.
SHIFT = 2.0
SHIFT_TERMINAL = 0.5

_SHARED = ("text_encoder", "tokenizer", "vae")


def student_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Euler's method on the levels that the student is trained for."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT, shift_terminal=SHIFT_TERMINAL)


def export(transformer: WanTransformer3DModel, teacher: Path, out: Path, num_inference_steps: int) -> None:
    """Write the pipeline that WanPipeline.from_pretrained loads, with sora_defaults.json, into `out`."""
    transformer.save_pretrained(out / "transformer", safe_serialization=True)
    _forget_origin(out / "transformer/config.json")
    student_scheduler().save_pretrained(out / "scheduler")
    for name in _SHARED:
        shutil.copytree(teacher / name, out / name, dirs_exist_ok=True)
    index = json.loads((teacher / "model_index.json").read_text())
    index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    defaults = json.loads((teacher / "sora_defaults.json").read_text())
    defaults |= {"num_inference_steps": num_inference_steps, "guidance_scale": 1.0}
    (out / "sora_defaults.json").write_text(json.dumps(defaults, indent=2) + "\n")
    for path in out.rglob("*.safetensors"):
        path.chmod(0o644)


def _forget_origin(file: Path) -> None:
    """Diffusers notes the folder that a model was loaded from; on another machine there is none such."""
    config = json.loads(file.read_text())
    config.pop("_name_or_path", None)
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
